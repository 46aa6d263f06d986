"""What is read again: laws of the choice, whatever the ranking."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emllm.recall.rereading import events_to_reread, joined_spans


@st.composite
def rankings(draw):
    sizes = np.array(draw(st.lists(st.integers(1, 30), min_size=1, max_size=25)), dtype=np.int64)
    ranking = draw(st.permutations(range(len(sizes))))[: draw(st.integers(0, len(sizes)))]
    return list(ranking), sizes, draw(st.integers(1, 200)), draw(st.integers(0, 3))


@given(rankings())
def test_the_budget_is_never_exceeded_and_events_come_once_in_time_order(case):
    ranking, sizes, budget, reach = case
    events = events_to_reread(ranking, sizes, budget_tokens=budget, reach=reach)
    assert sizes[events].sum() <= budget
    assert events == sorted(set(events))


@given(rankings())
def test_every_event_is_of_the_ranking_or_near_one_that_is(case):
    ranking, sizes, budget, reach = case
    events = events_to_reread(ranking, sizes, budget_tokens=budget, reach=reach)
    assert all(any(abs(event - one) <= reach for one in ranking) for event in events)


@given(rankings())
def test_the_first_of_the_ranking_is_there_if_it_fits_at_all(case):
    ranking, sizes, budget, reach = case
    events = events_to_reread(ranking, sizes, budget_tokens=budget, reach=reach)
    if ranking and sizes[ranking[0]] <= budget:
        assert ranking[0] in events


@given(rankings())
def test_a_budget_for_all_takes_the_whole_ranking(case):
    ranking, sizes, _, reach = case
    events = events_to_reread(ranking, sizes, budget_tokens=int(sizes.sum()), reach=reach)
    assert set(ranking) <= set(events)


def test_neighbours_come_before_the_next_of_the_ranking():
    sizes = np.full(10, 10)
    assert events_to_reread([7, 2], sizes, budget_tokens=40, reach=1) == [2, 6, 7, 8]
    assert events_to_reread([7, 2], sizes, budget_tokens=20, reach=1) == [7, 8]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=10))
def test_joined_spans_hold_the_same_tokens_and_none_touch(pieces):
    spans = sorted((start, start + size) for start, size in pieces)
    whole = joined_spans(np.array(spans, dtype=np.int64).reshape(-1, 2))
    tokens = sorted({t for start, stop in spans for t in range(start, stop)})
    assert [t for start, stop in whole for t in range(start, stop)] == tokens
    assert all(a[1] < b[0] for a, b in itertools.pairwise(whole))
