"""What is read again: laws of the choice, whatever the ranking."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emllm.recall.rereading import joined_spans, spans_to_reread


@st.composite
def choices(draw):
    """Passages, events in a row after a gap, a budget and a reach."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=25))
    edges = np.cumsum([draw(st.integers(0, 9)), *sizes])
    known = np.stack([edges[:-1], edges[1:]], axis=1)
    events = draw(st.permutations(range(len(sizes))))[: draw(st.integers(0, len(sizes)))]
    starts = draw(st.lists(st.integers(0, int(edges[-1]) + 40), max_size=4))
    ends = [range(start, start + draw(st.integers(1, 30))) for start in starts]
    passages = draw(st.permutations([*events, *ends]))
    return passages, known, draw(st.integers(1, 200)), draw(st.integers(0, 3))


def tokens_of(spans):
    return [token for start, stop in spans for token in range(start, stop)]


@given(choices())
def test_the_budget_is_never_exceeded_and_tokens_come_once_in_time_order(case):
    passages, known, budget, reach = case
    tokens = tokens_of(spans_to_reread(passages, known, budget_tokens=budget, reach=reach))
    assert len(tokens) <= budget and tokens == sorted(set(tokens))


@given(choices())
def test_every_token_is_of_a_passage_or_of_an_event_near_one(case):
    passages, known, budget, reach = case
    near = {token for one in passages if isinstance(one, range) for token in one}
    for event, span in enumerate(known):
        if any(isinstance(one, int) and abs(event - one) <= reach for one in passages):
            near.update(range(*span))
    assert near.issuperset(tokens_of(spans_to_reread(passages, known, budget_tokens=budget, reach=reach)))


@given(choices())
def test_the_first_passage_is_there_if_it_fits_at_all(case):
    passages, known, budget, reach = case
    tokens = tokens_of(spans_to_reread(passages, known, budget_tokens=budget, reach=reach))
    if passages:
        first = passages[0] if isinstance(passages[0], range) else range(*known[passages[0]])
        assert len(first) > budget or set(first).issubset(tokens)


@given(choices())
def test_a_budget_for_all_takes_every_passage_with_its_neighbours(case):
    passages, known, _, reach = case
    tokens = tokens_of(spans_to_reread(passages, known, budget_tokens=10_000, reach=reach))
    for one in passages:
        is_end = isinstance(one, range)
        spans = [(one.start, one.stop)] if is_end else known[max(one - reach, 0) : one + reach + 1].tolist()
        assert set(tokens_of(spans)).issubset(tokens)


def test_neighbours_come_before_the_next_passage():
    known = np.stack([np.arange(10) * 10, np.arange(10) * 10 + 10], axis=1)
    assert spans_to_reread([7, 2], known, budget_tokens=40, reach=1) == [(20, 30), (60, 90)]
    assert spans_to_reread([7, 2], known, budget_tokens=20, reach=1) == [(70, 90)]
    assert spans_to_reread([7, range(95, 105), 2], known, budget_tokens=40, reach=1) == [(60, 90), (95, 105)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=10))
def test_joined_spans_hold_the_same_tokens_and_none_touch(pieces):
    spans = sorted((start, start + size) for start, size in pieces)
    whole = joined_spans(np.array(spans, dtype=np.int64).reshape(-1, 2))
    tokens = sorted({t for start, stop in spans for t in range(start, stop)})
    assert [t for start, stop in whole for t in range(start, stop)] == tokens
    assert all(a[1] < b[0] for a, b in itertools.pairwise(whole))
