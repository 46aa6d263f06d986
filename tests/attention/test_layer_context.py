"""A laid-out context against one eager float64 softmax with every token's position written out."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.driven_memory import rotary, turned_at
from torch import Tensor

from emllm.attention.context import ContextBuffers, ContextPlan, LayerContext
from emllm.attention.layout import POSITION_POLICIES
from emllm.config import POSITIONS

HEADS, KV_HEADS, DIM, SCALING, LOCAL = 4, 2, 8, 0.4, 9
ROTATION = rotary(DIM)
views = st.tuples(st.integers(0, 3), st.integers(0, 8), st.integers(0, 12))
policies = st.sampled_from(POSITIONS)


@dataclasses.dataclass
class Tokens:
    """Raw keys and values of old tokens, and queries, keys and values of a chunk."""

    old_key: Tensor
    old_value: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


def tokens(num_old: int, num_new: int, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(KV_HEADS, num_old)] * 2 + [(HEADS, num_new)] + [(KV_HEADS, num_new)] * 2
    return Tokens(*(torch.randn(*size, DIM, generator=generator) for size in sizes))


def laid_out(
    counts: tuple[int, int, int], policy: str, given_: Tokens, *, first: int, room: int
) -> LayerContext:
    num_old = sum(counts)
    layout = POSITION_POLICIES[policy](*counts, LOCAL)
    plan = ContextPlan(np.arange(num_old), layout, counts[2], first_chunk=first, max_chunk=first + room)
    buffers = ContextBuffers(plan.capacity, like_key=given_.key, like_value=given_.value)
    context = LayerContext(plan, buffers, ROTATION)
    buffers.values[:num_old].copy_(given_.old_value.transpose(0, 1))
    context.place(given_.old_key.transpose(0, 1).contiguous())
    return context


def oracle(
    counts: tuple[int, int, int], policy: str, given_: Tokens, sinks: Tensor | None, softcap: float | None
) -> Tensor:
    """`ordered`: positions 0, 1, ... over everything. `paper`: sinks and episodes as at 0, the query as at
    LOCAL for them; the local view and the chunk at 0, 1, ...
    """
    num_old, num_new = sum(counts), given_.query.shape[1]
    num_far = counts[0] + counts[1] if policy == "paper" else 0
    num_near = num_old - num_far
    keys = torch.cat([given_.old_key, given_.key], 1).double()
    near_keys = turned_at(keys[:, num_far:], range(num_near + num_new))
    near_query = turned_at(given_.query, range(num_near, num_near + num_new))
    far_query = turned_at(given_.query, [LOCAL] * num_new)
    grow = HEADS // KV_HEADS
    far = far_query @ keys[:, :num_far].repeat_interleave(grow, 0).transpose(1, 2) * SCALING
    near = near_query @ near_keys.repeat_interleave(grow, 0).transpose(1, 2) * SCALING
    logits = torch.cat([far, near], -1)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    position = torch.arange(num_old + num_new) - num_old  # in the chunk; negative before it
    logits = logits.masked_fill(position > torch.arange(num_new)[:, None], -torch.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.double()[:, None, None].expand(-1, num_new, 1)], -1)
    values = torch.cat([given_.old_value, given_.value], 1).double().repeat_interleave(grow, 0)
    return logits.softmax(-1)[..., : num_old + num_new] @ values


def parts_of(given_, chunk=slice(None)):
    return [x[:, chunk] for x in (given_.query, given_.key, given_.value)]


@given(views, policies, st.integers(1, 7), st.sampled_from([None, 3.0]), st.booleans(), st.integers(0, 99))
def test_a_context_is_one_softmax_at_the_policys_positions(counts, policy, num_new, softcap, sunk, seed):
    given_ = tokens(sum(counts), num_new, seed)
    sinks = torch.linspace(-1, 2, HEADS) if sunk else None
    context = laid_out(counts, policy, given_, first=num_new, room=0)
    out, _, _ = context.attend(*parts_of(given_), scaling=SCALING, softcap=softcap, sink_logits=sinks)
    expected = oracle(counts, policy, given_, sinks, softcap)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)


@given(views, policies, st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_a_chunk_at_once_and_in_pieces_give_the_same(counts, policy, pieces):
    given_ = tokens(sum(counts), sum(pieces))
    whole = laid_out(counts, policy, given_, first=sum(pieces), room=0)
    expected, expected_lse, turned = whole.attend(*parts_of(given_), scaling=SCALING)
    context = laid_out(counts, policy, given_, first=pieces[0], room=sum(pieces))
    outs, start = [], 0
    for length in pieces:
        chunk = slice(start, start + length)
        outs.append(context.attend(*parts_of(given_, chunk), scaling=SCALING))
        context.advance(length)
        start += length
    assert context.plan.num_chunk == sum(pieces) and context.plan.room == pieces[0]
    for one, other in zip(
        (torch.cat(x, 1) for x in zip(*outs, strict=True)), (expected, expected_lse, turned), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@given(views, policies, st.integers(1, 5))
def test_writing_twice_is_writing_once_and_only_advance_counts(counts, policy, num_new):
    given_, other = tokens(sum(counts), num_new), tokens(sum(counts), num_new, seed=1)
    context = laid_out(counts, policy, given_, first=num_new, room=2)
    context.attend(*parts_of(other), scaling=SCALING)
    results = []
    for _ in range(2):
        results.append(context.attend(*parts_of(given_), scaling=SCALING)[0].clone())
    assert context.plan.num_chunk == 0
    fresh = laid_out(counts, policy, given_, first=num_new, room=2)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], fresh.attend(*parts_of(given_), scaling=SCALING)[0])


@given(views, st.integers(1, 5))
def test_order_inside_the_episodes_matters_in_ordered_and_not_in_paper_positions(counts, num_new):
    sinks, episodes, local = counts[0], counts[1] + 2, counts[2]
    counts = (sinks, episodes, local)
    given_ = tokens(sum(counts), num_new)
    shuffled = [
        *range(sinks),
        *reversed(range(sinks, sinks + episodes)),
        *range(sinks + episodes, sum(counts)),
    ]
    moved = dataclasses.replace(
        given_, old_key=given_.old_key[:, shuffled], old_value=given_.old_value[:, shuffled]
    )
    gaps = {}
    for policy in POSITIONS:
        outs = []
        for each in (given_, moved):
            context = laid_out(counts, policy, each, first=num_new, room=0)
            outs.append(context.attend(*parts_of(each), scaling=SCALING)[0])
        gaps[policy] = float((outs[0] - outs[1]).abs().max())
    assert gaps["paper"] < 1e-5 < 1e-4 < gaps["ordered"]


def test_every_position_policy_of_the_settings_exists():
    assert set(POSITIONS) == set(POSITION_POLICIES)


@given(policies, st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(1, 50))
def test_a_layout_covers_all_tokens(policy, num_sinks, num_recalled, num_local, local_tokens):
    layout = POSITION_POLICIES[policy](num_sinks, num_recalled, num_local, local_tokens)
    assert layout.num_tokens == num_sinks + num_recalled + num_local
    assert layout.num_far in (0, num_sinks + num_recalled)
    assert layout.far_distance == local_tokens
