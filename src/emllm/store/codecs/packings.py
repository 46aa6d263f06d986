"""How the keys, or the values, of a page are written: as they are, in float8, or as small integers.

Each packing is given its sections of the page by `place`. Tensors of keys or values are ``[n, P, K, W]``:
pages, tokens, heads, channels. The formulas are in the docstring of `emllm.store.codecs`. This module does
not know whether it packs keys or values, nor the order of sections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from emllm.store.codecs.layout import Layout, Section

Size = tuple[int, int, int]

#: Dimensions of ``[n, P, K, W]`` along which numbers share a scale.
TOKENS, CHANNELS = 1, 3

#: Numbers that share a low and a radius. Part of the format.
GROUP = 64
#: What scaled codecs saturate at: float16 still holds it after a scale was rounded up. Part of the format.
LARGEST = 61_440.0
#: The code of a number of the largest magnitude in float8; a power of two, so that it comes back exactly.
FLOAT8_PEAK = 256.0
#: The largest bfloat16 that float16 can hold.
_LARGEST_OF_BOTH_HALVES = 65_280.0

#: Numbers decoded at once through float32: few enough for a CPU's cache; elsewhere many, for few launches.
_BLOCK_ON_CPU = 1 << 18
_BLOCK_ELSEWHERE = 1 << 24


@runtime_checkable
class Packing(Protocol):
    """One of the two tensors of a page, in the sections that were placed for it."""

    def encode(self, pages: Tensor, x: Tensor) -> None:
        """Write ``x [n, P, K, W]`` into the pages, whose bytes are zero."""
        ...

    def decode(self, pages: Tensor, out: Tensor) -> None:
        """Write what the pages hold into ``out [n, P, K, W]``, of any float dtype, on the pages' device."""
        ...

    def erase(self, pages: Tensor, rows: Tensor) -> None:
        """Zero what belongs to the tokens ``rows [n, P]``."""
        ...


@dataclass(frozen=True)
class Plain:
    """Numbers in a dtype of 16 bits or more; the same bits if it is the model's."""

    numbers: Section
    largest: float | None  # None: nothing needs to be held back

    @classmethod
    def place(cls, layout: Layout, size: Size, dtype: torch.dtype, given: torch.dtype) -> Plain:
        """Numbers given in one dtype, stored in another."""
        if dtype == given:
            return cls(layout.add(dtype, *size), None)
        largest = _LARGEST_OF_BOTH_HALVES if given == torch.float16 else torch.finfo(dtype).max
        return cls(layout.add(dtype, *size), largest)

    def encode(self, pages: Tensor, x: Tensor) -> None:
        """See `Packing.encode`."""
        if self.largest is not None:
            x = x.clamp(-self.largest, self.largest)
        else:
            assert x.dtype == self.numbers.dtype, f"pages of {self.numbers.dtype} were given {x.dtype}"
        self.numbers.of(pages).copy_(x)

    def decode(self, pages: Tensor, out: Tensor) -> None:
        """See `Packing.decode`."""
        out.copy_(self.numbers.of(pages))

    def erase(self, pages: Tensor, rows: Tensor) -> None:
        """See `Packing.erase`."""
        self.numbers.of(pages).masked_fill_(rows[:, :, None, None], 0)


@dataclass(frozen=True)
class Float8:
    """Numbers in float8 e4m3fn, relative to the largest magnitude along one dimension."""

    codes: Section
    peak: Section
    dim: int

    @classmethod
    def place(cls, layout: Layout, size: Size, dim: int) -> Float8:
        """Numbers along dimension ``dim`` of ``[n, *size]`` share a peak."""
        codes = layout.add(torch.float8_e4m3fn, *size)
        return cls(codes, layout.add(torch.float16, *_with(size, dim, 1)), dim)

    def encode(self, pages: Tensor, x: Tensor) -> None:
        """See `Packing.encode`."""
        x = _tamed(x)
        peak = self.peak.of(pages).copy_(x.abs().amax(self.dim, keepdim=True))
        self.codes.of(pages).copy_(x / _or_one(_float8_scale(peak)))

    def decode(self, pages: Tensor, out: Tensor) -> None:
        """See `Packing.decode`."""

        def decode_block(pages: Tensor, work: Tensor) -> None:
            work.copy_(self.codes.of(pages)).mul_(_float8_scale(self.peak.of(pages)))

        _through_float32(pages, out, decode_block)

    def erase(self, pages: Tensor, rows: Tensor) -> None:
        """See `Packing.erase`."""
        # As integers: not every device fills float8.
        self.codes.of(pages).view(torch.uint8).masked_fill_(rows[:, :, None, None], 0)
        gone = rows.all(1, keepdim=True) if self.dim == TOKENS else rows
        self.peak.of(pages).masked_fill_(gone[:, :, None, None], 0)


@dataclass(frozen=True)
class Integer:
    """Numbers as 8 or 4 bits between the lowest and the highest of their group along one dimension."""

    codes: Section
    low: Section
    radius: Section
    size: Size
    dim: int
    bits: int

    @classmethod
    def place(cls, layout: Layout, size: Size, dim: int, *, bits: int) -> Integer:
        """Numbers along dimension ``dim`` of ``[n, *size]`` form groups."""
        page_tokens, num_kv_heads, width = size
        codes = layout.add(torch.uint8, page_tokens, -(-num_kv_heads * width * bits // 8))
        num_groups = len(_groups(size[dim - 1]))
        low, radius = (layout.add(torch.float16, *_with(size, dim, num_groups)) for _ in range(2))
        return cls(codes, low, radius, size, dim, bits)

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def encode(self, pages: Tensor, x: Tensor) -> None:
        """See `Packing.encode`."""
        codes, x = torch.empty(x.shape, dtype=torch.uint8, device=x.device), _tamed(x)
        lows, radii = self.low.of(pages), self.radius.of(pages)
        for group_idx, (start, num) in enumerate(_groups(x.shape[self.dim])):
            part = x.narrow(self.dim, start, num)
            low, radius = (scales.narrow(self.dim, group_idx, 1) for scales in (lows, radii))
            low.copy_(_float16_below(part.amin(self.dim, keepdim=True)))
            radius.copy_(_float16_above((part.amax(self.dim, keepdim=True) - low.float()) / 2))
            part = (part - low.float()) / _or_one(self._step(radius))
            codes.narrow(self.dim, start, num).copy_(part.round_().clamp_(0, self.top))
        self._pack(self.codes.of(pages), codes.flatten(2))

    def decode(self, pages: Tensor, out: Tensor) -> None:
        """See `Packing.decode`."""

        def decode_block(pages: Tensor, work: Tensor) -> None:
            self._unpack(self.codes.of(pages), work.view(*work.shape[:2], -1))
            low, step = self.low.of(pages).float(), self._step(self.radius.of(pages))
            for group_idx, (start, num) in enumerate(_groups(work.shape[self.dim])):
                part = work.narrow(self.dim, start, num)
                part.mul_(step.narrow(self.dim, group_idx, 1)).add_(low.narrow(self.dim, group_idx, 1))

        _through_float32(pages, out, decode_block)

    def erase(self, pages: Tensor, rows: Tensor) -> None:
        """See `Packing.erase`."""
        self.codes.of(pages).masked_fill_(rows[:, :, None], 0)
        gone = rows
        if self.dim == TOKENS:
            gone = torch.stack([rows.narrow(1, *group).all(1) for group in _groups(rows.shape[1])], dim=1)
        for scales in (self.low, self.radius):
            scales.of(pages).masked_fill_(gone[:, :, None, None], 0)

    def _step(self, radius: Tensor) -> Tensor:
        return radius.float() * (2 / self.top)

    def _pack(self, packed: Tensor, codes: Tensor) -> None:
        """Write codes ``[n, P, K * W]`` into the bytes ``[n, P, B]``."""
        if self.bits == 8:
            packed.copy_(codes)
            return
        half = packed.shape[-1]
        packed.copy_(codes[..., :half])
        packed[..., : codes.shape[-1] - half] |= codes[..., half:] << 4

    def _unpack(self, packed: Tensor, out: Tensor) -> None:
        """Write the codes into floats ``[n, P, K * W]``."""
        if self.bits == 8:
            out.copy_(packed)
            return
        half = packed.shape[-1]
        out[..., :half].copy_(packed & 15)
        out[..., half:].copy_(packed[..., : out.shape[-1] - half] >> 4)


def _through_float32(pages: Tensor, out: Tensor, decode_block: Callable[[Tensor, Tensor], None]) -> None:
    """Decode in float32, rounding once into ``out``, some pages at a time."""
    num_pages, numbers = len(out), max(1, out[:1].numel())
    block = max(1, (_BLOCK_ON_CPU if out.device.type == "cpu" else _BLOCK_ELSEWHERE) // numbers)
    in_place = out.dtype == torch.float32 and out.is_contiguous()
    scratch = out if in_place else out.new_empty((min(block, num_pages), *out.shape[1:]), dtype=torch.float32)
    for start in range(0, num_pages, block):
        stop = min(start + block, num_pages)
        work = out[start:stop] if in_place else scratch[: stop - start]
        decode_block(pages[start:stop], work)
        if not in_place:
            out[start:stop].copy_(work)


def _tamed(x: Tensor) -> Tensor:
    """A float32 copy without NaN, and with nothing beyond what scales can express."""
    return torch.nan_to_num(x.float(), nan=0.0).clamp_(-LARGEST, LARGEST)


def _float8_scale(peak: Tensor) -> Tensor:
    return peak.float() / FLOAT8_PEAK


def _or_one(x: Tensor) -> Tensor:
    """The divisors, with 1 for those of groups that have no extent."""
    return torch.where(x > 0, x, 1.0)


def _float16_below(x: Tensor) -> Tensor:
    """A float16 not above x, and x itself where float16 can write it; never -0.0, which min() leaves to
    chance."""
    nearest = x.half()
    lowered = (x - x.abs() * 2**-11 - 2**-25).half()  # by half a unit in the last place, or more
    return torch.where(nearest.float() > x, lowered, nearest) + 0.0


def _float16_above(x: Tensor) -> Tensor:
    """A float16 not below x, and x itself where float16 can write it; never -0.0."""
    return 0.0 - _float16_below(-x)


def _groups(length: int) -> list[tuple[int, int]]:
    """Start and length of each group."""
    return [(start, min(GROUP, length - start)) for start in range(0, length, GROUP)]


def _with(size: Size, dim: int, length: int) -> tuple[int, ...]:
    """The size with another length along dimension ``dim`` of ``[n, *size]``."""
    return (*size[: dim - 1], length, *size[dim:])
