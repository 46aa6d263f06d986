"""The tiers in which sealed pages lie: `device` and `host`, bounded, least recently used out first.

Pages are fetched upwards when a layer gathers their tokens: from the file (`disk`) or from RAM, through the
`host` tier of encoded pages if there is one, decoded into the `device` tier of the layer. On a CPU the device
is RAM too, and a host tier only pays where the codec is smaller than the model's dtype. What was read from
disk is followed by its neighbour in time, which the system is told to read ahead. Where a page lies never
changes a result.

This module does not know which tokens a unit holds, nor when it is sealed.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.machine import uninterrupted
from emllm.store.codecs import make_codec
from emllm.store.files import TensorFile
from emllm.store.pool import PackedPool, PagePool
from emllm.store.sizes import PAGE_TOKENS
from emllm.store.slabs import LayerShape

#: Threads that read one layer's missing pages from files at once.
READERS = 8
#: Pages that are worth waking a reader for; fewer are read where they are needed.
PAGES_PER_READER = 3
#: Pages a tier holds at least, per layer.
LEAST_PAGES = 4


class Pages(Protocol):
    """Where the encoded pages of a sealed unit lie."""

    def read(self, layer_idx: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy pages ``[n, page_bytes]`` of a layer."""
        ...


class PackedPages:
    """Pages in RAM: per layer ``[num_pages, page_bytes]`` uint8 on the CPU."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        self.layers = layers

    def read(self, layer_idx: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """See `Pages.read`."""
        np.take(self.layers[layer_idx].numpy(), rows, axis=0, out=out)


class FilePages:
    """Pages in a file of a memory's folder."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file

    def read(self, layer_idx: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """See `Pages.read`; every page is checked, and the system told to read ahead.

        Raises:
            StoreError: the file is not as it was written.
        """
        self._file.read_rows(f"pages.{layer_idx}", rows, out, ahead=True)


_Reading = tuple["Sealed", NDArray[np.int64], NDArray[np.uint8]]


def _run(layer_idx: int, jobs: Sequence[_Reading]) -> None:
    for sealed, rows, out in jobs:
        sealed.pages.read(layer_idx, rows, out)


class Sealed:
    """A sealed unit: its place among the page ids, and where its pages lie now (`pages` may be replaced)."""

    def __init__(self, first_page: int, num_pages: int, pages: Pages) -> None:
        self.first_page = first_page
        self.num_pages = num_pages
        self.pages = pages


class Tiers:
    """Pools of one memory and its forks.

    Args:
        shapes: one per layer.
        codec: of sealed pages.
        device_budget: bytes of decoded pages on the layers' devices, all layers together.
        host_budget: bytes of encoded pages in RAM; 0 is no host tier.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        codec: str,
        device_budget: int,
        host_budget: int = 0,
        page_tokens: int = PAGE_TOKENS,
    ) -> None:
        self.page_tokens = page_tokens
        self.is_exact = codec == "exact"
        self._codecs = [make_codec(codec, shape, page_tokens) for shape in shapes]
        self._raw_codecs = [make_codec("exact", shape, page_tokens) for shape in shapes]
        raw_bytes = sum(one.page_bytes for one in self._raw_codecs)
        capacity = max(LEAST_PAGES, device_budget // max(raw_bytes, 1))
        self._pools = [PagePool(shape, page_tokens, capacity) for shape in shapes]
        packed_bytes = sum(one.page_bytes for one in self._codecs)
        on_gpu = any(shape.device.type == "cuda" for shape in shapes)
        kept = max(LEAST_PAGES, host_budget // max(packed_bytes, 1))
        self._host = (
            [PackedPool(one.page_bytes, kept, pin=on_gpu) for one in self._codecs] if host_budget else None
        )
        self._num_pages = 0
        self._firsts: list[int] = []
        self._units: weakref.WeakValueDictionary[int, Sealed] = weakref.WeakValueDictionary()
        #: Its threads end with the last memory that uses these tiers: forks may outlive the memory's home.
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="emllm-pages")

    def num_pages(self, num_tokens: int) -> int:
        """Pages of a unit of so many tokens; the last may be short."""
        return -(-num_tokens // self.page_tokens)

    def add(self, pages: Pages, num_tokens: int) -> Sealed:
        """A sealed unit whose pages lie there."""
        num_pages = self.num_pages(num_tokens)
        sealed = Sealed(self._num_pages, num_pages, pages)
        self._firsts.append(sealed.first_page)
        self._units[sealed.first_page] = sealed
        self._num_pages += num_pages
        return sealed

    def pack(self, keys: Sequence[Tensor], values: Sequence[Tensor], *, is_raw: bool = False) -> PackedPages:
        """Encode a unit: per layer keys and values ``[T, K, D]``.

        Args:
            is_raw: as they are, whatever the codec.
        """
        codecs = self._raw_codecs if is_raw else self._codecs
        layers = zip(codecs, keys, values, strict=True)
        return PackedPages([codec.encode_tokens(key, value).cpu() for codec, key, value in layers])

    def unpack_raw(self, layer_idx: int, pages: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[K, T, D]`` of a unit that was packed as it was."""
        keys, values = self._raw_codecs[layer_idx].decode_tokens(pages, num_tokens)
        return keys.transpose(0, 1), values.transpose(0, 1)

    def gather(
        self,
        layer_idx: int,
        pages: NDArray[np.int64],
        rows: NDArray[np.int64],
        *,
        keys: Tensor,
        values: Tensor | None,
    ) -> None:
        """Copy tokens, each given by its page and its row in it, into ``keys [S, K, D]`` and `values`.

        Ctrl-C waits until they are: in the midst of it a reader's lock would stay taken, or pages count as
        here that are not.
        """

        def fetch(ids: NDArray[np.int64], key_out: Tensor, value_out: Tensor) -> None:
            packed = np.empty((len(ids), self._codecs[layer_idx].page_bytes), dtype=np.uint8)
            if self._host is None:
                self._read(layer_idx, ids, packed)
            else:
                self._host[layer_idx].read(
                    ids, lambda missing, out: self._read(layer_idx, missing, out), out=packed
                )
            self._codecs[layer_idx].decode(torch.from_numpy(packed), keys=key_out, values=value_out)

        with uninterrupted():
            self._pools[layer_idx].gather(pages, rows, fetch, keys=keys, values=values)

    def _read(self, layer_idx: int, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Encoded pages from where they lie, some units side by side."""
        order = np.argsort(ids, kind="stable")
        is_sorted = bool((order == np.arange(len(order))).all())
        target = out if is_sorted else np.empty_like(out)
        wanted = ids[order]
        jobs: list[_Reading] = []
        low = 0
        while low < len(wanted):
            first = self._firsts[bisect.bisect_right(self._firsts, int(wanted[low])) - 1]
            sealed = self._units[first]
            high = int(np.searchsorted(wanted, first + sealed.num_pages))
            jobs.append((sealed, wanted[low:high] - first, target[low:high]))
            low = high
        shares = min(READERS, len(wanted) // PAGES_PER_READER, len(jobs))
        if shares <= 1:
            _run(layer_idx, jobs)
        else:
            reading = [self._readers.submit(_run, layer_idx, jobs[i::shares]) for i in range(1, shares)]
            _run(layer_idx, jobs[::shares])
            for one in reading:
                one.result()
        if not is_sorted:
            out[order] = target
