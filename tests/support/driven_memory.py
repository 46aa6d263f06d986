"""An EpisodicMemory driven without a model: queries, keys, values and logits come from a tape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emllm.attention.context import ContextPlan
from emllm.attention.geometry import LayerGeometry, ModelGeometry
from emllm.attention.rotary import NO_ROTATION, RotaryTable, Rotation
from emllm.memory import EpisodicMemory
from emllm.memory.layer import MemoryLayer

SCALING = 0.25


@dataclass(frozen=True)
class Tape:
    """What a model would have computed for a text; per layer where a list."""

    token_ids: Tensor
    queries: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    logits: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)


def rotary(head_dim: int, *, theta: float = 1e4) -> Rotation:
    def source(num_positions: int) -> tuple[Tensor, Tensor]:
        rates = theta ** (-torch.arange(0, head_dim, 2) / head_dim)
        table = torch.arange(num_positions)[:, None] * rates
        return table.cos(), table.sin()

    return Rotation("half", head_dim, 0, RotaryTable(source))


def turned_at(x: Tensor, positions: Sequence[int], *, theta: float = 1e4) -> Tensor:
    """Tokens turned as `rotary` does, with pairs of features as complex numbers in float64."""
    half = x.shape[-1] // 2
    rates = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * rates
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag], -1)


def geometry(
    kinds: Sequence[str] = ("full", "full"),
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 8,
    value_dim: int | None = None,
    vocab_size: int = 17,
    window_tokens: int = 12,
    trained_tokens: int = 4096,
    dtype: torch.dtype = torch.float32,
) -> ModelGeometry:
    """Layers by kind: `full`, `window` (sliding), `bare` (full, without rotation)."""
    turning = rotary(head_dim)
    layers = [
        LayerGeometry(
            num_heads,
            num_kv_heads,
            head_dim,
            value_dim or head_dim,
            NO_ROTATION if kind == "bare" else turning,
            window_tokens if kind == "window" else None,
        )
        for kind in kinds
    ]
    return ModelGeometry(tuple(layers), trained_tokens, vocab_size, dtype)


def random_tape(shape: ModelGeometry, num_tokens: int, *, seed: int = 0) -> Tape:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(shape.dtype)

    return Tape(
        torch.randint(0, shape.vocab_size, (num_tokens,), generator=generator),
        [draw(layer.num_heads, num_tokens, layer.head_dim) for layer in shape.layers],
        [draw(layer.num_kv_heads, num_tokens, layer.head_dim) for layer in shape.layers],
        [draw(layer.num_kv_heads, num_tokens, layer.value_dim) for layer in shape.layers],
        2.0 * draw(num_tokens, shape.vocab_size),
    )


def attend(memory: EpisodicMemory, tape: Tape, start: int, stop: int) -> list[Tensor]:
    """All layers' outputs for a chunk that was begun."""
    return [
        memory.attend(
            layer_idx,
            tape.queries[layer_idx][:, start:stop],
            tape.keys[layer_idx][:, start:stop],
            tape.values[layer_idx][:, start:stop],
            scaling=SCALING,
        )
        for layer_idx in range(len(tape.queries))
    ]


def read(
    memory: EpisodicMemory,
    tape: Tape,
    chunks: Sequence[int],
    *,
    look: Callable[[int, int, EpisodicMemory], None] | None = None,
) -> list[Tensor]:
    """Read on from where the memory stands, in chunks of these lengths; outputs ``[H, T, E]`` per layer.

    Args:
        look: called with start, stop and the memory of every chunk, between attending and committing.
    """
    pieces: list[list[Tensor]] = []
    for length in chunks:
        start, stop = memory.num_tokens, memory.num_tokens + length
        memory.begin_chunk(tape.token_ids[start:stop])
        pieces.append(attend(memory, tape, start, stop))
        if look is not None:
            look(start, stop, memory)
        memory.commit(tape.token_ids[start:stop], tape.logits[start:stop])
    return [torch.cat(layer, dim=1) for layer in zip(*pieces, strict=True)]


def memory_layers(memory: EpisodicMemory) -> list[MemoryLayer]:
    return [layer for layer in memory._layers if isinstance(layer, MemoryLayer)]


def staged_plan(layer: MemoryLayer) -> ContextPlan:
    """The context that the layer attended to in the chunk that is begun."""
    assert layer.staged is not None and layer.staged.context is not None
    return layer.staged.context.plan


def attended(layer: MemoryLayer, start: int) -> np.ndarray:
    """Tokens of the log that every query of the begun chunk sees, the chunk so far included."""
    plan = staged_plan(layer)
    return np.concatenate([plan.token_idx, np.arange(start - plan.num_chunk, start)])


def event_spans(memory: EpisodicMemory) -> list[tuple[int, int]]:
    return [(event.start, event.stop) for event in memory.events()]
