"""Weights of tokens against every logit written out, and their independence of the chunking."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from emllm.attention.eager import eager_part
from emllm.recall.weights import attention_mass, mean_logit

heads = st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)])


def draw(seed: int, num_heads: int, num_kv_heads: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_heads, num_tokens, 6, generator=generator),
        torch.randn(num_kv_heads, num_tokens, 6, generator=generator),
    )


@given(
    st.integers(0, 99),
    heads,
    st.integers(1, 8),
    st.integers(0, 8),
    st.integers(1, 12),
    st.sampled_from([None, 2.0]),
)
def test_attention_mass_is_the_sum_of_probabilities_within_the_window(
    seed, heads_, num_new, num_old, local_tokens, softcap
):
    """The probabilities are those of a softmax over more than the window, given by its normaliser."""
    query, key = draw(seed, *heads_, num_old + num_new)
    query = query[:, num_old:]
    _, lse = eager_part(query, key, key, scaling=0.4, softcap=softcap)
    lse = lse + 0.3  # and there was more to attend to
    ours = attention_mass(query, key, lse, scaling=0.4, local_tokens=local_tokens, softcap=softcap)
    groups = heads_[0] // heads_[1]
    expected = torch.zeros(heads_[1], num_old + num_new, dtype=torch.float64)
    for head in range(heads_[0]):
        for token in range(num_new):
            for position in range(num_old + num_new):
                if 0 <= num_old + token - position < local_tokens:
                    logit = query[head, token].double() @ key[head // groups, position].double() * 0.4
                    logit = logit if softcap is None else softcap * torch.tanh(logit / softcap)
                    expected[head // groups, position] += torch.exp(logit - lse[head, token].double())
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)


@given(st.integers(0, 99), heads, st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 9))
def test_attention_mass_of_chunks_adds_up_to_that_of_the_whole(seed, heads_, chunks, local_tokens):
    total = sum(chunks)
    query, key = draw(seed, *heads_, total)
    lse = torch.linspace(1, 3, total).expand(heads_[0], -1)
    whole = attention_mass(query, key, lse, scaling=0.4, local_tokens=local_tokens)
    added = torch.zeros_like(whole)
    start = 0
    for length in chunks:
        stop, first = start + length, max(0, start - local_tokens)
        added[:, first:stop] += attention_mass(
            query[:, start:stop],
            key[:, first:stop],
            lse[:, start:stop],
            scaling=0.4,
            local_tokens=local_tokens,
        )
        start = stop
    torch.testing.assert_close(added, whole, atol=1e-5, rtol=1e-5)


def test_the_mass_that_queries_give_out_within_the_window_is_one_each():
    query, key = draw(0, 4, 2, 12)
    distance = torch.arange(12)[:, None] - torch.arange(12)
    sees = (distance >= 0) & (distance < 5)
    _, lse = eager_part(query, key, key, scaling=0.4, mask=sees)
    mass = attention_mass(query, key, lse, scaling=0.4, local_tokens=5)
    torch.testing.assert_close(mass.sum(1), torch.full((2,), 12.0 * 2))


@given(st.integers(0, 99), heads, st.integers(1, 8), st.integers(1, 6), st.integers(0, 5))
def test_mean_logit_is_the_double_loop(seed, heads_, num_keys, local_tokens, more):
    query, key = draw(seed, *heads_, num_keys + local_tokens + more)
    groups = heads_[0] // heads_[1]
    sums = query.unflatten(0, (heads_[1], -1)).sum(1)
    ours = mean_logit(key[:, :num_keys], sums, local_tokens=local_tokens)
    expected = torch.zeros(heads_[1], num_keys, dtype=torch.float64)
    for head in range(heads_[0]):
        for token in range(num_keys):
            for later in range(token + 1, token + local_tokens + 1):
                expected[head // groups, token] += (
                    query[head, later].double() @ key[head // groups, token].double() / local_tokens
                )
    torch.testing.assert_close(ours.double(), expected, atol=2e-5, rtol=0)


@given(st.integers(0, 99), st.integers(2, 20), st.integers(1, 6), st.integers(1, 19))
def test_mean_logit_of_parts_is_that_of_the_whole(seed, num_keys, local_tokens, cut):
    """Events that leave the window later get the weights that they would have got together."""
    query, key = draw(seed, 2, 2, num_keys + local_tokens)
    cut = min(cut, num_keys - 1)
    whole = mean_logit(key[:, :num_keys], query, local_tokens=local_tokens)
    parts = [
        mean_logit(key[:, :cut], query, local_tokens=local_tokens),
        mean_logit(key[:, cut:num_keys], query[:, cut:], local_tokens=local_tokens),
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=0)


def test_weights_of_half_precision_are_float():
    query, key = (x.bfloat16() for x in draw(0, 4, 2, 12))
    lse = torch.full((4, 12), 3.0)
    assert attention_mass(query, key, lse, scaling=0.4, local_tokens=5).dtype == torch.float32
    assert mean_logit(key[:, :6], query[::2], local_tokens=6).dtype == torch.float32
