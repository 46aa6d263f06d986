"""Ranking at a bounded cost: who has a turn when, and what is ranked in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emllm.recall.index import EventIndex
from emllm.recall.scorers import SCORERS
from emllm.recall.shortlist import EVENTS_PER_RECALL, Shortlist, is_ranking_of_all_due, keys_of


@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(0, 10**6))
def test_every_layer_has_its_turn_once_in_a_period_and_few_have_it_at_once(num_events, first, num_recalls):
    period = next(2**n for n in range(60) if num_events <= EVENTS_PER_RECALL * 2**n)
    turns = [
        [is_ranking_of_all_due(num_recalls + step, num_events, layer_idx=layer) for layer in range(30)]
        for step in range(period)
    ]
    assert all(sum(column) == 1 for column in zip(*turns, strict=True))
    assert max(map(sum, turns)) <= -(-30 // period)


@pytest.mark.parametrize("num_new", [24, 28.05, 31])
def test_every_layer_has_its_turn_however_long_the_text_grows(num_new):
    layers = (0, 1, 8, 15, 22, 29)
    last, overdue, ranked = dict.fromkeys(layers, 0), [], 0
    num_recalls = 80_000  # more than a million events, ten million tokens and more
    for recall in range(num_recalls):
        num_events = int(recall * num_new)
        for layer in layers:
            if is_ranking_of_all_due(recall, num_events, layer_idx=layer):
                last[layer] = recall
                ranked += num_events
            elif recall - last[layer] > 2 * max(1, num_events / EVENTS_PER_RECALL):
                overdue.append((recall, layer))
    assert not overdue
    assert ranked / (len(layers) * num_recalls) <= EVENTS_PER_RECALL


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.integers(1, 20), st.integers(0, 9))
def test_candidates_are_the_best_and_the_newer_ones_in_time_order(scores, limit, num_newer):
    scores = np.array(scores, dtype=np.float32)
    shortlist = Shortlist.of(scores, limit)
    candidates = shortlist.candidates(len(scores) + num_newer)
    assert (np.diff(candidates) > 0).all() or len(candidates) <= 1
    assert len(candidates) == min(limit, len(scores)) + num_newer
    assert set(range(len(scores), len(scores) + num_newer)) <= set(candidates.tolist())
    left_out = np.setdiff1d(np.arange(len(scores)), candidates)
    if len(left_out):
        assert scores[left_out].max() <= scores[shortlist.events].min()


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.integers(1, 9), st.integers(0, 30))
def test_a_folded_shortlist_holds_the_best_candidates_and_calls_none_newer(scores, limit, num_newer):
    shortlist = Shortlist.of(np.array(scores, dtype=np.float32), limit)
    num_events = len(scores) + num_newer
    candidates = shortlist.candidates(num_events)
    again = np.linspace(0, 1, len(candidates), dtype=np.float32)
    folded = shortlist.folded(again, limit, num_events)
    assert folded.events.tolist() == candidates[-limit:].tolist()
    assert folded.candidates(num_events).tolist() == folded.events.tolist()


@given(st.integers(1, 700), st.sets(st.integers(0, 699)), st.sampled_from(["exact", "int8"]))
def test_scores_of_candidates_order_them_as_scores_of_all_do(num_events, chosen, precision):
    index = EventIndex(precision)
    generator = torch.Generator().manual_seed(num_events)
    for first in range(0, num_events, 90):
        size = (2, min(90, num_events - first), 3, 8)
        index.append(torch.randn(size, generator=generator))
    events = np.array(sorted(event for event in chosen if event < num_events), dtype=np.int64)
    if not len(events):
        return
    query = torch.randn(4, 1, 8, generator=generator)
    score = SCORERS["dot"].score
    all_scores = score(query, index.parts(), 0.5)
    torch.testing.assert_close(score(query, [keys_of(index.parts(), events)], 0.5), all_scores[events])
