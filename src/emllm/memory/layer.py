"""The memory of one layer: recall, lay out, attend. Reads the log and stages; `commit` alone writes.

`MemoryLayer` serves full-attention layers, `WindowLayer` (`memory.window`) the plain sliding-window layers of
hybrid models; the memory treats both alike. This module does not know surprise, boundaries or documents:
it is told which events may be recalled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.attention.context import ContextBuffers, ContextPlan, LayerContext, turned_alike
from emllm.attention.geometry import LayerGeometry
from emllm.attention.layout import POSITION_POLICIES
from emllm.config import UNLIMITED_TOKENS, ResolvedConfig
from emllm.memory.events import EventTable
from emllm.memory.staging import AttentionOptions, LayerState, Observer, RecallMoment, Staged, View
from emllm.recall.budget import select_events
from emllm.recall.event_keys import WEIGHTS_NEEDED
from emllm.recall.exact import KeysOf, exact
from emllm.recall.index import EventIndex, IndexPart
from emllm.recall.scorers import ASKING_TOKENS, SCORERS
from emllm.recall.shortlist import NEWER_EVENTS, Shortlist, is_ranking_of_all_due, keys_of
from emllm.recall.trace import Habit, Recall, RecallTrace, recall_of
from emllm.recall.weights import attention_mass, mean_logit
from emllm.store.log import Log


class MemoryLayer:
    """A full-attention layer: sinks, recalled episodes, local context, chunk.

    Only `commit` and `add_events` change what later chunks see.
    """

    def __init__(
        self, layer_idx: int, geometry: LayerGeometry, config: ResolvedConfig, events: EventTable
    ) -> None:
        self.layer_idx = layer_idx
        self.geometry = geometry
        self.config = config
        self.events = events
        self.index = EventIndex(config.index_precision)
        self.staged: Staged | None = None
        self.trace: RecallTrace | None = None
        #: Shown every recall that ranks events.
        self.observer: Observer | None = None
        #: What the habit was told since this was last emptied, where somebody keeps it.
        self.journal: list[Recall] | None = None
        self._habit = Habit()
        self._context: LayerContext | None = None
        self._plan: ContextPlan | None = None
        self._spare: ContextBuffers | None = None
        self._queue: list[int] = []
        self._queries: list[Tensor] = []
        self._weights: Tensor | None = None
        self._shortlist: Shortlist | None = None
        self._shortlist_keys: IndexPart | None = None
        self._num_recalls = 0
        self._needs = WEIGHTS_NEEDED[config.event_key] if self.has_index else None

    @property
    def has_index(self) -> bool:
        """Whether events are ranked at all: not when nothing or everything is recalled."""
        return 0 < self.config.recall_tokens < UNLIMITED_TOKENS

    def attend(
        self, log: Log, view: View, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        """Attention of a chunk over the three views and itself; stages, and changes nothing else."""
        self.abandon()
        staged = Staged(key, value)
        if not self.will_recall(query.shape[1]):
            context = self._current_context(log, key, value)
            staged.queue = self._queue
            staged.queries = [*self._queries, query.clone()]
        else:
            plan = self._plan_context(log, view, query, options, staged)
            context = self._lay_out(log, plan, key, value)
        staged.context = context
        self.staged = staged
        context.write(key, value)
        out, lse, near_query = context.attend(
            query, scaling=options.scaling, softcap=options.softcap, sink_logits=options.sink_logits
        )
        self._stage_weights(staged, view.num_tokens, query, near_query, lse, options)
        return out

    def _plan_context(
        self, log: Log, view: View, query: Tensor, options: AttentionOptions, staged: Staged
    ) -> ContextPlan:
        """Recall, and decide what stands where."""
        num_new = query.shape[1]
        recalled = self._recall(log, view, query, options, staged)
        sinks = view.alive(0, min(view.sinks_stop, view.num_tokens))
        local = view.alive(view.local_start, view.num_tokens)
        episodes = self.events.token_idx(recalled)
        # Nothing has left yet: the views are one stretch of text, and every distance is its own.
        is_whole = view.local_start <= len(sinks)
        policy = POSITION_POLICIES["ordered" if is_whole else self.config.positions]
        return ContextPlan(
            token_idx=np.concatenate([sinks, episodes, local]),
            layout=policy(len(sinks), len(episodes), len(local), self.config.local_tokens),
            num_local=len(local),
            first_chunk=num_new,
            max_chunk=self.config.recall_every_tokens + (num_new if num_new > 1 else 0),
        )

    def _recall(
        self, log: Log, view: View, query: Tensor, options: AttentionOptions, staged: Staged
    ) -> list[int]:
        """Events for this chunk, in time order (EM-LLM, section 3.3)."""
        budget = view.recall_tokens
        fits = int(view.sizes.sum()) <= budget
        if not len(view.sizes) or (fits and self.trace is None) or not self.has_index:
            return list(range(len(view.sizes))) if fits else []
        scores, candidates = self._scores(log, view, query, options)
        recalled, staged.queue = select_events(
            scores,
            view.sizes,
            budget_tokens=budget,
            contiguity=self.config.contiguity,
            min_event_tokens=self.config.min_event_tokens,
            buffer=self._queue,
            candidates=candidates,
        )
        if self.observer is not None:
            self.observer(self._moment(log, view, query, options, scores, candidates, recalled))
        if candidates is None:
            staged.trace = (scores, recalled)
            if 0 < self.config.shortlist_events < len(scores):
                staged.shortlist = Shortlist.of(scores, self.config.shortlist_events)
        elif self._shortlist is not None and len(view.sizes) - self._shortlist.num_ranked > NEWER_EVENTS:
            limit = self.config.shortlist_events
            staged.shortlist = self._shortlist.folded(scores, limit, len(view.sizes))
        staged.is_recall = True
        return recalled

    def _scores(
        self, log: Log, view: View, query: Tensor, options: AttentionOptions
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """How well events match the present queries, and which events; None is all."""
        ranking = SCORERS[self.config.scorer]
        pending = self._pending(query)
        asking = self._turned(ranking.sample(pending), view=view, num_new=query.shape[1])
        candidates = None
        score = ranking.scorer(pending.shape[1])
        if score is None:
            scores = exact(asking, self._keys_of(log), torch.from_numpy(view.sizes), options.scaling)
        else:
            parts: Sequence[IndexPart] = self.index.parts()
            candidates = self._candidates(len(view.sizes), query.shape[1])
            if candidates is not None:
                parts = self._keys_of_candidates(len(view.sizes))
            scores = score(asking, ranking.parts(parts, pending.shape[1]), options.scaling)
        return scores.float().cpu().numpy(), candidates

    def _pending(self, query: Tensor) -> Tensor:
        """The queries that recall: those of a chunk, or all since the last recall while decoding."""
        return torch.cat([*self._queries, query], dim=1) if query.shape[1] == 1 else query

    def _turned(self, query: Tensor, *, view: View, num_new: int) -> Tensor:
        """Queries as a token after the local window asks: so far away every event is taken to be."""
        length = view.sinks_stop + view.num_tokens - view.local_start + num_new
        return turned_alike(query, self.config.local_tokens, self.geometry.rotation, length=length)

    def _moment(
        self,
        log: Log,
        view: View,
        query: Tensor,
        options: AttentionOptions,
        scores: NDArray[np.float32],
        candidates: NDArray[np.int64] | None,
        recalled: list[int],
    ) -> RecallMoment:
        """This recall, for an observer."""
        return RecallMoment(
            layer_idx=self.layer_idx,
            query=self._pending(query),
            turned=partial(self._turned, view=view, num_new=query.shape[1]),
            keys_of=self._keys_of(log),
            parts=self.index.parts(),
            sizes=view.sizes,
            scaling=options.scaling,
            scores=scores,
            candidates=candidates,
            recalled=recalled,
        )

    def _keys_of(self, log: Log) -> KeysOf:
        """The keys of all tokens that may be recalled, a span at a time."""
        token_idx = self.events.token_idx(range(self.events.num_recallable))
        geometry = self.geometry

        def keys_of(start: int, stop: int) -> Tensor:
            shape = (stop - start, geometry.num_kv_heads, geometry.head_dim)
            keys = torch.empty(shape, dtype=log.shapes[self.layer_idx].dtype, device=geometry.device)
            log.gather(self.layer_idx, token_idx[start:stop], keys=keys, values=None)
            return keys.transpose(0, 1)

        return keys_of

    def _keys_of_candidates(self, num_events: int) -> list[IndexPart]:
        """The shortlist's keys, which are gathered once, and those of the newer events."""
        assert self._shortlist is not None
        if self._shortlist_keys is None:
            self._shortlist_keys = keys_of(self.index.parts(), self._shortlist.events)
        newer = self.index.between(self._shortlist.num_ranked, num_events)
        return newer if self._shortlist_keys is None else [self._shortlist_keys, *newer]

    def _candidates(self, num_events: int, num_new: int) -> NDArray[np.int64] | None:
        """The events to rank: all of them for a question and when it is this layer's turn (None)."""
        is_question = 1 < num_new <= ASKING_TOKENS
        if self._shortlist is None or self.config.shortlist_events == 0 or is_question:
            return None
        if is_ranking_of_all_due(self._num_recalls, num_events, layer_idx=self.layer_idx):
            return None
        return self._shortlist.candidates(num_events)

    def _lay_out(self, log: Log, plan: ContextPlan, key: Tensor, value: Tensor) -> LayerContext:
        """Gather and place the tokens of a plan in buffers that no committed context uses."""
        buffers = self._spare
        if buffers is None or buffers.capacity < plan.capacity:
            buffers = ContextBuffers(plan.capacity * 9 // 8, like_key=key, like_value=value)
        self._spare = buffers
        context = LayerContext(plan, buffers, self.geometry.rotation)
        num_tokens = len(plan.token_idx)
        raw = key.new_empty(num_tokens, key.shape[0], key.shape[-1])
        log.gather(self.layer_idx, plan.token_idx, keys=raw, values=buffers.values[:num_tokens])
        context.place(raw)
        return context

    def _current_context(self, log: Log, key: Tensor, value: Tensor) -> LayerContext:
        """The committed context; a fork builds it from its plan when it first needs it."""
        assert self._plan is not None
        if self._context is None:
            plan = self._plan
            chunk = np.arange(log.num_tokens - plan.num_chunk, log.num_tokens)
            whole = ContextPlan(plan.token_idx, plan.layout, plan.num_local, plan.first_chunk, plan.max_chunk)
            context = self._lay_out(log, whole, key, value)
            self._spare = None
            old_key = key.new_empty(len(chunk), key.shape[0], key.shape[-1])
            old_value = value.new_empty(len(chunk), value.shape[0], value.shape[-1])
            log.gather(self.layer_idx, chunk, keys=old_key, values=old_value)
            context.write(old_key.transpose(0, 1), old_value.transpose(0, 1))
            context.advance(len(chunk))
            self._context = context
        return self._context

    def _stage_weights(
        self,
        staged: Staged,
        num_tokens: int,
        query: Tensor,
        near_query: Tensor,
        lse: Tensor,
        options: AttentionOptions,
    ) -> None:
        """Collect what the event keys will need of this chunk's queries, for tokens not in the index yet."""
        unindexed = self.events.frontier
        if self._needs == "logit":
            sums = query.unflatten(0, (self.geometry.num_kv_heads, -1)).float().sum(dim=1)
            staged.query_sums = sums[:, max(0, unindexed - num_tokens) :]
        elif self._needs == "mass":
            assert staged.context is not None
            plan = staged.context.plan
            stop = len(plan.token_idx) + plan.num_chunk + query.shape[1]
            start = len(plan.token_idx) - plan.num_local
            mass = attention_mass(
                near_query,
                staged.context.buffers.keys[start:stop].transpose(0, 1),
                lse,
                scaling=options.scaling,
                local_tokens=self.config.local_tokens,
                softcap=options.softcap,
            )
            num_columns = max(0, num_tokens + query.shape[1] - unindexed)
            if plan.num_local and plan.token_idx[-1] - plan.token_idx[-plan.num_local] >= plan.num_local:
                mass = _spread_columns(mass, plan, num_tokens + query.shape[1])
            staged.mass = _last_columns(mass, num_columns)

    def commit(self) -> None:
        """Make what was staged part of this layer; the log has the tokens already."""
        staged = self.staged
        assert staged is not None and staged.context is not None
        if staged.context is not self._context:
            self._spare = None if self._context is None else self._context.buffers
            self._context = staged.context
        self._context.advance(staged.key.shape[1])
        self._plan = self._context.plan
        self._queue = staged.queue
        self._queries = staged.queries
        self._num_recalls += staged.is_recall
        if staged.shortlist is not None:
            self._shortlist, self._shortlist_keys = staged.shortlist, None
        if staged.trace is not None and self.trace is not None:
            self.trace.add(self.layer_idx, *staged.trace, habit=self._habit)
        elif staged.trace is not None:
            recall = recall_of(*staged.trace)
            self._habit.add(recall)
            if self.journal is not None:
                self.journal.append(recall)
        if staged.query_sums is not None:
            self._weights = _joined(self._weights, staged.query_sums)
        if staged.mass is not None:
            self._weights = _added(self._weights, staged.mass)
        self.staged = None

    def abandon(self) -> None:
        """Forget what was staged; the committed context keeps its buffers."""
        self.staged = None

    def will_recall(self, num_new: int) -> bool:
        """Whether a chunk of so many tokens is laid out anew; else it goes on in the committed context."""
        return num_new > 1 or self._plan is None or self._plan.room < 1

    def state(self) -> LayerState:
        """What one chunk leaves for the next, but for the index and the habit."""
        queries = torch.cat(self._queries, dim=1) if self._queries else None
        return LayerState(
            self._plan, list(self._queue), queries, self._weights, self._shortlist, self._num_recalls
        )

    def restore(self, state: LayerState, recalls: Sequence[Recall]) -> None:
        """Go on where another layer was, whose habit was told of these recalls."""
        self._plan, self._queue, self._weights = state.plan, list(state.queue), state.weights
        self._shortlist, self._num_recalls = state.shortlist, state.num_recalls
        self._queries = [] if state.queries is None else list(state.queries.split(1, dim=1))
        self._habit.add_all(recalls)

    def rest(self) -> None:
        """Give back the context's buffers and the shortlist's keys; both can be made again, to the bit."""
        self._context = self._spare = self._shortlist_keys = None

    def event_weights(self, keys: Tensor, *, alive: Tensor | None = None) -> Tensor | None:
        """Weights of the oldest tokens that are in no event key yet.

        Args:
            keys: of these tokens.
            alive: which of the oldest tokens they are, where some in between were forgotten.
        """
        if self._weights is None:
            return None
        if self._needs == "logit":
            if alive is not None:
                whole = keys.new_zeros(keys.shape[0], int(alive[-1]) + 1, keys.shape[2])
                whole[:, alive.to(keys.device)] = keys
                keys = whole
            weights = mean_logit(keys, self._weights, local_tokens=self.config.local_tokens)
        else:
            weights = self._weights[:, : keys.shape[1] if alive is None else int(alive[-1]) + 1]
        return weights if alive is None else weights[:, alive.to(weights.device)]

    def add_events(self, event_keys: Tensor, num_tokens: int) -> None:
        """Index events that have left the window, and drop the weights of their tokens."""
        self.index.append(event_keys)
        if self._weights is not None:
            self._weights = self._weights[:, num_tokens:]

    def fork(self, events: EventTable) -> MemoryLayer:
        """The same layer for a fork; it shares the index and rebuilds the context when it needs it."""
        child = MemoryLayer(self.layer_idx, self.geometry, self.config, events)
        child.index = self.index.fork()
        child._habit = self._habit.copy()
        child._plan = self._plan
        child._queue = list(self._queue)
        child._queries = list(self._queries)
        child._weights = self._weights
        child._shortlist, child._num_recalls = self._shortlist, self._num_recalls
        child._shortlist_keys = self._shortlist_keys
        return child


def _last_columns(x: Tensor, num: int) -> Tensor:
    """The last `num` columns, with zeros in front where there are fewer."""
    num_columns = x.shape[1]
    if num <= num_columns:
        return x[:, num_columns - num :]
    return torch.cat([x.new_zeros(len(x), num - num_columns), x], dim=1)


def _spread_columns(x: Tensor, plan: ContextPlan, num_tokens: int) -> Tensor:
    """The columns of a local view with holes at their places, zeros for what was forgotten."""
    first = int(plan.token_idx[-plan.num_local])
    places = torch.from_numpy(plan.token_idx[-plan.num_local :] - first)
    spread = x.new_zeros(len(x), num_tokens - first)
    spread[:, places.to(x.device)] = x[:, : plan.num_local]
    num_chunk = x.shape[1] - plan.num_local
    spread[:, num_tokens - first - num_chunk :] = x[:, plan.num_local :]
    return spread


def _joined(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.cat([old, new], dim=1)


def _added(old: Tensor | None, new: Tensor) -> Tensor:
    """The sum of the weights so far and those of a chunk, which cover more tokens."""
    if old is not None:
        new[:, : old.shape[1]] += old
    return new
