"""The most memory that was taken while something ran: of this process, and of its CUDA devices.

A process's peak resident size only ever rises, so what came before would show in what comes after. Linux
lets a process start it anew (proc(5), ``clear_refs``); elsewhere, and where that file cannot be written, the
peak is that of the whole process, and said to be. This module does not know what runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from emllm.answers import peak_rss_bytes

_PROCESS = Path("/proc/self")
#: Written to ``clear_refs`` it starts the peak resident size anew.
_RESET = "5"
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Peaks:
    """What was taken at most.

    Attributes:
        rss_bytes: resident size of this process.
        since: `sample`, or `process` where the peak cannot be started anew.
        device_bytes: allocated by torch on all devices, each at its own peak; None without a CUDA device.
    """

    rss_bytes: int
    since: str
    device_bytes: int | None


class PeakMeter:
    """Measures from each `start` on.

    Args:
        devices: that the model lies on; those that are not CUDA's are passed over.
    """

    def __init__(self, devices: Sequence[torch.device] = ()) -> None:
        self._devices = [device for device in dict.fromkeys(devices) if device.type == "cuda"]
        self._is_anew = False

    def start(self) -> None:
        """Forget all peaks so far."""
        self._is_anew = _start_anew()
        for device in self._devices:
            torch.cuda.reset_peak_memory_stats(device)

    def peaks(self) -> Peaks:
        """Since `start`, or of the process where it was never started."""
        rss_bytes = _peak_since_start() if self._is_anew else None
        device_bytes = sum(torch.cuda.max_memory_allocated(device) for device in self._devices)
        return Peaks(
            rss_bytes=peak_rss_bytes() if rss_bytes is None else rss_bytes,
            since="process" if rss_bytes is None else "sample",
            device_bytes=device_bytes if self._devices else None,
        )


def _start_anew() -> bool:
    """Whether the process's peak could be started anew."""
    try:
        (_PROCESS / "clear_refs").write_text(_RESET)
    except OSError:
        return False
    return True


def _peak_since_start() -> int | None:
    try:
        found = _PEAK.search((_PROCESS / "status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
