"""What was recalled, and how strongly, over all layers: the evidence for an answer.

The layers score on scales of their own, so each layer's scores are standardised over the events before
they are added up; a layer in which one event stands out from thousands counts more than one that cannot
tell them apart. Some events attract every query, as attention sinks do; what an event scores as a habit,
while the text is read, is taken off, so that evidence is what stands out for this question. This module
does not know texts or documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def place_of(passage: RecalledEvent | range) -> int | range:
    """Where a passage is, however strong: the event's index, or the span itself."""
    return passage if isinstance(passage, range) else passage.event


def standardised(
    scores: NDArray[np.float32], chosen: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """Standard deviations of all or the chosen scores above the mean of all; 0 for what is below it.

    Where all are equal, all are 0.
    """
    some = scores if chosen is None else scores[chosen]
    deviation = float(scores.std())
    if deviation == 0:
        return np.zeros(len(some))
    return np.maximum((some - float(scores.mean())) / deviation, 0.0).astype(np.float64)


@dataclass(frozen=True)
class Recall:
    """One recall of a layer while the text was read.

    Attributes:
        num_events: that were ranked.
        events: that were recalled.
        standing: their standardised scores.
    """

    num_events: int
    events: NDArray[np.int32]
    standing: NDArray[np.float32]


class Habit:
    """What each event of a layer scores on average, 0 where it is not recalled. Written by `add`.

    Only what was recalled is counted, so a recall costs and leaves behind what it recalled and no more. A
    copy shares all that was counted and keeps what changes in it, until that is an eighth of all.
    """

    def __init__(self) -> None:
        #: Totals of the events that copies share, and how many recalls there had been before each event was
        #: first ranked; never written to.
        self._shared = np.zeros(0), np.zeros(0, dtype=np.int64)
        self._num_shared = 0
        #: Shared events that were recalled since, ascending, and their totals; replaced, never written to.
        self._touched = np.zeros(0, dtype=np.int64), np.zeros(0)
        #: The same as `_shared` of all later events, with room for more.
        self._total = np.zeros(0)
        self._born = np.zeros(0, dtype=np.int64)
        self._num_events = 0
        self._num_recalls = 0

    def add(self, recall: Recall) -> None:
        """Count one recall; events that are new since the last one begin with it."""
        self._begin(recall.num_events)
        self._num_recalls += 1
        self._count(recall.events, recall.standing)

    def add_all(self, recalls: Sequence[Recall]) -> None:
        """Count recalls one after the other; the same to the last bit, and faster."""
        if not recalls:
            return
        for recall in recalls:
            self._begin(recall.num_events)
            self._num_recalls += 1
        events = np.concatenate([recall.events for recall in recalls])
        self._count(events, np.concatenate([recall.standing for recall in recalls]))

    def _begin(self, num_events: int) -> None:
        """Events that were never ranked before are from now on."""
        if num_events <= self._num_events:
            return
        first, last = self._num_events - self._num_shared, num_events - self._num_shared
        missing = last - len(self._total)
        if missing > 0:
            spare = missing + last // 2
            self._total, self._born = np.pad(self._total, (0, spare)), np.pad(self._born, (0, spare))
        self._born[first:last] = self._num_recalls
        self._num_events = num_events

    def _count(self, events: NDArray[np.int32], standing: NDArray[np.float32]) -> None:
        is_shared = events < self._num_shared
        np.add.at(self._total, events[~is_shared] - self._num_shared, standing[~is_shared])
        if is_shared.any():
            self._touch(events[is_shared], standing[is_shared])

    def _touch(self, events: NDArray[np.int32], standing: NDArray[np.float32]) -> None:
        before, total_before = self._touched
        touched = np.union1d(before, events)
        total = self._shared[0][touched]
        total[np.searchsorted(touched, before)] = total_before
        np.add.at(total, np.searchsorted(touched, events), standing)
        self._touched = touched, total
        if len(touched) > self._num_shared // 8:
            self._total, self._born = self._all()
            self._share_nothing()

    def _all(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Totals and births of all events; copies, where any are shared."""
        num_own = self._num_events - self._num_shared
        if not self._num_shared:
            return self._total[:num_own], self._born[:num_own]
        total = np.concatenate([self._shared[0], self._total[:num_own]])
        total[self._touched[0]] = self._touched[1]
        return total, np.concatenate([self._shared[1], self._born[:num_own]])

    def _share_nothing(self) -> None:
        fresh = Habit()
        self._shared, self._num_shared, self._touched = fresh._shared, 0, fresh._touched

    def mean(self, num_events: int) -> NDArray[np.float64]:
        """Average standardised score of each event; 0 for events that were never ranked."""
        known = min(num_events, self._num_events)
        total, born = self._all()
        means = np.zeros(num_events)
        means[:known] = total[:known] / (self._num_recalls - born[:known])
        return means

    def copy(self) -> Habit:
        """The same habit, to go on apart from this one."""
        num_own = self._num_events - self._num_shared
        if num_own + len(self._touched[0]) > self._num_shared // 8:
            shared = self._all()
            self._share_nothing()
            self._shared, self._num_shared = shared, self._num_events
            self._total, self._born = np.zeros(0), np.zeros(0, dtype=np.int64)
            num_own = 0
        other = Habit()
        other.__dict__.update(self.__dict__)
        other._total, other._born = self._total[:num_own].copy(), self._born[:num_own].copy()
        return other


def recall_of(scores: NDArray[np.float32], recalled: Sequence[int]) -> Recall:
    """A recall as a habit counts it."""
    events = np.asarray(recalled, dtype=np.int32)
    return Recall(len(scores), events, standardised(scores, events).astype(np.float32))


@dataclass
class LayerStanding:
    """How the events of one layer stood, over its recalls.

    Attributes:
        total: standardised scores of all recalls, added up.
        habit: what each event scores as a habit.
        num_recalls: that were added up.
    """

    total: NDArray[np.float32]
    habit: NDArray[np.float32]
    num_recalls: int = 0

    def add(self, standing: NDArray[np.float64], habit: NDArray[np.float64]) -> None:
        """Count one recall, of at least as many events as those before."""
        self.total = np.pad(self.total, (0, len(standing) - len(self.total)))
        self.total += standing.astype(np.float32)
        self.habit = habit.astype(np.float32)
        self.num_recalls += 1

    def beyond(self, usual: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is beyond the habit and what else is usual, in relation to both; over all recalls."""
        usual = self.habit + np.pad(usual, (0, max(0, len(self.habit) - len(usual))))[: len(self.habit)]
        return np.maximum(self.total - self.num_recalls * usual, 0.0) / (1.0 + usual)


_NOTHING = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True)
class Usual:
    """What is recalled whatever is asked, as a question found that asks for nothing in particular.

    Attributes:
        asked: ids of that question.
        standing: by layer, `RecallTrace.standing` of each event, ``[N]``; read only.
    """

    asked: tuple[int, ...]
    standing: Mapping[int, NDArray[np.float32]]


class RecallTrace:
    """Adds up the layers' scores over one or more recalls. Written by the memory that recalls."""

    def __init__(self) -> None:
        self._standings: dict[int, LayerStanding] = {}
        self._layers: dict[int, set[int]] = {}
        self._usual: Mapping[int, NDArray[np.float32]] = {}
        #: See `choose`; None where nobody chose.
        self.chosen: tuple[RecalledEvent | range, ...] | None = None

    def add(
        self,
        layer_idx: int,
        scores: NDArray[np.float32],
        recalled: Sequence[int],
        *,
        habit: Habit | None = None,
    ) -> None:
        """Count one layer's recall: the scores of all events, and which were recalled."""
        usual = np.zeros(len(scores)) if habit is None else habit.mean(len(scores))
        layer = self._standings.setdefault(layer_idx, LayerStanding(_NOTHING, _NOTHING))
        layer.add(standardised(scores), usual)
        for event in recalled:
            self._layers.setdefault(event, set()).add(layer_idx)

    def take_off(self, usual: Usual) -> None:
        """This is no evidence: it is recalled whatever is asked."""
        self._usual = usual.standing

    def choose(self, passages: Sequence[RecalledEvent | range]) -> None:
        """These alone are the strongest, in this order, as somebody found who looked at them closely.

        What was chosen before comes after them, as it stood then.

        Args:
            passages: of the strongest events, and spans of the log that no layer ranks.
        """
        known = set(map(place_of, passages))
        self.chosen = (*passages, *(one for one in self.chosen or () if place_of(one) not in known))

    @property
    def standing(self) -> dict[int, NDArray[np.float32]]:
        """By layer, the mean standardised score of each event in its recalls, habits not taken off."""
        return {
            layer_idx: layer.total / np.float32(layer.num_recalls)
            for layer_idx, layer in self._standings.items()
        }

    @property
    def totals(self) -> NDArray[np.float64]:
        """What every event scores in all, recalled or not; the order that `strongest` goes by."""
        return self._beyond(self._usual)

    def _beyond(self, usual: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float64]:
        num_events = max((len(layer.total) for layer in self._standings.values()), default=0)
        totals = np.zeros(num_events)
        for layer_idx, layer in self._standings.items():
            totals[: len(layer.total)] += layer.beyond(usual.get(layer_idx, _NOTHING))
        return totals

    def strongest(self, limit: int) -> list[RecalledEvent]:
        """The recalled events that all layers together found most similar, strongest first, chosen or not.

        Where none is beyond what is usual, nothing but habit is taken off: something was recalled.
        """
        recalled = np.array(sorted(self._layers), dtype=np.int64)
        totals = self.totals
        if not totals[recalled].any():
            totals = self._beyond({})
        num_recalls = sum(layer.num_recalls for layer in self._standings.values())
        order = recalled[np.argsort(-totals[recalled], kind="stable")]
        return [
            RecalledEvent(int(i), float(totals[i]) / num_recalls, len(self._layers[int(i)]))
            for i in order[:limit]
            if totals[i] > 0
        ]
