"""A place beside a memory for what is made there first: a copy, or what the memory is to become.

Its name is a new one each time, and whoever works there holds its lock: so nobody's folder is taken for it,
two processes do not meet, and what a killed one left is known and removed. This module does not know what
is made.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emllm.errors import StoreError
from emllm.store import disk, locks
from emllm.store.place import WRITER_LOCK

_INSIDE = "memory"


@contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """Where nothing is yet, on the disk of ``path``; what is there when the block ends is deleted.

    What killed processes left of theirs for the same ``path`` is removed first.

    Raises:
        StoreError: nothing can be made beside ``path``.
    """
    path = path.resolve()  # beside the folder, not beside a link to it
    with disk.translated("write", path.parent):
        for left in path.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(path.name)}\.emllm-[0-9a-f]{{8}}", left.name):
                _remove_if_left(left)
        place = path.with_name(f".{path.name}.emllm-{secrets.token_hex(4)}")
        disk.make_folder(place)
    try:
        lock = locks.write_lock(place / WRITER_LOCK)
    except BaseException:
        _remove(place)
        raise
    try:
        yield place / _INSIDE
    finally:
        _remove(place)
        lock.release()


def _remove_if_left(place: Path) -> None:
    """Remove a workplace unless somebody works there; one that is empty may just be made, and is left."""
    if place.is_symlink() or not (place / WRITER_LOCK).is_file():
        return
    with suppress(StoreError):
        lock = locks.alone(place / WRITER_LOCK)
        if lock is not None:
            _remove(place)
            lock.release()


def _remove(place: Path) -> None:
    with suppress(OSError):
        disk.remove_tree(place)
