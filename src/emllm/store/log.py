"""The append-only, token-ordered log of everything read: keys, values, token ids and surprise.

New tokens are raw. They come in **units**, one per chunk; a unit that has left the local window may be
**sealed**: encoded by the memory's codec, its pages then lie in RAM or in a file and are fetched through
bounded pools (`emllm.store.tiers`). Without tiers every token stays raw in RAM. Where a token lies never
changes what `gather` gives, but for what a lossy codec rounds when a unit is sealed.

A fork shares its parent's tokens up to the fork point, so it costs only its own; since nothing is ever
overwritten, parent and child may both go on. This module does not know what an event is, nor which tokens
will be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emllm.store.slabs import LARGEST_SLAB_TOKENS, LayerShape, Slabs, TokenIdx, empty_rows
from emllm.store.tokens import TokenTable

if TYPE_CHECKING:
    from emllm.store.tiers import Sealed, Tiers

__all__ = ["LayerShape", "Log", "TokenIdx", "Unit"]

#: Tokens that come one by one make a unit when there are so many.
UNIT_TOKENS = 64
#: Slabs of a log whose raw tokens are dropped once they are sealed.
PASSING_SLAB_TOKENS = 1024


@dataclass(frozen=True)
class Unit:
    """Tokens ``[start, stop)`` that are sealed together; `sealed` is None while they are raw."""

    start: int
    stop: int
    sealed: Sealed | None = None


class Log:
    """A log. Written through `append`, `close_unit` and `settle` only.

    Args:
        shapes: one per layer.
        tiers: where sealed units lie; without, nothing is ever sealed.
    """

    def __init__(self, shapes: Sequence[LayerShape], tiers: Tiers | None = None) -> None:
        largest = LARGEST_SLAB_TOKENS if tiers is None else PASSING_SLAB_TOKENS
        self.shapes = tuple(shapes)
        self.tiers = tiers
        self._tokens = TokenTable()
        self._slabs = Slabs(shapes, largest_tokens=largest)
        self._units: list[Unit] = []
        self._num_sealed = 0
        self._open_start = 0
        self._pages = PageMap()

    @property
    def num_tokens(self) -> int:
        """Tokens appended so far."""
        return len(self._tokens)

    @property
    def units(self) -> Sequence[Unit]:
        """Closed units in order; with tiers only."""
        return self._units

    @property
    def sealed_stop(self) -> int:
        """First token that is raw."""
        return self._units[self._num_sealed - 1].stop if self._num_sealed else 0

    @property
    def open_start(self) -> int:
        """First token that belongs to no closed unit."""
        return self._open_start

    def append(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], token_ids: Tensor, surprise: Tensor
    ) -> None:
        """Add a chunk: per layer keys ``[K, T, D]`` before rotation and values, plus ids and surprise.

        Where there is no room for all of it, nothing is added.
        """
        ids, nats = token_ids.cpu().numpy(), surprise.cpu().numpy()
        self._tokens.reserve(len(ids))
        self._slabs.append(keys, values)
        self._tokens.append(ids, nats)
        if len(token_ids) > 1 or self.num_tokens - self._open_start >= UNIT_TOKENS:
            self.close_unit()

    def close_unit(self) -> None:
        """End the open unit here, if it holds any token."""
        if self.tiers is not None and self._open_start < self.num_tokens:
            self._units.append(Unit(self._open_start, self.num_tokens))
        self._open_start = self.num_tokens

    def restore(
        self,
        token_ids: NDArray[np.int64],
        surprise: NDArray[np.float32],
        content: Sealed | tuple[Sequence[Tensor], Sequence[Tensor]],
        *,
        is_closed: bool = True,
    ) -> None:
        """Add a unit as it was stored: sealed, or raw keys and values per layer ``[K, T, D]``."""
        start = self.num_tokens
        self._tokens.append(token_ids, surprise)
        if isinstance(content, tuple):
            self._slabs.append(*content)
        if is_closed:
            self.close_unit()
        if not isinstance(content, tuple):
            self._slabs = Slabs(self.shapes, start=self.num_tokens, largest_tokens=PASSING_SLAB_TOKENS)
            assert is_closed and self._units[-1].start == start
            self.settle(len(self._units) - 1, content)

    def settle(self, unit_idx: int, sealed: Sealed) -> None:
        """From now on a unit's pages are these; its raw tokens are dropped once all before are sealed too."""
        unit = self._units[unit_idx]
        if unit.sealed is None:
            assert unit_idx == self._num_sealed, "units are sealed in order"
            self._num_sealed += 1
        self._units[unit_idx] = Unit(unit.start, unit.stop, sealed)
        self._pages.set(unit_idx, unit.start, sealed.first_page)
        self._slabs.drop(self.sealed_stop)

    def raw(self, start: int, stop: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values ``[T, K, D]`` of a span that is not sealed, per layer."""
        assert start >= self.sealed_stop
        token_idx = np.arange(start, stop)
        keys, values = [], []
        for layer_idx, shape in enumerate(self.shapes):
            keys.append(empty_rows(len(token_idx), shape, shape.head_dim))
            values.append(empty_rows(len(token_idx), shape, shape.value_dim))
            self._slabs.gather(layer_idx, token_idx, keys=keys[-1], values=values[-1])
        return keys, values

    def gather(self, layer_idx: int, token_idx: TokenIdx, *, keys: Tensor, values: Tensor | None) -> None:
        """Copy the tokens (ascending indices) into ``keys [S, K, D]`` and ``values [S, K, D]``."""
        num_sealed = int(np.searchsorted(token_idx, self.sealed_stop)) if self._num_sealed else 0
        if num_sealed:
            assert self.tiers is not None
            pages, rows = self._pages.find(token_idx[:num_sealed], page_tokens=self.tiers.page_tokens)
            sealed_values = None if values is None else values[:num_sealed]
            self.tiers.gather(layer_idx, pages, rows, keys=keys[:num_sealed], values=sealed_values)
        if num_sealed < len(token_idx):
            raw_values = None if values is None else values[num_sealed:]
            raw_idx = token_idx[num_sealed:]
            self._slabs.gather(layer_idx, raw_idx, keys=keys[num_sealed:], values=raw_values)

    def token_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """Token ids of a span."""
        return self._tokens.token_ids(start, stop)

    def surprise(self, start: int, stop: int) -> NDArray[np.float32]:
        """Surprise of a span, in nats; NaN where no prediction existed (the first token)."""
        return self._tokens.surprise(start, stop)

    def fork(self) -> Log:
        """A log that begins with everything in this one; appending to either leaves the other alone."""
        child = Log(self.shapes, self.tiers)
        child._tokens, child._slabs = self._tokens.fork(), self._slabs.fork()
        child._units, child._num_sealed = list(self._units), self._num_sealed
        child._open_start = self._open_start
        child._pages = self._pages.fork()
        return child


class PageMap:
    """Which page a token of a sealed unit lies in. Written by `set` only."""

    def __init__(self) -> None:
        self._starts = np.zeros(0, dtype=np.int64)
        self._first_pages = np.zeros(0, dtype=np.int64)
        self._num_units = 0
        self._is_shared = False

    def set(self, unit_idx: int, start: int, first_page: int) -> None:
        """A unit that begins at token `start` lies in the pages from `first_page` on."""
        if unit_idx >= len(self._starts) or self._is_shared:
            spare = max(64, unit_idx // 2) if unit_idx >= len(self._starts) else 0
            self._starts = np.pad(self._starts, (0, spare))
            self._first_pages = np.pad(self._first_pages, (0, spare))
            self._is_shared = False
        self._starts[unit_idx], self._first_pages[unit_idx] = start, first_page
        self._num_units = max(self._num_units, unit_idx + 1)

    def find(self, token_idx: TokenIdx, *, page_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The page of each token, and its row in it."""
        units = np.searchsorted(self._starts[: self._num_units], token_idx, side="right") - 1
        offsets = token_idx - self._starts[units]
        return self._first_pages[units] + offsets // page_tokens, offsets % page_tokens

    def fork(self) -> PageMap:
        """The same map, to go on apart from this."""
        child = PageMap()
        child.__dict__.update(self.__dict__)
        self._is_shared = child._is_shared = True
        return child
