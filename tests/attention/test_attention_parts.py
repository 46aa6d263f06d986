"""Fused parts against the eager float64 reference, and the merge of parts into one softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.driven_memory import rotary, turned_at
from torch import Tensor

from emllm.attention.eager import eager_part
from emllm.attention.fused import attend_part, cuda_kernels, merge
from emllm.attention.rotary import NO_ROTATION
from emllm.attention.window import attend_window, window_mask

#: Absolute tolerance on outputs and log-sum-exp, by dtype; inputs are rounded to it before both paths.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
dtypes = st.sampled_from(list(TOLERANCE))
heads = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1), (8, 2)])
widths = st.sampled_from([(8, 8), (16, 16), (16, 8), (8, 12), (20, 20)])


def draw(seed: int, num_heads: int, num_queries: int, num_keys: int, kv: int, wide: tuple[int, int], dtype):
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(dtype)

    # Token-major in memory, head-major as a view: the way the context buffers are laid out.
    key, value = (normal(num_keys, kv, width).transpose(0, 1) for width in wide)
    return normal(num_heads, num_queries, wide[0]), key, value


def assert_parts_close(ours, theirs, atol: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, atol=atol, rtol=atol)


def direct(query, key, value, *, scaling, sees, sink_logits=None, softcap=None) -> tuple[Tensor, Tensor]:
    """One softmax, each query and head on its own, in float64: an oracle for the reference itself."""
    groups = len(query) // len(key)
    out = torch.zeros(*query.shape[:2], value.shape[-1], dtype=torch.float64)
    lse = torch.full(query.shape[:2], -torch.inf, dtype=torch.float64)
    for head in range(len(query)):
        for token in range(query.shape[1]):
            seen = torch.nonzero(sees[token])[:, 0]
            logits = key[head // groups, seen].double() @ query[head, token].double() * scaling
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            if sink_logits is not None:
                logits = torch.cat([logits, sink_logits[head, None].double()])
            if len(logits):
                weights = logits.softmax(0)[: len(seen)]
                out[head, token] = weights @ value[head // groups, seen].double()
                lse[head, token] = logits.logsumexp(0)
    return out, lse


@given(st.integers(0, 999), heads, st.integers(1, 9), st.integers(1, 20), dtypes, widths)
def test_a_fused_part_is_the_eager_reference(seed, num_heads, num_queries, num_keys, dtype, wide):
    query, key, value = draw(seed, num_heads[0], num_queries, num_keys, num_heads[1], wide, dtype)
    ours = attend_part(query, key, value, scaling=0.3)
    assert ours[0].dtype == dtype and ours[1].dtype == torch.float32
    theirs = eager_part(query.double(), key.double(), value.double(), scaling=0.3)
    assert_parts_close(ours, theirs, TOLERANCE[dtype])


@given(st.integers(0, 999), heads, st.integers(1, 40), dtypes, widths)
def test_a_causal_fused_part_is_the_eager_reference(seed, num_heads, num_tokens, dtype, wide):
    query, key, value = draw(seed, num_heads[0], num_tokens, num_tokens, num_heads[1], wide, dtype)
    ours = attend_part(query, key, value, scaling=0.3, is_causal=True)
    theirs = eager_part(query.double(), key.double(), value.double(), scaling=0.3, is_causal=True)
    assert_parts_close(ours, theirs, TOLERANCE[dtype])


@given(st.integers(0, 999), heads, st.integers(1, 9), st.integers(1, 20), dtypes, st.floats(0, 1))
def test_a_masked_fused_part_is_the_eager_reference(seed, num_heads, num_queries, num_keys, dtype, share):
    """Masks that hide everything from a query too: output 0, log-sum-exp minus infinity."""
    query, key, value = draw(seed, num_heads[0], num_queries, num_keys, num_heads[1], (8, 8), dtype)
    mask = torch.rand(num_queries, num_keys, generator=torch.Generator().manual_seed(seed)) < share
    ours = attend_part(query, key, value, scaling=0.3, mask=mask)
    theirs = eager_part(query.double(), key.double(), value.double(), scaling=0.3, mask=mask)
    assert_parts_close(ours, theirs, TOLERANCE[dtype])
    assert torch.equal(ours[1].isneginf(), (~mask.any(-1)).expand(num_heads[0], -1))


@pytest.mark.parametrize(
    ("dtype", "before_ampere", "since_ampere"),
    [
        (torch.float64, (), ()),
        (torch.float32, ("efficient",), ("efficient",)),
        (torch.float16, ("efficient",), ("flash", "efficient")),
        (torch.bfloat16, (), ("flash", "efficient")),
    ],
)
def test_a_gpu_is_asked_only_for_kernels_that_it_has(dtype, before_ampere, since_ampere):
    for capability in [(6, 1), (7, 0), (7, 5)]:
        assert cuda_kernels(dtype, capability) == before_ampere
    for capability in [(8, 0), (8, 9), (9, 0), (12, 0)]:
        assert cuda_kernels(dtype, capability) == since_ampere


@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("num_keys", [1, 7, 600, 1500])
def test_long_and_steep_parts_agree_with_the_reference(magnitude, num_keys):
    query, key, value = draw(0, 4, 3, num_keys, 2, (16, 16), torch.float32)
    ours = attend_part(query * magnitude, key, value, scaling=0.3)
    theirs = eager_part(query.double() * magnitude, key.double(), value.double(), scaling=0.3)
    assert_parts_close(ours, theirs, 2e-5)


@given(st.integers(0, 999), heads, st.integers(1, 5), st.integers(1, 9), st.sampled_from([None, 2.0]))
def test_the_eager_reference_is_a_softmax_per_query_and_head(seed, num_heads, num_queries, num_keys, softcap):
    query, key, value = draw(seed, num_heads[0], num_queries, num_keys, num_heads[1], (8, 6), torch.float64)
    sees = torch.rand(num_queries, num_keys, generator=torch.Generator().manual_seed(seed)) < 0.6
    ours = eager_part(query, key, value, scaling=0.5, mask=sees, softcap=softcap)
    assert_parts_close(ours, direct(query, key, value, scaling=0.5, sees=sees, softcap=softcap), 1e-12)


@given(st.integers(0, 999), heads, st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_merged_parts_are_one_softmax_over_all_keys(seed, num_heads, num_queries, cuts):
    query, key, value = draw(seed, num_heads[0], num_queries, sum(cuts), num_heads[1], (8, 8), torch.float32)
    pieces = zip(key.split(cuts, 1), value.split(cuts, 1), strict=True)
    ours = merge([attend_part(query, k, v, scaling=0.7) for k, v in pieces])
    assert_parts_close(ours, eager_part(query.double(), key.double(), value.double(), scaling=0.7), 5e-6)


@given(st.integers(0, 999), heads, st.integers(1, 3), st.floats(-8, 8))
def test_a_sink_logit_takes_weight_once_and_gives_no_value(seed, num_heads, num_parts, logit):
    query, key, value = draw(seed, num_heads[0], 3, 4 * num_parts, num_heads[1], (8, 8), torch.float32)
    sinks = torch.linspace(logit, logit + 1, num_heads[0])
    pieces = zip(key.split(4, 1), value.split(4, 1), strict=True)
    ours = merge([attend_part(query, k, v, scaling=0.7) for k, v in pieces], sink_logits=sinks)
    sees = torch.ones(3, 4 * num_parts, dtype=torch.bool)
    assert_parts_close(ours, direct(query, key, value, scaling=0.7, sees=sees, sink_logits=sinks), 5e-6)


def test_merging_parts_in_any_order_gives_the_same():
    query, key, value = draw(3, 4, 5, 12, 2, (8, 8), torch.float32)
    parts = [
        attend_part(query, k, v, scaling=0.7) for k, v in zip(key.split(4, 1), value.split(4, 1), strict=True)
    ]
    assert_parts_close(merge(parts), [x.double() for x in merge(parts[::-1])], 1e-6)


def test_a_part_that_a_query_does_not_see_adds_nothing_to_a_merge():
    query, key, value = draw(4, 4, 3, 10, 2, (8, 8), torch.float32)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0] = True
    parts = [
        attend_part(query, key[:, :5], value[:, :5], scaling=0.7),
        attend_part(query, key[:, 5:], value[:, 5:], scaling=0.7, mask=mask),
    ]
    sees = torch.cat([torch.ones(3, 5, dtype=torch.bool), mask], 1)
    assert_parts_close(merge(parts), direct(query, key, value, scaling=0.7, sees=sees), 5e-6)


# Sliding windows.


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 12))
def test_a_window_mask_is_the_distance_rule(num_queries, num_old, window_tokens):
    mask = window_mask(num_queries, num_old + num_queries, window_tokens, torch.device("cpu"))
    for query in range(num_queries):
        for key in range(num_old + num_queries):
            assert mask[query, key] == (0 <= num_old + query - key < window_tokens)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(0, 15), st.integers(1, 12), st.booleans())
def test_window_attention_is_eager_attention_at_true_positions(seed, num_new, num_old, window_tokens, turned):
    num_all = num_old + num_new
    query, key, value = draw(seed, 4, num_new, num_all, 2, (8, 8), torch.float32)
    rotation = rotary(8) if turned else NO_ROTATION
    sinks = torch.linspace(-1, 1, 4) if seed % 2 else None
    ours = attend_window(
        query, key, value, rotation=rotation, window_tokens=window_tokens, scaling=0.4, sink_logits=sinks
    )
    if turned:
        query, key = turned_at(query, range(num_old, num_all)), turned_at(key, range(num_all))
    distance = torch.arange(num_old, num_all)[:, None] - torch.arange(num_all)
    sees = (distance >= 0) & (distance < window_tokens)
    theirs, _ = direct(query, key, value, scaling=0.4, sees=sees, sink_logits=sinks)
    torch.testing.assert_close(ours.double(), theirs, atol=5e-6, rtol=0)
