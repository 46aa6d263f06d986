"""Which tokens are read again: passages by what they are worth, with what stood beside them.

Layers agree better than any one of them (`recall.trace`), and what was recalled keeps the meaning that it had
where it stood; read again in order and at native positions, beside the question alone, it is as good as if
the model had just read the right page. Beyond the paper (docs/lab-notes.md). This module does not know how
events are ranked or read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Neighbours in time on each side of an event that are read again with it.
REACH = 1


def spans_to_reread(
    passages: Sequence[int | range], known: NDArray[np.int64], *, budget_tokens: int, reach: int = REACH
) -> list[tuple[int, int]]:
    """The spans of passages, events with their neighbours, within a budget of tokens, in time order.

    Args:
        passages: events and spans of tokens, the one that matters most first.
        known: spans ``[n, 2]`` of the events, none overlapping.
        budget_tokens: never exceeded; what does not fit is passed over, and no token counts twice.
        reach: neighbours on each side; the nearest first, the later one before the earlier.
    """
    taken: set[int] = set()
    for passage in passages:
        for span in _with_neighbours(passage, known, reach):
            fresh = taken.union(span)
            if len(fresh) <= budget_tokens:
                taken = fresh
    return joined_spans(np.array([(token, token + 1) for token in sorted(taken)]).reshape(-1, 2))


def _with_neighbours(passage: int | range, known: NDArray[np.int64], reach: int) -> list[range]:
    if isinstance(passage, range):
        return [passage]
    near = [passage + step * side for step in range(1, reach + 1) for side in (1, -1)]
    return [range(*known[one]) for one in (passage, *near) if 0 <= one < len(known)]


def joined_spans(spans: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Spans ``[n, 2]`` in the order of their starts, those that touch or overlap made one."""
    whole: list[tuple[int, int]] = []
    for start, stop in spans.tolist():
        if whole and start <= whole[-1][1]:
            whole[-1] = whole[-1][0], max(stop, whole[-1][1])
        else:
            whole.append((start, stop))
    return whole
