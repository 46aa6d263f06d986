"""Which passages are worth reading again: what the layers agree on, with what stood beside it.

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


def events_to_reread(
    ranking: Sequence[int], sizes: NDArray[np.int64], *, budget_tokens: int, reach: int = REACH
) -> list[int]:
    """The events of a ranking with their neighbours, within a budget of tokens, in time order.

    Args:
        ranking: events, the one that matters most first.
        sizes: tokens of each event.
        budget_tokens: never exceeded; what does not fit is passed over.
        reach: neighbours on each side; the nearest first, the later one before the earlier.
    """
    taken: set[int] = set()
    left = budget_tokens
    for event in ranking:
        near = [event + step * side for step in range(1, reach + 1) for side in (1, -1)]
        for one in (event, *near):
            if 0 <= one < len(sizes) and one not in taken and sizes[one] <= left:
                taken.add(one)
                left -= int(sizes[one])
    return sorted(taken)


def joined_spans(spans: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Spans ``[n, 2]`` in the order of their starts, those that touch or overlap made one."""
    whole: list[tuple[int, int]] = []
    for start, stop in spans.tolist():
        if whole and start <= whole[-1][1]:
            whole[-1] = whole[-1][0], max(stop, whole[-1][1])
        else:
            whole.append((start, stop))
    return whole
