"""What a memory keeps from one chunk to the next, as numbers for JSON and tensors, and back.

Together with the log, the events' spans and keys, and the recalls that made the habits, this is all of a
memory: one that is restored goes on exactly as the one that was written would have. This module does not know
where any of it is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.attention.context import ContextPlan
from emllm.attention.layout import Layout
from emllm.memory.layer import MemoryLayer
from emllm.memory.sequence import Moment
from emllm.memory.staging import LayerState
from emllm.recall.index import IndexPart, joined
from emllm.recall.shortlist import Shortlist
from emllm.recall.trace import Recall, Usual

if TYPE_CHECKING:
    from emllm.memory.episodic import EpisodicMemory


def snapshot(memory: EpisodicMemory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All but the log, the recallable events, their keys, and the habits."""
    numbers, last_logits = memory._cutter.state()
    tensors: dict[str, Tensor] = {}
    if last_logits is not None:
        tensors["state.last_logits"] = last_logits.cpu()
    layers = {}
    for layer in memory._memory_layers:
        state = layer.state()
        layers[str(layer.layer_idx)] = {
            "plan": _plan_numbers(state.plan),
            "queue": state.queue,
            "num_recalls": state.num_recalls,
            "num_ranked": None if state.shortlist is None else state.shortlist.num_ranked,
        }
        shortlist = None if state.shortlist is None else torch.from_numpy(state.shortlist.events)
        kept = {
            "queries": state.queries,
            "weights": state.weights,
            "centre": layer.ranking.index.centre,
            "shortlist": shortlist,
        }
        for name, tensor in kept.items():
            if tensor is not None:
                tensors[f"state.{name}.{layer.layer_idx}"] = tensor.cpu()
    usual = memory.moment.usual
    if usual is not None:
        tensors["state.usual"] = torch.tensor(usual.asked, dtype=torch.int32)
        for layer_idx, standing in usual.standing.items():
            tensors[f"state.usual.{layer_idx}"] = torch.from_numpy(standing)
    events = memory._events
    return {
        "usual": None if usual is None else {"num_events": events.num_recallable},
        "dialogue": memory.dialogue,
        "holes": memory.holes.tolist(),
        "events_in_window": events.spans(events.num_recallable, len(events)).tolist(),
        "event_open_start": events.open_start,
        "cutter": numbers,
        "layers": layers,
    }, tensors


def restore(
    memory: EpisodicMemory,
    numbers: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    events: NDArray[np.int64],
    recalls: Mapping[int, Sequence[Recall]],
) -> None:
    """Make an empty memory, whose log and index are filled already, the one that was taken a snapshot of.

    Args:
        events: spans of the recallable events.
        recalls: by layer, all that made its habit.
    """
    memory.dialogue = numbers["dialogue"]
    memory.holes = np.array(numbers["holes"], dtype=np.int64).reshape(-1, 2)
    table = memory._events
    table.add(events)
    table.release(int(events[-1, 1]) if len(events) else 0)
    table.add(np.array(numbers["events_in_window"], dtype=np.int64).reshape(-1, 2))
    table.open_start = numbers["event_open_start"]
    last_logits = tensors.get("state.last_logits")
    device = memory.geometry.layers[-1].device
    memory._cutter.restore(numbers["cutter"], None if last_logits is None else last_logits.to(device))
    for layer in memory._memory_layers:
        kept = numbers["layers"][str(layer.layer_idx)]
        queries, weights = (
            None if tensor is None else tensor.to(layer.geometry.device)
            for tensor in (tensors.get(f"state.{name}.{layer.layer_idx}") for name in ("queries", "weights"))
        )
        shortlist = None
        if kept["num_ranked"] is not None:
            best = tensors[f"state.shortlist.{layer.layer_idx}"].numpy()
            shortlist = Shortlist(best, kept["num_ranked"])
        state = LayerState(
            _plan(kept["plan"]), kept["queue"], queries, weights, shortlist, kept["num_recalls"]
        )
        layer.restore(state, recalls.get(layer.layer_idx, ()))
    if numbers.get("usual") == {"num_events": table.num_recallable}:
        memory.moment = Moment(_usual(memory, tensors))


def _usual(memory: EpisodicMemory, tensors: Mapping[str, Tensor]) -> Usual:
    """What was noted of just these events; what somebody noted of others would be taken off wrong ones."""
    names = {layer.layer_idx: f"state.usual.{layer.layer_idx}" for layer in memory._memory_layers}
    standing = {layer_idx: tensors[name].numpy() for layer_idx, name in names.items() if name in tensors}
    return Usual(tuple(tensors["state.usual"].tolist()), standing)


def _plan_numbers(plan: ContextPlan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    token_idx = plan.token_idx
    is_first = np.diff(token_idx, prepend=token_idx[:1] - 2) != 1
    starts, stops = token_idx[is_first], token_idx[np.roll(is_first, -1)] + 1
    runs = np.stack([starts, stops], axis=1).tolist()
    layout = plan.layout
    return {
        "runs": runs,
        "layout": [layout.num_far, layout.far_distance, layout.num_near],
        "num_local": plan.num_local,
        "first_chunk": plan.first_chunk,
        "max_chunk": plan.max_chunk,
        "num_chunk": plan.num_chunk,
    }


def _plan(numbers: Mapping[str, Any] | None) -> ContextPlan | None:
    if numbers is None:
        return None
    runs = [np.arange(start, stop) for start, stop in numbers["runs"]]
    return ContextPlan(
        token_idx=np.concatenate([np.zeros(0, dtype=np.int64), *runs]),
        layout=Layout(*numbers["layout"]),
        num_local=numbers["num_local"],
        first_chunk=numbers["first_chunk"],
        max_chunk=numbers["max_chunk"],
        num_chunk=numbers["num_chunk"],
    )


def event_key_tensors(layers: Sequence[MemoryLayer], first: int, last: int) -> dict[str, Tensor]:
    """Event keys ``[first, last)`` of all layers as two long tensors."""
    keys, scales = [], []
    for layer in layers:
        part = joined(layer.ranking.index.between(first, last))
        if part is not None:
            keys.append(part.keys.reshape(-1).cpu())
            if part.scales is not None:
                scales.append(part.scales.reshape(-1).cpu())
    tensors = {}
    if keys:
        tensors["event_keys"] = torch.cat(keys)
    if scales:
        tensors["event_scales"] = torch.cat(scales)
    return tensors


def add_event_keys(
    layers: Sequence[MemoryLayer],
    units: Sequence[tuple[Mapping[str, Tensor], int]],
    *,
    num_representatives: int,
    centres: Mapping[int, Tensor],
) -> None:
    """Put event keys back into each layer's index.

    Args:
        units: of consecutive units, the tensors and the number of events in them.
        num_representatives: keys of an event.
        centres: what each layer's encoder took off.
    """
    units = [(tensors, num_events) for tensors, num_events in units if "event_keys" in tensors]
    if not units:
        return
    keys_done, scales_done = [0] * len(units), [0] * len(units)
    for layer in layers:
        geometry = layer.geometry
        keys, scales = [], []
        for i, (tensors, num_events) in enumerate(units):
            size = (geometry.num_kv_heads, num_representatives, num_events, geometry.head_dim)
            stop = keys_done[i] + math.prod(size)
            keys.append(tensors["event_keys"][keys_done[i] : stop].view(size))
            keys_done[i] = stop
            if "event_scales" in tensors:
                stop = scales_done[i] + geometry.num_kv_heads * num_events
                scales.append(
                    tensors["event_scales"][scales_done[i] : stop].view(geometry.num_kv_heads, num_events)
                )
                scales_done[i] = stop
        part = IndexPart(
            torch.cat(keys, dim=2).to(geometry.device),
            torch.cat(scales, dim=1).to(geometry.device) if scales else None,
        )
        centre = centres.get(layer.layer_idx)
        layer.ranking.index.append_encoded(part, None if centre is None else centre.to(geometry.device))


def recall_tensors(recalls: Mapping[int, Sequence[Recall]], starts: NDArray[np.int64]) -> dict[str, Tensor]:
    """Recalls of all layers: rows ``(layer, token, recalled events)``, then what was recalled.

    Events are named by their first tokens, which stay when others are forgotten; the token of a row follows
    the first of the last event that was ranked.

    Args:
        starts: first token of each event.
    """
    every = [(layer_idx, one) for layer_idx, own in recalls.items() for one in own]
    if not every:
        return {}
    rows = [
        (layer_idx, int(starts[one.num_events - 1]) + 1 if one.num_events else 0, len(one.events))
        for layer_idx, one in every
    ]
    return {
        "recall_rows": torch.tensor(rows, dtype=torch.int64),
        "recall_events": torch.from_numpy(starts[np.concatenate([one.events for _, one in every])]),
        "recall_standing": torch.from_numpy(np.concatenate([one.standing for _, one in every])),
    }


def recalls_of(tensors: Mapping[str, Tensor], starts: NDArray[np.int64]) -> dict[int, list[Recall]]:
    """Recalls by layer, without the events that were forgotten since.

    Args:
        starts: first token of each event that is left.
    """
    recalls: dict[int, list[Recall]] = {}
    if "recall_rows" not in tensors:
        return recalls
    tokens, standing = tensors["recall_events"].numpy(), tensors["recall_standing"].numpy()
    rows = tensors["recall_rows"].numpy()
    events = np.searchsorted(starts, tokens)
    is_left = events < len(starts)
    is_left[is_left] = starts[events[is_left]] == tokens[is_left]
    num_events = np.searchsorted(starts, rows[:, 1]).tolist()
    first = 0
    for (layer_idx, _, num_recalled), num_ranked in zip(rows.tolist(), num_events, strict=True):
        span = slice(first, first + num_recalled)
        left = is_left[span]
        own = recalls.setdefault(layer_idx, [])
        own.append(Recall(num_ranked, events[span][left].astype(np.int32), standing[span][left]))
        first += num_recalled
    return recalls
