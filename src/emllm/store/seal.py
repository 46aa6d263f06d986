"""The seal on a catalogue that was closed cleanly: size and hash of its file, in a file beside it.

SQLite checks little of what it reads, so between two writers the seal answers for every byte. The first
commit of a writer breaks it, the clean end of the writer makes it anew; after a crash there is none, and
the catalogue's own checksums have to do. This module does not know what a catalogue holds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from emllm.errors import StoreError
from emllm.store import disk

_LARGEST_SEAL_BYTES = 1000


def seal_path(path: Path) -> Path:
    """Where the seal of a catalogue is."""
    return path.with_name("catalogue.crc")


def write_seal(path: Path) -> None:
    """Seals a catalogue that nobody has open for writing; durable when this returns."""
    disk.publish_bytes(seal_path(path), json.dumps(_fingerprint(path)).encode())


def break_seal(path: Path) -> None:
    """Takes the seal off, durably, before the first change."""
    if seal_path(path).exists():
        disk.unlink(seal_path(path))
        disk.sync_folder(path.parent)


def check_seal(path: Path) -> bool:
    """Whether the catalogue is sealed.

    Raises:
        StoreError: it is, and is not what was sealed.
    """
    seal = seal_path(path)
    for _ in range(3):  # a writer may take the seal off while this looks
        if not seal.exists():
            return False
        try:
            is_whole = _read(seal) == _fingerprint(path) and not has_pages(path, "-wal")
        except FileNotFoundError:
            continue
        if is_whole:
            return True
    if not seal.exists():
        return False
    raise StoreError(f"{path}: is not what was sealed in {seal.name}: damaged, or changed by another program")


def has_pages(path: Path, suffix: str) -> bool:
    """Whether SQLite's file with this suffix beside a database holds anything."""
    beside = path.with_name(path.name + suffix)
    return beside.exists() and beside.stat().st_size > 0


def _read(seal: Path) -> object:
    with open(seal, "rb") as file:
        try:
            return json.loads(file.read(_LARGEST_SEAL_BYTES))
        except (ValueError, RecursionError):
            return None


def _fingerprint(path: Path) -> dict[str, int | str]:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": sha256}
