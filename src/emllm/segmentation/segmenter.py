"""The online segmenter: a causal state machine from signals of tokens to final events.

Raw candidates are settled strictly from left to right, each as soon as everything that its decision depends
on has been read and never sooner. So the events are a function of the text alone, and any way of cutting
the text into chunks gives the same ones.

This module does not know models, logits or where keys are kept: it is told signals, and asks for the key
graph of a span when a refinement is due.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from emllm.config import MemoryConfig
from emllm.errors import InputError
from emllm.segmentation.key_graph import KeyGraph
from emllm.segmentation.objectives import REGISTRY
from emllm.segmentation.refine import refine_boundary
from emllm.segmentation.threshold import RollingThreshold

#: What a segmenter is told of the next tokens: values in nats for a threshold, or ready flags.
Signals = Float[np.ndarray, " T"] | Bool[np.ndarray, " T"]
#: The key graph of the tokens ``[start, stop)``, all of which have been read.
GraphMaker = Callable[[int, int], KeyGraph]


class EventSegmenter:
    """Decides where events begin while a text is being read.

    Tokens are counted from 0, the sinks included: their values count in the threshold's statistics, but no
    event begins before `start`. Let ``last`` be the last final boundary (`start` at first). The next one is

    - the first raw candidate in ``[last + min_event_tokens, last + max_event_tokens]``, refined
      (`refine.refine_boundary`) once the tokens up to ``beta + (beta - last) // 2`` have been read, or
    - a forced cut at ``last + max_event_tokens`` if that token has been read and there is no such candidate.

    Candidates nearer than ``min_event_tokens`` to ``last`` are dropped. All events keep the size limits, but
    for the last one of a text, which may be short.

    **Deviation.** In the released code a candidate is dropped for being near the previous *raw* one, and
    short events are merged later; boundaries are refined once a chunk, with what the chunk holds.

    `extend` and `finish` alone write. The state is bounded: the threshold's window and the candidates of the
    last ``2 * max_event_tokens`` tokens.
    """

    def __init__(self, config: MemoryConfig, *, start: int) -> None:
        self._config = config
        self._start = start
        self._last = start
        self._seen = 0
        self._candidates: tuple[int, ...] = ()
        self._is_finished = False
        self._threshold = RollingThreshold(gamma=config.gamma, window_tokens=config.surprise_window_tokens)

    @property
    def last_boundary(self) -> int:
        """Start of the event that is still open."""
        return self._last

    @property
    def num_tokens(self) -> int:
        """Tokens whose signals have been told."""
        return self._seen

    @property
    def pending_start(self) -> int:
        """The smallest token index whose keys a later refinement may still ask for."""
        if self._config.refine == "none":
            return self._seen
        return max(self._start, self._last - self._config.max_event_tokens // 2)

    def extend(self, signals: Signals, key_graph: GraphMaker | None = None) -> list[int]:
        """Read on: the boundaries that became final, absolute, in order.

        Args:
            signals: of the next tokens: surprise in nats (a threshold makes flags of it), or flags.
            key_graph: called at most once, and only if a refinement is due.

        Raises:
            InputError: a refinement is due without `key_graph`, or the segmenter was finished.
        """
        if self._is_finished:
            raise InputError("a finished segmenter cannot read on; copy it before finish()")
        flags = signals if signals.dtype == np.bool_ else self._threshold.extend(signals)[0]
        first = self._seen
        raw = first + np.flatnonzero(flags)
        self._candidates += tuple(raw[raw >= self._last + self._config.min_event_tokens].tolist())
        self._seen += len(flags)
        return self._settle(key_graph, is_end=False)

    def finish(self, key_graph: GraphMaker | None = None) -> list[int]:
        """Settle what still waits for tokens, as if the text ended here: the last boundaries.

        Windows are cut off at the last token. For a text that is complete: a segmenter that reads on must not
        be finished, or its boundaries would depend on where it was.
        """
        boundaries = self._settle(key_graph, is_end=True)
        self._is_finished = True
        return boundaries

    def restart(self, key_graph: GraphMaker | None = None) -> list[int]:
        """End the open event here, where a text ends and another begins: the last boundaries.

        What still waits for tokens is settled as in `finish`. Values before here count in the threshold's
        statistics as before.
        """
        boundaries = self._settle(key_graph, is_end=True)
        if self._seen > self._last:
            boundaries.append(self._seen)
            self._last = self._seen
        self._candidates = ()
        return boundaries

    def copy(self) -> EventSegmenter:
        """An independent continuation from here; cheap."""
        twin = EventSegmenter(self._config, start=self._start)
        twin._last, twin._seen, twin._candidates = self._last, self._seen, self._candidates
        twin._is_finished = self._is_finished
        twin._threshold = self._threshold.copy()
        return twin

    def state(self) -> dict[str, Any]:
        """Everything but the settings, in plain numbers that JSON can hold exactly."""
        return {
            "start": self._start,
            "last": self._last,
            "seen": self._seen,
            "candidates": list(self._candidates),
            "threshold": self._threshold.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, config: MemoryConfig) -> EventSegmenter:
        """The continuation of a segmenter whose `state` was kept."""
        segmenter = cls(config, start=int(state["start"]))
        segmenter._last, segmenter._seen = int(state["last"]), int(state["seen"])
        segmenter._candidates = tuple(state["candidates"])
        segmenter._threshold = RollingThreshold.from_state(
            state["threshold"], gamma=config.gamma, window_tokens=config.surprise_window_tokens
        )
        return segmenter

    def _settle(self, key_graph: GraphMaker | None, *, is_end: bool) -> list[int]:
        """Move `last` forward as long as the next boundary can be known."""
        graph: KeyGraph | None = None
        boundaries: list[int] = []
        while True:
            beta, is_forced = self._next_raw()
            if not self._is_settled(beta, is_forced=is_forced, is_end=is_end):
                return boundaries
            if self._is_movable(beta, is_forced=is_forced):
                graph = self._graph(key_graph) if graph is None else graph
                boundaries.append(self._refined(beta, graph))
            else:
                boundaries.append(beta)
            self._last = boundaries[-1]
            self._candidates = tuple(candidate for candidate in self._candidates if candidate > beta)

    def _next_raw(self) -> tuple[int, bool]:
        """Where the next boundary is proposed, as far as is known, and whether only for the length."""
        lowest = self._last + self._config.min_event_tokens
        forced = self._last + self._config.max_event_tokens
        self._candidates = tuple(candidate for candidate in self._candidates if candidate >= lowest)
        if self._candidates and self._candidates[0] <= forced:
            return self._candidates[0], False
        return forced, True

    def _is_settled(self, beta: int, *, is_forced: bool, is_end: bool) -> bool:
        """Whether all has been read that decides on this boundary."""
        if is_forced or self._config.refine == "none" or is_end:
            return self._seen > beta
        return self._seen >= beta + (beta - self._last) // 2

    def _is_movable(self, beta: int, *, is_forced: bool) -> bool:
        has_room = beta > self._last + self._config.min_event_tokens
        return self._config.refine != "none" and not is_forced and has_room

    def _graph(self, key_graph: GraphMaker | None) -> KeyGraph:
        """The key graph of all that the refinements of this call can need."""
        if key_graph is None:
            raise InputError(f"refine={self._config.refine} needs the keys' graph, got none")
        stop = min(self._seen, self._candidates[-1] + self._config.max_event_tokens // 2)
        return key_graph(self.pending_start, stop)

    def _refined(self, beta: int, graph: KeyGraph) -> int:
        return refine_boundary(
            graph,
            alpha=self._last,
            beta=beta,
            low=self._start,
            high=self._seen,
            min_event_tokens=self._config.min_event_tokens,
            objective=REGISTRY[self._config.refine],
        )


def segment(
    signals: Signals, key_graph: GraphMaker | None = None, *, config: MemoryConfig, start: int = 0
) -> list[int]:
    """The boundaries of a whole text: where its events begin, except the first, which begins at `start`."""
    segmenter = EventSegmenter(config, start=start)
    return segmenter.extend(signals, key_graph) + segmenter.finish(key_graph)


def spans(boundaries: list[int], *, start: int, stop: int) -> list[tuple[int, int]]:
    """The events ``[start, stop)`` that boundaries cut a text into; none if there is no text."""
    edges = [start, *boundaries, stop]
    return [(left, right) for left, right in itertools.pairwise(edges) if left < right]
