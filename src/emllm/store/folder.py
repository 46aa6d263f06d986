"""The folder of a memory: data files, the catalogue that names them, and the locks on both.

A commit is: files first, each durable, then one transaction of the catalogue. What the catalogue does not
name does not exist; the next writer deletes it. Readers look at the moment at which they opened, and
nothing that was there then is deleted while they look.

This module does not know what the files hold, nor when a segment is full.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from emllm.errors import StoreError
from emllm.store import disk, locks
from emllm.store.catalogue import Catalogue, Change, Contents, is_in_doubt
from emllm.store.contents import Ledger
from emllm.store.files import TensorFile, write_tensors
from emllm.store.filling import Fill, write_filled
from emllm.store.layout import Described
from emllm.store.open_files import OpenFiles
from emllm.store.place import (
    CATALOGUE,
    READERS_LOCK,
    WRITER_LOCK,
    complete,
    is_memory,
    leftovers,
    new_name,
    prepare,
    refuse_links,
)
from emllm.store.record import KINDS, FileRecord


class MemoryFolder:
    """An open memory on disk. One writer, any number of readers; close it, or use it in a ``with``."""

    def __init__(self, path: Path, catalogue: Catalogue, *, lock: locks.Lock | None, writable: bool) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.catalogue = catalogue
        self._lock = lock
        self._is_writable = writable
        self._contents = Contents.empty()
        #: Commits since, which a long reading makes by the thousand; looked through when somebody asks.
        self._changes: list[Change] = []
        self._ledger = Ledger.of(self._contents)
        self._added: set[str] = set()
        self._doomed: list[str] = []
        self._is_alone = False
        self._files = OpenFiles(path, lock)

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
        return cls(path, catalogue, lock=writer, writable=True)._loaded()

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
            else locks.read_lock(path / READERS_LOCK, seconds=locks.WAIT_SECONDS)
        )
        try:
            catalogue = Catalogue.open(path / CATALOGUE, writable=writable)
        except BaseException:
            if held is not None:
                held.release()
            raise
        return cls(path, catalogue, lock=held, writable=writable)._loaded()

    def _loaded(self) -> MemoryFolder:
        """This folder once its contents are known to make sense; closed again otherwise."""
        try:
            self._contents = self.catalogue.load()
            self._ledger = Ledger.of(self._contents)
            for problem in self._contents.contradictions():
                raise StoreError(f"{self.path}: {problem}")
            if self._is_writable:
                complete(self.path)
                self.sweep()
        except BaseException:
            self.close()
            raise
        return self

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
        name = new_name(kind, start, stop)
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
        name = new_name("index", start, stop)
        record = write_filled(
            self.path, name, described, fill, kind="index", start=start, stop=stop, num_events=num_events
        )
        self._added.add(name)
        return record

    def withdraw(self, names: Iterable[str], failure: StoreError) -> None:
        """Deletes files of a commit that failed; at the next commit, if a crash could bring this one back."""
        if is_in_doubt(failure):
            self._doomed += names
            return
        with suppress(OSError):  # the next writer deletes what stays
            for name in names:
                disk.unlink(self.path / name)
                self._added.discard(name)

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
            self._files.forget(name)
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
        """A data file, open for reading."""
        return self._files.file(record)

    @contextmanager
    def exclusive(self, *, seconds: float = 0.0) -> Iterator[None]:
        """The memory without readers, for what must delete: forgetting, rereading and compacting.

        Args:
            seconds: how long to wait for readers to close it.

        Raises:
            StoreError: somebody reads it; says who.
        """
        self._check_writable()
        lock = locks.alone(self.path / READERS_LOCK, seconds=seconds)
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
        self._files.close()
        try:
            self.catalogue.close()
        finally:
            self._is_writable = False
            if self._lock is not None:
                self._lock.release()

    def _delete(self, names: list[str]) -> list[str]:
        """Deletes what it can: a file that stays does no harm, the next writer tries again."""
        deleted: list[str] = []
        lock = None
        try:
            if names and not self._is_alone:
                lock = locks.alone(self.path / READERS_LOCK)
            if lock is not None or self._is_alone:
                for name in names:
                    disk.unlink(self.path / name)
                    deleted.append(name)
        except (OSError, StoreError):
            pass
        finally:
            if lock is not None:
                lock.release()
        return deleted

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Names the memory in what its ledger complains of."""
        try:
            yield
        except StoreError as error:
            raise StoreError(f"{self.path}: {error}") from None

    def _check_writable(self) -> None:
        if not self._is_writable:
            raise StoreError(f"{self.path}: is not open for writing")
