"""What was recalled, and how strongly, over all layers: the evidence for an answer.

The layers score on scales of their own, so each layer's scores are standardised over the events before
they are added up; a layer in which one event stands out from thousands counts more than one that cannot
tell them apart. This module does not know texts or documents.
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
        score: standard deviations above the mean event, averaged over all layers that recalled.
        layers: in how many layers the event was recalled.
    """

    event: int
    score: float
    layers: int


class RecallTrace:
    """Adds up the layers' scores over one or more recalls. Written by the memory that recalls."""

    def __init__(self) -> None:
        self._total = np.zeros(0, dtype=np.float64)
        self._layers: dict[int, set[int]] = {}
        self._seen_layers: set[int] = set()
        self._num_added = 0

    def add(self, layer_idx: int, scores: NDArray[np.float32], recalled: Sequence[int]) -> None:
        """Count one layer's recall: the scores of all events, and which were recalled."""
        if len(scores) > len(self._total):
            self._total = np.concatenate([self._total, np.zeros(len(scores) - len(self._total))])
        deviation = float(scores.std())
        if deviation > 0:
            self._total[: len(scores)] += np.maximum((scores - scores.mean()) / deviation, 0.0)
        self._seen_layers.add(layer_idx)
        self._num_added += 1
        for event in recalled:
            self._layers.setdefault(event, set()).add(layer_idx)

    def strongest(self, limit: int) -> list[RecalledEvent]:
        """The events that all layers together found most similar, strongest first."""
        if not self._num_added:
            return []
        order = np.argsort(-self._total, kind="stable")[:limit]
        return [
            RecalledEvent(int(i), float(self._total[i]) / self._num_added, len(self._layers.get(int(i), ())))
            for i in order
            if self._total[i] > 0
        ]
