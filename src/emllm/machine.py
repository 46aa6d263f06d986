"""What this machine has left, how it hands out memory, and when it interrupts; nothing here imports torch."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

#: Names of glibc's `mallopt`, and what we ask for: blocks up to a gigabyte come from memory that is kept.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees; for a program's start, not for a library.

    A chunk's logits are 50 MB and more, which the C library by default gets from the system anew each time,
    and the system fills them with zeros page by page: a tenth of the time of reading. Where there is no
    glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back_freed_memory() -> None:
    """Return to the system what this process has freed; worth it after something large and rare.

    Many small blocks, such as a tokenizer's, stay with the process otherwise, whatever `keep_freed_memory`
    said. Where there is no glibc nothing happens.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_ram_bytes() -> int:
    """Bytes of RAM that could be had now; without ``/proc`` all that the machine has."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def on_interrupt(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Ctrl-C calls `handler` inside the block, unless this process was started to ignore it.

    In another thread than the main one it never comes anyway.
    """
    before = signal.getsignal(signal.SIGINT)
    is_elsewhere = threading.current_thread() is not threading.main_thread()
    if is_elsewhere or before is None or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of the block."""
    waiting: list[int] = []
    try:
        with on_interrupt(lambda number, _: waiting.append(number)):
            yield
    finally:
        if waiting:
            signal.raise_signal(signal.SIGINT)
