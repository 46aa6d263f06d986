"""Codecs: exact is exact, the others err within their grid, and a second decoder reads format version 1."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from emllm.errors import ConfigError
from emllm.store.codecs import CODECS, Codec, make_codec, packings
from emllm.store.slabs import LayerShape

CPU = torch.device("cpu")
BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}
BITS[torch.float16] = torch.int16
DTYPES = st.sampled_from(list(BITS))
TINY = 2.0**-24  # the step of float16's smallest numbers

#: Heads, key and value widths; odd ones fill half a byte, 65 and 130 need several groups.
shapes = st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 8, 65]), st.sampled_from([1, 4, 5, 64, 130]))
page_sizes = st.sampled_from([1, 2, 5, 64, 67, 130])
codecs = st.sampled_from(CODECS)
seeds = st.integers(0, 2**31)


def made(name: str, size, page_tokens: int, dtype=torch.float32) -> tuple[Codec, LayerShape]:
    shape = LayerShape(*size, dtype, CPU)
    return make_codec(name, shape, page_tokens), shape


def numbers(shape: LayerShape, num_pages: int, page_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys with an offset of their own in each channel, values of every magnitude."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    keys = normal(num_pages, page_tokens, shape.num_kv_heads, shape.head_dim)
    keys = keys + 20 * normal(1, 1, shape.num_kv_heads, shape.head_dim)
    values = normal(num_pages, page_tokens, shape.num_kv_heads, shape.value_dim)
    values = values * torch.exp(2 * normal(num_pages, page_tokens, 1, 1)).clamp(max=5000)
    return keys.to(shape.dtype), values.to(shape.dtype)


def random_bits(size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Any bits: NaN with a payload, infinities, -0.0, subnormal numbers."""
    size = (*size[:-1], size[-1] * dtype.itemsize)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).view(dtype)


def decoded(codec: Codec, pages: Tensor, keys: Tensor, values: Tensor, dtype=None) -> tuple[Tensor, Tensor]:
    """New tensors like these with what the pages hold; full of NaN before."""
    outs = tuple(torch.full(x.shape, torch.nan, dtype=dtype or x.dtype) for x in (keys, values))
    codec.decode(pages, keys=outs[0], values=outs[1])
    return outs


def same_bits(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and torch.equal(x.view(BITS[x.dtype]), y.view(BITS[y.dtype]))


class Reader:
    """A second decoder, of one page, written from the description of the format and nothing else."""

    def __init__(self, name: str, shape: LayerShape, page_tokens: int, page: bytes) -> None:
        self.name, self.page, self.offset = name, page, 0
        heads = shape.num_kv_heads
        self.keys = self.read(page_tokens, heads, shape.head_dim, shape.dtype, is_keys=True)
        self.values = self.read(page_tokens, heads, shape.value_dim, shape.dtype, is_keys=False)
        assert self.offset == len(page)

    def section(self, dtype: str, *size: int) -> np.ndarray:
        length = int(np.prod(size)) * np.dtype(dtype).itemsize
        array = np.frombuffer(self.page[self.offset : self.offset + length], dtype).reshape(size)
        padded = -(-length // 16) * 16
        assert not any(self.page[self.offset + length : self.offset + padded])
        self.offset += padded
        return array

    def read(self, p: int, k: int, w: int, dtype: torch.dtype, *, is_keys: bool) -> np.ndarray:
        if self.name == "exact" and dtype != torch.bfloat16:
            return self.section({2: "<f2", 4: "<f4", 8: "<f8"}[dtype.itemsize], p, k, w)
        if self.name in ("exact", "bf16"):
            return (self.section("<u2", p, k, w).astype("<u4") << 16).view("<f4")
        if self.name == "fp8":
            codes = [float8(code) for code in self.section("u1", p, k, w).ravel().tolist()]
            peak = self.section("<f2", *((1, k, w) if is_keys else (p, k, 1))).astype("f8")
            return np.reshape(codes, (p, k, w)) * peak / 256
        return self.read_integers(p, k, w, is_keys=is_keys)

    def read_integers(self, p: int, k: int, w: int, *, is_keys: bool) -> np.ndarray:
        num_bytes = k * w if self.name == "int8" else (k * w + 1) // 2
        packed = self.section("u1", p, num_bytes)
        codes = packed if self.name == "int8" else np.concatenate([packed % 16, packed // 16], 1)[:, : k * w]
        if self.name == "int4" and k * w % 2:
            assert not (packed[:, -1] // 16).any()
        groups = (-(-p // 64), k, w) if is_keys else (p, k, -(-w // 64))
        low, radius = self.section("<f2", *groups).astype("f8"), self.section("<f2", *groups).astype("f8")
        dim, length = (0, p) if is_keys else (2, w)
        low, radius = (np.take(x, np.arange(length) // 64, axis=dim) for x in (low, radius))
        return low + codes.reshape(p, k, w) * radius * 2 / (255 if self.name == "int8" else 15)


def float8(code: int) -> float:
    sign, exponent, fraction = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    assert code & 127 != 127, "NaN"
    return sign * (fraction * 2.0**-9 if exponent == 0 else (8 + fraction) * 2.0 ** (exponent - 10))


@given(shapes, page_sizes, st.integers(0, 4), DTYPES, seeds)
def test_exact_gives_back_the_same_bits(size, page_tokens, num_pages, dtype, seed):
    codec, shape = made("exact", size, page_tokens, dtype)
    generator = torch.Generator().manual_seed(seed)
    leading = (num_pages, page_tokens, shape.num_kv_heads)
    keys = random_bits((*leading, shape.head_dim), dtype, generator)
    values = random_bits((*leading, shape.value_dim), dtype, generator)
    out_keys, out_values = decoded(codec, codec.encode(keys, values), keys, values)
    assert same_bits(keys, out_keys) and same_bits(values, out_values)


@given(codecs, shapes, page_sizes, DTYPES, seeds)
def test_a_second_decoder_reads_the_same(name, size, page_tokens, dtype, seed):
    codec, shape = made(name, size, page_tokens, dtype)
    keys, values = numbers(shape, 2, page_tokens, seed)
    pages = codec.encode(keys, values)
    assert pages.shape == (2, codec.page_bytes)
    outs = decoded(codec, pages, keys, values, torch.float64)
    for page_idx in range(2):
        reader = Reader(name, shape, page_tokens, pages[page_idx].numpy().tobytes())
        for ours, theirs in zip(outs, (reader.keys, reader.values), strict=True):
            rounded = 3e-7 * np.abs(theirs).max()  # ours goes through float32
            np.testing.assert_allclose(ours[page_idx].numpy(), theirs, rtol=0, atol=rounded)


@given(codecs, shapes, page_sizes, seeds)
def test_errors_stay_within_the_grid(name, size, page_tokens, seed):
    codec, shape = made(name, size, page_tokens)
    keys, values = numbers(shape, 2, page_tokens, seed)
    outs = decoded(codec, codec.encode(keys, values), keys, values)
    for x, out, dim in ((keys, outs[0], 1), (values, outs[1], 3)):
        allowed = grid_error(name, x, dim) + x.abs() * 2**-22 + TINY
        assert ((out - x).abs() <= allowed).all()


def grid_error(name: str, x: Tensor, dim: int) -> Tensor:
    """How far the nearest number that the codec can write may be, for groups along a dimension."""
    if name == "exact":
        return torch.zeros_like(x)
    if name == "bf16":
        return x.abs() * 2**-8
    if name == "fp8":
        smallest = x.abs().amax(dim, keepdim=True) / 256 * 2**-10
        return torch.maximum(x.abs() * 2**-4, smallest) * (1 + 2**-10)
    spans = []
    for part in x.split(64, dim):
        low, high = part.amin(dim, keepdim=True), part.amax(dim, keepdim=True)
        # The low is rounded down to a float16: the span may grow by as much.
        spans.append((high - low + low.abs() * 2**-9 + TINY).expand_as(part))
    return torch.cat(spans, dim) * (1 + 2**-9) / (2 * (255 if name == "int8" else 15))


@given(codecs, shapes, page_sizes, st.sampled_from([0.0, -0.0, 1.0, -0.1, 7e-5, 3.3e-3, -417.0, 61440.0]))
def test_constant_groups_are_exact(name, size, page_tokens, constant):
    """That is, of numbers that bfloat16 and float16 can write."""
    codec, shape = made(name, size, page_tokens)
    constant = float(torch.tensor(constant).bfloat16().half())
    keys = torch.full((1, page_tokens, shape.num_kv_heads, shape.head_dim), constant)
    values = torch.full((1, page_tokens, shape.num_kv_heads, shape.value_dim), constant)
    out_keys, out_values = decoded(codec, codec.encode(keys, values), keys, values)
    assert torch.equal(out_keys, keys) and torch.equal(out_values, values)


@given(codecs, shapes, page_sizes, DTYPES, seeds)
def test_finite_numbers_stay_finite(name, size, page_tokens, dtype, seed):
    """Whatever their bits: the largest, the smallest, and both in one group."""
    codec, shape = made(name, size, page_tokens, dtype)
    generator = torch.Generator().manual_seed(seed)
    leading = (2, page_tokens, shape.num_kv_heads)
    keys, values = (
        torch.nan_to_num(random_bits((*leading, width), dtype, generator), nan=torch.finfo(dtype).max)
        for width in (shape.head_dim, shape.value_dim)
    )
    for out in decoded(codec, codec.encode(keys, values), keys, values):
        assert out.isfinite().all()


@given(st.sampled_from(["fp8", "int8", "int4"]), st.sampled_from([torch.nan, torch.inf, -torch.inf]), seeds)
def test_a_broken_number_spoils_no_other_token_of_finite_groups(name, broken, seed):
    codec, shape = made(name, (2, 4, 4), 8)
    keys, values = numbers(shape, 1, 8, seed)
    whole = decoded(codec, codec.encode(keys, values), keys, values)
    values[0, 3, 1, 2] = broken
    spoilt = decoded(codec, codec.encode(keys, values), keys, values)
    assert all(x.isfinite().all() for x in spoilt)
    spoilt[1][0, 3, 1], whole[1][0, 3, 1] = 0, 0
    assert torch.equal(spoilt[0], whole[0]) and torch.equal(spoilt[1], whole[1])


@given(codecs, shapes, page_sizes, DTYPES, seeds)
def test_a_page_does_not_depend_on_its_neighbours(name, size, page_tokens, dtype, seed):
    codec, shape = made(name, size, page_tokens, dtype)
    keys, values = numbers(shape, 5, page_tokens, seed)
    pages = codec.encode(keys, values)
    alone = [codec.encode(keys[i : i + 1], values[i : i + 1]) for i in range(5)]
    assert torch.equal(pages, torch.cat(alone))
    out_keys, out_values = decoded(codec, pages, keys, values)
    order = torch.tensor([4, 0, 3])
    some_keys, some_values = decoded(codec, pages[order], keys[order], values[order])
    assert same_bits(out_keys[order], some_keys) and same_bits(out_values[order], some_values)


@pytest.mark.parametrize("out_dtype", BITS)
@given(codecs, shapes, page_sizes, DTYPES, seeds)
def test_decoding_rounds_once_into_any_tensor(out_dtype, name, size, page_tokens, dtype, seed):
    """Into another dtype, into a transposed view, by blocks of one page, with or without values."""
    codec, shape = made(name, size, page_tokens, dtype)
    keys, values = numbers(shape, 3, page_tokens, seed)
    pages = codec.encode(keys, values)
    direct = torch.float32 if name in ("fp8", "int8", "int4") else dtype
    expected = decoded(codec, pages, keys, values, direct)[0].to(out_dtype)
    transposed = torch.empty(shape.num_kv_heads, 3, page_tokens, shape.head_dim, dtype=out_dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packings, "_BLOCK_ON_CPU", 1)
        codec.decode(pages, keys=transposed.permute(1, 2, 0, 3), values=None)
    assert same_bits(transposed.permute(1, 2, 0, 3).contiguous(), expected)


@given(codecs, shapes, page_sizes, seeds)
def test_views_encode_like_copies(name, size, page_tokens, seed):
    codec, shape = made(name, size, page_tokens)
    keys, values = numbers(shape, 2, page_tokens, seed)
    pages = codec.encode(keys, values)
    views = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (keys, values))
    assert torch.equal(codec.encode(*views), pages)
    holder = torch.full((2, codec.page_bytes + 16), 255, dtype=torch.uint8)
    holder[:, : codec.page_bytes] = pages
    for x, y in zip(
        decoded(codec, holder[:, : codec.page_bytes], keys, values),
        decoded(codec, pages, keys, values),
        strict=True,
    ):
        assert same_bits(x, y)


@pytest.mark.parametrize("name", CODECS)
def test_bytes_do_not_depend_on_the_number_of_threads(name):
    codec, shape = made(name, (3, 64, 64), 64)
    keys, values = numbers(shape, 40, 64, 0)
    keys[:, :, :, :7] = torch.where(keys[:, :, :, :7] > 0, 0.0, -0.0)
    num_threads = torch.get_num_threads()
    try:
        pages = []
        for num in (1, 2):
            torch.set_num_threads(num)
            pages.append(codec.encode(keys, values))
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(*pages)


@given(codecs, shapes, page_sizes, seeds)
def test_forgetting_leaves_the_other_tokens_alone(name, size, page_tokens, seed):
    codec, shape = made(name, size, page_tokens)
    keys, values = numbers(shape, 3, page_tokens, seed)
    pages = codec.encode(keys, values)
    before = decoded(codec, pages, keys, values)
    rows = torch.rand(3, page_tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    codec.erase(pages, rows)
    for x, y in zip(before, decoded(codec, pages, keys, values), strict=True):
        assert same_bits(x[~rows], y[~rows])


@given(codecs, shapes, st.integers(3, 64), seeds)
def test_forgotten_tokens_leave_no_trace_but_the_range_of_their_group(name, size, page_tokens, seed):
    """Two pages that differ in one token, within the range of the others, are the same without it."""
    codec, shape = made(name, size, page_tokens)
    keys, values = numbers(shape, 1, page_tokens, seed)
    gone = torch.arange(page_tokens)[None] == page_tokens - 1
    pages = []
    for other in (0, 1):
        keys[:, -1].copy_(keys[:, other])
        values[:, -1].copy_(values[:, other])
        pages.append(codec.encode(keys, values))
        codec.erase(pages[-1], gone)
    assert torch.equal(*pages)


@given(codecs, shapes, page_sizes, seeds)
def test_a_page_of_forgotten_tokens_is_zero(name, size, page_tokens, seed):
    codec, shape = made(name, size, page_tokens)
    keys, values = numbers(shape, 2, page_tokens, seed)
    pages = codec.encode(keys, values)
    rows = torch.zeros(2, page_tokens, dtype=torch.bool)
    rows[1] = True
    codec.erase(pages, rows)
    assert pages[0].any() and not pages[1].any()


@pytest.mark.parametrize("name", CODECS)
def test_pages_made_in_inference_mode_can_be_erased_outside(name):
    codec, shape = made(name, (1, 4, 4), 2)
    keys, values = numbers(shape, 1, 2, 0)
    with torch.inference_mode():
        pages = codec.encode(keys, values)
    codec.erase(pages, torch.ones(1, 2, dtype=torch.bool))
    assert not pages.any()
    pages.fill_(1)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_zeros_of_either_sign_make_the_same_scales(name):
    """Which of them is the lowest would depend on the order of comparisons."""
    codec, _ = made(name, (1, 2, 3), 4)
    zero, negative = (torch.full((1, 4, 1, width), -0.0) for width in (2, 3))
    assert not codec.encode(zero, negative).any()


@pytest.mark.parametrize(
    ("name", "page_bytes", "checksum"),
    [
        ("exact", 5056, 3270406984),
        ("bf16", 5056, 3270406984),
        ("fp8", 2992, 2456160417),
        ("int8", 3520, 521949712),
        ("int4", 2336, 1659189962),
    ],
)
def test_format_version_1_does_not_change(name, page_bytes, checksum):
    """Bytes of a fixed page. If this fails, stored memories can no longer be trusted."""
    codec, shape = made(name, (3, 5, 7), 70, torch.bfloat16)
    keys, values = (
        ((torch.arange(70 * 3 * width) * 37 % 1009 - 500).reshape(1, 70, 3, width) / 64).bfloat16()
        for width in (shape.head_dim, shape.value_dim)
    )
    pages = codec.encode(keys, values)
    assert codec.page_bytes == page_bytes
    assert zlib.crc32(pages.numpy().tobytes()) == checksum


def test_an_unknown_codec_is_named_beside_those_that_exist():
    with pytest.raises(ConfigError, match=r"codec must be one of exact, bf16, fp8, int8, int4, got 'int2'"):
        made("int2", (1, 1, 1), 1)
