"""Pages kept near: decoded ones on a layer's device, encoded ones in RAM.

Both pools are caches: what is not in them is fetched by a function that the caller gives, and nothing but
time is lost when a page is evicted. This module does not know files, codecs, nor which page ids belong
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.errors import ConfigError
from emllm.store.residency import MISSING, Ids, Residency
from emllm.store.slabs import LayerShape

#: Fetches pages: ids, and where their keys ``[n, P, K, D]`` and values ``[n, P, K, E]`` go.
FetchPages = Callable[[Ids, Tensor, Tensor], None]
#: Fetches encoded pages: ids, and where their bytes ``[n, page_bytes]`` go.
FetchBytes = Callable[[Ids, NDArray[np.uint8]], None]

#: Pages fetched at once: as many as keep disks and decoders busy, without a second pool's worth of memory.
FETCH_PAGES = 256
_FIRST_PAGES = 16


class PagePool:
    """Decoded pages of one layer on its device. Not for several threads at once.

    Attributes:
        num_hits: pages that a `gather` found here.
        num_misses: pages that a `gather` had to fetch.
    """

    def __init__(self, shape: LayerShape, page_tokens: int, capacity_pages: int) -> None:
        if capacity_pages < 1:
            raise ConfigError(f"a pool must hold at least 1 page, got {capacity_pages}")
        self.page_tokens = page_tokens
        self.num_hits = 0
        self.num_misses = 0
        self._residency = Residency(capacity_pages)
        self._num_ids = 0
        page = (page_tokens, shape.num_kv_heads)
        self._keys = _Slots((*page, shape.head_dim), shape.dtype, shape.device)
        self._values = _Slots((*page, shape.value_dim), shape.dtype, shape.device)

    def __len__(self) -> int:
        """Pages that are here."""
        return len(self._residency)

    def new_ids(self, num_pages: int) -> int:
        """The first of that many consecutive ids, never given before."""
        self._num_ids += num_pages
        return self._num_ids - num_pages

    def gather(
        self, page_ids: Ids, rows: Ids, fetch: FetchPages, *, keys: Tensor, values: Tensor | None
    ) -> None:
        """Copy tokens into ``keys [S, K, D]`` and ``values [S, K, E]``.

        Args:
            page_ids: page of each token; fastest where those of a page stand together.
            rows: row of each token in its page.
            fetch: asked for distinct pages, ascending; if it raises, they are not kept.
            keys: on the pool's device and in its dtype, as are the values.
            values: None for keys only; whole pages are fetched nevertheless.
        """
        for low, high, ids, num_rows in self._batches(page_ids):
            distinct, which = np.unique(ids, return_inverse=True)
            slots = self._reside(distinct, fetch)
            flat = np.repeat(slots[which], num_rows) * self.page_tokens + rows[low:high]
            flat_rows = torch.from_numpy(flat).to(keys.device)
            torch.index_select(self._keys.rows(), 0, flat_rows, out=keys[low:high])
            if values is not None:
                torch.index_select(self._values.rows(), 0, flat_rows, out=values[low:high])

    def drop(self, first: int, num: int) -> None:
        """Let go of the pages ``[first, first + num)``, wherever they are here."""
        self._residency.drop(np.arange(first, first + num))

    def check_integrity(self) -> None:
        """Raise if the parts disagree; for tests."""
        self._residency.check_integrity()
        assert len(self) <= len(self._keys.slab) == len(self._values.slab) <= self._residency.capacity

    def _batches(self, page_ids: Ids) -> Iterator[tuple[int, int, Ids, Ids]]:
        """Spans of tokens whose pages fit in here together.

        Yields ``low``, ``high``, and for each run of tokens of the same page its page id and length.
        """
        if len(page_ids) == 0:
            return
        starts = np.flatnonzero(np.concatenate(([True], page_ids[1:] != page_ids[:-1])))
        ids, ends = page_ids[starts], np.append(starts[1:], len(page_ids))
        capacity = self._residency.capacity
        fits = len(ids) <= capacity or len(np.unique(ids)) <= capacity
        step = len(ids) if fits else capacity
        for run in range(0, len(ids), step):
            batch = slice(run, run + step)
            yield int(starts[run]), int(ends[batch][-1]), ids[batch], ends[batch] - starts[batch]

    def _reside(self, ids: Ids, fetch: FetchPages) -> Ids:
        """The slots of distinct pages, which are all here afterwards."""
        missing = ids[self._residency.lookup(ids) == MISSING]
        try:
            slots = self._residency.admit(ids)
            if len(missing):
                self._fill(missing, fetch)
        except BaseException:
            self._residency.drop(missing)
            raise
        self.num_hits += len(ids) - len(missing)
        self.num_misses += len(missing)
        return slots

    def _fill(self, ids: Ids, fetch: FetchPages) -> None:
        slots = self._residency.lookup(ids)
        for pool in (self._keys, self._values):
            pool.grow(int(slots.max()) + 1, self._residency.capacity)
        for start in range(0, len(ids), FETCH_PAGES):
            some = slice(start, start + FETCH_PAGES)
            keys, values = (pool.open(slots[some]) for pool in (self._keys, self._values))
            fetch(ids[some], keys, values)
            self._keys.close(slots[some], keys)
            self._values.close(slots[some], values)


class PackedPool:
    """Encoded pages in RAM, pinned on request. Not for several threads at once.

    Attributes:
        num_hits: pages that a `read` found here.
        num_misses: pages that a `read` had to fetch.
    """

    def __init__(self, page_bytes: int, capacity_pages: int, *, pin: bool = False) -> None:
        self.num_hits = 0
        self.num_misses = 0
        self._residency = Residency(capacity_pages)
        self._pages = _Slots((page_bytes,), torch.uint8, torch.device("cpu"), pin=pin)

    def __len__(self) -> int:
        """Pages that are here."""
        return len(self._residency)

    def read(self, ids: Ids, fetch: FetchBytes, *, out: NDArray[np.uint8]) -> None:
        """Copy encoded pages into ``out [n, page_bytes]``, fetching those that are not here.

        Of more pages than the pool holds, it keeps the last.

        Args:
            ids: distinct.
            fetch: asked once, for all missing pages in their order; if it raises, they are not kept.
            out: in C order.
        """
        slots = self._residency.lookup(ids)
        here, away = np.flatnonzero(slots != MISSING), np.flatnonzero(slots == MISSING)
        self.num_hits += len(here)
        self.num_misses += len(away)
        if len(here):
            out[here] = self._pages.slab.numpy()[slots[here]]
        if len(away):
            self._fetch(ids, away, fetch, out)

    def drop(self, ids: Ids) -> None:
        """Let go of these pages, wherever they are here."""
        self._residency.drop(ids)

    def check_integrity(self) -> None:
        """Raise if the parts disagree; for tests."""
        self._residency.check_integrity()
        assert len(self) <= len(self._pages.slab) <= self._residency.capacity

    def _fetch(self, ids: Ids, away: Ids, fetch: FetchBytes, out: NDArray[np.uint8]) -> None:
        is_all = len(away) == len(ids)
        fetched = out if is_all else np.empty((len(away), out.shape[1]), dtype=np.uint8)
        fetch(ids[away], fetched)
        if not is_all:
            out[away] = fetched
        num_kept = min(len(away), self._residency.capacity)
        if num_kept:
            kept = ids[away[-num_kept:]]
            try:
                slots = self._residency.admit(kept)
                self._pages.grow(int(slots.max()) + 1, self._residency.capacity)
                self._pages.slab.numpy()[slots] = fetched[-num_kept:]
            except BaseException:
                self._residency.drop(kept)
                raise


class _Slots:
    """Slots of equal size in one tensor, as many as were needed so far."""

    def __init__(
        self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, pin: bool = False
    ) -> None:
        self._pin = pin
        self.slab = self._new(0, size, dtype, device)

    def rows(self) -> Tensor:
        """The tokens of all slots, ``[slots * P, K, W]``: a view."""
        return self.slab.flatten(0, 1)

    def grow(self, num_slots: int, capacity: int) -> None:
        """Have at least so many slots, at most ``capacity``."""
        if num_slots > len(self.slab):
            num_slots = min(capacity, max(_FIRST_PAGES, num_slots, 2 * len(self.slab)))
            larger = self._new(num_slots, self.slab.shape[1:], self.slab.dtype, self.slab.device)
            larger[: len(self.slab)] = self.slab
            self.slab = larger

    def open(self, slots: Ids) -> Tensor:
        """Where to write the contents of slots, given in ascending order; `close` afterwards."""
        first, num = int(slots[0]), len(slots)
        if int(slots[-1]) - first + 1 == num:
            return self.slab[first : first + num]
        return self._new(num, self.slab.shape[1:], self.slab.dtype, self.slab.device)

    def close(self, slots: Ids, written: Tensor) -> None:
        """Put what was written where it belongs, if it is not there."""
        if written.untyped_storage().data_ptr() != self.slab.untyped_storage().data_ptr():
            self.slab.index_copy_(0, torch.from_numpy(slots).to(self.slab.device), written)

    def _new(self, num: int, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        # Outside inference mode: a slab born inside it could never be written outside.
        with torch.inference_mode(False):
            return torch.empty(num, *size, dtype=dtype, device=device, pin_memory=self._pin)
