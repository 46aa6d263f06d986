"""Closed forms against networkx and literal double sums, and what they do at the edges."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emllm.config import OBJECTIVES
from emllm.segmentation.key_graph import PrefixGram, SplitTerms, prefix_sums
from emllm.segmentation.objectives import REGISTRY


@st.composite
def windows(draw, *, is_positive: bool = False):
    """The adjacency of some keys and a window of it with at least two tokens."""
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    tokens = draw(st.integers(3, 20))
    keys = random.standard_normal((tokens, draw(st.integers(1, 6))))
    keys = np.abs(keys) + 0.01 if is_positive else keys
    start = draw(st.integers(0, tokens - 2))
    stop = draw(st.integers(start + 2, tokens))
    return keys @ keys.T, start, stop


def values(name: str, weights: np.ndarray, start: int, stop: int) -> np.ndarray:
    graph = PrefixGram(prefix_sums(weights[None]))
    terms = graph.split_terms(np.arange(start + 1, stop), start=start, stop=stop)
    return REGISTRY[name].values(terms)[0]


def literal(name: str, weights: np.ndarray, t: int) -> float:
    """The definitions of EM-LLM's section 3.2 as double sums over a window that is cut at t."""
    side = np.arange(len(weights)) < t
    volumes = [weights[np.ix_(part, part)].sum() for part in (side, ~side)]
    cut, total = weights[np.ix_(side, ~side)].sum(), weights.sum()
    if name == "modularity":
        degrees = weights.sum(1)
        same = side[:, None] == side[None]
        return float(((weights - np.outer(degrees, degrees) / total) * same).sum() / (2 * total))
    if name == "conductance":
        return float(min(cut / min(volume, total - volume) for volume in volumes))
    means = [weights[np.ix_(part, part)].mean() for part in (side, ~side)]
    return float(np.mean(means) / weights[np.ix_(side, ~side)].mean())


def graph_of(weights: np.ndarray) -> networkx.Graph:
    """The graph whose degrees are the rows' sums of A.

    networkx counts a self-loop twice in a degree, so it gets half of A's diagonal; then the degrees, the
    total 2m and twice the weight within a community all equal the corresponding sums over A.
    """
    graph = networkx.Graph()
    for i in range(len(weights)):
        for j in range(i, len(weights)):
            graph.add_edge(i, j, weight=weights[i, j] / (2 if i == j else 1))
    return graph


def test_there_is_an_objective_for_every_name_in_the_settings() -> None:
    assert {"none", *REGISTRY} == set(OBJECTIVES)


@given(windows(is_positive=True))
def test_modularity_is_half_of_what_networkx_says(window) -> None:
    weights, start, stop = window
    graph = graph_of(weights[start:stop, start:stop])
    for offset, value in enumerate(values("modularity", weights, start, stop)):
        sides = [set(range(offset + 1)), set(range(offset + 1, stop - start))]
        oracle = networkx.algorithms.community.modularity(graph, sides, weight="weight") / 2
        assert abs(value - oracle) < 1e-10


@given(windows(is_positive=True))
def test_conductance_is_the_cut_and_the_volumes_of_networkx(window) -> None:
    weights, start, stop = window
    graph = graph_of(weights[start:stop, start:stop])
    total = 2 * graph.size(weight="weight")
    for offset, value in enumerate(values("conductance", weights, start, stop)):
        sides = [set(range(offset + 1)), set(range(offset + 1, stop - start))]
        cut = networkx.cut_size(graph, *sides, weight="weight")
        volumes = [2 * graph.subgraph(side).size(weight="weight") for side in sides]
        oracle = min(cut / min(volume, total - volume) for volume in volumes)
        assert value == pytest.approx(oracle, rel=1e-9)


@pytest.mark.parametrize("name", REGISTRY)
@given(window=windows(is_positive=True))
def test_the_closed_form_equals_the_double_sum(name: str, window) -> None:
    weights, start, stop = window
    inside = weights[start:stop, start:stop]
    oracle = [literal(name, inside, t) for t in range(1, stop - start)]
    np.testing.assert_allclose(values(name, weights, start, stop), oracle, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", REGISTRY)
@given(window=windows(), scale=st.floats(1e-6, 1e6))
def test_an_objective_does_not_depend_on_the_scale_of_the_keys(name: str, window, scale: float) -> None:
    weights, start, stop = window
    inside = weights[start:stop, start:stop]
    assume(inside.sum() > 1e-3 * np.abs(inside).sum())  # else the total is rounding
    plain = values(name, weights, start, stop)
    is_plain = np.abs(plain) < 1e3  # near a zero denominator, rounding is all there is
    scaled = values(name, weights * scale, start, stop)
    np.testing.assert_allclose(scaled[is_plain], plain[is_plain], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", REGISTRY)
@given(window=windows())
def test_an_objective_is_finite_whatever_the_signs(name: str, window) -> None:
    assert np.isfinite(values(name, *window)).all()


@given(windows())
def test_modularity_is_never_negative_and_below_one(window) -> None:
    weights, start, stop = window
    inside = weights[start:stop, start:stop]
    if inside.sum() > 1e-3 * np.abs(inside).sum():  # else the weights cancel, and what is left is rounding
        assert (values("modularity", weights, start, stop) >= -1e-8).all()


@given(st.integers(0, 2**31), st.integers(2, 15))
def test_one_community_has_modularity_zero(seed: int, tokens: int) -> None:
    lengths = np.random.default_rng(seed).uniform(0.1, 3.0, tokens)
    assert np.abs(values("modularity", np.outer(lengths, lengths), 0, tokens)).max() < 1e-12


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize(
    "left, right, cut", [(0, 0, 0), (1, 1, -1), (1, 0, 0), (1, 2, -0.5), (2, 1, -0.5), (1, 1, 0)]
)
def test_degenerate_sides_have_a_finite_value(name: str, left: float, right: float, cut: float) -> None:
    sides = [np.array([[float(value)]]) for value in (left, right, cut)]
    value = REGISTRY[name].values(SplitTerms(*sides, np.array([2.0]), np.array([3.0])))
    assert np.isfinite(value).all()


def test_sides_with_nothing_in_common_are_the_best_cut_of_every_objective() -> None:
    weights = np.kron(np.eye(2), np.ones((4, 4)))
    for name, objective in REGISTRY.items():
        scores = values(name, weights, 0, 8) * (1 if objective.is_maximised else -1)
        assert np.isfinite(scores).all()
        assert scores.argmax() == 3


def test_conductance_misses_a_planted_cut_where_the_themes_have_half_in_common() -> None:
    """A weakness of this definition, whose second volume holds the cut twice; the others find the cut."""
    for similarity in (0.1, 0.3, 0.5, 0.8):
        weights = np.kron(np.array([[1.0, similarity], [similarity, 1.0]]), np.ones((10, 10)))
        assert values("modularity", weights, 0, 20).argmax() == 9
        assert values("intra_inter", weights, 0, 20).argmax() == 9
        assert (values("conductance", weights, 0, 20).argmin() == 9) == (similarity < 0.4)
