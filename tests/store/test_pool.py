"""Pools against a dict of pages: whatever is asked, in whatever order, the same bits come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from emllm.errors import ConfigError
from emllm.store import pool as pool_module
from emllm.store.pool import PackedPool, PagePool
from emllm.store.slabs import LayerShape

PAGE_TOKENS = 3
PAGE_BYTES = 5
SHAPE = LayerShape(2, 4, 5, torch.bfloat16, torch.device("cpu"))


class Disk:
    """Pages by id, each made of its id; counts what is fetched, and fails when told to."""

    def __init__(self) -> None:
        self.fetched: list[list[int]] = []
        self.fails_after: int | None = None

    def page(self, page_id: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(page_id)
        return tuple(
            torch.randn(PAGE_TOKENS, SHAPE.num_kv_heads, width, generator=generator).to(SHAPE.dtype)
            for width in (SHAPE.head_dim, SHAPE.value_dim)
        )

    def fetch(self, ids: np.ndarray, keys: Tensor, values: Tensor) -> None:
        self.count(ids)
        assert len(ids) == len(keys) == len(values)
        keys.fill_(torch.nan)
        values.fill_(torch.nan)
        for i, page_id in enumerate(ids.tolist()):
            if self.fails_after == 0:
                raise OSError("unplugged")
            if self.fails_after is not None:
                self.fails_after -= 1
            page_keys, page_values = self.page(page_id)
            keys[i], values[i] = page_keys, page_values

    def fetch_bytes(self, ids: np.ndarray, out: np.ndarray) -> None:
        self.count(ids)
        assert out.shape == (len(ids), PAGE_BYTES)
        for i, page_id in enumerate(ids.tolist()):
            if self.fails_after == 0:
                raise OSError("unplugged")
            if self.fails_after is not None:
                self.fails_after -= 1
            out[i] = encoded(page_id)

    def count(self, ids: np.ndarray) -> None:
        self.fetched.append(ids.tolist())
        assert len(set(self.fetched[-1])) == len(self.fetched[-1]) > 0, "pages are asked for once"


def encoded(page_id: int) -> np.ndarray:
    return (np.arange(PAGE_BYTES) * 31 + page_id * 7 % 251).astype(np.uint8)


def array(numbers) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def empty(num_tokens: int) -> tuple[Tensor, Tensor]:
    return tuple(
        torch.empty(num_tokens, SHAPE.num_kv_heads, width, dtype=SHAPE.dtype)
        for width in (SHAPE.head_dim, SHAPE.value_dim)
    )


def assert_gathers(pool: PagePool, disk: Disk, tokens: list[tuple[int, int]]) -> None:
    page_ids, rows = array([t[0] for t in tokens]), array([t[1] for t in tokens])
    keys, values = empty(len(tokens))
    pool.gather(page_ids, rows, disk.fetch, keys=keys, values=values)
    only_keys, _ = empty(len(tokens))
    pool.gather(page_ids, rows, disk.fetch, keys=only_keys, values=None)
    for i, (page_id, row) in enumerate(tokens):
        page_keys, page_values = disk.page(page_id)
        assert torch.equal(keys[i], page_keys[row]) and torch.equal(values[i], page_values[row])
    assert torch.equal(keys, only_keys)


tokens = st.lists(st.tuples(st.integers(0, 39), st.integers(0, PAGE_TOKENS - 1)), max_size=30)


class PagePoolMachine(RuleBasedStateMachine):
    """Forty pages on disk and a pool of fewer."""

    @initialize(capacity=st.integers(1, 12))
    def empty(self, capacity):
        self.capacity = capacity
        self.pool = PagePool(SHAPE, PAGE_TOKENS, capacity)
        self.disk = Disk()
        self.has_failed = False  # after that, pages count as missed that were never asked for

    @rule(asked=tokens, is_sorted=st.booleans(), is_inference=st.booleans())
    def gather(self, asked, is_sorted, is_inference):
        with torch.inference_mode(is_inference):
            assert_gathers(self.pool, self.disk, sorted(asked) if is_sorted else asked)

    @rule(asked=st.lists(st.integers(0, 39), min_size=1, max_size=20))
    def what_fits_is_kept(self, asked):
        pages = sorted(set(asked))[: self.capacity]
        assert_gathers(self.pool, self.disk, [(i, 0) for i in pages])
        before = len(self.disk.fetched), self.pool.num_hits
        assert_gathers(self.pool, self.disk, [(i, 1) for i in reversed(pages)])
        assert (len(self.disk.fetched), self.pool.num_hits) == (before[0], before[1] + 2 * len(pages))

    @rule(asked=tokens, fails_after=st.integers(0, 4))
    def fail(self, asked, fails_after):
        self.disk.fails_after = fails_after
        try:
            assert_gathers(self.pool, self.disk, asked)
        except OSError:
            self.has_failed = True
        finally:
            self.disk.fails_after = None
        assert_gathers(self.pool, self.disk, asked[: self.capacity])

    @rule(first=st.integers(0, 39), num=st.integers(0, 10))
    def drop(self, first, num):
        self.pool.drop(first, num)
        before = len(self.disk.fetched)
        asked = [(i, 0) for i in range(first, min(40, first + min(num, self.capacity)))]
        assert_gathers(self.pool, self.disk, asked)
        assert [i for ids in self.disk.fetched[before:] for i in ids] == [i for i, _ in asked]

    @invariant()
    def it_is_sound(self):
        if hasattr(self, "pool"):
            self.pool.check_integrity()
            assert len(self.pool) <= self.capacity
            num_fetched = sum(map(len, self.disk.fetched))
            assert self.pool.num_misses == num_fetched or self.has_failed


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Fetches of 4 pages and slabs of 2, so that a few pages need several."""
    monkeypatch.setattr(pool_module, "FETCH_PAGES", 4)
    monkeypatch.setattr(pool_module, "_FIRST_PAGES", 2)


@pytest.mark.usefixtures("small_batches")
class TestPagePool(PagePoolMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


class PackedPoolMachine(RuleBasedStateMachine):
    """Forty encoded pages on disk and a pool of fewer, or of none."""

    @initialize(capacity=st.integers(0, 12))
    def empty(self, capacity):
        self.capacity = capacity
        self.pool = PackedPool(PAGE_BYTES, capacity)
        self.disk = Disk()

    def read(self, ids: list[int]) -> None:
        out = np.zeros((len(ids), PAGE_BYTES), dtype=np.uint8)
        self.pool.read(array(ids), self.disk.fetch_bytes, out=out)
        assert [row.tolist() for row in out] == [encoded(i).tolist() for i in ids]

    @rule(ids=st.lists(st.integers(0, 39), unique=True, max_size=20))
    def read_any(self, ids):
        before = len(self.disk.fetched)
        self.read(ids)
        assert len(self.disk.fetched) <= before + 1

    @rule(ids=st.lists(st.integers(0, 39), unique=True, max_size=12))
    def what_fits_is_kept(self, ids):
        ids = ids[: self.capacity]
        self.read(ids)
        before = len(self.disk.fetched)
        self.read(ids[::-1])
        assert len(self.disk.fetched) == before

    @rule(ids=st.lists(st.integers(0, 39), min_size=1, unique=True, max_size=8), after=st.integers(0, 4))
    def fail(self, ids, after):
        self.disk.fails_after = after
        try:
            self.read(ids)
        except OSError:
            pass
        finally:
            self.disk.fails_after = None
        self.read(ids)

    @rule(ids=st.lists(st.integers(0, 39), unique=True, max_size=8))
    def drop(self, ids):
        self.pool.drop(array(ids))
        before = len(self.disk.fetched)
        self.read(ids)
        assert self.disk.fetched[before:] == ([ids] if ids else [])

    @invariant()
    def it_is_sound(self):
        if hasattr(self, "pool"):
            self.pool.check_integrity()
            assert len(self.pool) <= self.capacity


@pytest.mark.usefixtures("small_batches")
class TestPackedPool(PackedPoolMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@given(st.lists(st.integers(0, 5), max_size=8))
def test_ids_are_never_given_twice(sizes):
    pool = PagePool(SHAPE, PAGE_TOKENS, 1)
    firsts = [pool.new_ids(size) for size in sizes]
    taken = [i for first, size in zip(firsts, sizes, strict=True) for i in range(first, first + size)]
    assert taken == list(range(sum(sizes)))


def test_a_packed_pool_keeps_the_last_of_too_many_pages():
    pool, disk = PackedPool(PAGE_BYTES, 3), Disk()
    for ids in (np.arange(10), np.arange(7, 10), np.array([2, 8])):
        pool.read(ids, disk.fetch_bytes, out=np.zeros((len(ids), PAGE_BYTES), dtype=np.uint8))
    assert disk.fetched == [list(range(10)), [2]]
    assert (pool.num_hits, pool.num_misses) == (4, 11)


def test_pages_that_fit_together_are_fetched_at_once_in_whatever_order_their_tokens_come():
    pool, disk = PagePool(SHAPE, PAGE_TOKENS, 3), Disk()
    assert_gathers(pool, disk, [(i, 0) for i in (1, 0, 1, 0, 2)])
    assert disk.fetched == [[0, 1, 2]]


def test_a_pool_takes_no_more_memory_than_it_needs():
    pool, disk = PagePool(SHAPE, PAGE_TOKENS, 21), Disk()
    sizes = []
    for num_pages in (1, 2, 3, 5, 11, 39):
        assert_gathers(pool, disk, [(i, 0) for i in range(num_pages)])
        sizes.append(len(pool._keys.slab))
    assert sizes == [2, 2, 4, 8, 16, 21]


def test_pages_fetched_into_an_empty_pool_are_not_copied():
    """They are written where they stay."""
    pool, places = PagePool(SHAPE, PAGE_TOKENS, 4), []

    def fetch(ids: np.ndarray, keys: Tensor, values: Tensor) -> None:
        places.append(keys.untyped_storage().data_ptr())

    keys, _ = empty(4)
    pool.gather(np.arange(4), np.zeros(4, dtype=np.int64), fetch, keys=keys, values=None)
    assert places == [pool._keys.slab.untyped_storage().data_ptr()]


def test_fetches_are_bounded():
    pool, disk = PagePool(SHAPE, PAGE_TOKENS, 30), Disk()
    assert_gathers(pool, disk, [(i, 0) for i in range(10)])
    assert [len(ids) for ids in disk.fetched] == [4, 4, 2]


def test_a_pool_of_no_pages_is_refused():
    with pytest.raises(ConfigError, match="at least 1 page, got 0"):
        PagePool(SHAPE, PAGE_TOKENS, 0)
