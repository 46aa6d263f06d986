"""Moving a boundary to where the key graph falls apart best (EM-LLM, section 3.2 and Algorithm 1).

A boundary moves only backwards, to a place between the event before it and itself; itself is a candidate, so
no move makes the objective worse. Indices are absolute token positions.

This module does not know how boundaries were proposed, nor when the tokens of a window have been read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from emllm.segmentation.key_graph import KeyGraph
from emllm.segmentation.objectives import Objective

#: Values closer than this to the best one (relative, if it exceeds 1) are equal: above the noise of float32
#: keys, so that rounding decides nothing, and far below what tells real splits apart.
TIE = 1e-7


def refine_boundary(
    graph: KeyGraph,
    *,
    alpha: int,
    beta: int,
    low: int,
    high: int,
    min_event_tokens: int,
    objective: Objective,
) -> int:
    """The best start for an event that was proposed at `beta` and follows one that starts at `alpha`.

    The best split of the window ``[alpha - h, beta + h)``, ``h = (beta - alpha) // 2``, among
    ``[alpha + min_event_tokens, beta]``. Ties go to the latest, that is, to the smallest move.

    **Deviation.** Beta is a candidate, as in the paper's text (``alpha < t <= beta``). In the released code
    it is not, so there every boundary that is searched for drifts towards the past.

    Args:
        graph: the key graph; covers the window.
        alpha: start of the event before, final.
        beta: the proposed boundary; at most ``high - 1``.
        low: first token that the window may use.
        high: stop of what the window may use: the tokens that exist.
        min_event_tokens: length that the event before keeps. If beta leaves no room, it stays.
        objective: from `objectives.REGISTRY`; its values are averaged over the graphs.
    """
    candidates = np.arange(alpha + min_event_tokens, beta + 1)
    if len(candidates) < 2:
        return beta
    half = (beta - alpha) // 2
    window = (max(alpha - half, low), min(beta + half, high))
    scores = split_scores(graph, candidates, window=window, objective=objective)
    best = scores.max()
    is_best = scores >= best - TIE * max(1.0, abs(best))
    return int(candidates[np.flatnonzero(is_best)[-1]])


def refine_boundaries(
    graph: KeyGraph,
    boundaries: Sequence[int],
    *,
    alpha: int,
    low: int,
    high: int,
    min_event_tokens: int,
    objective: Objective,
) -> list[int]:
    """Refined boundaries, as many and in the same order, from left to right.

    Each one's `alpha` is its refined predecessor; the first one's is given. What has passed is not
    revisited.
    """
    refined = []
    for beta in boundaries:
        alpha = refine_boundary(
            graph,
            alpha=alpha,
            beta=beta,
            low=low,
            high=high,
            min_event_tokens=min_event_tokens,
            objective=objective,
        )
        refined.append(alpha)
    return refined


def split_scores(
    graph: KeyGraph,
    candidates: Int[np.ndarray, " C"],
    *,
    window: tuple[int, int],
    objective: Objective,
) -> Float[np.ndarray, " C"]:
    """The objective at each candidate split of a window, averaged over the graphs, so that more is better."""
    terms = graph.split_terms(candidates, start=window[0], stop=window[1])
    values = objective.values(terms).mean(axis=0)
    return values if objective.is_maximised else -values
