"""Take the end off a memory's log, so that it can be read anew from there.

What is left is a memory that is about to read a document: nothing is in the local window, all events before
are recallable, and the surprise threshold knows the tokens before. Needs no model. This module does not know
what is read next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emllm.errors import StoreError
from emllm.memory.compacting import cut
from emllm.memory.forgetting import FRESH_LAYER, frontier_of
from emllm.memory.index_files import split_event_keys
from emllm.segmentation.baselines import SentenceStarts
from emllm.store.contents import Change
from emllm.store.folder import MemoryFolder
from emllm.store.record import FileRecord


def truncate(path: Path | str, token: int) -> None:
    """Drop all tokens from `token` on, in one commit.

    Args:
        path: of a memory that nobody has open.
        token: where a unit of the log begins, as every document does.

    Raises:
        StoreError: it lies inside a unit, somebody has the memory open, or the disk fails.
    """
    with MemoryFolder.open(path, writable=True) as folder, folder.exclusive():
        contents = folder.contents
        later = [record for record in contents.files if record.stop > token or record.start >= token]
        num_kept_keys = sum(record.num_events for record in contents.files if record not in later)
        num_kept = int(np.searchsorted(contents.events[:, 1], token, side="right"))
        state_file = next(one for one in later if one.name == contents.state["state_file"])
        tensors = _state_tensors(folder, state_file, contents.state, token)
        if not num_kept:  # the next event says anew what is taken off all keys
            tensors = {name: x for name, x in tensors.items() if not name.startswith("state.centre.")}
        new = [_cut(folder, one, token, num_kept - num_kept_keys) for one in later if one.start < token]
        num_kept_keys += sum(record.num_events for record in new)
        whole = [record for record in later if record.start >= token]
        tensors.update(_event_keys(folder, whole, num_kept - num_kept_keys))
        if not tensors:
            tensors["state.empty"] = torch.zeros(1, dtype=torch.uint8)
        new.append(folder.add("recent", token, token, tensors, num_kept - num_kept_keys))
        documents = [one for one in contents.documents if one.stop <= token]
        folder.commit(
            Change(
                num_tokens=token,
                new_files=new,
                dropped_files=[one.name for one in later],
                first_new_event=num_kept,
                new_events=np.zeros((0, 2), dtype=np.int64),
                documents=documents,
                state={**_state(folder, token, has_documents=bool(documents)), "state_file": new[-1].name},
                events_replaced=True,
            )
        )


def _cut(folder: MemoryFolder, record: FileRecord, token: int, num_events: int) -> FileRecord:
    """A new file of the tokens of one before a token, at which a unit begins if files were merged."""
    num_events = min(num_events, record.num_events)
    tensors = cut(folder, record, token, num_events) if record.kind == "segment" else None
    if tensors is None:
        raise StoreError(f"{folder.path}: no unit begins at token {token}")
    return folder.add("segment", record.start, token, tensors, num_events)


def _state_tensors(
    folder: MemoryFolder, state_file: Any, state: dict[str, Any], token: int
) -> dict[str, Tensor]:
    """What every layer's index takes off its keys, and the weights of tokens that have no event key."""
    file = folder.file(state_file)
    tensors = {name: file.read(name) for name in file.names if name.startswith("state.centre.")}
    frontier = frontier_of(state)
    for name in file.names:
        if name.startswith("state.weights.") and frontier < token:
            tensors[name] = file.read(name)[:, : token - frontier].contiguous()
    return tensors


def _event_keys(folder: MemoryFolder, later: list[Any], num_events: int) -> dict[str, Tensor]:
    """Keys of the first events that are in files to be dropped, in the layout of one file."""
    pieces: dict[str, list[list[Tensor]]] = {"event_keys": [], "event_scales": []}
    left = num_events
    for record in later:
        if left <= 0:
            break
        file = folder.file(record)
        taken = min(left, record.num_events)
        left -= taken
        for name, parts in pieces.items():
            if name in file.names and taken:
                layers = split_event_keys(
                    file.read(name), record.num_events, folder.catalogue.header, is_keys=name == "event_keys"
                )
                parts.append([layer[:, :taken] for layer in layers])
    return {
        name: torch.cat([torch.cat(layers, dim=1).reshape(-1) for layers in zip(*parts, strict=True)])
        for name, parts in pieces.items()
        if parts
    }


def _state(folder: MemoryFolder, token: int, *, has_documents: bool) -> dict[str, Any]:
    contents = folder.contents
    state, settings = contents.state, folder.catalogue.header["settings"]
    start = int(state["cutter"]["segmenter"]["start"])
    window = int(settings["surprise_window_tokens"])
    known = np.concatenate(
        [np.zeros(0, dtype=np.float32)]
        + [
            folder.file(record).read("surprise").numpy()[: token - record.start]
            for record in contents.files
            if record.start < min(token, record.stop) and record.stop > token - window
        ]
    )[-window:]
    tail = [float(value) if np.isfinite(value) else None for value in known]
    kept = [span for span in state["events_in_window"] if span[1] <= token]
    segmenter = {
        "start": start,
        "last": max(token, start),
        "seen": token,
        "candidates": [],
        "threshold": {"sums": [0.0, 0.0, 0.0], "tail": tail},
    }
    return {
        **state,
        "usual": None,
        "dialogue": "documents" if has_documents else "opened" if token else "empty",
        "holes": [hole for hole in state["holes"] if hole[1] <= token],
        "events_in_window": kept,
        "event_open_start": max(token, start),
        "cutter": {"segmenter": segmenter, "sentences": SentenceStarts().state()},
        "layers": dict.fromkeys(state["layers"], FRESH_LAYER),
    }
