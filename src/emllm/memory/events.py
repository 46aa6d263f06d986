"""The table of events: where each one starts and stops, and which may be recalled.

Events partition the log from the first token after the sinks, but for what was forgotten. An event may be
recalled when it has left the local window; the local view then begins where the last such event stops, so
that no token falls between the views and none is in two. This module does not know keys, scores or layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Event:
    """A span ``[start, stop)`` of the log that belongs together.

    Attributes:
        surprise: mean over its tokens, in nats; NaN where none was known.
        document: name of the document that the event begins in, or None.
    """

    start: int
    stop: int
    surprise: float
    document: str | None = None


class EventTable:
    """Spans in time order. Written by the memory's `commit` only.

    Attributes:
        open_start: first token of the event that is still open.

    Args:
        start: first token of the first event.
    """

    def __init__(self, start: int) -> None:
        self.open_start = start
        self._starts = np.zeros(0, dtype=np.int64)
        self._stops = np.zeros(0, dtype=np.int64)
        self._num_closed = 0
        self._num_recallable = 0

    def __len__(self) -> int:
        return self._num_closed

    @property
    def stops(self) -> NDArray[np.int64]:
        """First token after each closed event; not to be written to."""
        return self._stops[: self._num_closed]

    @property
    def starts(self) -> NDArray[np.int64]:
        """First token of each closed event; not to be written to."""
        return self._starts[: self._num_closed]

    @property
    def num_recallable(self) -> int:
        """Events that have left the local window."""
        return self._num_recallable

    @property
    def recallable_stop(self) -> int:
        """First token after all recallable events."""
        if self._num_recallable:
            return int(self._stops[self._num_recallable - 1])
        return int(self._starts[0]) if self._num_closed else self.open_start

    @property
    def frontier(self) -> int:
        """First token of the first event that may not be recalled yet, closed or open."""
        if self._num_recallable < self._num_closed:
            return int(self._starts[self._num_recallable])
        return self.open_start

    def recallable_sizes(self) -> NDArray[np.int64]:
        """Tokens of each recallable event."""
        return self._stops[: self._num_recallable] - self._starts[: self._num_recallable]

    def close(self, boundaries: Sequence[int]) -> None:
        """End events at the boundaries: each is the first token of a new event."""
        if len(boundaries):
            self.add(np.stack([[self.open_start, *boundaries[:-1]], boundaries], axis=1))
            self.open_start = int(boundaries[-1])

    def add(self, spans: NDArray[np.int64]) -> None:
        """Add closed events ``[n, 2]`` after those that are here."""
        needed = self._num_closed + len(spans)
        if needed > len(self._stops):
            capacity = max(256, needed * 3 // 2)
            self._starts = _grown(self.starts, capacity)
            self._stops = _grown(self.stops, capacity)
        self._starts[self._num_closed : needed] = spans[:, 0]
        self._stops[self._num_closed : needed] = spans[:, 1]
        self._num_closed = needed

    def spans(self, first: int, last: int) -> NDArray[np.int64]:
        """Closed events ``[first, last)`` as ``[n, 2]``."""
        return np.stack([self.starts[first:last], self.stops[first:last]], axis=1)

    def release(self, window_start: int) -> tuple[int, int]:
        """Make recallable what has left the window that starts at `window_start`.

        Returns:
            The range of events that became recallable.
        """
        before = self._num_recallable
        self._num_recallable = max(before, int(np.searchsorted(self.stops, window_start, side="right")))
        return before, self._num_recallable

    def token_idx(self, events: Sequence[int]) -> NDArray[np.int64]:
        """Token indices of events in time order."""
        if not len(events):
            return np.zeros(0, dtype=np.int64)
        rows = np.asarray(events, dtype=np.int64)
        starts, stops = self._starts[rows], self._stops[rows]
        sizes = stops - starts
        ends = np.cumsum(sizes)
        return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1])

    def copy(self) -> EventTable:
        """The same table, to be written apart from this one."""
        other = EventTable(self.open_start)
        # Rows past num_closed belong to this table; the other grows into arrays of its own.
        other._starts, other._stops = self.starts, self.stops
        other._num_closed = self._num_closed
        other._num_recallable = self._num_recallable
        return other


def _grown(array: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    larger = np.empty(capacity, dtype=np.int64)
    larger[: len(array)] = array
    return larger
