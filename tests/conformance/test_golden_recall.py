"""Our representatives, event keys, similarity and ranking on the tensors of the released code's runs.

That code chooses representatives per query head; ours per KV head. With the KV heads repeated, K = H,
ours is the same computation, and must give the same numbers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.conformance.golden_mass import accumulated_mass, recorded_events
from tests.conformance.replay import GROUP, HEAD_DIM, HEADS, LAYERS, VARIANTS, Run, turn
from torch import Tensor

from emllm.recall.budget import rank_events
from emllm.recall.event_keys import make_weighted, top_tokens
from emllm.recall.index import IndexPart
from emllm.recall.queries import mean_query
from emllm.recall.scorers import dot

#: The runs whose tokens' scores were recorded.
SCORED = ("F", "S", "SM", "SC", "S_C", "SM_C", "SM_nobuf")
#: Those in which similarities were searched: all but S_short100, whose only event fits the budget.
SEARCHED = tuple(variant for variant in VARIANTS if variant != "S_short100")


def test_scores_were_recorded_of_these_runs_only(golden):
    assert {v for v in VARIANTS if "repr_score" in Run(golden, v).tensors} == set(SCORED)


@pytest.mark.parametrize("variant", SCORED)
def test_attention_mass_per_query_head_is_the_recorded_score(replayed, masses, variant):
    run, _ = replayed(variant)
    span, _ = recorded_events(run)
    for row, idx in enumerate(run["repr_key_layers"].tolist()):
        recorded = run["repr_score"][row][:, span]
        torch.testing.assert_close(masses(variant)[idx][:, span], recorded, rtol=1e-3, atol=1e-6)


def test_attention_mass_per_kv_head_is_the_sum_of_its_groups_recorded_scores(replayed):
    run, again = replayed("S")
    span, _ = recorded_events(run)
    ours = accumulated_mass(run, again, 0, per_query_head=False)[:, span]
    grouped = run["repr_score"][0].unflatten(0, (-1, GROUP)).sum(1)[:, span]
    torch.testing.assert_close(ours, grouped, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tokens_of_largest_mass_are_the_recorded_representatives(replayed, masses, variant):
    """In S_short100, which forms its only event while decoding, too."""
    run, _ = replayed(variant)
    span, events = recorded_events(run)
    for idx in range(LAYERS):
        ours, exists = top_tokens(masses(variant)[idx][:, span], events, run.config.repr_topk)
        assert exists.all()
        ours = ours.transpose(0, 1).sort(-1).values + span.start
        assert torch.equal(ours, run["repr_idx"][idx].long().sort(-1).values)


def our_event_keys(run: Run, keys: Tensor, mass: Tensor) -> Tensor:
    """One layer's event keys ``[H, N, 1, D]``, as if each query head had keys of its own."""
    span, events = recorded_events(run)
    return make_weighted(
        keys.repeat_interleave(GROUP, 0)[:, span], events, mass[:, span], run.config.repr_topk
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weighted_event_key_is_the_recorded_one(replayed, masses, variant):
    run, again = replayed(variant)
    for row, idx in enumerate(run["repr_key_layers"].tolist()):
        ours = our_event_keys(run, again.keys[idx], masses(variant)[idx])
        torch.testing.assert_close(ours[:, :, 0].transpose(0, 1), run["repr_key"][row], atol=3e-4, rtol=0)


def similarity(query: Tensor, event_keys: Tensor) -> Tensor:
    """Our score of each event, by event keys ``[H, N, 1, D]``; as recorded, it has no scaling."""
    return dot(query, [IndexPart(event_keys.transpose(1, 2))], HEAD_DIM**-0.5)


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
            keys = run["repr_key"][row][: len(recorded)].transpose(0, 1)[:, :, None]
            torch.testing.assert_close(similarity(mean_query(query), keys), recorded, atol=1e-3, rtol=1e-4)
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


@pytest.mark.parametrize("variant", SEARCHED)
def test_ranking_by_the_recorded_query_and_event_keys_gives_the_recorded_order(golden, variant):
    """From the record alone, where both were recorded: every eighth step, the last layer (S: all layers)."""
    run = Run(golden, variant)
    compared = 0
    for row, step in enumerate(run["query_mean_steps"].tolist()):
        if run["all_retrieved"][step]:
            continue
        for key_row, idx in enumerate(run["repr_key_layers"].tolist()):
            query = run["query_mean"][row, idx].view(HEADS, 1, HEAD_DIM)
            keys = run["repr_key"][key_row][: int(run["n_blocks_before"][step])].transpose(0, 1)[:, :, None]
            taken = run.row("topk", step, idx)
            assert rank_events(similarity(query, keys).numpy(), len(taken)) == taken
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("variant", SEARCHED)
def test_from_mass_to_ranking_ours_takes_what_the_record_took(replayed, masses, variant):
    """At all steps and layers, each number of the way being ours but the queries, keys and the budget.

    As sets, because rounding may change the order among those taken; with a contiguity buffer, whose
    queue depends on the order, in the recorded order.
    """
    run, again = replayed(variant)
    in_order = run.config.contiguity_buffer_kwargs["use_contiguity_buffer"]
    compared = 0
    for idx in range(LAYERS):
        keys = our_event_keys(run, again.keys[idx], masses(variant)[idx])
        for step in torch.nonzero(run["all_retrieved"] == 0)[:, 0].tolist():
            start, stop = run.span(step)
            query = turn(again.queries[idx][:, start:stop], run.config.n_local - 1, alike=True)
            scores = similarity(mean_query(query), keys[:, : int(run["n_blocks_before"][step])]).numpy()
            taken = run.row("topk", step, idx)
            ours = rank_events(scores, len(taken))
            assert ours == taken if in_order else set(ours) == set(taken)
            compared += 1
    assert compared >= 36 * LAYERS


def test_no_similarity_was_searched_in_the_run_that_decodes_its_only_event(golden):
    """S_short100: the prompt fits the local window; an event is formed at step 55 and fits the budget."""
    run = Run(golden, "S_short100")
    assert run.meta["n_prompt"] < run.config.n_local and run.meta["n_prefill"] == 4
    assert run["block_step"].tolist() == [55] and run["all_retrieved"].all()
    assert all(run.row("topk", 60, idx) == [0] for idx in range(LAYERS))
