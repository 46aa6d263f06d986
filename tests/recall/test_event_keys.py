"""Makers of event keys against a loop over events."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from emllm.config import EVENT_KEYS, SEVERAL_KEYS
from emllm.recall.event_keys import MAKERS, WEIGHTS_NEEDED, PaddedEvents, key_tokens, top_tokens

#: Not 2: both tokens are equally far from their mean, so `spread` may take either (tested apart).
sizes_ = st.lists(st.sampled_from([1, 3, 4, 5, 8, 9]), min_size=1, max_size=12)
numbers = st.integers(1, 6)
makers = st.sampled_from(list(MAKERS))


def draw(sizes: list[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Keys ``[K, S, D]`` and weights ``[K, S]`` of consecutive events."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    keys = torch.randn(3, total, 5, generator=generator).to(dtype)
    return keys, torch.rand(3, total, generator=generator)


def one_event(name: str, keys: Tensor, weights: Tensor, num: int) -> Tensor:
    """The event key of the tokens ``[S, D]`` of one head and event, ``[R, D]``."""
    keys = keys.double()
    if name == "mean":
        return keys.mean(0, keepdim=True)
    if name in ("mass", "logit"):
        return keys[weights.argsort(descending=True)[:num]].mean(0, keepdim=True)
    order = (keys - keys.mean(0)).square().sum(-1).argsort(descending=True)
    if name == "spread":
        best = keys[order[:num]]
        return torch.cat([best, best[:1].expand(num - len(best), -1)])
    best, rest = keys[order[: num - 1]], keys[order[num - 1 :]]
    mean = (rest if len(rest) else keys).mean(0, keepdim=True)
    if num == 1:
        return mean
    best = torch.cat([best, best[:1].expand(num - 1 - len(best), -1)])
    return torch.cat([best[:1], mean, best[1:]])


def make(name: str, keys: Tensor, weights: Tensor, sizes: list[int], num: int) -> Tensor:
    return MAKERS[name](keys, PaddedEvents(torch.tensor(sizes)), weights, num)


@pytest.mark.parametrize("name", MAKERS)
@given(sizes=sizes_, num=numbers, seed=st.integers(0, 99))
@example(sizes=[9, 1, 3, 8], num=6, seed=0)
@example(sizes=[3, 1], num=6, seed=0)
def test_a_maker_is_the_loop_over_heads_and_events(name, sizes, num, seed):
    keys, weights = draw(sizes, seed)
    ours = make(name, keys, weights, sizes, num)
    assert ours.shape == (3, len(sizes), num if name in SEVERAL_KEYS else 1, 5)
    for head in range(3):
        pieces = zip(keys[head].split(sizes), weights[head].split(sizes), strict=True)
        for event, (event_keys, event_weights) in enumerate(pieces):
            expected = one_event(name, event_keys, event_weights, num)
            torch.testing.assert_close(ours[head, event].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MAKERS)
@given(sizes=sizes_, num=numbers, cut=st.integers(1, 12))
@example(sizes=[9, 1, 3, 8], num=6, cut=2)
def test_events_made_together_and_apart_are_the_same(name, sizes, num, cut):
    """An event's key depends on no other event, so when events are indexed does not matter."""
    keys, weights = draw(sizes)
    whole = make(name, keys, weights, sizes, num)
    cut = min(cut, len(sizes) - 1)
    if not cut:
        return
    at = sum(sizes[:cut])
    parts = [
        make(name, keys[:, :at], weights[:, :at], sizes[:cut], num),
        make(name, keys[:, at:], weights[:, at:], sizes[cut:], num),
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-6, rtol=0)


@given(makers, sizes_, numbers)
def test_reordering_events_reorders_their_keys(name, sizes, num):
    keys, weights = draw(sizes)
    turned = [x.split(sizes, 1)[::-1] for x in (keys, weights)]
    ours = make(name, torch.cat(turned[0], 1), torch.cat(turned[1], 1), sizes[::-1], num)
    torch.testing.assert_close(ours, make(name, keys, weights, sizes, num).flip(1), atol=1e-6, rtol=0)


@given(makers, numbers)
def test_an_event_of_one_token_is_its_key(name, num):
    keys, weights = draw([1, 1, 4, 1])
    ours = make(name, keys, weights, [1, 1, 4, 1], num)
    for event, token in ((0, 0), (1, 1), (3, 6)):
        expected = keys[:, token, None].expand(-1, ours.shape[2], -1)
        torch.testing.assert_close(ours[:, event], expected, atol=1e-6, rtol=0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), numbers, st.integers(0, 99))
def test_spread_gives_keys_of_the_event_bit_for_bit(sizes, num, seed):
    keys, weights = draw(sizes, seed, torch.bfloat16)
    ours = make("spread", keys, weights, sizes, num)
    assert ours.dtype == torch.bfloat16
    for head in range(3):
        for event, event_keys in enumerate(keys[head].split(sizes)):
            known = {tuple(row) for row in event_keys.tolist()}
            mine = [tuple(row) for row in ours[head, event].tolist()]
            assert set(mine) <= known and len(set(mine)) == min(num, len(known))


@given(sizes=sizes_, num=numbers, seed=st.integers(0, 99))
def test_outliers_and_the_mean_of_the_others_make_up_the_event(sizes, num, seed):
    """Each taken for as many tokens as it stands for, an event's keys add up to the keys of its tokens."""
    keys, weights = draw(sizes, seed)
    ours = make("outliers", keys, weights, sizes, num)
    tokens = key_tokens("outliers", np.array(sizes), num)
    sums = torch.einsum("KNRD,RN->KND", ours, tokens)
    for event, event_keys in enumerate(keys.split(sizes, dim=1)):
        if sizes[event] >= num - 1:
            torch.testing.assert_close(sums[:, event], event_keys.sum(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MAKERS)
@given(sizes=sizes_, num=numbers)
def test_keys_stand_for_all_tokens_of_an_event(name, sizes, num):
    tokens = key_tokens(name, np.array(sizes), num if name in SEVERAL_KEYS else 1)
    assert bool((tokens >= 0).all())
    torch.testing.assert_close(tokens.sum(0), torch.tensor(sizes).float())


@given(sizes_, numbers, st.integers(0, 99))
def test_top_tokens_are_a_sort_of_each_events_weights(sizes, num, seed):
    _, weights = draw(sizes, seed)
    idx, exists = top_tokens(weights, PaddedEvents(torch.tensor(sizes)), num)
    start = 0
    for event, size in enumerate(sizes):
        for head in range(3):
            mine = idx[head, event][exists[head, event]].tolist()
            order = weights[head, start : start + size].argsort(descending=True)[:num] + start
            assert mine == order.tolist()
        start += size


def test_weights_of_zero_still_stand_for_an_event():
    """Nobody attended: all tokens have weight 0, none is taken for padding."""
    keys, weights = draw([3, 5])
    ours = make("mass", keys, torch.zeros_like(weights), [3, 5], 8)
    means = torch.stack([keys[:, :3].mean(1), keys[:, 3:].mean(1)], 1)
    torch.testing.assert_close(ours[:, :, 0], means, atol=1e-6, rtol=0)


def test_weights_may_be_those_of_more_tokens_than_there_are_heads():
    keys, weights = draw([2, 2])
    with pytest.raises(AssertionError):
        MAKERS["mass"](keys, PaddedEvents(torch.tensor([2, 2])), None, 1)
    assert make("mass", keys, weights, [2, 2], 1).shape == (3, 2, 1, 5)


def test_every_event_key_of_the_settings_has_a_maker():
    assert set(EVENT_KEYS) == set(MAKERS) == set(WEIGHTS_NEEDED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_event_keys_do_not_hang_on_the_default_dtype(name, dtype):
    keys, weights = draw([3, 9, 5])
    expected = make(name, keys, weights, [3, 9, 5], 2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = make(name, keys, weights, [3, 9, 5], 2)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)
