"""Which events a layer recalls: its index, its shortlist, and the order that both give them in.

Reads and stages; `commit` alone changes what later chunks see. This module does not know where recalled
events stand or how they are attended to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.attention.context import turned
from emllm.attention.geometry import LayerGeometry
from emllm.config import ResolvedConfig
from emllm.memory.events import EventTable
from emllm.memory.staging import Observer, RecallMoment, Staged, View
from emllm.recall.budget import select_events
from emllm.recall.exact import KeysOf
from emllm.recall.index import EventIndex, IndexPart
from emllm.recall.queries import asking_tokens
from emllm.recall.scorers import SCORERS
from emllm.recall.shortlist import NEWER_EVENTS, Shortlist, is_ranking_of_all_due, keys_of
from emllm.store.log import Log


class LayerRanking:
    """Ranks the events of one layer for the queries of a chunk (EM-LLM, section 3.3).

    Attributes:
        index: the event keys.
        observer: shown every recall that ranks events.
        queue: the contiguity queue.
        shortlist: the best events of the last ranking of all.
        num_recalls: recalls so far.
    """

    def __init__(
        self, layer_idx: int, geometry: LayerGeometry, config: ResolvedConfig, events: EventTable
    ) -> None:
        self._layer_idx = layer_idx
        self._geometry = geometry
        self._config = config
        self._events = events
        self.index = EventIndex(config.index_precision)
        self.observer: Observer | None = None
        self.queue: list[int] = []
        self.shortlist: Shortlist | None = None
        self.num_recalls = 0
        self._shortlist_keys: IndexPart | None = None

    def recall(
        self, log: Log, view: View, query: Tensor, staged: Staged, *, num_new: int, scaling: float
    ) -> list[int]:
        """Events for a chunk, in time order; stages what `commit` keeps of the ranking.

        Args:
            query: those that recall, ``[H, T, D]``, before rotation.
            num_new: tokens of the chunk.
            scaling: factor on the logits.
        """
        turned = functools.partial(self._turned, view=view, num_new=num_new)
        scores, candidates = self._scores(log, view, query, turned, num_new, scaling)
        recalled, staged.queue = select_events(
            scores,
            view.sizes,
            budget_tokens=view.recall_tokens,
            contiguity=self._config.contiguity,
            min_event_tokens=self._config.min_event_tokens,
            buffer=self.queue,
            candidates=candidates,
        )
        if self.observer is not None:
            self.observer(
                RecallMoment(
                    layer_idx=self._layer_idx,
                    query=query,
                    turned=turned,
                    keys_of=self._keys_of(log),
                    parts=self.index.parts(),
                    sizes=view.sizes,
                    scaling=scaling,
                    is_asking=self._is_asking(num_new),
                    scores=scores,
                    candidates=candidates,
                    recalled=recalled,
                )
            )
        limit = self._config.shortlist_events
        if candidates is None:
            staged.trace = (scores, recalled)
            if 0 < limit < len(scores):
                staged.shortlist = Shortlist.of(scores, limit)
        elif self.shortlist is not None and len(view.sizes) - self.shortlist.num_ranked > NEWER_EVENTS:
            staged.shortlist = self.shortlist.folded(scores, limit, len(view.sizes))
        staged.is_recall = True
        return recalled

    def commit(self, staged: Staged) -> None:
        """Keep what was staged."""
        self.queue = staged.queue
        self.num_recalls += staged.is_recall
        if staged.shortlist is not None:
            self.shortlist, self._shortlist_keys = staged.shortlist, None

    def rest(self) -> None:
        """Give back the shortlist's keys, which can be gathered again."""
        self._shortlist_keys = None

    def fork(self, events: EventTable) -> LayerRanking:
        """The same ranking for a fork; it shares the index."""
        child = LayerRanking(self._layer_idx, self._geometry, self._config, events)
        child.index = self.index.fork()
        child.queue = list(self.queue)
        child.shortlist, child.num_recalls = self.shortlist, self.num_recalls
        child._shortlist_keys = self._shortlist_keys
        return child

    def _scores(
        self,
        log: Log,
        view: View,
        query: Tensor,
        turned: Callable[[Tensor], Tensor],
        num_new: int,
        scaling: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """How well events match the present queries, and which events; None is all."""
        ranking = SCORERS[self._config.scorer]
        candidates, sizes = None, view.sizes
        parts: Sequence[IndexPart] = ()
        if ranking.score is not None:
            parts, candidates = self.index.parts(), self._candidates(len(sizes), num_new)
            if candidates is not None:
                parts, sizes = self._keys_of_candidates(len(sizes)), sizes[candidates]
        scores = ranking.scores(
            query,
            turned,
            parts=parts,
            sizes=sizes,
            keys_of=self._keys_of(log),
            event_key=self._config.event_key,
            scaling=scaling,
            is_asking=self._is_asking(num_new),
        )
        return scores, candidates

    def _is_asking(self, num_new: int) -> bool:
        """Whether a chunk looks for one thing: a question, or what is being decoded."""
        return num_new <= asking_tokens(self._config.chunk_tokens)

    def _turned(self, query: Tensor, *, view: View, num_new: int) -> Tensor:
        """Queries as a token after the local window asks: so far away every event is taken to be."""
        length = view.sinks_stop + view.num_tokens - view.local_start + num_new
        rotation = self._geometry.rotation
        position = self._config.local_tokens
        return turned(query, position, rotation, length=length, is_alike=True, meets_raw_keys=True)

    def _keys_of(self, log: Log) -> KeysOf:
        """The keys of all tokens that may be recalled, a span at a time."""
        events, geometry, layer_idx = self._events, self._geometry, self._layer_idx

        @functools.cache
        def token_idx() -> NDArray[np.int64]:
            return events.token_idx(range(events.num_recallable))

        def keys_of(start: int, stop: int) -> Tensor:
            shape = (stop - start, geometry.num_kv_heads, geometry.head_dim)
            keys = torch.empty(shape, dtype=log.shapes[layer_idx].dtype, device=geometry.device)
            log.gather(layer_idx, token_idx()[start:stop], keys=keys, values=None)
            return keys.transpose(0, 1)

        return keys_of

    def _keys_of_candidates(self, num_events: int) -> list[IndexPart]:
        """The shortlist's keys, which are gathered once, and those of the newer events."""
        assert self.shortlist is not None
        if self._shortlist_keys is None:
            self._shortlist_keys = keys_of(self.index.parts(), self.shortlist.events)
        newer = self.index.between(self.shortlist.num_ranked, num_events)
        return newer if self._shortlist_keys is None else [self._shortlist_keys, *newer]

    def _candidates(self, num_events: int, num_new: int) -> NDArray[np.int64] | None:
        """The events to rank: all of them for a question and when it is this layer's turn (None)."""
        is_question = num_new > 1 and self._is_asking(num_new)
        if self.shortlist is None or self._config.shortlist_events == 0 or is_question:
            return None
        if is_ranking_of_all_due(self.num_recalls, num_events, layer_idx=self._layer_idx):
            return None
        return self.shortlist.candidates(num_events)
