"""Forgetting a document for good: its keys, values, tokens, event keys and name leave the folder.

The places of its tokens in the log stay, empty, so nothing else moves. What was read later was computed with
the document in view; that cannot be taken out of it, and `Forgotten.later` says what it is. What stays
besides are sums over everything read: those of the surprise threshold, and what the index takes off all keys.

Needs no model. This module does not know how a memory goes on afterwards.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.errors import InputError, StoreError
from emllm.memory.index_files import split_event_keys, write_index
from emllm.segmentation.baselines import SentenceStarts
from emllm.store import erasing
from emllm.store.codecs import make_codec
from emllm.store.contents import Change, Contents, DocumentRecord
from emllm.store.files import FileRecord
from emllm.store.folder import MemoryFolder
from emllm.store.slabs import LayerShape

#: How to speak of questions and answers that became part of a memory.
CONVERSATION = "the conversation"
#: What a snapshot says of a layer that has recalled nothing.
FRESH_LAYER: dict[str, Any] = {"plan": None, "queue": [], "num_recalls": 0, "num_ranked": None}


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten.

    Attributes:
        num_tokens: of the document.
        num_events: that began and ended in it.
        later: what was read with it in view: documents, and `CONVERSATION`.
    """

    num_tokens: int
    num_events: int
    later: list[str]


def forget(path: Path | str, name: str) -> Forgotten:
    """Remove a document from a memory that nobody has open.

    Raises:
        InputError: the memory holds no document of that name.
        StoreError: somebody has it open, or the disk fails. Then either nothing was forgotten, or all of it
            was and its bytes may still be on the disk: the same call again ends that.
    """
    with MemoryFolder.open(path, writable=True) as folder:
        documents = folder.contents.documents
        found = [document for document in documents if document.name == name]
        begun = erasing.note(folder)
        if not found and (begun is None or begun.get("name") != _digest(folder, name)):
            names = ", ".join(document.name for document in documents) or "none"
            raise InputError(f"{path}: holds no document {name!r}; its documents are: {names}")
        with folder.exclusive():
            erasing.finish(folder)
            if found:
                begun = _Surgery(folder, found[-1]).run()
        assert begun is not None
        with suppress(StoreError):  # it only makes the next opening faster
            write_index(folder)
        later = read_after(folder.contents, begun["stop"])
        return Forgotten(begun["stop"] - begun["start"], begun["events"], later)


def read_after(contents: Contents, token: int) -> list[str]:
    """What was read from a token on, by name: documents, and the conversation about them."""
    later = [document.name for document in contents.documents if document.start >= token]
    return [*later, CONVERSATION] if contents.state.get("dialogue") == "answered" else later


def _digest(folder: MemoryFolder, name: str) -> str:
    """By what a memory knows the name of a document that it must not keep."""
    return hashlib.sha256(f"{folder.catalogue.header['uuid']} {name}".encode()).hexdigest()


class _Surgery:
    """Takes one document out of an open folder, in one commit."""

    def __init__(self, folder: MemoryFolder, document: DocumentRecord) -> None:
        self._folder = folder
        self._document = document
        self._start, self._stop = document.start, document.stop
        header, contents = folder.catalogue.header, folder.contents
        self._page_tokens = int(header["page_tokens"])
        self._shapes = [shape_of(layer) for layer in header["layers"]]
        self._codecs = {
            kind: [make_codec(codec, shape, self._page_tokens) for shape in self._shapes]
            for kind, codec in (("segment", header["codec"]), ("recent", "exact"))
        }
        events = contents.events
        self._is_gone = (events[:, 0] >= self._start) & (events[:, 1] <= self._stop)
        self._holes = [*contents.state["holes"], [self._start, self._stop]]

    def run(self) -> dict[str, Any]:
        """Rewrite the files that hold any of it; what is noted of it until nothing of it is left."""
        contents = self._folder.contents
        state = self._state(contents.state)
        new: list[FileRecord] = []
        dropped: list[str] = []
        first_event = 0
        for record in contents.files:
            gone = self._is_gone[first_event : first_event + record.num_events]
            first_event += record.num_events
            is_state = record.name == contents.state["state_file"]
            overlaps = record.start < self._stop and self._start < record.stop
            if overlaps or gone.any() or is_state:
                rewritten = self._rewrite(record, gone, is_state=is_state)
                new.append(rewritten)
                dropped.append(record.name)
                if is_state:
                    state["state_file"] = rewritten.name
        rest = np.flatnonzero(self._is_gone)
        first = int(rest[0]) if len(rest) else len(contents.events)
        num_events = int(self._is_gone.sum())
        name = _digest(self._folder, self._document.name)
        note = {"name": name, "start": self._start, "stop": self._stop, "events": num_events}
        erasing.erase(
            self._folder,
            Change(
                num_tokens=contents.num_tokens,
                new_files=new,
                dropped_files=dropped,
                first_new_event=first,
                new_events=contents.events[first:][~self._is_gone[first:]],
                documents=[one for one in contents.documents if one is not self._document],
                state=state,
                events_replaced=True,
            ),
            note,
        )
        return note

    def _rewrite(self, record: FileRecord, gone: NDArray[np.bool_], *, is_state: bool) -> FileRecord:
        file = self._folder.file(record)
        tensors = {name: file.read(name) for name in file.names}
        for name in ("event_keys", "event_scales"):
            if name in tensors and gone.any():
                tensors[name] = self._without_events(tensors[name], gone, is_keys=name == "event_keys")
        if "recall_events" in tensors:
            tensors.update(self._without_recalls(tensors))
        if record.stop > record.start and "token_ids" in tensors:
            self._erase(tensors, record)
        if is_state:
            self._erase_state(tensors)
        num_events = record.num_events - int(gone.sum())
        return self._folder.add(record.kind, record.start, record.stop, tensors, num_events)

    def _without_events(self, flat: Tensor, gone: NDArray[np.bool_], *, is_keys: bool) -> Tensor:
        """Event keys or scales of all layers, less some events."""
        header = self._folder.catalogue.header
        alive = torch.from_numpy(~gone)
        layers = split_event_keys(flat, len(gone), header, is_keys=is_keys)
        return torch.cat([layer[:, alive].reshape(-1) for layer in layers])

    def _without_recalls(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        events = tensors["recall_events"]
        is_left = (events < self._start) | (events >= self._stop)
        rows = tensors["recall_rows"].clone()
        owner = torch.repeat_interleave(torch.arange(len(rows)), rows[:, 2])
        rows[:, 2] = torch.bincount(owner[is_left], minlength=len(rows))
        return {
            "recall_rows": rows,
            "recall_events": events[is_left],
            "recall_standing": tensors["recall_standing"][is_left],
        }

    def _erase(self, tensors: dict[str, Tensor], record: FileRecord) -> None:
        """Zero the document's tokens in a unit's tensors, with what was forgotten in it before."""
        token_idx = torch.arange(record.start, record.stop)
        is_hole = torch.zeros(len(token_idx), dtype=torch.bool)
        for start, stop in self._holes:
            is_hole |= (token_idx >= start) & (token_idx < stop)
        tensors["token_ids"] = tensors["token_ids"].masked_fill(is_hole, 0)
        tensors["surprise"] = tensors["surprise"].masked_fill(is_hole, torch.nan)
        missing = -len(token_idx) % self._page_tokens
        padding = is_hole[-1:].expand(missing)  # the last token fills the last page
        rows = torch.cat([is_hole, padding]).view(-1, self._page_tokens)
        for layer_idx, codec in enumerate(self._codecs[record.kind]):
            codec.erase(tensors[f"pages.{layer_idx}"], rows)

    def _erase_state(self, tensors: dict[str, Tensor]) -> None:
        state = self._folder.contents.state
        before, after = frontier_of(state), frontier_of(self._state(state))
        for name in list(tensors):
            if name.startswith(("state.queries.", "state.shortlist.", "state.usual")):
                del tensors[name]
            elif name.startswith("state.weights."):
                weights = tensors[name]
                weights[:, max(self._start - before, 0) : max(self._stop - before, 0)] = 0.0
                tensors[name] = weights[:, after - before :].contiguous()
        if self._ends_the_log:
            tensors.pop("state.last_logits", None)

    @property
    def _ends_the_log(self) -> bool:
        return self._stop == self._folder.contents.num_tokens

    def _state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The numbers of the snapshot without the document."""
        inside = range(self._start, self._stop)
        cutter = {name: dict(numbers) for name, numbers in state["cutter"].items()}
        segmenter = cutter["segmenter"]
        if segmenter["last"] in inside:
            segmenter["last"] = self._stop
        segmenter["candidates"] = [one for one in segmenter["candidates"] if one not in inside]
        threshold = dict(segmenter["threshold"])
        first = segmenter["seen"] - len(threshold["tail"])
        threshold["tail"] = [
            None if first + i in inside else value for i, value in enumerate(threshold["tail"])
        ]
        segmenter["threshold"] = threshold
        if self._ends_the_log:
            cutter["sentences"] = SentenceStarts().state()
        in_window = [span for span in state["events_in_window"] if span[0] not in inside]
        open_start = self._stop if state["event_open_start"] in inside else state["event_open_start"]
        is_last = len(self._folder.contents.documents) == 1
        dialogue = "opened" if is_last and state["dialogue"] == "documents" else state["dialogue"]
        return {
            **state,
            "usual": None,
            "dialogue": dialogue,
            "holes": self._holes,
            "events_in_window": in_window,
            "event_open_start": open_start,
            "cutter": cutter,
            "layers": dict.fromkeys(state["layers"], FRESH_LAYER),
        }


def frontier_of(state: dict[str, Any]) -> int:
    """First token of the first event that may not be recalled yet."""
    in_window = state["events_in_window"]
    return int(in_window[0][0] if in_window else state["event_open_start"])


def shape_of(layer: dict[str, Any]) -> LayerShape:
    """What a header says of a layer."""
    dtype = getattr(torch, str(layer["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise StoreError(f"unknown dtype {layer['dtype']!r} in the header")
    return LayerShape(
        layer["num_kv_heads"], layer["head_dim"], layer["value_dim"], dtype, torch.device("cpu")
    )
