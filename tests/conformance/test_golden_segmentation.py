"""Our surprise, threshold statistics, events and refinement objectives on the released code's runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conformance.golden_refinement import searches_of
from tests.conformance.replay import REFINED, UNREFINED, VARIANTS, Replay, Run
from torch import Tensor

from emllm.config import MemoryConfig
from emllm.segmentation.key_graph import PrefixGram, adjacency, prefix_keys, prefix_sums
from emllm.segmentation.objectives import REGISTRY
from emllm.segmentation.refine import split_scores
from emllm.segmentation.segmenter import segment
from emllm.segmentation.surprise import surprise
from emllm.segmentation.threshold import boundary_flags

METRICS = {"modularity": "modularity", "conductance": "conductance", "intra_inter_sim": "intra_inter"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_surprise_of_the_replayed_logits_is_the_recorded_surprise(replayed, variant):
    """Row t of the logits predicts token t + 1; the recorded value of token t + 1 stands at t."""
    run, again = replayed(variant)
    recorded = run["surprisal"]
    num = len(recorded)
    assert num == run.meta["n_prompt"] - 1
    ours = surprise(again.logits[:num], run.token_ids[1 : num + 1])
    torch.testing.assert_close(ours, recorded, atol=3e-4, rtol=0)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "F"])
def test_the_threshold_at_a_chunks_first_token_is_the_recorded_one_of_the_chunk(golden, variant):
    """Both are mean + gamma * deviation of the values before the chunk, where the windows agree.

    The recorded window of a chunk is ``[start - 96, start)`` (local window minus chunk). Ours, of as many
    tokens, ends where each token begins, so the two agree at a chunk's first token only. They differ
    in the first chunk (taken there from the chunk itself), in the second of S_init40_k2 (which is short of
    40 values), in a short last one (longer window there), and until the recorded window, which begins
    at 0 or after the initial tokens, has its full length. F has no thresholds.
    """
    run = Run(golden, variant)
    window = run.config.n_local - run.config.exc_block_size
    _, ours = boundary_flags(
        run["surprisal"].numpy(), gamma=run.config.surprisal_threshold_gamma, window_tokens=window
    )
    compared = 0
    for step, (first, stop) in enumerate(run["thr_window"].tolist()):
        start, _ = run.span(step)
        if stop == start and first == max(0, start - window) and step > 0:
            np.testing.assert_allclose(ours[start], float(run["thr"][step]), rtol=2e-6)
            compared += 1
    assert compared >= run.meta["n_prefill"] - 2


def events_of(flags: NDArray[np.bool_], *, start: int, min_tokens: int, max_tokens: int) -> list[int]:
    """Where our segmenter ends events, by flags that are not refined any more."""
    config = MemoryConfig(refine="none", min_event_tokens=min_tokens, max_event_tokens=max_tokens)
    return segment(flags, config=config, start=start)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_recorded_flags_make_the_recorded_events(golden, variant):
    """Short runs go into the next one, and no event is longer than the limit, be it still open, in both.

    What is near the end is not cut in the record: it waits in the local window.
    """
    run = Run(golden, variant)
    recorded, config = run["block_end"].tolist(), run.config
    ours = events_of(
        run["boundary_final"].bool().numpy(),
        start=config.n_init,
        min_tokens=config.min_block_size,
        max_tokens=config.max_block_size,
    )
    assert ours[: len(recorded)] == recorded
    assert run.meta["n_blocks"] == len(recorded) > 0


def test_the_recorded_sequences_of_flags_make_the_recorded_events(golden):
    """All cases of other sizes too; but for one whose largest size is its least one, which we refuse."""
    compared = refused = 0
    for case in json.loads((golden / "units" / "blocks.json").read_text()):
        least, most = case["min_block_size"], case["max_block_size"]
        if most < 2 * least:
            refused += 1
            continue
        told = [step["flags"] or [0] * step["n"] for step in case["steps"]]
        sizes = [size for step in case["steps"] for size in step["new_blocks"]]
        stops = (case["n_init"] + np.cumsum(sizes)).tolist()
        flags = np.array([flag for flags in told for flag in flags], dtype=np.bool_)
        ours = events_of(flags, start=case["n_init"], min_tokens=least, max_tokens=most)
        assert ours[: len(stops)] == stops
        compared += len(stops)
    assert refused == 1 and compared > 3500


def recorded_graphs(run: Run) -> list[int]:
    """The steps whose similarity matrix was recorded."""
    names = [name for name in run.tensors if name.startswith("simA_step")]
    return sorted(int(name.removeprefix("simA_step")) for name in names)


def keys_of(run: Run, again: Replay, step: int) -> list[Tensor]:
    """The keys whose similarities the step recorded: of the layers that refine, buffer and chunk."""
    _, stop = run.span(step)
    chosen = again.keys[run.config.similarity_refinement_kwargs["refine_from_layer"] :]
    return [keys[:, stop - len(run[f"simA_step{step}"]) : stop] for keys in chosen]


def test_of_every_refined_run_some_similarity_matrices_are_recorded(golden):
    num = {variant: len(recorded_graphs(Run(golden, variant))) for variant in REFINED}
    assert num == {"SM": 4, "SC": 4, "SI": 1, "SM_C": 4, "SC_C": 1, "SM_nobuf": 4}
    assert not any(recorded_graphs(Run(golden, variant)) for variant in UNREFINED)


@pytest.mark.parametrize("variant", REFINED)
def test_the_key_graph_is_the_recorded_similarity_matrix(replayed, variant):
    run, again = replayed(variant)
    for step in recorded_graphs(run):
        ours = adjacency(keys_of(run, again, step))[0]
        torch.testing.assert_close(ours, run[f"simA_step{step}"], atol=3e-3, rtol=1e-4)


@pytest.mark.parametrize("variant", REFINED)
@pytest.mark.parametrize("form", ["gram of the recorded matrix", "sums of the replayed keys"])
def test_our_closed_form_gives_the_recorded_value_of_every_split(replayed, variant, form):
    run, again = replayed(variant)
    objective = REGISTRY[METRICS[run.config.similarity_refinement_kwargs["similarity_metric"]]]
    of_matrix = form.startswith("gram")
    for step in recorded_graphs(run):
        entry = next(entry for entry in run.meta["refinement"] if entry["step"] == step)
        weights, recorded = run[f"simA_step{step}"], run[f"adj_step{step}"].numpy()
        graph = (
            PrefixGram(prefix_sums(weights[None])) if of_matrix else prefix_keys(keys_of(run, again, step))
        )
        done = 0
        for search in searches_of(entry, num_tokens=len(weights), min_tokens=run.config.min_block_size):
            splits = np.arange(search.first, search.event)
            theirs = recorded[done : done + len(splits)]
            done += len(splits)
            ours = objective.values(graph.split_terms(splits, start=search.low, stop=search.high))[0]
            is_split = splits > search.low  # an empty first side is recorded, but is no candidate
            np.testing.assert_allclose(
                ours[is_split], theirs[is_split], rtol=3e-4 if of_matrix else 1e-3, atol=3e-6
            )
        assert done == len(recorded)


@pytest.mark.parametrize("variant", REFINED)
def test_the_best_split_by_our_objective_is_the_recorded_boundary(replayed, variant):
    """Of every search of the run, from the keys alone. (That ours may also stay is in the quirks.)"""
    run, again = replayed(variant)
    refinement, min_tokens = run.config.similarity_refinement_kwargs, run.config.min_block_size
    objective = REGISTRY[METRICS[refinement["similarity_metric"]]]
    compared = 0
    for entry in run.meta["refinement"]:
        base, stop = entry["chunk_start"] - entry["offset"], entry["chunk_start"] + entry["chunk_len"]
        graph = prefix_keys([keys[:, base:stop] for keys in again.keys[refinement["refine_from_layer"] :]])
        for search in searches_of(entry, num_tokens=entry["A_size"], min_tokens=min_tokens):
            candidates = np.arange(search.first + min_tokens, search.event)
            window = (search.low, search.high)
            scores = split_scores(graph, candidates, window=window, objective=objective)
            assert candidates[scores.argmax()] - entry["offset"] in entry["events_out"]
            compared += 1
    assert compared > 1.5 * len(run.meta["refinement"])
