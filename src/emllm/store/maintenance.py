"""What is done to a memory as a whole, without its model: describe, verify, copy, clone.

This module does not know what the tensors mean, but for how many there must be.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emllm.errors import StoreError
from emllm.store import disk, locks
from emllm.store.catalogue import Catalogue
from emllm.store.contents import DocumentRecord
from emllm.store.erasing import ERASING
from emllm.store.files import TensorFile
from emllm.store.folder import MemoryFolder
from emllm.store.layout import INDEX_TABLES
from emllm.store.place import (
    CATALOGUE,
    READERS_LOCK,
    leftovers,
    prepare,
    refuse_links,
    refuse_occupied,
)
from emllm.store.record import KINDS, FileRecord
from emllm.store.workplace import workplace

#: Told bytes done and bytes in all.
Progress = Callable[[int, int], None]

#: Tensors with a row for each token, and flat ones that all events share alike.
_OF_TOKENS = ("token_ids", "surprise")
_OF_EVENTS = ("event_keys", "event_scales")


@dataclass(frozen=True)
class Summary:
    """A memory in numbers; bytes are those on disk, all files of its folder together."""

    path: Path
    header: dict[str, Any]
    documents: list[DocumentRecord]
    num_tokens: int
    num_events: int
    num_files: int
    num_bytes: int


def describe(path: Path | str) -> Summary:
    """What a memory holds, from its catalogue alone.

    Raises:
        StoreError: it is none, or its catalogue is damaged.
    """
    with MemoryFolder.open(path) as folder:
        contents = folder.contents
        return Summary(
            path=folder.path,
            header=folder.catalogue.header,
            documents=contents.documents,
            num_tokens=contents.num_tokens,
            num_events=len(contents.events),
            num_files=len(contents.all_files),
            num_bytes=_bytes_on_disk(folder.path),
        )


def verify(path: Path | str, progress: Progress | None = None) -> list[str]:
    """Everything that is wrong with a memory, one line each; reads every byte of it.

    Files that the catalogue does not name are no problem: see `extras`.
    """
    path = Path(path)
    try:
        refuse_links(path)
        with closing(Catalogue.open(path / CATALOGUE, writable=False)) as catalogue:
            lock = locks.read_lock(path / READERS_LOCK, seconds=locks.WAIT_SECONDS)
            try:
                return [*catalogue.verify(), *_verify_files(path, catalogue.load().all_files, progress)]
            finally:
                if lock is not None:
                    lock.release()
    except StoreError as error:
        return [str(error)]


def extras(path: Path | str) -> list[str]:
    """Files in a memory's folder that its catalogue does not name: leftovers that the next writer deletes."""
    with MemoryFolder.open(path) as folder:
        named = {record.name for record in folder.contents.all_files}
        return [name for name in leftovers(folder.path) if name not in named]


def copy(path: Path | str, to: Path | str, progress: Progress | None = None) -> None:
    """The same memory a second time; every byte is checked on the way.

    Raises:
        StoreError: the memory is damaged, something is at ``to``, or the disk is full; no part is left then.
    """
    with MemoryFolder.open(path) as folder:
        _transfer(folder, Path(to), folder.catalogue.header, _copy_file, progress)


def clone(path: Path | str, to: Path | str, progress: Progress | None = None) -> None:
    """A memory of its own that begins with all of this one, and names it as its parent.

    Data files are shared where the file system can, since they never change: a clone costs little space,
    and what is forgotten in one of the two is not forgotten in the other.

    Raises:
        StoreError: the memory is damaged, something is at ``to``, or the disk is full; no part is left then.
    """
    with MemoryFolder.open(path) as folder:
        header = folder.catalogue.header
        header.pop("created", None)
        header.update(uuid=uuid.uuid4().hex, parent=header["uuid"])
        _transfer(folder, Path(to), header, link_file, progress)


def _verify_files(path: Path, records: list[FileRecord], progress: Progress | None) -> list[str]:
    problems = []
    total = sum(record.num_bytes for record in records)
    done = 0
    for record in records:
        file = TensorFile(path, record)
        problems += file.verify() or _miscounts(path, file)
        file.close()
        done += record.num_bytes
        if progress is not None:
            progress(done, total)
    return problems


def _miscounts(path: Path, file: TensorFile) -> list[str]:
    """Tensors of another length than the catalogue says, one line each."""
    record = file.record
    num_tokens = record.stop - record.start
    problems = []
    for name in file.names:
        shape = file.shape(name)
        if name in _OF_TOKENS and shape[:1] != (num_tokens,):
            problems.append(f"{path / record.name}: {name} is {list(shape)}, expected {num_tokens} rows")
        if name in _OF_EVENTS and (shape[0] % record.num_events if record.num_events else shape[0]):
            problems.append(
                f"{path / record.name}: {name} is {list(shape)}, expected a multiple of {record.num_events}"
            )
        if name.startswith(INDEX_TABLES) and shape[1] != record.num_events:
            problems.append(
                f"{path / record.name}: {name} is {list(shape)}, expected {record.num_events} events"
            )
    return problems


def _transfer(
    folder: MemoryFolder,
    to: Path,
    header: dict[str, Any],
    transfer: Callable[[MemoryFolder, FileRecord, Path], None],
    progress: Progress | None,
) -> None:
    """Makes a memory beside its place and moves it there when it is whole."""
    contents = folder.contents
    total = sum(record.num_bytes for record in contents.all_files)
    done = 0
    refuse_occupied(to)
    if folder.path.resolve() in to.resolve().parents:
        raise StoreError(f"{to}: is inside {folder.path}, which would be no memory alone any more")
    header.pop(ERASING, None)  # nothing of it is carried over
    with workplace(to) as made:
        prepare(made)
        with disk.translated("write", to):
            for record in contents.all_files:
                transfer(folder, record, made)
                done += record.num_bytes
                if progress is not None:
                    progress(done, total)
            for kind in KINDS.values():
                disk.sync_folder(made / kind)
        MemoryFolder.create(made, header, contents).close()
        refuse_occupied(to)
        with disk.translated("create", to):
            disk.move_folder(made, to.resolve())


def _copy_file(folder: MemoryFolder, record: FileRecord, to: Path) -> None:
    source = folder.file(record)
    _ = source.names  # opened without following links, size and header checked
    disk.publish(to / record.name, lambda temporary: _copy_bytes(folder.path / record.name, temporary))
    source.close()
    for problem in TensorFile(to, record).verify():
        raise StoreError(f"{folder.path / record.name}: cannot be copied: {problem}")


def link_file(folder: MemoryFolder, record: FileRecord, to: Path) -> None:
    """Give a data file a second name in another memory's folder; a copy where that cannot be."""
    source = folder.file(record)
    _ = source.names
    source.close()
    try:
        disk.link(folder.path / record.name, to / record.name)
    except OSError:
        _copy_file(folder, record, to)


def _copy_bytes(path: Path, to: Path) -> None:
    shutil.copyfile(path, to, follow_symlinks=False)


def _bytes_on_disk(path: Path) -> int:
    num_bytes = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                num_bytes += os.lstat(os.path.join(folder, name)).st_size
    return num_bytes
