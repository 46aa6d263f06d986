"""Evidence: the layers' scores on one scale, added up."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emllm.recall.trace import Habit, Recall, RecallTrace, Usual, recall_of, standardised

score_lists = st.lists(
    st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6), min_size=1, max_size=4
).map(lambda rows: [np.array(row, dtype=np.float32) for row in rows])


def traced(rows: list[np.ndarray]) -> RecallTrace:
    trace = RecallTrace()
    for layer_idx, scores in enumerate(rows):
        trace.add(layer_idx, scores, list(range(6)))
    return trace


def as_usual(trace: RecallTrace) -> Usual:
    return Usual((), trace.standing)


@given(score_lists)
def test_the_evidence_is_the_mean_standard_score_above_average(rows):
    expected = np.zeros(6)
    for scores in rows:
        if scores.std() > 0:
            expected += np.maximum((scores - scores.mean()) / scores.std(), 0) / len(rows)
    found = {event.event: event.score for event in traced(rows).strongest(6)}
    assert set(found) == set(np.flatnonzero(expected > 0))
    for event, score in found.items():
        np.testing.assert_allclose(score, expected[event], rtol=1e-4)


@given(score_lists, st.floats(0.5, 64), st.integers(-50, 50))
def test_a_layers_scale_does_not_matter(rows, scale, shift):
    rows = [np.round(scores) for scores in rows]
    other = [(scores.astype(np.float64) * scale + shift).astype(np.float32) for scores in rows]
    one, same = ({e.event: e.score for e in traced(each).strongest(6)} for each in (rows, other))
    for event in one.keys() | same.keys():
        np.testing.assert_allclose(one.get(event, 0.0), same.get(event, 0.0), rtol=1e-3, atol=1e-4)


@given(score_lists, st.integers(0, 8))
def test_the_strongest_come_first_and_no_more_than_asked_for(rows, limit):
    found = traced(rows).strongest(limit)
    assert len(found) <= limit
    assert [event.score for event in found] == sorted((event.score for event in found), reverse=True)


@given(score_lists, st.permutations(range(6)), st.integers(0, 6), st.integers(0, 8))
def test_what_was_chosen_is_kept_in_its_order_and_with_its_scores(rows, order, num_chosen, limit):
    trace = traced(rows)
    before = {one.event: one for one in trace.strongest(6)}
    chosen = [event for event in order[:num_chosen] if event in before]
    strongest = trace.strongest(limit)
    trace.choose([*(before[i] for i in chosen[:2]), range(3, 9), *(before[i] for i in chosen[2:])])
    assert list(trace.chosen) == [
        *(before[i] for i in chosen[:2]),
        range(3, 9),
        *(before[i] for i in chosen[2:]),
    ]
    assert trace.strongest(limit) == strongest


def test_an_event_counts_the_layers_that_recalled_it_each_once():
    trace = RecallTrace()
    for layer_idx, recalled in ((0, [1]), (0, [1, 2]), (3, [1])):
        trace.add(layer_idx, np.array([0.0, 3.0, 2.0], dtype=np.float32), recalled)
    assert {event.event: event.layers for event in trace.strongest(3)} == {1: 2, 2: 1}


def test_events_that_come_later_are_counted_from_then_on():
    trace = RecallTrace()
    trace.add(0, np.array([1.0, 0.0], dtype=np.float32), [0])
    trace.add(0, np.array([0.0, 0.0, 0.0, 9.0], dtype=np.float32), [3])
    assert [event.event for event in trace.strongest(9)] == [3, 0]


def test_an_event_that_no_layer_recalled_is_no_evidence():
    trace = RecallTrace()
    trace.add(0, np.array([9.0, 6.0, 0.0], dtype=np.float32), [1])
    assert [event.event for event in trace.strongest(3)] == [1]


def test_nothing_recalled_is_no_evidence():
    trace = RecallTrace()
    assert trace.strongest(3) == []
    trace.add(0, np.array([2.0, 2.0], dtype=np.float32), [0])
    assert trace.strongest(3) == []


def test_what_was_chosen_stays_as_it_stood_whatever_is_recalled_later():
    trace = RecallTrace()
    trace.take_off(Usual((), {0: np.array([2.0, 0.0, 0.0], dtype=np.float32)}))
    trace.add(0, np.array([9.0, 0.0, 0.0], dtype=np.float32), [0, 1])
    (before,) = (one for one in trace.strongest(9) if one.event == 0)
    trace.choose([before, range(5, 7)])
    trace.add(0, np.array([0.0, 9.0, 0.0], dtype=np.float32), [1])
    assert 0 not in [one.event for one in trace.strongest(9)]  # no more than usual, over both
    trace.choose([*trace.strongest(9), range(5, 7), range(8, 9)])
    assert [getattr(one, "event", one) for one in trace.chosen] == [1, range(5, 7), range(8, 9), 0]
    assert trace.chosen[-1] == before


def test_an_event_that_every_moment_recalls_is_no_evidence_beside_one_that_stands_out_now():
    habit = Habit()
    for _ in range(4):
        habit.add(recall_of(np.array([9.0, 0.0, 0.1, 0.2], dtype=np.float32), [0]))
    now = np.array([9.0, 0.0, 5.0, 0.2, 0.1], dtype=np.float32)
    with_habit, without = RecallTrace(), RecallTrace()
    with_habit.add(0, now, range(5), habit=habit)
    without.add(0, now, range(5))
    assert without.strongest(1)[0].event == 0
    assert with_habit.strongest(1)[0].event == 2


@given(score_lists, st.lists(st.sets(st.integers(0, 5)), min_size=4, max_size=4))
def test_a_habit_is_the_mean_over_recalls_since_an_event_came_of_what_it_scored_when_recalled(rows, recalled):
    habit = Habit()
    steps = [
        (row[:num_events], sorted(event for event in chosen if event < num_events))
        for num_events, row, chosen in zip((2, 4, 6, 6), rows, recalled, strict=False)
    ]
    for row, chosen in steps:
        habit.add(recall_of(row, chosen))
    for event in range(len(steps[-1][0])):
        known = [
            standardised(row)[event] if event in chosen else 0.0 for row, chosen in steps if event < len(row)
        ]
        np.testing.assert_allclose(habit.mean(8)[event], np.mean(known), rtol=1e-6)
    assert (habit.mean(8)[len(steps[-1][0]) :] == 0).all()


def test_a_copied_habit_goes_on_apart():
    habit = Habit()
    habit.add(recall_of(np.array([1.0, 0.0], dtype=np.float32), [0]))
    twin = habit.copy()
    habit.add(recall_of(np.array([5.0, 1.0, 0.0], dtype=np.float32), [0]))
    before = habit.mean(2).tolist()
    assert twin.mean(2).tolist() == [1.0, 0.0]
    twin.add(recall_of(np.array([0.0, 1.0], dtype=np.float32), [1]))
    assert twin.mean(2).tolist() == [0.5, 0.5] and habit.mean(2).tolist() == before


@given(score_lists, st.lists(st.sets(st.integers(0, 5)), min_size=4, max_size=4), st.integers(0, 4))
def test_recalls_counted_at_once_are_the_same_habit_to_the_last_bit(rows, recalled, num_first):
    recalls = [
        recall_of(row[:num_events], sorted(event for event in chosen if event < num_events))
        for num_events, row, chosen in zip((2, 4, 6, 6), rows, recalled, strict=False)
    ]
    one, other = Habit(), Habit()
    for recall in recalls:
        one.add(recall)
    for recall in recalls[:num_first]:
        other.add(recall)
    other.add_all(recalls[num_first:])
    assert one.mean(8).tobytes() == other.mean(8).tobytes()


def random_recall(draw: np.random.Generator, num_events: int) -> Recall:
    events = np.unique(draw.integers(0, num_events, size=draw.integers(0, 6))).astype(np.int32)
    return Recall(num_events, events, draw.random(len(events)).astype(np.float32))


@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(["read", "read", "copy", "new"]), max_size=40))
def test_copies_that_go_on_are_to_the_last_bit_habits_that_were_told_everything_themselves(seed, steps):
    """However many copies of copies there are, and whichever of them goes on."""
    draw = np.random.default_rng(seed)
    pairs = [(Habit(), [])]
    num_events = 60
    for step in steps:
        which = int(draw.integers(len(pairs)))
        habit, told = pairs[which]
        if step == "copy":
            pairs.append((habit.copy(), list(told)))
            continue
        num_events += 7 * (step == "new")
        recall = random_recall(draw, num_events)
        told.append(recall)
        if draw.random() < 0.5:
            habit.add(recall)
        else:
            habit.add_all([recall])
    for habit, told in pairs:
        alone = Habit()
        for recall in told:
            alone.add(recall)
        assert habit.mean(num_events + 3).tobytes() == alone.mean(num_events + 3).tobytes()


def test_a_copy_that_goes_on_costs_what_it_is_told_and_not_what_was_told_before():
    draw = np.random.default_rng(0)
    habit = Habit()
    habit.add_all([random_recall(draw, 60_000) for _ in range(50)])
    copies = [habit.copy() for _ in range(20)]
    tracemalloc.start()
    for one in copies:
        for extra in range(30):
            one.add(random_recall(draw, 60_000 + extra))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(copies) < 16 * (30 * 6 + 2 * 30) + 2000  # all of it is 960,000 bytes


@given(score_lists)
def test_to_take_off_nothing_changes_nothing_and_to_take_off_itself_leaves_nothing(rows):
    trace = traced(rows)
    before, strongest = trace.totals, trace.strongest(6)
    trace.take_off(as_usual(RecallTrace()))
    assert (trace.totals == before).all()
    trace.take_off(as_usual(traced(rows)))
    assert (trace.totals == 0).all() and trace.strongest(6) == strongest


def test_what_is_recalled_whatever_is_asked_is_no_evidence_beside_what_stands_out_now():
    usual, trace = RecallTrace(), RecallTrace()
    for layer_idx in range(3):
        usual.add(layer_idx, np.array([9.0, 0.0, 0.1, 0.2], dtype=np.float32), [0])
        trace.add(layer_idx, np.array([9.0, 0.0, 5.0, 0.2, 0.1], dtype=np.float32), range(5))
    assert trace.strongest(1)[0].event == 0
    trace.take_off(as_usual(usual))
    assert trace.strongest(1)[0].event == 2


def test_only_the_same_layers_recalls_are_taken_off():
    usual, trace = RecallTrace(), RecallTrace()
    usual.add(1, np.array([9.0, 0.0, 0.0], dtype=np.float32), [0])
    trace.add(0, np.array([9.0, 0.0, 0.0], dtype=np.float32), [0])
    before = trace.totals
    trace.take_off(as_usual(usual))
    assert (trace.totals == before).all()


def test_where_nothing_is_beyond_the_usual_what_was_recalled_is_told_all_the_same():
    trace, usual = RecallTrace(), RecallTrace()
    for one in (trace, usual):
        one.add(0, np.array([0.0, 1.0, 3.0], dtype=np.float32), [1, 2])
    expected = [event.event for event in trace.strongest(2)]
    trace.take_off(as_usual(usual))
    assert expected == [2] == [event.event for event in trace.strongest(2)]
