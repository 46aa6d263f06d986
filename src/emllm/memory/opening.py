"""Read what a folder holds into an empty memory.

What an index file covers is not read from its segments: of those only name and size are looked at, and their
pages when they are fetched. This module does not know how a memory is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from emllm.config import ResolvedConfig
from emllm.memory.index_files import IndexFile
from emllm.memory.snapshot import add_event_keys, recalls_of, restore
from emllm.recall.trace import Recall
from emllm.store.files import FileRecord
from emllm.store.folder import MemoryFolder
from emllm.store.tiers import FilePages

if TYPE_CHECKING:
    from emllm.memory.episodic import EpisodicMemory

#: Files that are read side by side when a memory is opened.
FILES_AT_ONCE = 8
#: Files whose event keys are put into the index in one go.
FILES_INDEXED_AT_ONCE = 64


@dataclass
class Kept:
    """What is known of a closed unit: its events, its recalls, and the file that it is in."""

    first_event: int
    last_event: int
    recalls: dict[int, list[Recall]] = field(default_factory=dict)
    record: FileRecord | None = None


@dataclass
class Loaded:
    """What a home must know of a memory that was read from a folder.

    Attributes:
        kept: one per closed unit.
        state_record: the file of the state; None of a memory that has read nothing.
        loose: recalls that belong to no unit yet.
    """

    kept: list[Kept] = field(default_factory=list)
    state_record: FileRecord | None = None
    loose: dict[int, list[Recall]] = field(default_factory=dict)


def load(folder: MemoryFolder, memory: EpisodicMemory) -> Loaded:
    """Read what a folder holds into an empty memory.

    Raises:
        StoreError: a file is missing, damaged, or not of this memory.
    """
    return _Loading(folder, memory).run() if folder.contents.files else Loaded()


class _Loading:
    """One opening; `run` it once."""

    def __init__(self, folder: MemoryFolder, memory: EpisodicMemory) -> None:
        self._folder = folder
        self._memory = memory
        self._contents = folder.contents
        self._starts = np.ascontiguousarray(self._contents.events[:, 0])
        state_file = self._contents.state["state_file"]
        self._state_record = next(one for one in self._contents.files if one.name == state_file)
        self._state = folder.file(self._state_record).read_all_but_pages()
        self._centres = {
            layer.layer_idx: self._state[f"state.centre.{layer.layer_idx}"]
            for layer in memory._memory_layers
            if f"state.centre.{layer.layer_idx}" in self._state
        }
        self._recalls: dict[int, list[Recall]] = {}
        self._waiting: list[tuple[Mapping[str, Tensor], int]] = []
        self._loaded = Loaded(state_record=self._state_record)

    def run(self) -> Loaded:
        """Read everything, in log order."""
        self._folder.check_sizes()
        covered = _covered(self._contents.files, self._contents.index)
        alone = [record for record, index in zip(self._contents.files, covered, strict=True) if index is None]
        reading = _read_ahead(self._folder, alone)
        current: IndexFile | None = None
        for record, index in zip(self._contents.files, covered, strict=True):
            if index is None:
                self._add_file(record, next(reading))
                continue
            if current is None or current.record is not index:
                current = self._begin_index(index)
            self._add_covered(record, current)
        self._add_waiting_keys()
        memory = self._memory
        memory.documents = list(self._contents.documents)
        state = self._contents.state
        restore(memory, state, self._state, events=self._contents.events, recalls=self._recalls)
        return self._loaded

    def _begin_index(self, record: FileRecord) -> IndexFile:
        """All but ids and surprise of what an index file covers."""
        index = IndexFile(self._folder, record)
        self._add_waiting_keys()
        for layer in self._memory._ranking_layers:
            part, centre = index.part(layer), self._centres.get(layer.layer_idx)
            centre = None if centre is None else centre.to(layer.geometry.device)
            if part is None:
                continue
            if ranks_alike_in_parts(layer.config):
                layer.ranking.index.adopt(part, centre)
            else:
                layer.ranking.index.append_encoded(part.part(), centre)
        self._add_recalls(recalls_of(index.tensors, self._starts))
        return index

    def _add_covered(self, record: FileRecord, index: IndexFile) -> None:
        """A segment that need not be read."""
        token_ids = index.token_ids(record.start, record.stop)
        surprise = index.surprise(record.start, record.stop)
        self._add_unit(record, {"token_ids": token_ids, "surprise": surprise})
        self._keep(record, {})

    def _add_file(self, record: FileRecord, tensors: Mapping[str, Tensor]) -> None:
        """A file that was read, but for its pages."""
        self._waiting.append((tensors, record.num_events))
        if len(self._waiting) == FILES_INDEXED_AT_ONCE:
            self._add_waiting_keys()
        own = recalls_of(tensors, self._starts)
        self._add_recalls(own)
        if record.stop > record.start:
            self._add_unit(record, tensors)
        if record is self._state_record:
            self._loaded.loose = own
        else:
            self._keep(record, {} if record.kind == "segment" else own)

    def _keep(self, record: FileRecord, recalls: dict[int, list[Recall]]) -> None:
        kept = self._loaded.kept
        first = kept[-1].last_event if kept else 0
        kept.append(Kept(first, first + record.num_events, recalls, record))

    def _add_recalls(self, recalls: dict[int, list[Recall]]) -> None:
        for layer_idx, some in recalls.items():
            self._recalls.setdefault(layer_idx, []).extend(some)

    def _add_waiting_keys(self) -> None:
        add_event_keys(
            self._memory._ranking_layers,
            self._waiting,
            num_representatives=self._memory.num_representatives,
            centres=self._centres,
        )
        self._waiting = []

    def _add_unit(self, record: FileRecord, tensors: Mapping[str, Tensor]) -> None:
        log = self._memory._log
        tiers = log.tiers
        assert tiers is not None
        file = self._folder.file(record)
        token_ids = tensors["token_ids"].long().numpy()
        surprise = tensors["surprise"].numpy()
        num_tokens = record.stop - record.start
        if record.kind == "segment":
            log.restore(token_ids, surprise, tiers.add(FilePages(file), num_tokens))
            return
        raw = [
            tiers.unpack_raw(layer_idx, file.read(f"pages.{layer_idx}"), num_tokens)
            for layer_idx in range(self._memory.geometry.num_layers)
        ]
        keys, values = [key for key, _ in raw], [value for _, value in raw]
        log.restore(token_ids, surprise, (keys, values), is_closed=record is not self._state_record)


def ranks_alike_in_parts(config: ResolvedConfig) -> bool:
    """Whether scores are the same, to the bit, however an index is cut into parts: sums of integers are."""
    return config.index_precision == "int8" and config.scorer != "dot"


def _covered(files: Sequence[FileRecord], index: Sequence[FileRecord]) -> list[FileRecord | None]:
    """For every file of the log the index file that covers it."""
    left = deque(index)
    covered: list[FileRecord | None] = []
    for record in files:
        while left and left[0].stop <= record.start:
            left.popleft()
        is_inside = record.kind == "segment" and left and left[0].start <= record.start
        covered.append(left[0] if is_inside else None)
    return covered


def _read_ahead(folder: MemoryFolder, records: Sequence[FileRecord]) -> Iterator[dict[str, Tensor]]:
    """Files' tensors but their pages, in order; some files are read before they are due."""
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="emllm-open") as readers:
        reading: deque[Future[dict[str, Tensor]]] = deque()
        for number in range(len(records)):
            while len(reading) < 2 * FILES_AT_ONCE and number + len(reading) < len(records):
                file = folder.file(records[number + len(reading)])
                reading.append(readers.submit(file.read_all_but_pages))
            yield reading.popleft().result()
