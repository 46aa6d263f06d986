"""Index files: what many segments hold beside their pages, in one file that is opened in place.

A memory of a million tokens has thousands of segments, each with the ids, surprise, event keys and recalls
of its tokens. An index file holds the same of consecutive segments, the event keys of each layer in one
table, so that opening reads a few files and maps the keys. Each is at least twice as large as the next, so
what is written in all is a few times what a log needs. Segments keep what they hold: nothing hangs on these.

This module does not know when a memory is flushed or closed, nor how keys are ranked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emllm.config import keys_per_event
from emllm.errors import StoreError
from emllm.memory.layer import MemoryLayer
from emllm.recall.index import IndexPart, LatePart
from emllm.store.contents import Change, Contents
from emllm.store.filling import Put
from emllm.store.folder import MemoryFolder
from emllm.store.layout import Described
from emllm.store.mapped import MappedFile
from emllm.store.record import FileRecord

#: Tokens in segments that no index file covers, up to which none is written.
LEAST_TOKENS = 16_384
#: An index file is merged into the one after it unless it is so many times as large.
GROWTH = 2
#: Segments that are read at once.
SEGMENTS_AT_ONCE = 64

#: Tensors of a segment that become one long tensor.
_ALONG = ("token_ids", "surprise", "recall_rows", "recall_events", "recall_standing")
#: Tensors of a segment that become a table for each layer.
_TABLES = {"event_keys": "index_keys", "event_scales": "index_scales"}


@dataclass(frozen=True)
class _Plan:
    """An index file to be written: of older ones that it replaces, then of segments."""

    start: int
    stop: int
    merged: Sequence[FileRecord]
    segments: Sequence[FileRecord]
    dropped: Sequence[FileRecord]

    @property
    def num_events(self) -> int:
        return sum(record.num_events for record in (*self.merged, *self.segments))


def after_index(covered_tokens: int) -> int:
    """Tokens that a memory holds when there is as much to cover as is covered."""
    return covered_tokens + max(LEAST_TOKENS, covered_tokens)


def write_index(folder: MemoryFolder, *, is_growing: bool = False) -> bool:
    """Cover all segments with index files, where many are not covered; whether any was written.

    Args:
        folder: open for writing.
        is_growing: only once there is as much to cover as is covered.

    Raises:
        StoreError: the disk is full or fails, or a file is damaged; nothing has changed then.
    """
    plan = _planned(folder.contents, is_growing=is_growing)
    if plan is None:
        return False
    described = _described(folder, plan)
    record = folder.add_index(
        plan.start, plan.stop, described, partial(_fill, folder, plan, described), plan.num_events
    )
    _commit(folder, [record], plan.dropped)
    return True


def renew_index(folder: MemoryFolder) -> None:
    """Write index files anew from the segments, whatever has become of those that there are.

    Raises:
        StoreError: the catalogue cannot be written; where no file can, there are none until the next writer.
    """
    if folder.contents.index:
        _commit(folder, [], folder.contents.index)
    with suppress(StoreError):
        write_index(folder)


def _commit(folder: MemoryFolder, new: Sequence[FileRecord], dropped: Sequence[FileRecord]) -> None:
    contents = folder.contents
    folder.commit(
        Change(
            num_tokens=contents.num_tokens,
            new_files=new,
            dropped_files=[record.name for record in dropped],
            first_new_event=len(contents.events),
            new_events=np.zeros((0, 2), dtype=np.int64),
            documents=None,
            state=contents.state,
        )
    )


def _planned(contents: Contents, *, is_growing: bool) -> _Plan | None:
    kept, covered = [], 0
    for record in contents.index:
        if record.start != covered:
            break
        kept.append(record)
        covered = record.stop
    segments = [one for one in contents.files if one.kind == "segment" and one.start >= covered]
    start, stop = covered, segments[-1].stop if segments else covered
    if not segments or stop < (after_index(covered) if is_growing else covered + LEAST_TOKENS):
        return None
    merged: list[FileRecord] = []
    while kept and kept[-1].stop - kept[-1].start < GROWTH * (stop - start):
        merged.insert(0, kept.pop())
        start = merged[0].start
    dropped = [record for record in contents.index if record not in kept]
    return _Plan(start, stop, merged, segments, dropped)


def _described(folder: MemoryFolder, plan: _Plan) -> dict[str, Described]:
    """Types and shapes of what the file will hold."""
    shapes: dict[str, tuple[torch.dtype, list[tuple[int, ...]]]] = {}
    for record in (*plan.merged, *plan.segments):
        file = folder.file(record)
        for name in file.names:
            if name in (*_ALONG, *_TABLES):
                shapes.setdefault(name, (file.dtype(name), []))[1].append(file.shape(name))
            elif name.startswith(tuple(_TABLES.values())):
                shapes.setdefault(_segments_name(name), (file.dtype(name), []))
    described: dict[str, Described] = {}
    for name, (dtype, some) in shapes.items():
        if name in _TABLES:
            for layer_idx, rows, width in _layers(folder.catalogue.header, is_keys=name == "event_keys"):
                size = (rows, plan.num_events, width) if name == "event_keys" else (rows, plan.num_events)
                described[f"{_TABLES[name]}.{layer_idx}"] = dtype, size
        else:
            described[name] = dtype, (sum(shape[0] for shape in some), *some[0][1:])
    return described


def _segments_name(name: str) -> str:
    return next(own for own, table in _TABLES.items() if name.startswith(table))


def _layers(header: dict[str, Any], *, is_keys: bool) -> Iterator[tuple[int, int, int]]:
    """Index, rows and features a row of each layer that ranks events."""
    empty = split_event_keys(torch.zeros(0), 0, header, is_keys=is_keys)
    ranking = [i for i, layer in enumerate(header["layers"]) if layer["window_tokens"] is None]
    for layer_idx, rows in zip(ranking, empty, strict=True):
        yield layer_idx, rows.shape[0], rows.shape[2]


def _fill(folder: MemoryFolder, plan: _Plan, described: dict[str, Described], put: Put) -> None:
    for record in plan.merged:
        file = folder.file(record)
        older = MappedFile(file)
        for name, tensor in file.read_all_but_pages().items():
            put(name, tensor)
        for name in older.names:
            put(name, older.table(name))
    header = folder.catalogue.header
    ranking = [layer_idx for layer_idx, _, _ in _layers(header, is_keys=True)]
    for first in range(0, len(plan.segments), SEGMENTS_AT_ONCE):
        some = plan.segments[first : first + SEGMENTS_AT_ONCE]
        units = [(folder.file(record).read_all_but_pages(), record.num_events) for record in some]
        for name in _ALONG:
            pieces = [tensors[name] for tensors, _ in units if name in tensors]
            if pieces:
                put(name, torch.cat(pieces))
        for name, table in _TABLES.items():
            split = [
                split_event_keys(tensors[name], num_events, header, is_keys=name == "event_keys")
                for tensors, num_events in units
                if name in tensors
            ]
            for layer_idx, rows in zip(ranking, zip(*split, strict=True), strict=False):
                put(f"{table}.{layer_idx}", torch.cat(rows, dim=1))


def split_event_keys(flat: Tensor, num_events: int, header: dict[str, Any], *, is_keys: bool) -> list[Tensor]:
    """What `snapshot.event_key_tensors` laid out, by layer, as rows of one feature vector an event.

    A layer's part is ``[K, R, N, D]`` for keys, here ``[K * R, N, D]``, and ``[K, N]`` for scales, here with
    a last dimension of 1.
    """
    settings = header["settings"]
    num_keys = keys_per_event(settings["event_key"], settings["representatives"])
    layers, first = [], 0
    for layer in header["layers"]:
        if layer["window_tokens"] is None:
            rows = layer["num_kv_heads"] * (num_keys if is_keys else 1)
            width = layer["head_dim"] if is_keys else 1
            layers.append(flat[first : first + rows * num_events * width].view(rows, num_events, width))
            first += layers[-1].numel()
    return layers


class IndexFile:
    """An index file, open: what is small is in RAM, event keys are where they lie.

    Raises:
        StoreError: the file is missing or damaged, as far as it is read.
    """

    def __init__(self, folder: MemoryFolder, record: FileRecord) -> None:
        self.record = record
        file = folder.file(record)
        self.tensors = file.read_all_but_pages()
        self._mapped = MappedFile(file)
        num_tokens = record.stop - record.start
        if any(len(self.tensors.get(name, ())) != num_tokens for name in ("token_ids", "surprise")):
            raise StoreError(f"{folder.path / record.name}: does not hold {num_tokens} tokens")

    def token_ids(self, start: int, stop: int) -> Tensor:
        """Ids of a span of the log that it covers."""
        return self.tensors["token_ids"][start - self.record.start : stop - self.record.start]

    def surprise(self, start: int, stop: int) -> Tensor:
        """Surprise of a span of the log that it covers, in nats."""
        return self.tensors["surprise"][start - self.record.start : stop - self.record.start]

    def part(self, layer: MemoryLayer) -> LatePart | None:
        """The event keys of a layer, compared with their checksums when they are first looked at."""
        if f"index_keys.{layer.layer_idx}" not in self._mapped.names:
            return None
        return LatePart(self.record.num_events, partial(self._read, layer))

    def _read(self, layer: MemoryLayer) -> IndexPart:
        geometry = layer.geometry
        keys = self._mapped.table(f"index_keys.{layer.layer_idx}").to(geometry.device)
        scales = None
        if f"index_scales.{layer.layer_idx}" in self._mapped.names:
            scales = self._mapped.table(f"index_scales.{layer.layer_idx}").to(geometry.device)
        if keys.shape[1:] != (self.record.num_events, geometry.head_dim):
            raise StoreError(f"{self.record.name}: holds keys of another shape than its events have")
        return IndexPart(keys.unflatten(0, (geometry.num_kv_heads, -1)), scales)
