"""The append-only, token-ordered log of everything read: keys, values, token ids and surprise.

`Log` is the interface that a memory uses; `RamLog` keeps it on the devices where the layers compute. A
log is a list of segments, each a slab of consecutive tokens for all layers. A fork shares its parent's
segments up to the fork point and appends to segments of its own, so it costs only its own tokens; since
nothing is ever overwritten, parent and child may both go on.

This module does not know what an event is, nor which tokens will be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIRST_SEGMENT_TOKENS = 512
LARGEST_SEGMENT_TOKENS = 16_384

TokenIdx = NDArray[np.int64]


@dataclass(frozen=True)
class LayerShape:
    """Shape, dtype and device of one layer's keys and values in a log."""

    num_kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device


@runtime_checkable  # the tests check arguments at run time
class Log(Protocol):
    """What a memory asks of the place where its tokens live. Only `append` writes."""

    @property
    def num_tokens(self) -> int:
        """Tokens appended so far."""
        ...

    def append(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], token_ids: Tensor, surprise: Tensor
    ) -> None:
        """Add a chunk: per layer keys ``[K, T, D]`` before rotation and values, plus ids and surprise."""
        ...

    def gather(self, layer_idx: int, token_idx: TokenIdx, *, keys: Tensor, values: Tensor | None) -> None:
        """Copy the tokens (ascending indices) into ``keys [S, K, D]`` and ``values [S, K, D]``."""
        ...

    def token_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """Token ids of a span."""
        ...

    def surprise(self, start: int, stop: int) -> NDArray[np.float32]:
        """Surprise of a span, in nats; NaN where no prediction existed (the first token)."""
        ...

    def fork(self) -> Log:
        """A log that begins with everything in this one; appending to either leaves the other alone."""
        ...


class _Segment:
    """Consecutive tokens ``[start, start + capacity)`` of all layers, token-major ``[S, K, D]``."""

    def __init__(self, start: int, capacity: int, shapes: Sequence[LayerShape]) -> None:
        self.start = start
        self.capacity = capacity
        # Outside inference mode: a buffer born inside it could never be written outside.
        with torch.inference_mode(False):
            self.keys = [_slab(capacity, shape, shape.head_dim) for shape in shapes]
            self.values = [_slab(capacity, shape, shape.value_dim) for shape in shapes]


def _slab(capacity: int, shape: LayerShape, width: int) -> Tensor:
    return torch.empty(capacity, shape.num_kv_heads, width, dtype=shape.dtype, device=shape.device)


class RamLog:
    """A log in memory, on each layer's own device. Written only through `append`."""

    def __init__(self, shapes: Sequence[LayerShape]) -> None:
        self._shapes = tuple(shapes)
        self._segments: list[_Segment] = []
        self._num_own_segments = 0
        self._num_tokens = 0
        self._token_ids = np.zeros(0, dtype=np.int64)
        self._surprise = np.zeros(0, dtype=np.float32)

    @property
    def num_tokens(self) -> int:
        """Tokens appended so far."""
        return self._num_tokens

    def append(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], token_ids: Tensor, surprise: Tensor
    ) -> None:
        """See `Log.append`."""
        num_new = len(token_ids)
        self._append_scalars(token_ids.cpu().numpy(), surprise.cpu().numpy())
        done = 0
        while done < num_new:
            segment = self._open_segment()
            offset = self._num_tokens - segment.start
            taken = min(num_new - done, segment.capacity - offset)
            for layer_idx in range(len(self._shapes)):
                chunk = slice(done, done + taken)
                segment.keys[layer_idx][offset : offset + taken].copy_(
                    keys[layer_idx][:, chunk].transpose(0, 1)
                )
                segment.values[layer_idx][offset : offset + taken].copy_(
                    values[layer_idx][:, chunk].transpose(0, 1)
                )
            done += taken
            self._num_tokens += taken

    def _append_scalars(self, token_ids: NDArray[np.int64], surprise: NDArray[np.float32]) -> None:
        needed = self._num_tokens + len(token_ids)
        if needed > len(self._token_ids):
            capacity = max(FIRST_SEGMENT_TOKENS, needed * 3 // 2)
            self._token_ids = _grown(self._token_ids, capacity, self._num_tokens)
            self._surprise = _grown(self._surprise, capacity, self._num_tokens)
        self._token_ids[self._num_tokens : needed] = token_ids
        self._surprise[self._num_tokens : needed] = surprise

    def _open_segment(self) -> _Segment:
        """The segment that takes the next token; inherited segments are never written."""
        if self._num_own_segments:
            last = self._segments[-1]
            if self._num_tokens < last.start + last.capacity:
                return last
        capacity = min(FIRST_SEGMENT_TOKENS << min(self._num_own_segments, 20), LARGEST_SEGMENT_TOKENS)
        self._segments.append(_Segment(self._num_tokens, capacity, self._shapes))
        self._num_own_segments += 1
        return self._segments[-1]

    def gather(self, layer_idx: int, token_idx: TokenIdx, *, keys: Tensor, values: Tensor | None) -> None:
        """See `Log.gather`."""
        starts = [segment.start for segment in self._segments]
        cuts = [*np.searchsorted(token_idx, starts[1:]).tolist(), len(token_idx)] if starts else []
        low = 0
        for segment, high in zip(self._segments, cuts, strict=True):
            if high > low:
                rows = torch.from_numpy(token_idx[low:high] - segment.start).to(keys.device)
                torch.index_select(segment.keys[layer_idx], 0, rows, out=keys[low:high])
                if values is not None:
                    torch.index_select(segment.values[layer_idx], 0, rows, out=values[low:high])
            low = high

    def token_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """See `Log.token_ids`."""
        return self._token_ids[start : min(stop, self._num_tokens)].copy()

    def surprise(self, start: int, stop: int) -> NDArray[np.float32]:
        """See `Log.surprise`."""
        return self._surprise[start : min(stop, self._num_tokens)].copy()

    def fork(self) -> RamLog:
        """See `Log.fork`."""
        child = RamLog(self._shapes)
        child._segments = list(self._segments)
        child._num_tokens = self._num_tokens
        # Rows past num_tokens belong to the parent; the child grows into arrays of its own.
        child._token_ids = self._token_ids[: self._num_tokens]
        child._surprise = self._surprise[: self._num_tokens]
        return child


def _grown(array: NDArray, capacity: int, used: int) -> NDArray:
    larger = np.empty(capacity, dtype=array.dtype)
    larger[:used] = array[:used]
    return larger
