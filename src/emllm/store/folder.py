"""The folder of a memory: data files, the catalogue that names them, and the locks on both.

A commit is: files first, each durable, then one transaction of the catalogue. What the catalogue does not
name does not exist; the next writer deletes it. Readers look at the moment at which they opened, and
nothing that was there then is deleted while they look.

This module does not know what the files hold, nor when a segment is full.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from emllm.errors import StoreError
from emllm.store import disk, locks
from emllm.store.catalogue import Catalogue, Change, Contents
from emllm.store.contents import Ledger
from emllm.store.files import TensorFile, write_tensors
from emllm.store.filling import Described, Fill, write_filled
from emllm.store.record import KINDS, FileRecord

CATALOGUE = "catalogue.sqlite"
WRITER_LOCK = "lock"
READERS_LOCK = "readers.lock"
#: Data files that are open at once.
MAX_OPEN_FILES = 512
_WAIT_SECONDS = 10.0
#: What a writer may leave behind; anything else in the folder is somebody else's and stays.
_DATA_LEFTOVER = re.compile(r"[0-9a-z-]+\.safetensors(\.[0-9a-f]+\.tmp)?")
_TEMPORARY = (".tmp", ".tmp-wal", ".tmp-shm", ".tmp-journal")
_LEFTOVER = re.compile(r"catalogue\.(sqlite|crc)\.[0-9a-f]+\.tmp(-wal|-shm|-journal)?")


class MemoryFolder:
    """An open memory on disk. One writer, any number of readers; close it, or use it in a ``with``."""

    def __init__(self, path: Path, catalogue: Catalogue, *, writer: locks.Lock | None) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.catalogue = catalogue
        self._writer = writer
        self._reader: locks.Lock | None = None
        self._contents = Contents.empty()
        #: Commits since, which a long reading makes by the thousand; looked through when somebody asks.
        self._changes: list[Change] = []
        self._ledger = Ledger.of(self._contents)
        self._added: set[str] = set()
        self._doomed: list[str] = []
        self._is_alone = False
        self._files: dict[str, TensorFile] = {}
        self._open_files: OrderedDict[str, TensorFile] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls, path: Path | str, header: dict[str, Any], contents: Contents | None = None
    ) -> MemoryFolder:
        """A new memory, open for writing.

        Args:
            path: where nothing is, or an empty folder, or what an interrupted `create` left.
            header: see `Catalogue.create`.
            contents: what it holds at first; its files must be there already.

        Raises:
            StoreError: something else is there, or the disk is full or fails.
        """
        path = Path(path)
        prepare(path, contents=contents)
        writer = locks.write_lock(path / WRITER_LOCK)
        try:
            catalogue = Catalogue.create(path / CATALOGUE, header, contents)
        except BaseException:
            writer.release()
            raise
        return cls(path, catalogue, writer=writer)._loaded()

    @classmethod
    def open(cls, path: Path | str, *, writable: bool = False) -> MemoryFolder:
        """A memory that exists. A writer first deletes what an interrupted one left behind.

        Raises:
            StoreError: it is none, is damaged, contradicts itself, or somebody else writes it.
        """
        path = Path(path)
        if not is_memory(path):
            raise StoreError(f"{path}: is not a memory, it has no {CATALOGUE}")
        refuse_links(path)
        held = (
            locks.write_lock(path / WRITER_LOCK)
            if writable
            else locks.read_lock(path / READERS_LOCK, seconds=_WAIT_SECONDS)
        )
        try:
            folder = cls(
                path, Catalogue.open(path / CATALOGUE, writable=writable), writer=held if writable else None
            )
            folder._reader = None if writable else held
        except BaseException:
            if held is not None:
                held.release()
            raise
        return folder._loaded()

    def _loaded(self) -> MemoryFolder:
        """This folder once its contents are known to make sense; closed again otherwise."""
        try:
            self._contents = self.catalogue.load()
            self._ledger = Ledger.of(self._contents)
            for problem in self._contents.contradictions():
                raise StoreError(f"{self.path}: {problem}")
            if self._writer is not None:
                self._make_folders()
                self.sweep()
        except BaseException:
            self.close()
            raise
        return self

    def _make_folders(self) -> None:
        """Those of kinds that there were not when the memory was made."""
        for kind in KINDS.values():
            if not (self.path / kind).is_dir():
                with disk.translated("create", self.path / kind):
                    disk.make_folder(self.path / kind)

    def __enter__(self) -> MemoryFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def contents(self) -> Contents:
        """What the catalogue says; of a reader, what it said when it was opened."""
        if self._changes:
            self._contents = self._contents.after(*self._changes)
            self._changes = []
        return self._contents

    def add(
        self, kind: str, start: int, stop: int, tensors: Mapping[str, Tensor], num_events: int = 0
    ) -> FileRecord:
        """Writes a file; it belongs to the memory from the commit on that names it."""
        self._check_writable()
        name = _new_name(kind, start, stop)
        record = write_tensors(
            self.path, name, tensors, kind=kind, start=start, stop=stop, num_events=num_events
        )
        self._added.add(name)
        return record

    def add_index(
        self, start: int, stop: int, described: Mapping[str, Described], fill: Fill, num_events: int
    ) -> FileRecord:
        """Writes an index file, which may be larger than RAM; see `add` and `filling.write_filled`."""
        self._check_writable()
        name = _new_name("index", start, stop)
        record = write_filled(
            self.path, name, described, fill, kind="index", start=start, stop=stop, num_events=num_events
        )
        self._added.add(name)
        return record

    def check_sizes(self) -> None:
        """Looks whether every file is there and as long as it was, without opening them all.

        Raises:
            StoreError: one is not.
        """
        sizes: dict[str, int] = {}
        for kind in KINDS.values():
            with suppress(FileNotFoundError), os.scandir(self.path / kind) as entries:
                found = {f"{kind}/{one.name}": one for one in entries}
                sizes.update({name: one.stat(follow_symlinks=False).st_size for name, one in found.items()})
        for record in self.contents.all_files:
            if sizes.get(record.name) != record.num_bytes:
                _ = self.file(record).names  # says what is wrong

    def commit(self, change: Change) -> None:
        """Makes a change durable, all of it or nothing, and deletes the files that it drops.

        Dropped segments are deleted under `exclusive` only, else by a later writer: views of this process
        may still read them. Other dropped files stay while anybody reads. An index file goes with any
        segment of its tokens.

        Raises:
            StoreError: the disk is full or fails, or the change contradicts itself; nothing has changed.
        """
        self._check_writable()
        recent = f"{KINDS['recent']}/"
        is_of_recents = all(name.startswith(recent) for name in change.dropped_files)
        only_adds = is_of_recents and all(record.kind != "index" for record in change.new_files)
        if only_adds and change.first_new_event == self._ledger.num_events:
            with self._named():
                ledger = self._ledger.after(change)
            self.catalogue.commit(change)
            self._ledger = ledger
            self._changes.append(change)
        else:
            change = self._without_stale_index(change)
            contents = self.contents.after(change)
            for problem in contents.contradictions():
                raise StoreError(f"{self.path}: {problem}")
            self.catalogue.commit(change)
            self._contents, self._ledger = contents, Ledger.of(contents)
        self._added.difference_update(record.name for record in change.new_files)
        for name in change.dropped_files:
            self._forget_file(name)
        segments = f"{KINDS['segment']}/"
        self._doomed += [
            one for one in change.dropped_files if self._is_alone or not one.startswith(segments)
        ]
        deleted = set(self._delete(self._doomed))
        self._doomed = [name for name in self._doomed if name not in deleted]

    def _without_stale_index(self, change: Change) -> Change:
        """The same change; it drops the index files, too, of segments that it drops."""
        dropped = set(change.dropped_files)
        gone = [one for one in self.contents.files if one.name in dropped and one.kind == "segment"]
        stale = [
            index.name
            for index in self.contents.index
            if any(one.start < index.stop and index.start < one.stop for one in gone)
        ]
        return replace(change, dropped_files=[*change.dropped_files, *sorted({*stale} - dropped)])

    def file(self, record: FileRecord) -> TensorFile:
        """A data file, open for reading; at most `MAX_OPEN_FILES` hold a descriptor at once."""
        with self._lock:
            file = self._files.get(record.name)
            if file is None or file.record != record:
                file = self._files[record.name] = TensorFile(self.path, record, on_open=self._note_open)
            if record.name in self._open_files:
                self._open_files.move_to_end(record.name)
            return file

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The memory without readers, for what must delete: forgetting and compacting.

        Raises:
            StoreError: somebody reads it; says who.
        """
        self._check_writable()
        lock = locks.alone(self.path / READERS_LOCK)
        if lock is None:
            numbers = ", ".join(map(str, locks.holders(self.path / READERS_LOCK)))
            who = f"process {numbers}" if numbers else "another process"
            raise StoreError(f"{self.path}: is being read by {who}; close it there first")
        self._is_alone = True
        try:
            yield
        finally:
            self._is_alone = False
            lock.release()

    def sweep(self) -> list[str]:
        """Deletes files that the catalogue does not name, unless somebody reads; what was deleted."""
        self._check_writable()
        named = {record.name for record in self.contents.all_files} | self._added
        return self._delete([name for name in leftovers(self.path) if name not in named])

    def sweep_for_good(self) -> None:
        """`sweep`, and nothing of it may come back; under `exclusive` only.

        Raises:
            StoreError: a file cannot be deleted.
        """
        assert self._is_alone
        named = {record.name for record in self.contents.all_files} | self._added
        for name in leftovers(self.path):
            if name not in named:
                with disk.translated("delete", self.path / name):
                    disk.unlink(self.path / name)
        for kind in KINDS.values():
            with disk.translated("write", self.path / kind):
                disk.sync_folder(self.path / kind)

    def close(self) -> None:
        """Ends the use; a writer leaves a sealed catalogue behind."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._open_files.clear()
        try:
            self.catalogue.close()
        finally:
            for lock in (self._writer, self._reader):
                if lock is not None:
                    lock.release()
            self._writer = self._reader = None

    def _delete(self, names: list[str]) -> list[str]:
        """Deletes what it can: a file that stays does no harm, the next writer tries again."""
        lock = None if self._is_alone or not names else locks.alone(self.path / READERS_LOCK)
        if not self._is_alone and lock is None:
            return []
        deleted = []
        try:
            for name in names:
                disk.unlink(self.path / name)
                deleted.append(name)
        except OSError:
            pass
        finally:
            if lock is not None:
                lock.release()
        return deleted

    def _note_open(self, file: TensorFile) -> None:
        """Takes the descriptor from the file that was used least lately, when there are too many."""
        with self._lock:
            self._open_files[file.record.name] = file
            self._open_files.move_to_end(file.record.name)
            excess = len(self._open_files) - MAX_OPEN_FILES
            closing = [self._open_files.popitem(last=False)[1] for _ in range(excess)]
        for one in closing:
            one.close()

    def _forget_file(self, name: str) -> None:
        with self._lock:
            self._open_files.pop(name, None)
            file = self._files.pop(name, None)
        if file is not None:
            file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Names the memory in what its ledger complains of."""
        try:
            yield
        except StoreError as error:
            raise StoreError(f"{self.path}: {error}") from None

    def _check_writable(self) -> None:
        if self._writer is None:
            raise StoreError(f"{self.path}: is not open for writing")


def is_memory(path: Path | str) -> bool:
    """Whether a memory is there, as far as the name of its catalogue tells."""
    return (Path(path) / CATALOGUE).is_file()


def _new_name(kind: str, start: int, stop: int) -> str:
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
        foreign = [name for name in there if name not in ours and not name.endswith(_TEMPORARY)]
    if foreign:
        raise StoreError(f"{path}: is not empty, it has {min(foreign)}")
    refuse_links(path)


def refuse_links(path: Path) -> None:
    """Refuses a memory whose parts lead out of it."""
    for name in (WRITER_LOCK, READERS_LOCK, *KINDS.values()):
        if (path / name).is_symlink():
            raise StoreError(f"{path / name}: is a symbolic link")
    for kind in KINDS.values():
        if (path / kind).exists() and not (path / kind).is_dir():
            raise StoreError(f"{path / kind}: is not a folder")
