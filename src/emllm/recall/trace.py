"""What was recalled, and how strongly, over all layers: the evidence for an answer.

The layers score on scales of their own, so each layer's scores are standardised over the events before
they are added up; a layer in which one event stands out from thousands counts more than one that cannot
tell them apart. Some events attract every query, as attention sinks do; what an event scores as a habit,
while the text is read, is taken off, so that evidence is what stands out for this question. This module
does not know texts or documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RecalledEvent:
    """One event as all layers saw it.

    Attributes:
        event: index of the event in time order.
        score: standard deviations above the mean event, those beyond its habit in relation to its habit,
            averaged over the layers' recalls.
        layers: in how many layers the event was recalled.
    """

    event: int
    score: float
    layers: int


def standardised(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Standard deviations of each score above the mean; below it, and where all are equal, 0."""
    deviation = float(scores.std())
    if deviation == 0:
        return np.zeros(len(scores))
    return np.maximum((scores - float(scores.mean())) / deviation, 0.0).astype(np.float64)


class Habit:
    """What each event of a layer scores on average while the text is read. Written by `add`."""

    def __init__(self) -> None:
        self._total = np.zeros(0)
        self._count = np.zeros(0)

    def add(self, scores: NDArray[np.float32]) -> None:
        """Count one recall; events that are new since the last one begin with it."""
        num_new = len(scores) - len(self._total)
        # New arrays, never changed in place: forks share the old ones.
        self._total = np.pad(self._total, (0, num_new)) + standardised(scores)
        self._count = np.pad(self._count, (0, num_new)) + 1

    def mean(self, num_events: int) -> NDArray[np.float64]:
        """Average standardised score of each event; 0 for events that were never ranked."""
        known = self._total / np.maximum(self._count, 1)
        return np.pad(known, (0, num_events - len(known)))

    def copy(self) -> Habit:
        """The same habit, to go on apart from this one."""
        other = Habit()
        other._total, other._count = self._total, self._count
        return other


class RecallTrace:
    """Adds up the layers' scores over one or more recalls. Written by the memory that recalls."""

    def __init__(self) -> None:
        self._total = np.zeros(0, dtype=np.float64)
        self._layers: dict[int, set[int]] = {}
        self._num_added = 0

    def add(
        self,
        layer_idx: int,
        scores: NDArray[np.float32],
        recalled: Sequence[int],
        *,
        habit: Habit | None = None,
    ) -> None:
        """Count one layer's recall: the scores of all events, and which were recalled."""
        if len(scores) > len(self._total):
            self._total = np.pad(self._total, (0, len(scores) - len(self._total)))
        standing = standardised(scores)
        if habit is not None:
            usual = habit.mean(len(scores))
            standing = np.maximum(standing - usual, 0.0) / (1.0 + usual)
        self._total[: len(scores)] += standing
        self._num_added += 1
        for event in recalled:
            self._layers.setdefault(event, set()).add(layer_idx)

    def strongest(self, limit: int) -> list[RecalledEvent]:
        """The recalled events that all layers together found most similar, strongest first."""
        recalled = np.array(sorted(self._layers), dtype=np.int64)
        order = recalled[np.argsort(-self._total[recalled], kind="stable")[:limit]]
        return [
            RecalledEvent(int(i), float(self._total[i]) / self._num_added, len(self._layers[int(i)]))
            for i in order
            if self._total[i] > 0
        ]
