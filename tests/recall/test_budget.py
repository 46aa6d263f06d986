"""Laws of the recall budget: never exceeded, each event once, in time order, ties to the older."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.recall.budget import fill, neighbours, rank_events, select_events

#: Few distinct scores, so that ties are common.
scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40).map(
    lambda values: np.array(values, dtype=np.float32)
)
contiguities = st.sampled_from([0.0, 0.3, 0.5, 0.9])


@st.composite
def situations(draw: st.DrawFn):
    """Scores, sizes in [low, high], a budget and an old queue."""
    score = draw(scores)
    low = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(low, low + 12), min_size=len(score), max_size=len(score)))
    budget = draw(st.integers(0, 150))
    buffer = draw(st.lists(st.integers(0, len(score) - 1), max_size=6, unique=True))
    return score, np.array(sizes, dtype=np.int64), budget, low, buffer


def select(situation, contiguity: float, budget: int | None = None) -> tuple[list[int], list[int]]:
    score, sizes, own_budget, low, buffer = situation
    return select_events(
        score,
        sizes,
        budget_tokens=own_budget if budget is None else budget,
        contiguity=contiguity,
        min_event_tokens=low,
        buffer=buffer,
    )


@given(scores, st.integers(0, 50))
def test_ranking_is_a_sort_by_falling_score_then_age(score, limit):
    expected = sorted(range(len(score)), key=lambda event: (-score[event], event))[:limit]
    assert rank_events(score, limit) == expected


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300), st.integers(0, 400))
def test_ranking_is_the_same_sort_for_any_scores(values, limit):
    score = np.array(values, dtype=np.float32)
    expected = sorted(range(len(score)), key=lambda event: (-score[event], event))[:limit]
    assert rank_events(score, limit) == expected


@given(situations(), contiguities)
def test_recall_keeps_the_budget_and_takes_each_event_once_in_time_order(situation, contiguity):
    recalled, queue = select(situation, contiguity)
    sizes, budget = situation[1], situation[2]
    assert recalled == sorted(set(recalled))
    assert all(0 <= event < len(sizes) for event in recalled)
    assert sizes[recalled].sum() <= budget
    assert len(set(queue)) == len(queue) and set(queue) <= set(recalled)
    assert not queue or sizes[queue].sum() <= budget * contiguity


@given(situations(), contiguities, st.integers(1, 60))
def test_no_more_is_left_than_the_largest_event_whatever_least_size_is_said(situation, contiguity, least):
    """A document's border makes events that are smaller than the least."""
    score, sizes, budget, _, buffer = situation
    recalled, _ = select((score, sizes, budget, least, buffer), contiguity)
    assert len(recalled) == len(sizes) or budget - sizes[recalled].sum() < sizes.max()


@given(situations(), contiguities)
def test_everything_is_recalled_when_it_fits(situation, contiguity):
    sizes = situation[1]
    recalled, queue = select(situation, contiguity, int(sizes.sum()))
    assert recalled == list(range(len(sizes))) and queue == []


@given(situations(), contiguities)
def test_no_event_that_would_still_fit_and_is_among_the_ranked_is_left_out(situation, contiguity):
    """What contiguity does not use, similarity does. The ranked ones are those that could all fit."""
    score, sizes, budget, low, _ = situation
    recalled, _ = select(situation, contiguity)
    left = budget - int(sizes[recalled].sum())
    for event in rank_events(score, budget // low + 1):
        assert event in recalled or sizes[event] > left


@given(situations(), contiguities)
def test_the_most_similar_event_is_recalled_if_its_share_holds_it(situation, contiguity):
    score, sizes, budget, _, _ = situation
    best = rank_events(score, 1)[0]
    recalled, _ = select(situation, contiguity)
    assert best in recalled or sizes[best] > budget - int(budget * contiguity)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 300), st.integers(0, 60), st.integers(0, 99))
def test_a_larger_budget_recalls_all_that_a_smaller_one_does_when_sizes_are_equal(
    num_events, size, budget, more, seed
):
    """With unequal sizes this cannot be asked of any greedy choice; see the next test."""
    score = np.random.default_rng(seed).normal(size=num_events).astype(np.float32)
    sizes = np.full(num_events, size, dtype=np.int64)
    small, large = (
        select_events(score, sizes, budget_tokens=each, contiguity=0.0, min_event_tokens=size)[0]
        for each in (budget, budget + more)
    )
    assert set(small) <= set(large)
    assert len(large) == min(num_events, (budget + more) // size)


@given(situations(), contiguities, st.integers(0, 100))
def test_a_larger_budget_never_recalls_much_less(situation, contiguity, more):
    """Greedy filling leaves less than the largest event unused, so growth is monotone up to that."""
    sizes, budget = situation[1], situation[2]
    small, large = (select(situation, contiguity, each)[0] for each in (budget, budget + more))
    assert sizes[large].sum() > sizes[small].sum() - sizes.max()
    if len(large) < len(sizes):
        assert sizes[large].sum() > budget + more - sizes.max() - 1


@given(situations(), contiguities)
def test_without_contiguity_neighbours_and_the_old_queue_mean_nothing(situation, contiguity):
    score, sizes, budget, low, _ = situation
    recalled, queue = select(situation, 0.0)
    assert (recalled, queue) == select((score, sizes, budget, low, []), 0.0)
    assert queue == []
    if int(sizes.sum()) > budget:
        assert recalled == sorted(fill(rank_events(score, budget // low + 1), sizes, budget, set()))


@given(situations(), contiguities, st.floats(0.01, 100), st.floats(-100, 100))
def test_only_the_order_of_scores_matters(situation, contiguity, scale, shift):
    score, sizes, budget, low, buffer = situation
    other = (score.astype(np.float64) * scale + shift).astype(np.float32)
    if len(np.unique(other)) == len(np.unique(score)):
        assert select((other, sizes, budget, low, buffer), contiguity) == select(situation, contiguity)


@given(st.integers(1, 30), st.lists(st.integers(0, 29), max_size=8))
def test_neighbours_are_the_next_and_the_previous_event_of_each(num_events, events):
    events = [event for event in events if event < num_events]
    near = neighbours(events, num_events)
    expected = [n for event in events for n in (event + 1, event - 1) if 0 <= n < num_events]
    assert near == expected


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(0, 60), st.sets(st.integers(0, 9), max_size=4))
def test_filling_takes_what_is_new_and_fits_in_order(candidates, budget, taken):
    sizes = np.array([7, 3, 11, 1, 5, 9, 2, 8, 4, 6], dtype=np.int64)
    before = set(taken)
    chosen = fill(candidates, sizes, budget, taken)
    assert taken == before | set(chosen) and not before & set(chosen)
    left = budget
    expected = []
    for event in candidates:
        if event not in before and event not in expected and sizes[event] <= left:
            expected.append(event)
            left -= sizes[event]
    assert chosen == expected


@pytest.mark.parametrize(
    ("contiguity", "budget", "buffer", "expected", "queue"),
    [
        (0.0, 8, [], [4, 8], []),
        (0.5, 8, [], [4, 5], [5]),
        (0.5, 8, [0], [4, 5], [5]),
        (0.5, 16, [0], [3, 4, 5, 8], [5, 3]),
        (0.75, 16, [0], [0, 3, 4, 5], [5, 3, 0]),
        (0.75, 12, [0], [0, 4, 8], [0]),
    ],
)
def test_the_present_goes_before_the_queue(contiguity, budget, buffer, expected, queue):
    """Ten events of 4 tokens; 4 is most similar, then 8. Neighbours of 4 are 5, then 3.

    Last case: the similar share, 3 tokens, holds no event, so the neighbours are nobody's; what contiguity
    leaves over then goes to the most similar ones.
    """
    score = np.zeros(10, dtype=np.float32)
    score[4], score[8] = 2.0, 1.0
    sizes = np.full(10, 4, dtype=np.int64)
    assert select_events(
        score, sizes, budget_tokens=budget, contiguity=contiguity, min_event_tokens=4, buffer=buffer
    ) == (expected, queue)


def test_the_queue_fills_what_the_present_leaves():
    """Only one event is similar at the end of time: it has one neighbour, the rest comes from the queue."""
    score = np.zeros(10, dtype=np.float32)
    score[9] = 1.0
    sizes = np.full(10, 4, dtype=np.int64)
    recalled, queue = select_events(
        score, sizes, budget_tokens=16, contiguity=0.75, min_event_tokens=4, buffer=[2, 8, 5]
    )
    assert (recalled, queue) == ([2, 5, 8, 9], [8, 2, 5])
