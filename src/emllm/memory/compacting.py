"""Compacting: give back the disk space that a memory does not need, and merge small files into larger ones.

Whoever reads many small texts, or talks, leaves a file for each, whose last page is mostly filled up. Runs of
such files become one, tokens shoulder to shoulder. Every number stays as it was, to the bit: codecs that
round tokens one by one are encoded again; those that round them in groups keep their pages, and only files
of whole pages are merged. A merged file says where its units end, so that a log can still be cut there.

Needs no model. This module does not know how files are made durable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emllm.memory.forgetting import shape_of
from emllm.memory.index_files import renew_index, split_event_keys
from emllm.store import erasing, maintenance
from emllm.store.codecs import make_codec
from emllm.store.contents import Change
from emllm.store.folder import MemoryFolder
from emllm.store.record import FileRecord

#: Codecs that round every number by itself, so that what was decoded is encoded to the same bits anywhere.
ELEMENTWISE = ("exact", "bf16")
#: What a merged file says of its units: where each ends, and how many rows of `recall_rows` are its own.
UNIT_STOPS, UNIT_RECALLS = "unit_stops", "unit_recalls"
_KNOWN = {"token_ids", "surprise", "event_keys", "event_scales", UNIT_STOPS, UNIT_RECALLS} | {
    f"recall_{part}" for part in ("rows", "events", "standing")
}


@dataclass(frozen=True)
class Compacted:
    """What compacting did.

    Attributes:
        bytes_before: on disk.
        bytes_after: on disk.
        files_before: data files.
        files_after: data files.
    """

    bytes_before: int
    bytes_after: int
    files_before: int
    files_after: int


def compact(path: Path | str) -> Compacted:
    """Merge small files, and give back leftovers and free room in the catalogue.

    Raises:
        StoreError: somebody has the memory open, or the disk is full or fails; nothing is lost then.
    """
    before = maintenance.describe(path)
    with MemoryFolder.open(path, writable=True) as folder, folder.exclusive():
        erasing.finish(folder)
        _merge(folder)
        renew_index(folder)
        folder.sweep()
        folder.catalogue.scrub()
    after = maintenance.describe(path)
    return Compacted(before.num_bytes, after.num_bytes, before.num_files, after.num_files)


def _merge(folder: MemoryFolder) -> None:
    """Every run of small files as one, in one commit."""
    contents = folder.contents
    merging = _Merging(folder.catalogue.header)
    runs = [run for run in merging.runs(contents.files) if len(run) > 1]
    if not runs:
        return
    records = []
    for run in runs:
        tensors = merging.joined([_tensors(folder, record) for record in run], run)
        num_events = sum(record.num_events for record in run)
        records.append(folder.add("segment", run[0].start, run[-1].stop, tensors, num_events))
    folder.commit(
        Change(
            num_tokens=contents.num_tokens,
            new_files=records,
            dropped_files=[record.name for run in runs for record in run],
            first_new_event=len(contents.events),
            new_events=np.zeros((0, 2), dtype=np.int64),
            documents=None,
            state=contents.state,
        )
    )


def _tensors(folder: MemoryFolder, record: FileRecord) -> dict[str, Tensor]:
    file = folder.file(record)
    tensors = {name: file.read(name) for name in file.names}
    file.close()
    return tensors


class _Merging:
    """How the files of one memory are merged, and a merged one is cut.

    Args:
        header: of its catalogue.
    """

    def __init__(self, header: dict[str, Any]) -> None:
        self._header = header
        self._page_tokens = int(header["page_tokens"])
        self._usual_tokens = max(int(header["settings"]["chunk_tokens"]), self._page_tokens)
        self._is_elementwise = header["codec"] in ELEMENTWISE
        shapes = map(shape_of, header["layers"])
        self._codecs = [make_codec(header["codec"], shape, self._page_tokens) for shape in shapes]

    def runs(self, records: Sequence[FileRecord]) -> Iterator[list[FileRecord]]:
        """Segments that follow one another and make a file of the usual size, or less where one ends."""
        run: list[FileRecord] = []
        for record in records:
            if record.kind != "segment":
                continue
            fits = bool(run) and record.stop - run[0].start <= self._usual_tokens
            if run and not (fits and self._can_end(run[-1])):
                yield run
                run = []
            run.append(record)
        if run:
            yield run

    def _can_end(self, record: FileRecord) -> bool:
        """Whether another file's tokens may follow this one's in a page, or its last page is full."""
        return self._is_elementwise or (record.stop - record.start) % self._page_tokens == 0

    def joined(self, files: Sequence[dict[str, Tensor]], records: Sequence[FileRecord]) -> dict[str, Tensor]:
        """The tensors of one file for several."""
        for tensors in files:
            unknown = {name for name in tensors if not name.startswith("pages.")} - _KNOWN
            assert not unknown, f"a segment holds {unknown}"
        sizes = [record.stop - record.start for record in records]
        merged = {
            f"pages.{layer_idx}": self._pages(layer_idx, [one[f"pages.{layer_idx}"] for one in files], sizes)
            for layer_idx in range(len(self._codecs))
        }
        for name in ("token_ids", "surprise"):
            merged[name] = torch.cat([one[name] for one in files])
        merged.update(self._event_keys(files, [record.num_events for record in records]))
        with_recalls = [one for one in files if "recall_rows" in one]
        for name in ("recall_rows", "recall_events", "recall_standing"):
            if with_recalls:
                merged[name] = torch.cat([one[name] for one in with_recalls])
        units = [units_of(one, record) for one, record in zip(files, records, strict=True)]
        merged[UNIT_STOPS] = torch.cat([stops for stops, _ in units])
        merged[UNIT_RECALLS] = torch.cat([recalls for _, recalls in units])
        return merged

    def _pages(self, layer_idx: int, pages: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """The pages of a layer of several files, so that no page but the last is filled up."""
        if all(size % self._page_tokens == 0 for size in sizes[:-1]):
            return torch.cat(list(pages))
        codec = self._codecs[layer_idx]
        decoded = [codec.decode_tokens(one, size) for one, size in zip(pages, sizes, strict=True)]
        return codec.encode_tokens(*(torch.cat(parts) for parts in zip(*decoded, strict=True)))

    def _event_keys(self, files: Sequence[dict[str, Tensor]], num_events: Sequence[int]) -> dict[str, Tensor]:
        merged = {}
        for name in ("event_keys", "event_scales"):
            parts = [
                split_event_keys(one[name], num, self._header, is_keys=name == "event_keys")
                for one, num in zip(files, num_events, strict=True)
                if name in one and num
            ]
            layers = [torch.cat(layer, dim=1).reshape(-1) for layer in zip(*parts, strict=True)]
            if layers:
                merged[name] = torch.cat(layers)
        return merged

    def first_tokens(self, tensors: dict[str, Tensor], num_tokens: int) -> dict[str, Tensor]:
        """The pages, ids and surprise of a file's first tokens."""
        kept = {name: tensors[name][:num_tokens].contiguous() for name in ("token_ids", "surprise")}
        for layer_idx, codec in enumerate(self._codecs):
            pages = tensors[f"pages.{layer_idx}"][: -(-num_tokens // self._page_tokens)]
            if num_tokens % self._page_tokens and self._is_elementwise:
                pages = codec.encode_tokens(*codec.decode_tokens(pages, num_tokens))
            kept[f"pages.{layer_idx}"] = pages.contiguous()
        return kept


def units_of(tensors: dict[str, Tensor], record: FileRecord) -> tuple[Tensor, Tensor]:
    """Where the units of a file end, and how many recalls each holds."""
    if UNIT_STOPS in tensors:
        return tensors[UNIT_STOPS], tensors[UNIT_RECALLS]
    num_recalls = len(tensors["recall_rows"]) if "recall_rows" in tensors else 0
    return torch.tensor([record.stop]), torch.tensor([num_recalls])


def cut(folder: MemoryFolder, record: FileRecord, token: int, num_events: int) -> dict[str, Tensor] | None:
    """What a file would hold if it had not been merged with the units from a token on.

    Args:
        num_events: of its events that end before the token.

    Returns:
        None where no unit begins at the token.
    """
    tensors = _tensors(folder, record)
    stops, num_recalls = units_of(tensors, record)
    units = int(torch.searchsorted(stops, token))
    if units == len(stops) or int(stops[units]) != token:
        return None
    header = folder.catalogue.header
    kept = _Merging(header).first_tokens(tensors, token - record.start)
    for name in ("event_keys", "event_scales"):
        if name in tensors and num_events:
            layers = split_event_keys(tensors[name], record.num_events, header, is_keys=name == "event_keys")
            kept[name] = torch.cat([layer[:, :num_events].reshape(-1) for layer in layers])
    num_rows = int(num_recalls[: units + 1].sum())
    if num_rows:
        rows = tensors["recall_rows"][:num_rows]
        num_recalled = int(rows[:, 2].sum())
        kept["recall_rows"] = rows.contiguous()
        for name in ("recall_events", "recall_standing"):
            kept[name] = tensors[name][:num_recalled].contiguous()
    kept[UNIT_STOPS], kept[UNIT_RECALLS] = stops[: units + 1].clone(), num_recalls[: units + 1].clone()
    return kept
