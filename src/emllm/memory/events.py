"""The table of events: where each one starts and stops, and which may be recalled.

Events partition the log from the first token after the sinks. An event may be recalled when it has left
the local window; the local view then begins where the last such event stops, so that no token falls
between the views and none is in two. This module does not know keys, scores or layers.
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
    """Boundaries in time order. Written by the memory's `commit` only.

    Args:
        start: first token of the first event.
    """

    def __init__(self, start: int) -> None:
        self.start = start
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
        """First token of each closed event."""
        return np.concatenate([[self.start], self.stops[:-1]]).astype(np.int64)[: self._num_closed]

    @property
    def num_recallable(self) -> int:
        """Events that have left the local window."""
        return self._num_recallable

    @property
    def recallable_stop(self) -> int:
        """First token that belongs to no recallable event."""
        return int(self._stops[self._num_recallable - 1]) if self._num_recallable else self.start

    def recallable_sizes(self) -> NDArray[np.int64]:
        """Tokens of each recallable event."""
        return np.diff(self._stops[: self._num_recallable], prepend=self.start)

    def close(self, boundaries: Sequence[int]) -> None:
        """End events at the boundaries: each is the first token of a new event."""
        needed = self._num_closed + len(boundaries)
        if needed > len(self._stops):
            larger = np.empty(max(256, needed * 3 // 2), dtype=np.int64)
            larger[: self._num_closed] = self.stops
            self._stops = larger
        self._stops[self._num_closed : needed] = boundaries
        self._num_closed = needed

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
        stops = self._stops[rows]
        starts = np.where(rows > 0, self._stops[rows - 1], self.start)
        sizes = stops - starts
        ends = np.cumsum(sizes)
        return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1])

    def copy(self) -> EventTable:
        """The same table, to be written apart from this one."""
        other = EventTable(self.start)
        other._stops = self.stops.copy()
        other._num_closed = self._num_closed
        other._num_recallable = self._num_recallable
        return other
