"""Our surprise, threshold statistics and refinement objectives on the released code's runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.conformance.replay import Replay, Run
from torch import Tensor

from emllm.segmentation.key_graph import PrefixGram, adjacency, prefix_keys, prefix_sums
from emllm.segmentation.objectives import REGISTRY
from emllm.segmentation.surprise import surprise
from emllm.segmentation.threshold import boundary_flags

METRICS = {"modularity": "modularity", "conductance": "conductance", "intra_inter_sim": "intra_inter"}
#: Recorded similarity matrices: variant and step.
GRAPHS = [("SM", 1), ("SM", 2), ("SM", 47), ("SM", 94), ("SC", 1), ("SC", 2), ("SC", 47), ("SI", 2)]


@pytest.mark.parametrize("variant", ["S", "SM"])
def test_surprise_of_the_replayed_logits_is_the_recorded_surprise(replayed, variant):
    """Row t of the logits predicts token t + 1; the recorded value of token t + 1 stands at t."""
    run, again = replayed(variant)
    recorded = run["surprisal"]
    num = len(recorded)
    ours = surprise(again.logits[:num], run.token_ids[1 : num + 1])
    torch.testing.assert_close(ours, recorded, atol=3e-4, rtol=0)


@pytest.mark.parametrize("variant", ["S", "SM", "S_gamma2"])
def test_the_threshold_at_a_chunks_first_token_is_the_recorded_one_of_the_chunk(golden, variant):
    """Both are mean + gamma * deviation of the values before the chunk, where the windows agree.

    The recorded window of a chunk is ``[start - 96, start)`` (local window minus chunk). Ours, of as many
    tokens, ends where each token begins, so the two agree at a chunk's first token only. They differ
    in the first chunk (taken there from the chunk itself), in the short last one (longer window there), and
    until the recorded window, which begins at 0 or after the initial tokens, has its full length.
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
    assert compared >= run.meta["n_prefill"] - 3


def keys_of(run: Run, again: Replay, step: int) -> list[Tensor]:
    """The keys whose similarities the step recorded: of the layers that refine, buffer and chunk."""
    _, stop = run.span(step)
    chosen = again.keys[run.config.similarity_refinement_kwargs["refine_from_layer"] :]
    return [keys[:, stop - len(run[f"simA_step{step}"]) : stop] for keys in chosen]


@pytest.mark.parametrize(("variant", "step"), GRAPHS)
def test_the_key_graph_is_the_recorded_similarity_matrix(replayed, variant, step):
    run, again = replayed(variant, None if variant == "SM" else 48)
    ours = adjacency(keys_of(run, again, step))[0]
    torch.testing.assert_close(ours, run[f"simA_step{step}"], atol=3e-3, rtol=1e-4)


def searched_windows(entry: dict, min_tokens: int) -> list[tuple[int, int, int, int]]:
    """The windows of a recorded refinement as start, first and last split, stop; matrix coordinates.

    `first` and `last` of a search are relative to its window, whose own place is not recorded: it follows
    from the raw boundary (`last` lies on it) and the boundaries before.
    """
    offset, windows = entry["offset"], []
    raw = [event + offset for event in entry["events_in"]]
    kept = [b for a, b in itertools.pairwise([None, *raw]) if _is_kept(a, b, offset, min_tokens)]
    searches, refined = iter(entry["searches"]), [event + offset for event in entry["events_out"]]
    for before, event in zip([0, *refined], kept, strict=False):
        if event - before > min_tokens and event - offset > min_tokens:
            first, last, size = next(searches)
            start = event - last
            windows.append((start, start + first, event, start + size))
    assert next(searches, None) is None
    return windows


def _is_kept(before: int | None, event: int, offset: int, min_tokens: int) -> bool:
    return event - before >= min_tokens if before is not None else not (offset and event < min_tokens)


@pytest.mark.parametrize(("variant", "step"), GRAPHS)
@pytest.mark.parametrize("form", ["gram of the recorded matrix", "sums of the replayed keys"])
def test_our_closed_form_gives_the_recorded_value_of_every_split(replayed, variant, step, form):
    run, again = replayed(variant, None if variant == "SM" else 48)
    entry = next(entry for entry in run.meta["refinement"] if entry["step"] == step)
    recorded = run[f"adj_step{step}"].numpy()
    of_matrix = form.startswith("gram")
    graph = (
        PrefixGram(prefix_sums(run[f"simA_step{step}"][None]))
        if of_matrix
        else prefix_keys(keys_of(run, again, step))
    )
    objective = REGISTRY[METRICS[run.config.similarity_refinement_kwargs["similarity_metric"]]]
    done = 0
    for start, first, last, stop in searched_windows(entry, run.config.min_block_size):
        theirs = recorded[done : done + last - first]
        done += last - first
        splits = np.arange(first, last)
        ours = objective.values(graph.split_terms(splits, start=start, stop=stop))[0]
        is_split = splits > start  # an empty first side is recorded, but is no candidate
        np.testing.assert_allclose(
            ours[is_split], theirs[is_split], rtol=3e-4 if of_matrix else 1e-3, atol=3e-6
        )
    assert done == len(recorded)
