"""Which events are recalled: similarity first, then contiguity in time, within a budget of tokens.

Both buffers count tokens, never events, and neither exceeds its share. This module does not know how
the scores were made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def rank_events(scores: NDArray[np.float32], limit: int) -> list[int]:
    """The `limit` best events, best first; ties go to the older event."""
    if limit <= 0:
        return []
    if limit < len(scores):
        threshold = np.partition(scores, -limit)[-limit]
        best = np.flatnonzero(scores >= threshold)
    else:
        best = np.arange(len(scores))
    order = np.argsort(-scores[best], kind="stable")[:limit]
    return best[order].tolist()


def fill(
    candidates: Iterable[int], sizes: NDArray[np.int64], budget_tokens: int, taken: set[int]
) -> list[int]:
    """The candidates in order, each that is new and still fits; adds them to `taken`.

    **Deviation** from the released code, which may overshoot by half an event: the budget is never
    exceeded (EM-LLM gives budgets in events and leaves this open).
    """
    chosen = []
    left = budget_tokens
    for event in candidates:
        if event not in taken and sizes[event] <= left:
            chosen.append(event)
            taken.add(event)
            left -= int(sizes[event])
    return chosen


def neighbours(events: Sequence[int], num_events: int) -> list[int]:
    """The neighbours in time of each event, the later one first (EM-LLM, section 3.3, n = 1)."""
    near = []
    for event in events:
        near += [other for other in (event + 1, event - 1) if 0 <= other < num_events]
    return near


def select_events(
    scores: NDArray[np.float32],
    sizes: NDArray[np.int64],
    *,
    budget_tokens: int,
    contiguity: float,
    min_event_tokens: int,
    buffer: Sequence[int] = (),
    candidates: NDArray[np.int64] | None = None,
) -> tuple[list[int], list[int]]:
    """Events recalled for one layer (EM-LLM, section 3.3).

    The similarity buffer takes the best events within ``(1 - contiguity)`` of the budget. The contiguity
    buffer is a queue: neighbours of what is similar now, most similar first, then what the queue held
    before. **Deviation**: no event is in both buffers (the released code can attend to one twice), and
    the similarity buffer may use what contiguity leaves over.

    Args:
        scores: of each event or candidate, any scale.
        sizes: tokens of each event.
        budget_tokens: that both buffers share.
        contiguity: share of the budget that is kept for neighbours in time.
        min_event_tokens: about how small events are. As many are ranked as would fit of that size, and more
            where all of those fit: an event that a document's border cut off may be smaller.
        buffer: the contiguity queue of the step before, most recent first.
        candidates: events that the scores are of, ascending; None is all.

    Returns:
        All recalled events in time order, and the new contiguity queue.
    """
    num_events = len(sizes)
    if int(sizes.sum()) <= budget_tokens:
        return list(range(num_events)), []
    contiguity_tokens = int(budget_tokens * contiguity)
    limit = budget_tokens // min_event_tokens + 1
    while True:
        ranking = rank_events(scores, limit)
        if candidates is not None:
            ranking = candidates[ranking].tolist()
        taken: set[int] = set()
        similar = fill(ranking, sizes, budget_tokens - contiguity_tokens, taken)
        queue = fill([*neighbours(similar, num_events), *buffer], sizes, contiguity_tokens, taken)
        left = budget_tokens - int(sizes[list(taken)].sum())
        fill(ranking, sizes, left, taken)
        if limit >= len(scores) or not taken.issuperset(ranking):
            return sorted(taken), queue
        limit *= 2
