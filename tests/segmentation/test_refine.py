"""Laws of refinement: nothing gets worse, nothing is lost, planted cuts are found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.segmentation.key_graph import PrefixGram, prefix_sums
from emllm.segmentation.objectives import REGISTRY
from emllm.segmentation.refine import refine_boundaries, refine_boundary, split_scores


def graph_of(keys: np.ndarray, start: int = 0) -> PrefixGram:
    return PrefixGram(prefix_sums((keys @ keys.T)[None]), start)


@st.composite
def proposals(draw):
    """A key graph of a span, an event start alpha and a boundary beta in it, and a least length."""
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    start, tokens = draw(st.integers(0, 50)), draw(st.integers(4, 40))
    keys = random.standard_normal((tokens, 5)) + draw(st.sampled_from([0.0, 2.0]))
    alpha = start + draw(st.integers(0, tokens - 2))
    beta = draw(st.integers(alpha + 1, start + tokens - 1))
    return graph_of(keys, start), alpha, beta, draw(st.integers(1, 8))


@pytest.mark.parametrize("name", REGISTRY)
@given(proposal=proposals())
def test_a_move_never_worsens_its_own_objective_and_stays_in_reach(name: str, proposal) -> None:
    graph, alpha, beta, least = proposal
    objective = REGISTRY[name]
    moved = refine_boundary(
        graph,
        alpha=alpha,
        beta=beta,
        low=graph.start,
        high=graph.stop,
        min_event_tokens=least,
        objective=objective,
    )
    if moved == beta:
        return
    assert alpha + least <= moved < beta
    half = (beta - alpha) // 2
    window = (max(alpha - half, graph.start), min(beta + half, graph.stop))
    here, there = split_scores(graph, np.array([beta, moved]), window=window, objective=objective)
    assert there > here
    every = split_scores(graph, np.arange(alpha + least, beta + 1), window=window, objective=objective)
    assert there >= every.max() - 1e-6 * max(1.0, abs(every.max()))


@pytest.mark.parametrize("name", REGISTRY)
@given(proposal=proposals(), gaps=st.lists(st.integers(1, 9), max_size=6))
def test_refinement_keeps_the_number_and_the_order_of_boundaries(name: str, proposal, gaps) -> None:
    graph, _, _, least = proposal
    boundaries = [graph.start + least + int(gap) for gap in np.cumsum(gaps)]
    boundaries = [boundary for boundary in boundaries if boundary < graph.stop]
    limits = {"low": graph.start, "high": graph.stop, "min_event_tokens": least}
    refined = refine_boundaries(graph, boundaries, alpha=graph.start, objective=REGISTRY[name], **limits)
    assert len(refined) == len(boundaries)
    assert all(before < after for before, after in itertools.pairwise(refined))
    assert all(after <= before for before, after in zip(boundaries, refined, strict=True))


@given(st.integers(0, 2**31), st.sampled_from([1e-4, 1.0, 1e4]))
def test_refinement_does_not_depend_on_the_scale_of_the_keys(seed: int, scale: float) -> None:
    keys = np.random.default_rng(seed).standard_normal((30, 5)) + 1.0
    place = {"alpha": 4, "beta": 20, "low": 0, "high": 30, "min_event_tokens": 2}
    for objective in REGISTRY.values():
        plain = refine_boundary(graph_of(keys), objective=objective, **place)
        assert refine_boundary(graph_of(keys * scale), objective=objective, **place) == plain


@pytest.mark.parametrize("name", REGISTRY)
def test_where_all_splits_are_equal_the_boundary_stays(name: str) -> None:
    graph = graph_of(np.zeros((30, 4)))
    place = {"alpha": 4, "beta": 20, "low": 0, "high": 30, "min_event_tokens": 2}
    assert refine_boundary(graph, objective=REGISTRY[name], **place) == 20


def test_one_community_in_float32_noise_leaves_the_boundary_where_it_was() -> None:
    keys = np.tile(np.random.default_rng(0).standard_normal(16), (30, 1))
    noisy = (keys @ keys.T).astype(np.float32) * (1 + 1e-7)
    graph = PrefixGram(prefix_sums(noisy[None]))
    place = {"alpha": 4, "beta": 20, "low": 0, "high": 30, "min_event_tokens": 2}
    assert refine_boundary(graph, objective=REGISTRY["modularity"], **place) == 20


def hits(name: str, *, is_scrambled: bool, heads: int = 1) -> int:
    """How often, of 40, the cut planted at token 17 is found from a boundary proposed at 24."""
    found = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        graphs = []
        for _ in range(heads):
            themes = np.kron(np.eye(2), np.ones(6)) + 0.2 * random.random(12)
            keys = themes[(np.arange(40) >= 17).astype(int)] + 0.1 * random.standard_normal((40, 12))
            keys = random.permutation(keys) if is_scrambled else keys
            graphs.append(keys @ keys.T)
        found += (
            refine_boundary(
                PrefixGram(prefix_sums(np.stack(graphs))),
                alpha=5,
                beta=24,
                low=0,
                high=40,
                min_event_tokens=4,
                objective=REGISTRY[name],
            )
            == 17
        )
    return found


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("heads", [1, 3])
def test_a_planted_cut_is_found_and_is_not_in_the_scrambled_null(name: str, heads: int) -> None:
    assert hits(name, is_scrambled=False, heads=heads) >= 38
    assert hits(name, is_scrambled=True, heads=heads) <= 10


def test_a_boundary_with_no_room_to_move_stays() -> None:
    graph = graph_of(np.random.default_rng(0).standard_normal((30, 4)))
    for beta in (5, 8, 9):
        place = {"alpha": 4, "beta": beta, "low": 0, "high": 30, "min_event_tokens": 5}
        assert refine_boundary(graph, objective=REGISTRY["modularity"], **place) == beta
