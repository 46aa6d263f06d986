"""The place of a memory: what stands in its folder under which names, and what must not.

This module does not know what is open or what the catalogue says.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from emllm.errors import StoreError
from emllm.store import disk
from emllm.store.contents import Contents
from emllm.store.record import KINDS

CATALOGUE = "catalogue.sqlite"
WRITER_LOCK = "lock"
READERS_LOCK = "readers.lock"
#: What a writer may leave behind; anything else in the folder is somebody else's and stays.
_DATA_LEFTOVER = re.compile(r"[0-9a-z-]+\.safetensors(\.[0-9a-f]+\.tmp)?|\.tmp[0-9A-Za-z]+")
#: The second is of earlier versions, whose files safetensors wrote by way of its own.
_TEMPORARY = re.compile(r".*\.tmp(-wal|-shm|-journal)?|[a-z]+/\.tmp[0-9A-Za-z]+", re.DOTALL)
_LEFTOVER = re.compile(r"catalogue\.(sqlite|crc)\.[0-9a-f]+\.tmp(-wal|-shm|-journal)?")


def is_memory(path: Path | str) -> bool:
    """Whether a memory is there, as far as the name of its catalogue tells."""
    return os.path.isfile(os.path.join(path, CATALOGUE))  # and not where one may not look


def is_bare(path: Path | str) -> bool:
    """Whether there is what a memory is made of, but no catalogue: lost, or not written yet."""
    parts = (os.path.join(path, name) for name in KINDS.values())
    return os.path.isfile(os.path.join(path, WRITER_LOCK)) and all(map(os.path.isdir, parts))


def new_name(kind: str, start: int, stop: int) -> str:
    """A name that no data file has, of tokens ``[start, stop)``."""
    return f"{KINDS[kind]}/{start:012d}-{stop:012d}-{secrets.token_hex(4)}.safetensors"


def leftovers(path: Path) -> list[str]:
    """Names in a memory's folder that its writers make: data files and temporary ones."""
    names = []
    for folder in KINDS.values():
        if (path / folder).is_dir():
            inside = os.listdir(path / folder)
            names += [f"{folder}/{name}" for name in inside if _DATA_LEFTOVER.fullmatch(name)]
    return sorted(names) + sorted(name for name in os.listdir(path) if _LEFTOVER.fullmatch(name))


def prepare(path: Path, *, contents: Contents | None = None) -> None:
    """Makes the folders of a memory; see `refuse_foreign`."""
    refuse_foreign(path, contents=contents)
    with disk.translated("create", path):
        for folder in (path, *(path / kind for kind in KINDS.values())):
            disk.make_folder(folder)


def complete(path: Path) -> None:
    """Makes the folders of kinds that there were not when the memory was made."""
    for kind in KINDS.values():
        if not (path / kind).is_dir():
            with disk.translated("create", path / kind):
                disk.make_folder(path / kind)


def refuse_foreign(path: Path, *, contents: Contents | None = None) -> None:
    """Refuses a place for a new memory where something is; what an interrupted start left is no obstacle.

    Raises:
        StoreError: something is there, such as data files that ``contents`` does not name.
    """
    with disk.translated("create", path):
        if not os.path.lexists(path):
            return
        ours = {WRITER_LOCK, READERS_LOCK, *KINDS.values()}
        ours |= {record.name for record in contents.all_files} if contents is not None else set()
        there = [*os.listdir(path), *leftovers(path)]
        foreign = [name for name in there if name not in ours and not _TEMPORARY.fullmatch(name)]
    if foreign:
        raise StoreError(f"{path}: is not empty, it has {min(foreign)}")
    refuse_links(path)


def refuse_occupied(path: Path) -> None:
    """Refuses a place for a whole new memory where anything is but an empty folder.

    Raises:
        StoreError: says what is there.
    """
    with disk.translated("create", path):
        there = os.listdir(path) if os.path.lexists(path) else []
    if there:
        raise StoreError(f"{path}: is not empty, it has {min(there)}")


def refuse_links(path: Path) -> None:
    """Refuses a memory whose parts lead out of it."""
    for name in (WRITER_LOCK, READERS_LOCK, *KINDS.values()):
        if (path / name).is_symlink():
            raise StoreError(f"{path / name}: is a symbolic link")
    for kind in KINDS.values():
        if (path / kind).exists() and not (path / kind).is_dir():
            raise StoreError(f"{path / kind}: is not a folder")
