"""Ranking at a cost that does not grow: all events now and then, the best of them in between.

Once there are many events, a layer ranks all of them only every so many recalls, the layers taking turns,
and keeps the best as its shortlist. In between it ranks the shortlist and the events that are newer. A
question is always compared with all events. So the index that is read per chunk stays bounded however long
the text is.

This module does not know how events are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from emllm.recall.budget import rank_events
from emllm.recall.index import IndexPart, joined

#: Events that rankings of all compare with per recall, at most and on average; up to so many all always are.
EVENTS_PER_RECALL = 1024
#: Newer events that are ranked beside a shortlist before the best of both become the shortlist.
NEWER_EVENTS = 2048


@dataclass(frozen=True)
class Shortlist:
    """The best events of a ranking of all.

    Attributes:
        events: their indices, ascending.
        num_ranked: events that there were; later ones are newer.
    """

    events: NDArray[np.int64]
    num_ranked: int

    @classmethod
    def of(cls, scores: NDArray[np.float32], limit: int) -> Shortlist:
        """The `limit` best of all events."""
        return cls(np.sort(np.array(rank_events(scores, limit), dtype=np.int64)), len(scores))

    def folded(self, scores: NDArray[np.float32], limit: int, num_events: int) -> Shortlist:
        """The `limit` best of the candidates, so that what is newer stays few between two rankings of all."""
        best = np.sort(np.array(rank_events(scores, limit), dtype=np.int64))
        return Shortlist(self.candidates(num_events)[best], num_events)

    def candidates(self, num_events: int) -> NDArray[np.int64]:
        """Its events, and all that are newer."""
        return np.concatenate([self.events, np.arange(self.num_ranked, num_events)])


def is_ranking_of_all_due(num_recalls: int, num_events: int, *, layer_idx: int) -> bool:
    """Whether a layer ranks all events at its n-th recall; each layer has its turn.

    The period is a power of two, so that a turn is still one when it has doubled. With a period that grows by
    one at a time a layer may miss every turn.
    """
    period = 1 << (max(-(-num_events // EVENTS_PER_RECALL), 1) - 1).bit_length()
    return (num_recalls + layer_idx) % period == 0


def keys_of(parts: Sequence[IndexPart], events: NDArray[np.int64]) -> IndexPart | None:
    """The keys of some events, ascending, in one piece; None if there are none."""
    chosen, first = [], 0
    for part in parts:
        low, high = np.searchsorted(events, [first, first + part.num_events])
        if high > low:
            rows = torch.from_numpy(events[low:high] - first).to(part.keys.device)
            scales = None if part.scales is None else part.scales.index_select(1, rows)
            chosen.append(IndexPart(part.keys.index_select(2, rows), scales))
        first += part.num_events
    return joined(chosen)
