"""Who may write a memory, and whether anybody reads it: two advisory locks of the operating system.

They are gone when their process is, however it ended. The writer's lock says who holds it; who reads is
asked of the system where it tells. This module does not know what is protected.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

from emllm.errors import StoreError
from emllm.store import disk

#: How long to wait for somebody who needs a memory for a moment only.
WAIT_SECONDS = 10.0
_MODE = 0o666
_LARGEST_HOLDER_BYTES = 300


class Lock:
    """A lock that is held until `release`, or until nobody has it any more."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Use `write_lock`, `read_lock` or `alone`."""
        self.path = path
        self._descriptor = descriptor
        self._closing = disk.closing(self, descriptor)

    def release(self) -> None:
        """Gives it back; once is enough, twice is no error."""
        self._closing()

    def write(self, text: str) -> None:
        """Says who holds it, as far as the disk lets."""
        if self._closing.alive:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, text.encode(), 0)


def write_lock(path: Path) -> Lock:
    """The writer's lock of a memory.

    Raises:
        StoreError: somebody else writes; says who.
    """
    with disk.translated("lock", path):
        descriptor = _open(path, os.O_RDWR)
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            holder = os.pread(descriptor, _LARGEST_HOLDER_BYTES, 0).decode(errors="replace")
            os.close(descriptor)
            raise StoreError(f"{path.parent}: is being written by {_printable(holder) or 'another process'}")
    lock = Lock(path, descriptor)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    return lock


def read_lock(path: Path, *, seconds: float) -> Lock | None:
    """A reader's lock of a memory, shared with other readers; None where a memory has none to give.

    Args:
        path: its file, which a memory on a read-only disk may lack.
        seconds: how long to wait for somebody who needs the memory alone.

    Raises:
        StoreError: the time is over.
    """
    with disk.translated("lock", path):
        if not path.exists() and not os.access(path.parent, os.W_OK):
            return None
        descriptor = _open(path, os.O_RDWR if os.access(path.parent, os.W_OK) else os.O_RDONLY)
        if not _wait_for_lock(descriptor, fcntl.LOCK_SH, seconds):
            os.close(descriptor)
            raise StoreError(f"{path.parent}: is being compacted by another process; try again later")
    return Lock(path, descriptor)


def alone(path: Path, *, seconds: float = 0.0) -> Lock | None:
    """The lock that excludes readers; None where there are some, and still are after so many seconds."""
    with disk.translated("lock", path):
        descriptor = _open(path, os.O_RDWR)
        if _wait_for_lock(descriptor, fcntl.LOCK_EX, seconds):
            return Lock(path, descriptor)
        os.close(descriptor)
    return None


def holders(path: Path) -> list[int]:
    """Processes that hold a lock on a file, where the system tells; the numbers that it knows them by."""
    try:
        inode = str(path.stat().st_ino)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return sorted({int(one[4]) for one in fields if one[1] == "FLOCK" and one[5].split(":")[-1] == inode})


def _open(path: Path, how: int) -> int:
    create = os.O_CREAT if how == os.O_RDWR else 0
    descriptor = os.open(path, how | create | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _MODE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"{path}: is not a regular file")
    return descriptor


def _wait_for_lock(descriptor: int, kind: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not _try_lock(descriptor, kind):
        if time.monotonic() >= until:
            return False
        time.sleep(0.01)
    return True


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        os.close(descriptor)
        raise
    return True


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())
