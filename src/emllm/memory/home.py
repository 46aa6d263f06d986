"""The home of a memory: the folder that it is read from, and that every commit is written to.

A unit of the log (a chunk, as a rule) is one file, written once. With a lossless codec that file is final;
with a lossy one the unit is first kept raw, for it is still in the local window, and written again when it is
sealed. What one chunk leaves for the next, and tokens that make no unit yet, are in a file of their own that
every commit replaces. This module does not know how files are made durable, nor what a layer keeps.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emllm.errors import StoreError
from emllm.machine import uninterrupted
from emllm.memory.forgetting import Forgotten, forget
from emllm.memory.index_files import after_index, write_index
from emllm.memory.opening import Kept, load
from emllm.memory.snapshot import event_key_tensors, recall_tensors, snapshot
from emllm.recall.trace import Recall
from emllm.store.contents import Change
from emllm.store.files import FileRecord
from emllm.store.folder import MemoryFolder
from emllm.store.log import Unit
from emllm.store.maintenance import verify
from emllm.store.tiers import FilePages, PackedPages

if TYPE_CHECKING:
    from emllm.memory.episodic import EpisodicMemory


@dataclass(frozen=True)
class _NewFile:
    """A file to be written; `replaces` names the raw one that it makes superfluous."""

    kind: str
    start: int
    stop: int
    tensors: dict[str, Tensor]
    num_events: int
    replaces: str | None = None


@dataclass(frozen=True)
class _Job:
    """A commit as it is handed to the writer: nothing in it changes any more."""

    units: dict[int, _NewFile]
    state: _NewFile
    change: Change


class FolderHome:
    """Keeps a memory in a folder that is open for writing.

    Files are written by a thread of their own while the next chunk is computed; so what a commit leaves is
    durable when the next one returns, or `flush` does.
    """

    def __init__(self, folder: MemoryFolder) -> None:
        self._folder = folder
        #: One per unit of the log; only those of units that are not in a final file hold recalls.
        self._kept: list[Kept] = []
        self._num_final = 0
        self._num_events = 0
        self._state_record: FileRecord | None = None
        self._loose: dict[int, list[Recall]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="emllm-writer")
        self._writing: tuple[_Job, Future[tuple[dict[int, FileRecord], FileRecord]]] | None = None
        self._durable_tokens = 0
        #: Once so many are, a flush writes an index file.
        self._next_index_tokens = 0
        self._is_closed = False

    @property
    def durable_tokens(self) -> int:
        """Tokens that are known to be on disk for good."""
        return self._durable_tokens

    def settle(self, memory: EpisodicMemory) -> None:
        """Read what the folder holds into an empty memory, and keep it from now on."""
        loaded = load(self._folder, memory)
        self._kept, self._state_record, self._loose = loaded.kept, loaded.state_record, loaded.loose
        finals = [kept.record is not None and kept.record.kind == "segment" for kept in self._kept]
        self._num_final = finals.index(False) if False in finals else len(finals)
        self._num_events = len(self._folder.contents.events)
        self._durable_tokens = memory.num_tokens
        covered_tokens = sum(record.stop - record.start for record in self._folder.contents.index)
        self._next_index_tokens = after_index(covered_tokens)
        memory.home = self
        for layer in memory._memory_layers:
            layer.journal = []

    @property
    def path(self) -> Path:
        """Of the folder."""
        return self._folder.path

    def check_writable(self) -> None:
        """Nothing to refuse, until it is closed.

        Raises:
            StoreError: it is closed.
        """
        if self._is_closed:
            raise StoreError(f"{self._folder.path}: is closed; open it again")

    def committed(self, memory: EpisodicMemory) -> None:
        """Write what is new as soon as a unit is whole.

        Raises:
            StoreError: what was committed before could not be written.
        """
        if self._note_units(memory):
            self._begin(memory)

    def _note_units(self, memory: EpisodicMemory) -> bool:
        """Whether units were closed; what is new of events and recalls belongs to the last of them."""
        for layer in memory._memory_layers:
            assert layer.journal is not None
            self._loose.setdefault(layer.layer_idx, []).extend(layer.journal)
            layer.journal = []
        num_new = len(memory._log.units) - len(self._kept)
        if num_new:
            first = self._kept[-1].last_event if self._kept else 0
            self._kept += [Kept(first, first) for _ in range(num_new - 1)]
            self._kept.append(Kept(first, memory._events.num_recallable, self._loose))
            self._loose = {}
        return num_new > 0

    def flush(self, memory: EpisodicMemory) -> None:
        """Make everything that was committed durable.

        Raises:
            StoreError: the disk is full or fails; what was durable stays so, and the next call tries again.
        """
        self._note_units(memory)
        self._begin(memory)
        self._finish(memory)
        if self._durable_tokens >= self._next_index_tokens:
            self._next_index_tokens = after_index(self._durable_tokens)
            with suppress(StoreError):  # what was to be made durable is
                write_index(self._folder, is_growing=True)

    def _begin(self, memory: EpisodicMemory) -> None:
        """Hand what is new to the writer, once it is done with what came before."""
        self.check_writable()
        self._finish(memory)
        with uninterrupted():
            job = self._job(memory)
            self._writing = job, self._writer.submit(self._write, job)

    def _job(self, memory: EpisodicMemory) -> _Job:
        log, events = memory._log, memory._events
        tiers = log.tiers
        assert tiers is not None
        units = {}
        for unit_idx in range(self._num_final, len(self._kept)):
            kept, unit = self._kept[unit_idx], log.units[unit_idx]
            is_final = tiers.is_exact or unit.sealed is not None
            if kept.record is None or is_final:
                units[unit_idx] = self._unit_file(memory, unit, kept, is_final=is_final)
        numbers, state = self._state_file(memory)
        replaced = [one.replaces for one in (*units.values(), state) if one.replaces is not None]
        change = Change(
            num_tokens=memory.num_tokens,
            new_files=(),
            dropped_files=replaced,
            first_new_event=self._num_events,
            new_events=events.spans(self._num_events, events.num_recallable),
            documents=list(memory.documents),
            state=numbers,
        )
        return _Job(units, state, change)

    def _write(self, job: _Job) -> tuple[dict[int, FileRecord], FileRecord]:
        """The writer's part: the files, then the transaction; where it fails, none of the files is left."""
        added: list[FileRecord] = []
        try:
            for one in (*job.units.values(), job.state):
                added.append(self._add(one))
            numbers = {**job.change.state, "state_file": added[-1].name}
            self._folder.commit(replace(job.change, new_files=added, state=numbers))
        except StoreError as error:
            self._folder.withdraw([record.name for record in added], error)
            raise
        return dict(zip(job.units, added[:-1], strict=True)), added[-1]

    def _add(self, one: _NewFile) -> FileRecord:
        return self._folder.add(one.kind, one.start, one.stop, one.tensors, one.num_events)

    def _finish(self, memory: EpisodicMemory) -> None:
        """Wait for the writer, and let go of what it wrote."""
        if self._writing is None:
            return
        job, writing = self._writing
        wait([writing])  # interrupted here, it is waited for again
        with uninterrupted():
            self._writing = None
            records, self._state_record = writing.result()
            self._num_events += len(job.change.new_events)
            self._durable_tokens = job.change.num_tokens
            for unit_idx, record in records.items():
                self._kept[unit_idx].record = record
            self._hand_over(memory)

    def _unit_file(self, memory: EpisodicMemory, unit: Unit, kept: Kept, *, is_final: bool) -> _NewFile:
        log, tiers = memory._log, memory._log.tiers
        assert tiers is not None
        if unit.sealed is not None:
            assert isinstance(unit.sealed.pages, PackedPages)
            pages = unit.sealed.pages
        else:
            pages = tiers.pack(*log.raw(unit.start, unit.stop), is_raw=not is_final)
        tensors = self._unit_tensors(memory, unit.start, unit.stop, pages)
        tensors.update(event_key_tensors(memory._ranking_layers, kept.first_event, kept.last_event))
        tensors.update(recall_tensors(kept.recalls, memory._events.starts))
        kind = "segment" if is_final else "recent"
        num_events = kept.last_event - kept.first_event
        replaces = None if kept.record is None else kept.record.name
        return _NewFile(kind, unit.start, unit.stop, tensors, num_events, replaces)

    def _state_file(self, memory: EpisodicMemory) -> tuple[dict[str, Any], _NewFile]:
        """The file that holds the tokens of no unit, and what one chunk leaves for the next."""
        log, tiers = memory._log, memory._log.tiers
        assert tiers is not None
        numbers, tensors = snapshot(memory)
        start, stop = log.open_start, memory.num_tokens
        if stop > start:
            pages = tiers.pack(*log.raw(start, stop), is_raw=True)
            tensors.update(self._unit_tensors(memory, start, stop, pages))
        first = self._kept[-1].last_event if self._kept else 0
        last = memory._events.num_recallable
        tensors.update(event_key_tensors(memory._ranking_layers, first, last))
        tensors.update(recall_tensors(self._loose, memory._events.starts))
        if not tensors:
            tensors["state.empty"] = torch.zeros(1, dtype=torch.uint8)
        replaces = None if self._state_record is None else self._state_record.name
        return numbers, _NewFile("recent", start, stop, tensors, last - first, replaces)

    @staticmethod
    def _unit_tensors(memory: EpisodicMemory, start: int, stop: int, pages: PackedPages) -> dict[str, Tensor]:
        tensors = {f"pages.{layer_idx}": layer for layer_idx, layer in enumerate(pages.layers)}
        tensors["token_ids"] = torch.from_numpy(memory.token_ids(start, stop)).to(torch.int32)
        tensors["surprise"] = torch.from_numpy(memory.surprise(start, stop))
        return tensors

    def _hand_over(self, memory: EpisodicMemory) -> None:
        """Units that are in a final file need no RAM any more, once they have left the window."""
        log, tiers = memory._log, memory._log.tiers
        assert tiers is not None
        for unit_idx in range(self._num_final, len(self._kept)):
            kept, sealed = self._kept[unit_idx], log.units[unit_idx].sealed
            if kept.record is None or kept.record.kind != "segment":
                break
            if sealed is not None:
                sealed.pages = FilePages(self._folder.file(kept.record))
            kept.recalls = {}
            self._num_final = unit_idx + 1
        if tiers.is_exact:
            for unit_idx, unit in memory.units_that_left():
                if unit_idx >= self._num_final:
                    break
                record = self._kept[unit_idx].record
                assert record is not None
                pages = FilePages(self._folder.file(record))
                log.settle(unit_idx, tiers.add(pages, unit.stop - unit.start))

    def verify(self) -> list[str]:
        """Everything that is wrong with the folder, one line each."""
        return verify(self._folder.path)

    def forget(self, memory: EpisodicMemory, name: str) -> Forgotten:
        """Forget a document; the memory is read anew from what is left.

        Raises:
            StoreError: see `emllm.memory.forgetting.forget`; a memory that cannot be read anew is closed.
        """
        self.flush(memory)
        path = self._folder.path
        self._let_go()
        try:
            return forget(path, name)
        finally:
            fresh = type(memory)(memory.geometry, memory.config, piece_of=memory.piece_of, is_stored=True)
            folder = MemoryFolder.open(path, writable=True)
            try:
                FolderHome(folder).settle(fresh)
            except BaseException:
                folder.close()
                raise
            memory.become(fresh)

    def close(self) -> None:
        """Let go of the folder; what was not flushed is lost."""
        try:
            self._writer.shutdown(wait=True)
            with suppress(StoreError):  # it only makes the next opening faster
                write_index(self._folder)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._is_closed = True
        self._writer.shutdown(wait=True)
        self._folder.close()
