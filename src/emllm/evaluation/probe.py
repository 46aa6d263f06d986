"""How fast this machine is, found out in a moment: a layer with random weights, or a few chunks of reading.

This module does not know what is planned with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from emllm.config import MemoryConfig
from emllm.reading import read_tokens

if TYPE_CHECKING:
    from emllm.lm import EpisodicLM
    from emllm.models.outline import Outline

#: Chunks that are read; the first is left out of the speed, being alone in its window.
NUM_CHUNKS = 3
#: Events that a mean length needs to be worth something.
LEAST_EVENTS = 10

LAYER_SECONDS = 0.4
#: Of the speed of such layers, what reading a million tokens reached on two CPU cores, 0.50 to 0.56
#: (docs/store.md). On a GPU it was not measured.
READING_SHARE = 0.53
#: Widths, heads and tokens of the layer that is timed, at most: its rate is asked for, not its time.
_MOST_WIDTH = 2048
_MOST_HEADS = 16
_MOST_ROWS = 1024
_MOST_ATTENDED = 8192


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU is still at."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Layer:
    """A decoder layer of a model's shapes with random weights: norms, rotation, attention, gated unit."""

    def __init__(self, outline: Outline, *, rows: int, attended: int) -> None:
        shape, dtype = outline.geometry.layers[0], outline.geometry.dtype
        groups = min(max(shape.num_heads // shape.num_kv_heads, 1), _MOST_HEADS)
        kv_heads = max(min(shape.num_heads, _MOST_HEADS) // groups, 1)
        self._shape = (rows, kv_heads, kv_heads * groups, shape.head_dim, shape.value_dim)
        hidden, inner = min(outline.hidden_size, _MOST_WIDTH), min(outline.inner_size, _MOST_WIDTH)
        heads = kv_heads * groups

        def filled(*sizes: int) -> torch.Tensor:
            return torch.full(sizes, 0.01, dtype=dtype, device=shape.device)

        self._x, self._turn = filled(rows, hidden), filled(rows, shape.head_dim)
        self._keys = filled(kv_heads, attended, shape.head_dim)
        self._values = filled(kv_heads, attended, shape.value_dim)
        self._mask = torch.ones(rows, attended, dtype=torch.bool, device=shape.device)
        self._mask = self._mask.tril(attended - rows)
        self._in = filled(heads * shape.head_dim + kv_heads * (shape.head_dim + shape.value_dim), hidden)
        self._out = filled(hidden, heads * shape.value_dim)
        self._gate, self._up, self._down = filled(inner, hidden), filled(inner, hidden), filled(hidden, inner)
        weights = self._in.numel() + self._out.numel() + 3 * inner * hidden
        self.flops = 2.0 * rows * (weights + heads * (shape.head_dim + shape.value_dim) * attended)

    def run(self) -> None:
        """A chunk through it, to the end."""
        rows, kv_heads, heads, key_dim, value_dim = self._shape
        parts = [heads * key_dim, kv_heads * key_dim, kv_heads * value_dim]
        query, key, value = (
            part.view(rows, -1, dim).transpose(0, 1)
            for part, dim in zip(
                F.linear(self._normed(self._x), self._in).split(parts, dim=-1),
                (key_dim, key_dim, value_dim),
                strict=True,
            )
        )
        attended = F.scaled_dot_product_attention(
            self._rotated(query)[None],
            torch.cat((self._keys[:, rows:], self._rotated(key)), dim=1)[None],
            torch.cat((self._values[:, rows:], value), dim=1)[None],
            attn_mask=self._mask,
            enable_gqa=True,
        )[0]
        x = self._x + F.linear(attended.transpose(0, 1).reshape(rows, -1), self._out)
        y = self._normed(x)
        x + F.linear(F.silu(F.linear(y, self._gate)) * F.linear(y, self._up), self._down)
        synchronise(x.device)

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        return x * self._turn + x.roll(x.shape[-1] // 2, dims=-1) * self._turn

    @staticmethod
    def _normed(x: torch.Tensor) -> torch.Tensor:
        return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


@torch.no_grad()
def layer_flops(outline: Outline, *, chunk_tokens: int, attended_tokens: int) -> float:
    """Floating point operations per second of a whole decoder layer of the model's shapes, over 0.4 s.

    On two CPU cores a bare product reached seven times this rate and said nothing of what reading takes:
    most of a layer's time goes to moving what its products made.

    Args:
        chunk_tokens: that go through the layer at a time.
        attended_tokens: that they see, themselves not counted.
    """
    rows = min(chunk_tokens, _MOST_ROWS)
    layer = _Layer(outline, rows=rows, attended=min(attended_tokens, _MOST_ATTENDED) + rows)
    layer.run()
    begun, times = time.perf_counter(), 0
    while time.perf_counter() - begun < LAYER_SECONDS:
        layer.run()
        times += 1
    return layer.flops * times / (time.perf_counter() - begun)


def read_speed(lm: EpisodicLM, token_ids: Sequence[int], config: MemoryConfig) -> tuple[float, float | None]:
    """Tokens per second of reading, and the mean length of the events met.

    Args:
        token_ids: of the text, or any; no more than a few chunks of them are read.

    Returns:
        The speed after the first chunk, if there are several; the mean is None where events were few.
    """
    memory = lm.memory(config=config)
    chunk = memory.config.chunk_tokens
    marks = [(0, 0.0)]
    read_tokens(
        lm.model,
        lm.cache(memory),
        token_ids[: NUM_CHUNKS * chunk],
        chunk_tokens=chunk,
        progress=lambda step: marks.append((step.num_read, step.seconds)),
    )
    (start, begun), (stop, ended) = marks[1 if len(marks) > 2 else 0], marks[-1]
    events = memory.events()
    mean = None if len(events) < LEAST_EVENTS else sum(e.stop - e.start for e in events) / len(events)
    return (stop - start) / (ended - begun), mean
