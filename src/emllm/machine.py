"""What this machine has left, asked of the system alone: nothing here imports torch."""

from __future__ import annotations

import os
from pathlib import Path


def free_ram_bytes() -> int:
    """Bytes of RAM that could be had now; without ``/proc`` all that the machine has."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
