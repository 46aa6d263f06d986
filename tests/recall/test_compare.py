"""Queries against event keys: the formulas written out, and blocks and parts that change nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from emllm.recall import compare
from emllm.recall.compare import attention_shares, best_logits, block_events, most_standing_out
from emllm.recall.index import EventIndex, IndexPart

cuts_of_forty = st.lists(st.integers(0, 40), max_size=5)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_bytes(keys: Tensor) -> IndexPart:
    index = EventIndex("int8")
    index.append(keys)
    (only,) = index.parts()
    return only


def cut(part: IndexPart, places: list[int]) -> list[IndexPart]:
    edges = sorted({0, part.num_events, *places})
    return [part.events(start, stop) for start, stop in itertools.pairwise(edges)]


@contextmanager
def small_blocks(copied: int = compare.COPIED_EVENTS) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "COPIED_EVENTS", copied)
        patch.setattr(compare, "CACHED_LOGITS", 60)
        patch.setattr(compare, "LEAST_EVENTS", 1)
        yield


@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 4), cuts_of_forty)
def test_logits_are_best_products_and_the_sum_is_of_all_events(seed, num_queries, representatives, places):
    queries, keys = drawn(seed, 2, num_queries, 8), drawn(seed + 1, 2, 40, representatives, 8)
    logits, lse = best_logits(queries, cut(IndexPart(keys.transpose(1, 2)), places))
    expected = torch.einsum("KQD,KNRD->KQNR", queries.double(), keys.double()).amax(-1)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected.logsumexp(-1), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 99), st.integers(1, 4), cuts_of_forty, st.sampled_from([0, 5, 40]))
def test_blocks_and_cuts_change_no_bit_of_products_of_bytes(seed, num_queries, places, copied):
    queries, part = drawn(seed, 2, num_queries, 8), in_bytes(drawn(seed + 1, 2, 40, 3, 8))
    with small_blocks(copied):
        assert block_events(2, num_queries) < 40
        whole, whole_lse = best_logits(queries, [part])
        logits, lse = best_logits(queries, cut(part, places))
    assert torch.equal(logits, whole) and torch.equal(lse, whole_lse)
    torch.testing.assert_close(whole_lse, whole.logsumexp(-1), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 99), st.integers(1, 7))
def test_the_most_that_a_query_gives_an_event_is_its_largest_log_share(seed, num_queries):
    logits = 9 * drawn(seed, 2, num_queries, 40)
    expected = logits.log_softmax(-1).amax(1)
    with small_blocks():
        found = most_standing_out(logits.clone(), logits.logsumexp(-1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 99), st.integers(1, 4), cuts_of_forty, st.sampled_from([0, 5, 40]), st.booleans())
def test_shares_of_attention_are_a_softmax_over_all_keys_by_their_tokens(
    seed, num_queries, places, copied, is_bytes
):
    queries, keys = drawn(seed, 2, num_queries, 8), drawn(seed + 1, 2, 40, 3, 8)
    part = in_bytes(keys) if is_bytes else IndexPart(keys.transpose(1, 2))
    tokens = 1 + drawn(seed + 2, 3, 40).abs()
    logits = torch.einsum("KQD,KNRD->KQRN", queries.double(), part.floats().double())
    expected = (
        (logits + tokens.double().log()).flatten(2).softmax(-1).unflatten(2, (3, 40)).sum(2).mean((0, 1))
    )
    with small_blocks(copied):
        found = attention_shares(queries, cut(part, places), tokens)
        assert torch.equal(found, attention_shares(queries, [part], tokens))
    torch.testing.assert_close(found.double(), expected, atol=1e-2 if is_bytes else 1e-5, rtol=0)
