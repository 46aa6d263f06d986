"""The log against plain lists: any interleaving of appends, reads and forks gives back the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from emllm.store import slabs as slabs_module
from emllm.store.log import LayerShape, Log

CPU = torch.device("cpu")
#: Layers that differ in heads, widths and dtype, as those of hybrid models do.
SHAPES = (
    LayerShape(2, 4, 4, torch.float32, CPU),
    LayerShape(1, 6, 3, torch.bfloat16, CPU),
    LayerShape(3, 2, 5, torch.float16, CPU),
)


class Chunk:
    """What is appended at once; bits, not numbers, so that NaN and -0.0 count too."""

    def __init__(self, num_tokens: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def bits(shape: LayerShape, width: int) -> Tensor:
            size = (shape.num_kv_heads, num_tokens, width)
            if shape.dtype == torch.float32:
                return torch.randint(-(2**31), 2**31, size, generator=generator).int().view(shape.dtype)
            return torch.randint(-(2**15), 2**15, size, generator=generator).short().view(shape.dtype)

        self.keys = [bits(shape, shape.head_dim) for shape in SHAPES]
        self.values = [bits(shape, shape.value_dim) for shape in SHAPES]
        self.token_ids = torch.randint(0, 2**40, (num_tokens,), generator=generator)
        self.surprise = torch.rand(num_tokens, generator=generator)


class Oracle:
    """A log as a list of rows."""

    def __init__(self, rows: list[tuple] | None = None) -> None:
        self.rows = list(rows or [])

    def append(self, chunk: Chunk) -> None:
        for token in range(len(chunk.token_ids)):
            keys, values = ([x[:, token] for x in layers] for layers in (chunk.keys, chunk.values))
            self.rows.append((keys, values, int(chunk.token_ids[token]), float(chunk.surprise[token])))


def as_bits(x: Tensor) -> Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def assert_gathers(log: Log, oracle: Oracle, layer_idx: int, token_idx: np.ndarray) -> None:
    shape = SHAPES[layer_idx]
    keys = torch.empty(len(token_idx), shape.num_kv_heads, shape.head_dim, dtype=shape.dtype)
    values = torch.empty(len(token_idx), shape.num_kv_heads, shape.value_dim, dtype=shape.dtype)
    only_keys = keys.clone()
    log.gather(layer_idx, token_idx, keys=keys, values=values)
    log.gather(layer_idx, token_idx, keys=only_keys, values=None)
    for row, token in enumerate(token_idx.tolist()):
        assert torch.equal(as_bits(keys[row]), as_bits(oracle.rows[token][0][layer_idx].contiguous()))
        assert torch.equal(as_bits(values[row]), as_bits(oracle.rows[token][1][layer_idx].contiguous()))
    assert torch.equal(as_bits(keys), as_bits(only_keys))


class LogMachine(RuleBasedStateMachine):
    """Several logs, forked from one another, each beside its list of rows."""

    logs = Bundle("logs")

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Log, Oracle]] = []

    @initialize(target=logs)
    def empty(self):
        self.pairs.append((Log(SHAPES), Oracle()))
        return self.pairs[-1]

    @rule(pair=logs, num_tokens=st.sampled_from([1, 1, 2, 5, 9, 30]), seed=st.integers(0, 9999))
    def append(self, pair, num_tokens, seed):
        log, oracle = pair
        chunk = Chunk(num_tokens, seed)
        log.append(chunk.keys, chunk.values, chunk.token_ids, chunk.surprise)
        oracle.append(chunk)

    @rule(target=logs, pair=logs)
    def fork(self, pair):
        log, oracle = pair
        self.pairs.append((log.fork(), Oracle(oracle.rows)))
        return self.pairs[-1]

    @rule(pair=logs, layer_idx=st.integers(0, 2), data=st.data())
    def gather(self, pair, layer_idx, data):
        log, oracle = pair
        chosen = data.draw(st.sets(st.integers(0, max(0, len(oracle.rows) - 1)), max_size=12))
        token_idx = np.array(sorted(chosen) if oracle.rows else [], dtype=np.int64)
        assert_gathers(log, oracle, layer_idx, token_idx)

    @rule(pair=logs, ends=st.tuples(st.integers(0, 80), st.integers(0, 80)))
    def scalars(self, pair, ends):
        log, oracle = pair
        start, stop = sorted(ends)
        rows = oracle.rows[start:stop]
        assert log.token_ids(start, stop).tolist() == [row[2] for row in rows]
        assert log.surprise(start, stop).tolist() == [row[3] for row in rows]

    @invariant()
    def lengths_are_right(self):
        for log, oracle in self.pairs:
            assert log.num_tokens == len(oracle.rows)

    def teardown(self):
        for log, oracle in self.pairs:
            for layer_idx in range(len(SHAPES)):
                assert_gathers(log, oracle, layer_idx, np.arange(len(oracle.rows)))
            assert log.token_ids(0, 10**6).tolist() == [row[2] for row in oracle.rows]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """Segments of 4 to 16 tokens, so that a few tokens cross many borders."""
    monkeypatch.setattr(slabs_module, "FIRST_SLAB_TOKENS", 4)
    monkeypatch.setattr("emllm.store.log.LARGEST_SLAB_TOKENS", 16)


@pytest.mark.usefixtures("small_segments")
class TestLog(LogMachine.TestCase):
    settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def filled(num_tokens: int, *, seed: int = 0) -> tuple[Log, Oracle]:
    log, oracle, chunk = Log(SHAPES), Oracle(), Chunk(num_tokens, seed)
    log.append(chunk.keys, chunk.values, chunk.token_ids, chunk.surprise)
    oracle.append(chunk)
    return log, oracle


def test_what_is_read_is_a_copy():
    """Writing to what a log gave out changes nothing in it."""
    log, oracle = filled(10)
    log.token_ids(0, 10)[:] = -1
    log.surprise(0, 10)[:] = -1.0
    assert log.token_ids(0, 10).tolist() == [row[2] for row in oracle.rows]
    assert log.surprise(0, 10).tolist() == [row[3] for row in oracle.rows]


def test_what_was_appended_may_be_reused_by_its_owner():
    log, oracle, chunk = Log(SHAPES), Oracle(), Chunk(7, 3)
    log.append(chunk.keys, chunk.values, chunk.token_ids, chunk.surprise)
    oracle.append(Chunk(7, 3))
    for x in (*chunk.keys, *chunk.values):
        x.zero_()
    chunk.token_ids.zero_()
    chunk.surprise.zero_()
    for layer_idx in range(3):
        assert_gathers(log, oracle, layer_idx, np.arange(7))
    assert log.token_ids(0, 7).tolist() == [row[2] for row in oracle.rows]
    assert log.surprise(0, 7).tolist() == [row[3] for row in oracle.rows]


def test_a_fork_costs_only_its_own_tokens():
    log, _ = filled(1000)
    before = {slab.keys[0].data_ptr() for slab in log._slabs._slabs}
    child = log.fork()
    assert {slab.keys[0].data_ptr() for slab in child._slabs._slabs} == before
    chunk = Chunk(3, 1)
    child.append(chunk.keys, chunk.values, chunk.token_ids, chunk.surprise)
    (own,) = {slab.keys[0].data_ptr() for slab in child._slabs._slabs} - before
    assert child._slabs._slabs[-1].capacity <= 16 and own


def test_slabs_grow_and_are_bounded():
    log, _ = filled(200)
    capacities = [slab.capacity for slab in log._slabs._slabs]
    assert capacities == [4, 8, *[16] * 12]


def test_a_log_written_in_inference_mode_goes_on_outside():
    """Buffers born in inference mode could not be written later."""
    log, oracle = Log(SHAPES), Oracle()
    for seed, is_inference in enumerate([True, False, True]):
        chunk = Chunk(6, seed)
        with torch.inference_mode(is_inference):
            log.append(chunk.keys, chunk.values, chunk.token_ids, chunk.surprise)
        oracle.append(chunk)
    for layer_idx in range(3):
        assert_gathers(log, oracle, layer_idx, np.arange(18))


def test_gathering_nothing_from_an_empty_log_is_allowed():
    assert_gathers(Log(SHAPES), Oracle(), 0, np.zeros(0, dtype=np.int64))
