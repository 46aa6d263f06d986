"""Our representatives, event keys, similarity and ranking on the tensors of the released code's run.

That code chooses representatives per query head; ours per KV head. With the KV heads repeated, K = H,
ours is the same computation, and must give the same numbers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conformance.golden_mass import accumulated_mass, recorded_events
from tests.conformance.replay import GROUP, HEAD_DIM, LAYERS, turn

from emllm.recall.budget import rank_events
from emllm.recall.event_keys import make_weighted, top_tokens
from emllm.recall.index import IndexPart
from emllm.recall.queries import mean_query
from emllm.recall.scorers import dot


@pytest.fixture(scope="module")
def masses(replayed):
    run, again = replayed("S")
    return [accumulated_mass(run, again, idx, per_query_head=True) for idx in range(LAYERS)]


def test_attention_mass_per_query_head_is_the_recorded_score(replayed, masses):
    run, _ = replayed("S")
    span, _ = recorded_events(run)
    for row, idx in enumerate(run["repr_key_layers"].tolist()):
        recorded = run["repr_score"][row][:, span]
        torch.testing.assert_close(masses[idx][:, span], recorded, rtol=1e-3, atol=1e-6)


def test_attention_mass_per_kv_head_is_the_sum_of_its_groups_recorded_scores(replayed):
    run, again = replayed("S")
    span, _ = recorded_events(run)
    ours = accumulated_mass(run, again, 0, per_query_head=False)[:, span]
    grouped = run["repr_score"][0].unflatten(0, (-1, GROUP)).sum(1)[:, span]
    torch.testing.assert_close(ours, grouped, rtol=1e-3, atol=1e-6)


def test_the_tokens_of_largest_mass_are_the_recorded_representatives(replayed, masses):
    run, _ = replayed("S")
    span, events = recorded_events(run)
    for idx in range(LAYERS):
        ours, exists = top_tokens(masses[idx][:, span], events, run.config.repr_topk)
        assert exists.all()
        ours = ours.transpose(0, 1).sort(-1).values + span.start
        assert torch.equal(ours, run["repr_idx"][idx].long().sort(-1).values)


def test_the_weighted_event_key_is_the_recorded_one(replayed, masses):
    run, again = replayed("S")
    span, events = recorded_events(run)
    for row, idx in enumerate(run["repr_key_layers"].tolist()):
        keys = again.keys[idx].repeat_interleave(GROUP, 0)[:, span]
        ours = make_weighted(keys, events, masses[idx][:, span], run.config.repr_topk)
        torch.testing.assert_close(ours[:, :, 0].transpose(0, 1), run["repr_key"][row], atol=3e-4, rtol=0)


def test_dot_of_the_recorded_query_and_event_keys_is_the_recorded_similarity(replayed):
    run, again = replayed("S")
    compared = 0
    for step in range(len(run["step_start"])):
        start, stop = run.span(step)
        for row, idx in enumerate(run["repr_key_layers"].tolist()):
            recorded = torch.tensor(run.row("sim", step, idx))
            if not len(recorded):
                continue
            query = turn(again.queries[idx][:, start:stop], run.config.n_local - 1, alike=True)
            key = run["repr_key"][row][: len(recorded)].transpose(0, 1)[:, :, None]
            ours = dot(mean_query(query), [IndexPart(key.transpose(1, 2))], HEAD_DIM**-0.5)
            torch.testing.assert_close(ours, recorded, atol=1e-3, rtol=1e-4)
            compared += len(recorded)
    assert compared == len(run["sim_values"]) > 0


def test_ranking_the_recorded_similarities_gives_the_recorded_order(replayed):
    run, _ = replayed("S")
    compared = 0
    for step in range(len(run["step_start"])):
        for idx in range(LAYERS):
            scores = np.array(run.row("sim", step, idx), dtype=np.float32)
            if len(scores):
                taken = run.row("topk", step, idx)
                assert rank_events(scores, len(taken)) == taken
                compared += 1
    assert compared > 300
