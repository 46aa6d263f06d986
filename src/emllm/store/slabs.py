"""Keys and values of consecutive tokens as the layers computed them, in RAM or on the layers' devices.

A list of slabs, each for some consecutive tokens of all layers. A fork shares its parent's slabs and
appends to slabs of its own; nothing is ever overwritten. Slabs whose tokens all lie elsewhere by now are
dropped. This module does not know where that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIRST_SLAB_TOKENS = 64
LARGEST_SLAB_TOKENS = 16_384

TokenIdx = NDArray[np.int64]


@dataclass(frozen=True)
class LayerShape:
    """Shape, dtype and device of one layer's keys and values in a log."""

    num_kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device


class _Slab:
    """Consecutive tokens ``[start, start + capacity)`` of all layers, token-major ``[S, K, D]``."""

    def __init__(self, start: int, capacity: int, shapes: Sequence[LayerShape]) -> None:
        self.start = start
        self.capacity = capacity
        self.keys = [empty_rows(capacity, shape, shape.head_dim) for shape in shapes]
        self.values = [empty_rows(capacity, shape, shape.value_dim) for shape in shapes]


def empty_rows(capacity: int, shape: LayerShape, width: int) -> Tensor:
    """Room for the keys, or the values, of so many tokens, ``[S, K, width]``.

    Not NumPy's, which asks the system for huge pages: each is filled with zeros by one thread alone, in all
    layers at the same tokens.
    """
    # Outside inference mode: a buffer born inside it could never be written outside.
    with torch.inference_mode(False):
        return torch.empty(capacity, shape.num_kv_heads, width, dtype=shape.dtype, device=shape.device)


class Slabs:
    """The raw tokens ``[start, stop)`` of a log; written by `append` and `drop` only.

    Args:
        shapes: one per layer.
        start: first token.
        largest_tokens: of a slab; small where tokens are dropped soon.
    """

    def __init__(
        self, shapes: Sequence[LayerShape], *, start: int = 0, largest_tokens: int = LARGEST_SLAB_TOKENS
    ) -> None:
        self._shapes = tuple(shapes)
        self._largest_tokens = largest_tokens
        self._slabs: list[_Slab] = []
        self._num_own = 0
        self._stop = start

    def append(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Add tokens: per layer ``[K, T, D]`` keys and values; all of them, or none where room runs out."""
        stop = self._stop + keys[0].shape[1]
        new = self._new_slabs(stop)
        for slab in [*self._slabs[-1:], *new] if self._num_own else new:
            low, high = max(self._stop, slab.start), min(stop, slab.start + slab.capacity)
            rows = slice(low - slab.start, high - slab.start)
            chunk = slice(low - self._stop, high - self._stop)
            for layer_idx in range(len(self._shapes)):
                slab.keys[layer_idx][rows].copy_(keys[layer_idx][:, chunk].transpose(0, 1))
                slab.values[layer_idx][rows].copy_(values[layer_idx][:, chunk].transpose(0, 1))
        self._slabs += new
        self._num_own += len(new)
        self._stop = stop

    def _new_slabs(self, stop: int) -> list[_Slab]:
        """Slabs for the tokens before `stop` that have no room yet; inherited ones are never written."""
        start = self._slabs[-1].start + self._slabs[-1].capacity if self._num_own else self._stop
        new: list[_Slab] = []
        while start < stop:
            doublings = min(self._num_own + len(new), 20)
            new.append(_Slab(start, min(FIRST_SLAB_TOKENS << doublings, self._largest_tokens), self._shapes))
            start += new[-1].capacity
        return new

    def gather(self, layer_idx: int, token_idx: TokenIdx, *, keys: Tensor, values: Tensor | None) -> None:
        """Copy the tokens (ascending indices, all held here) into ``keys [S, K, D]`` and ``values``."""
        starts = [slab.start for slab in self._slabs]
        cuts = [*np.searchsorted(token_idx, starts[1:]).tolist(), len(token_idx)] if starts else []
        low = 0
        for slab, high in zip(self._slabs, cuts, strict=True):
            if high > low:
                rows = torch.from_numpy(token_idx[low:high] - slab.start).to(keys.device)
                torch.index_select(slab.keys[layer_idx], 0, rows, out=keys[low:high])
                if values is not None:
                    torch.index_select(slab.values[layer_idx], 0, rows, out=values[low:high])
            low = high

    def drop(self, before: int) -> None:
        """Let go of the slabs whose tokens all come before a token."""
        num_old = 0
        while num_old < len(self._slabs) - 1 and self._slabs[num_old + 1].start <= before:
            num_old += 1
        del self._slabs[:num_old]
        self._num_own = min(self._num_own, len(self._slabs))

    def fork(self) -> Slabs:
        """The same tokens, to go on apart from this."""
        child = Slabs(self._shapes, start=self._stop, largest_tokens=self._largest_tokens)
        child._slabs = list(self._slabs)
        return child
