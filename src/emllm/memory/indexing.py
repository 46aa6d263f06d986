"""Event keys of events that left the local window, for all layers, and the key graph for refinement.

Reads the log; writes nothing. Layers of one shape are done in one go, because a chunk closes a few dozen
small events and every tensor operation counts. This module does not know when events leave the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.attention.geometry import LayerGeometry, ModelGeometry
from emllm.config import ResolvedConfig
from emllm.memory.layer import MemoryLayer
from emllm.recall.event_keys import MAKERS, PaddedEvents
from emllm.segmentation.key_graph import KeyGraph, key_graph
from emllm.store.log import Log, TokenIdx


def gather_span(
    log: Log, layers: Sequence[tuple[int, LayerGeometry]], token_idx: TokenIdx, dtype: torch.dtype
) -> Tensor:
    """Keys of some tokens in layers of one shape, ``[layers, S, K, D]``."""
    geometry = layers[0][1]
    keys = torch.empty(
        len(layers),
        len(token_idx),
        geometry.num_kv_heads,
        geometry.head_dim,
        dtype=dtype,
        device=geometry.device,
    )
    for row, (layer_idx, _) in enumerate(layers):
        log.gather(layer_idx, token_idx, keys=keys[row], values=None)
    return keys


def graph_of_span(
    log: Log, geometry: ModelGeometry, config: ResolvedConfig, start: int, stop: int
) -> KeyGraph:
    """The key graph of a span over the layers that the settings name (EM-LLM, section 3.2)."""
    chosen = [(i, layer) for i, layer in enumerate(geometry.layers) if i >= config.refine_from_layer]
    keys = []
    for _, group in groupby(chosen, key=lambda item: _shape(item[1])):
        stacked = gather_span(log, list(group), np.arange(start, stop), geometry.dtype)
        keys.append(stacked.permute(0, 2, 1, 3).flatten(0, 1))
    return key_graph(keys, start=start, heads=config.refine_heads)


def _shape(layer: LayerGeometry) -> tuple[int, int, str]:
    return layer.num_kv_heads, layer.head_dim, str(layer.device)


def index_events(
    log: Log,
    layers: Sequence[MemoryLayer],
    spans: NDArray[np.int64],
    *,
    frontier: int,
    dtype: torch.dtype,
) -> None:
    """Make event keys for events and add them to each layer's index.

    Args:
        layers: the layers that rank events.
        spans: of the events, ``[n, 2]``; what lies between two of them was forgotten.
        frontier: first token that is in no event key afterwards.
        dtype: of the keys in the log.
    """
    start, stop = int(spans[0, 0]), int(spans[-1, 1])
    sizes = spans[:, 1] - spans[:, 0]
    token_idx = np.concatenate([np.arange(low, high) for low, high in spans.tolist()])
    alive = None if len(token_idx) == stop - start else torch.from_numpy(token_idx - start)
    for _, group in groupby(layers, key=lambda layer: _shape(layer.geometry)):
        alike = list(group)
        device = alike[0].geometry.device
        config = alike[0].config
        keys = gather_span(log, [(layer.layer_idx, layer.geometry) for layer in alike], token_idx, dtype)
        keys = keys.permute(0, 2, 1, 3)
        weights = [
            layer.weights.of(layer_keys, alive=alive) for layer, layer_keys in zip(alike, keys, strict=True)
        ]
        known = [w for w in weights if w is not None]
        made = MAKERS[config.event_key](
            keys.flatten(0, 1),
            PaddedEvents(torch.from_numpy(sizes).to(device)),
            torch.cat(known) if known else None,
            config.representatives,
        )
        for layer, event_keys in zip(alike, made.unflatten(0, (len(alike), -1)), strict=True):
            layer.add_events(event_keys, frontier - start)
