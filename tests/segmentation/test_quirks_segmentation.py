"""Where segmentation differs from the paper's released code, shown on what that code recorded.

The recorded files hold inputs and results of that code. Each test first shows that we read the record
rightly, by reproducing it, and then where and why our answer is another.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conformance.golden_refinement import Search, searches_of

from emllm.config import MemoryConfig
from emllm.segmentation.key_graph import PrefixGram, prefix_sums
from emllm.segmentation.objectives import REGISTRY
from emllm.segmentation.refine import refine_boundary, split_scores
from emllm.segmentation.segmenter import segment
from emllm.segmentation.surprise import surprise
from emllm.segmentation.threshold import RollingThreshold, boundary_flags

OURS = {"modularity": "modularity", "conductance": "conductance", "intra_inter_sim": "intra_inter"}


@pytest.fixture(scope="module")
def units(golden: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((golden / "units/refine.json").read_text()), load_file(
        golden / "units/refine.safetensors"
    )


@pytest.fixture(scope="module")
def run_s(golden: Path) -> dict[str, torch.Tensor]:
    """A whole run without refinement: chunks of 32 tokens, local context of 128, gamma 1."""
    return load_file(golden / "llama-S/data.safetensors")


def graph_of(weights: torch.Tensor) -> PrefixGram:
    return PrefixGram(prefix_sums(weights[None]))


def searches_of_unit(case: dict) -> list[Search]:
    return searches_of(case, num_tokens=case["offset"] + case["chunk"], min_tokens=case["min_size"])


def test_the_recorded_metrics_equal_the_closed_forms_with_modularity_over_4m(units) -> None:
    cases, tensors = units
    for case in cases["metrics"]:
        graph = graph_of(tensors[f"metric_A_{case['case']}"])
        terms = graph.split_terms(np.arange(1, case["n"]), start=0, stop=case["n"])
        for theirs, ours in OURS.items():
            np.testing.assert_allclose(REGISTRY[ours].values(terms)[0], case[theirs], rtol=2e-5, atol=1e-6)


def test_all_recorded_searches_equal_the_closed_forms(units) -> None:
    cases, tensors = units
    compared = 0
    for case in cases["refine"]:
        if not case["searches"]:
            continue
        recorded, graph = tensors[f"adj_{case['case']}"].numpy(), graph_of(tensors[f"A_{case['case']}"])
        objective = REGISTRY[OURS[case["metric"]]]
        for search in searches_of_unit(case):
            splits = np.arange(search.first, search.event)
            expected, recorded = recorded[: len(splits)], recorded[len(splits) :]
            is_split = splits > search.low  # an empty first side is recorded, but is no candidate
            terms = graph.split_terms(splits[is_split], start=search.low, stop=search.high)
            np.testing.assert_allclose(objective.values(terms)[0], expected[is_split], rtol=3e-5, atol=2e-6)
            compared += int(is_split.sum())
        assert not len(recorded)
    assert compared > 1000


def test_excluding_beta_makes_every_recorded_boundary_drift_left_where_ours_may_stay(units) -> None:
    """The recorded search ends before beta; ours holds beta, so that staying is a choice."""
    cases, tensors = units
    searched = stayed = 0
    for case in cases["refine"]:
        graph, objective = graph_of(tensors[f"A_{case['case']}"]), REGISTRY[OURS[case["metric"]]]
        results = [result + case["offset"] for result in case["events_out"]]
        for search in searches_of_unit(case):
            event, start, window = search.event, search.first + case["min_size"], (search.low, search.high)
            candidates = np.arange(start, event)
            scores = split_scores(graph, candidates, window=window, objective=objective)
            theirs = int(candidates[scores.argmax()])
            assert theirs in results
            assert theirs < event
            ours = refine_boundary(
                graph,
                alpha=search.previous,
                beta=event,
                low=0,
                high=graph.stop,
                min_event_tokens=start - search.previous,
                objective=objective,
            )
            here, there = split_scores(graph, np.array([event, theirs]), window=window, objective=objective)
            assert ours == (event if here >= there - 1e-7 * max(1.0, abs(here), abs(there)) else theirs)
            searched += 1
            stayed += ours == event
    assert searched > 150
    assert stayed > 20


def test_a_dense_run_of_surprises_keeps_more_than_its_first_because_final_boundaries_count() -> None:
    """There each one is dropped for the raw one before it, even if that one was dropped itself.

    That the recorded runs do so, `searches_of` shows: it finds every recorded search by this rule.
    """
    raw = [10, 13, 16, 19]
    kept_by_the_record = [event for event, before in zip(raw, [0, *raw], strict=False) if event - before >= 4]
    flags = np.zeros(30, dtype=np.bool_)
    flags[raw] = True
    config = MemoryConfig(refine="none", min_event_tokens=4, max_event_tokens=100)
    assert kept_by_the_record == [10]
    assert segment(flags, config=config) == [10, 16]


def test_recorded_surprise_lies_one_token_before_the_token_it_belongs_to(run_s) -> None:
    """Entry t of the record is our surprise of token t + 1, so our events begin at the surprising token."""
    logits, ids = run_s["logits_step0"], run_s["input_ids"]
    ours = surprise(logits[:-1], ids[1 : len(logits)])  # of tokens 1, 2, ...
    torch.testing.assert_close(ours, run_s["surprisal"][: len(ours)], atol=3e-4, rtol=1e-4)
    of_token = torch.cat([torch.tensor([torch.nan]), run_s["surprisal"]]).numpy()
    online = RollingThreshold(gamma=1.0, window_tokens=128)
    flags = online.extend(of_token)[0]
    biggest = int(np.nanargmax(of_token))
    assert flags[biggest]
    assert run_s["boundary_raw"][biggest - 1] == 1


def test_the_recorded_threshold_stands_still_for_a_chunk_where_ours_moves_with_every_token(run_s) -> None:
    """The same at a chunk's first token, where both look at the 96 tokens before; not after it."""
    values = run_s["surprisal"].double().numpy()
    thresholds = boundary_flags(values, gamma=1.0, window_tokens=96)[1]
    starts, windows, recorded = (
        run_s["step_start"].tolist(),
        run_s["thr_window"].tolist(),
        run_s["thr"].tolist(),
    )
    differing = compared = 0
    for start, window, threshold in zip(starts, windows, recorded, strict=False):
        if window == [start - 96, start]:
            assert abs(thresholds[start] - threshold) < 1e-3
            compared += 1
            differing += abs(thresholds[start + 31 : start + 32] - threshold).sum() > 1e-2
    assert compared > 80
    assert differing > compared / 2


def test_softmax_and_then_logarithm_is_infinite_where_ours_is_exact() -> None:
    logits, token_ids = torch.tensor([[1000.0, -1000.0]]), torch.tensor([1])
    theirs = -torch.softmax(logits, -1).log().gather(1, token_ids[:, None])
    assert theirs.item() == torch.inf
    assert surprise(logits, token_ids).item() == 2000.0


@pytest.mark.filterwarnings("ignore:std")
def test_a_first_chunk_of_one_token_has_no_threshold_only_until_two_values_are_known() -> None:
    """The deviation of one value is not a number; there it silences a whole chunk, here one token."""
    values = np.array([2.0, 1.0, 9.0, 1.0])
    assert torch.tensor(values[:1]).std(correction=1).isnan()
    online = RollingThreshold(gamma=1.0, window_tokens=8)
    parts = [online.extend(values[:1]), online.extend(values[1:])]
    assert np.isnan(np.concatenate([part[1] for part in parts])).tolist() == [True, True, False, False]
    assert np.concatenate([part[0] for part in parts]).tolist() == [False, False, True, False]
