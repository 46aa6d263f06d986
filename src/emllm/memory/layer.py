"""The memory of one layer: recall, lay out, attend. Reads the log and stages; `commit` alone writes.

`MemoryLayer` serves full-attention layers, `WindowLayer` (`memory.window`) the plain sliding-window layers of
hybrid models; the memory treats both alike. This module does not know surprise, boundaries or documents:
it is told which events may be recalled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from emllm.attention.context import ContextBuffers, ContextPlan, LayerContext
from emllm.attention.geometry import LayerGeometry
from emllm.attention.layout import POSITION_POLICIES
from emllm.config import UNLIMITED_TOKENS, ResolvedConfig
from emllm.memory.events import EventTable
from emllm.memory.ranking import LayerRanking
from emllm.memory.staging import AttentionOptions, LayerState, Staged, View
from emllm.memory.weighing import TokenWeights
from emllm.recall.trace import Habit, Recall, RecallTrace, recall_of
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
        self.ranking = LayerRanking(layer_idx, geometry, config, events)
        self.weights = TokenWeights(geometry, config, is_needed=self.has_index)
        self.staged: Staged | None = None
        self.trace: RecallTrace | None = None
        #: What the habit was told since this was last emptied, where somebody keeps it.
        self.journal: list[Recall] | None = None
        self._habit = Habit()
        self._context: LayerContext | None = None
        self._plan: ContextPlan | None = None
        self._spare: ContextBuffers | None = None
        self._queries: list[Tensor] = []

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
            staged.queue = self.ranking.queue
            staged.queries = [*self._queries, query.clone()]
        else:
            plan = self._plan_context(log, view, query, options, staged)
            context = self._lay_out(log, plan, key, value)
        staged.context = context
        self.staged = staged
        out, lse, near_query = context.attend(
            query,
            key,
            value,
            scaling=options.scaling,
            softcap=options.softcap,
            sink_logits=options.sink_logits,
        )
        self.weights.stage(
            staged,
            num_tokens=view.num_tokens,
            unindexed=self.events.frontier,
            query=query,
            near_query=near_query,
            lse=lse,
            options=options,
        )
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
        fits = int(view.sizes.sum()) <= view.recall_tokens
        if not len(view.sizes) or (fits and self.trace is None) or not self.has_index:
            return list(range(len(view.sizes))) if fits else []
        num_new = query.shape[1]
        # While decoding, all queries since the last recall ask together.
        asking = torch.cat([*self._queries, query], dim=1) if num_new == 1 else query
        return self.ranking.recall(log, view, asking, staged, num_new=num_new, scaling=options.scaling)

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

    def commit(self) -> None:
        """Make what was staged part of this layer; the log has the tokens already."""
        staged = self.staged
        assert staged is not None and staged.context is not None
        if staged.context is not self._context:
            self._spare = None if self._context is None else self._context.buffers
            self._context = staged.context
        self._context.advance(staged.key.shape[1])
        self._plan = self._context.plan
        self._queries = staged.queries
        self.ranking.commit(staged)
        self.weights.commit(staged)
        if staged.trace is not None and self.trace is not None:
            self.trace.add(self.layer_idx, *staged.trace, habit=self._habit)
        elif staged.trace is not None:
            recall = recall_of(*staged.trace)
            self._habit.add(recall)
            if self.journal is not None:
                self.journal.append(recall)
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
        ranking = self.ranking
        return LayerState(
            self._plan,
            list(ranking.queue),
            queries,
            self.weights.values,
            ranking.shortlist,
            ranking.num_recalls,
        )

    def restore(self, state: LayerState, recalls: Sequence[Recall]) -> None:
        """Go on where another layer was, whose habit was told of these recalls."""
        self._plan, self.weights.values, self.ranking.queue = state.plan, state.weights, list(state.queue)
        self.ranking.shortlist, self.ranking.num_recalls = state.shortlist, state.num_recalls
        self._queries = [] if state.queries is None else list(state.queries.split(1, dim=1))
        self._habit.add_all(recalls)

    def rest(self) -> None:
        """Give back the context's buffers and the shortlist's keys; both can be made again, to the bit."""
        self._context = self._spare = None
        self.ranking.rest()

    def add_events(self, event_keys: Tensor, num_tokens: int) -> None:
        """Index events that have left the window, and drop the weights of their tokens."""
        self.ranking.index.append(event_keys)
        self.weights.drop(num_tokens)

    def fork(self, events: EventTable) -> MemoryLayer:
        """The same layer for a fork; it shares the index and rebuilds the context when it needs it."""
        child = MemoryLayer(self.layer_idx, self.geometry, self.config, events)
        child.ranking = self.ranking.fork(events)
        child.weights.values = self.weights.values
        child._habit = self._habit.copy()
        child._plan = self._plan
        child._queries = list(self._queries)
        return child
