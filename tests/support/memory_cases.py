"""Configurations, chunkings and comparisons that the tests of EpisodicMemory share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from tests.support.driven_memory import (
    SCALING,
    Tape,
    memory_layers,
)
from tests.support.reference_memory import ReferenceMemory
from torch import Tensor

from emllm.attention.geometry import ModelGeometry
from emllm.config import EVENT_KEYS, INDEX_PRECISIONS, OBJECTIVES, SCORERS, SEGMENTERS, MemoryConfig
from emllm.memory import EpisodicMemory

SMALL = {
    "sink_tokens": 4,
    "local_tokens": 24,
    "recall_tokens": 24,
    "chunk_tokens": 16,
    "min_event_tokens": 3,
    "max_event_tokens": 8,
    "surprise_window_tokens": 20,
    "recall_every_tokens": 4,
}
NUM_TOKENS = 150
HYBRID = ("window", "full", "bare", "full")

chunkings = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(
    lambda lengths: summing_to(lengths, NUM_TOKENS)
)
#: Reading in chunks and then, or in between, one token at a time.
with_decoding = st.lists(st.sampled_from([1, 1, 1, 2, 5, 16, 33]), min_size=20, max_size=60).map(
    lambda lengths: summing_to(lengths, NUM_TOKENS)
)


def summing_to(lengths: Sequence[int], total: int) -> list[int]:
    kept, left = [], total
    for length in lengths:
        kept.append(min(length, left))
        left -= kept[-1]
        if not left:
            return kept
    return [*kept, left]


@st.composite
def configs(draw: st.DrawFn, *, recall_tokens: int | str = 24) -> MemoryConfig:
    return MemoryConfig(
        segmenter=draw(st.sampled_from([name for name in SEGMENTERS if name != "sentence"])),
        refine=draw(st.sampled_from(OBJECTIVES)),
        refine_heads=draw(st.sampled_from(["all", "each"])),
        scorer=draw(st.sampled_from(SCORERS)),
        event_key=draw(st.sampled_from(EVENT_KEYS)),
        positions=draw(st.sampled_from(["ordered", "paper"])),
        contiguity=draw(st.sampled_from([0.0, 0.3, 0.7])),
        representatives=draw(st.integers(1, 5)),
        shortlist_events=draw(st.sampled_from([0, 3, 8])),
        index_precision=draw(st.sampled_from(INDEX_PRECISIONS)),
        gamma=draw(st.sampled_from([0.2, 1.0])),
        sink_tokens=draw(st.sampled_from([0, 1, 4, 20])),
        local_tokens=draw(st.sampled_from([1, 9, 24])),
        recall_tokens=recall_tokens,
        chunk_tokens=16,
        min_event_tokens=3,
        max_event_tokens=8,
        surprise_window_tokens=20,
        recall_every_tokens=draw(st.sampled_from([1, 4, 7])),
    )


def full_attention(shape: ModelGeometry, tape: Tape) -> list[Tensor]:
    """What the stock model would compute: every token sees all before it, or its layer's window."""
    reference = ReferenceMemory(shape)
    reference.begin_chunk(tape.token_ids)
    return [
        reference.attend(idx, tape.queries[idx], tape.keys[idx], tape.values[idx], scaling=SCALING)
        for idx in range(shape.num_layers)
    ]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], atol: float = 2e-5) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


def assert_same_bits(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def index_of(memory: EpisodicMemory) -> list[Tensor]:
    """Every layer's event keys, ``[K, N, R, D]``."""
    filled = [layer.ranking.index for layer in memory_layers(memory) if len(layer.ranking.index)]
    return [torch.cat([part.floats() for part in index.parts()], 1) for index in filled]


def log_of(memory: EpisodicMemory, shape: ModelGeometry) -> list[Tensor]:
    """Every layer's keys and values, ids and surprise."""
    everything: list[Tensor] = []
    num = memory.num_tokens
    for idx, layer in enumerate(shape.layers):
        keys = torch.empty(num, layer.num_kv_heads, layer.head_dim, dtype=shape.dtype)
        values = torch.empty(num, layer.num_kv_heads, layer.value_dim, dtype=shape.dtype)
        memory._log.gather(idx, np.arange(num), keys=keys, values=values)
        everything += [keys, values]
    surprise = torch.from_numpy(memory.surprise()).nan_to_num(nan=-1.0)
    return [*everything, torch.from_numpy(memory.token_ids()), surprise]
