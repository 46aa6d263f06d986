"""SequenceMemory: one sequence of tokens, remembered; wires the rooms together, and is the only writer.

An append-only log, the events cut from it, and one layer object per decoder layer. A chunk's life:
`begin_chunk`, then `attend` once per layer (reads and stages), then `commit`, which appends to the log, cuts
events and indexes those that left the local window. A chunk that is begun and not committed leaves no trace.
This module does not know models, tokenizers, documents or where a memory is kept.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.attention.geometry import ModelGeometry
from emllm.config import MemoryConfig
from emllm.dims import Logits, Surprise, TokenIds
from emllm.errors import InputError
from emllm.machine import uninterrupted
from emllm.memory.cutting import EventCutter, PieceOf
from emllm.memory.events import EventTable
from emllm.memory.indexing import graph_of_span, index_events
from emllm.memory.layer import MemoryLayer
from emllm.memory.placing import layer_shapes, tiers_for
from emllm.memory.sealing import raw_units, seal
from emllm.memory.staging import AttentionOptions, Observer, View, alive
from emllm.memory.window import WindowLayer
from emllm.recall.trace import RecallTrace, Usual
from emllm.segmentation.key_graph import KeyGraph
from emllm.store.log import Log, Unit


class Moment:
    """What a memory and its forks have in common until one of them reads on.

    Attributes:
        usual: what is recalled whatever is asked; None until somebody found out.
    """

    def __init__(self, usual: Usual | None = None) -> None:
        self.usual = usual


class SequenceMemory:
    """The memory of one sequence of tokens, for one model.

    Args:
        geometry: what the memory must know of the model.
        config: settings; what is open is resolved from the geometry.
        piece_of: text of a token id, needed by the `sentence` segmenter only.
        is_stored: sealed tokens lie in files, and pass through bounded tiers.
    """

    def __init__(
        self,
        geometry: ModelGeometry,
        config: MemoryConfig | None = None,
        *,
        piece_of: PieceOf | None = None,
        is_stored: bool = False,
    ) -> None:
        resolved = (config or MemoryConfig()).resolve(
            trained_tokens=geometry.trained_tokens, num_layers=geometry.num_layers
        )
        shapes = layer_shapes(geometry)
        is_tiered = is_stored or resolved.codec != "exact"
        self.geometry = geometry
        self.config = resolved
        self.piece_of = piece_of
        #: Spans ``[n, 2]`` of the log that were forgotten.
        self.holes = np.zeros((0, 2), dtype=np.int64)
        self._log = Log(shapes, tiers_for(shapes, resolved) if is_tiered else None)
        self._events = EventTable(resolved.sink_tokens)
        self._cutter = EventCutter(resolved, piece_of=piece_of)
        self._layers: list[MemoryLayer | WindowLayer] = [
            WindowLayer(i, layer)
            if layer.window_tokens is not None
            else MemoryLayer(i, layer, resolved, self._events)
            for i, layer in enumerate(geometry.layers)
        ]
        self._pending: Tensor | None = None
        self._view: View | None = None
        #: While a commit is under way, and for good after one that failed half-way.
        self._is_torn = False
        #: Changes with every commit.
        self.moment = Moment()

    @property
    def num_tokens(self) -> int:
        """Committed tokens."""
        return self._log.num_tokens

    @property
    def num_events(self) -> int:
        """Events whose end is known."""
        return len(self._events)

    @property
    def num_representatives(self) -> int:
        """Keys that stand for an event in the index."""
        return self.config.num_keys

    def token_ids(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Ids of the tokens in a span of the log."""
        return self._log.token_ids(start, self.num_tokens if stop is None else stop)

    def kept_ids(self, start: int, stop: int) -> list[int]:
        """Ids of the tokens in a span of the log that were not forgotten."""
        kept: list[int] = self.token_ids(start, stop)[alive(start, stop, self.holes) - start].tolist()
        return kept

    def surprise(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Surprise of the tokens in a span of the log, in nats; NaN for the first token of all."""
        return self._log.surprise(start, self.num_tokens if stop is None else stop)

    def begin_chunk(self, token_ids: TokenIds) -> None:
        """Announce the tokens that the model is about to compute; drops what was not committed.

        Raises:
            InputError: there are none, or the memory is not whole.
        """
        self.check_whole()
        if len(token_ids) < 1:
            raise InputError("a chunk needs at least one token, got 0")
        self.abandon()
        self._pending = token_ids
        layers = self._memory_layers
        if not layers or any(layer.will_recall(len(token_ids)) for layer in layers):
            self._seal()
        self._view = self._current_view()

    def check_whole(self) -> None:
        """Refuse to go on after a commit that failed half-way: tokens, keys and events are out of step.

        Raises:
            InputError: that happened.
        """
        if self._is_torn:
            raise InputError(
                f"an error cut short what was read up to token {self.num_tokens:,}, so this memory is not "
                "whole; open it again from its folder, or read anew"
            )

    def abandon(self) -> None:
        """Forget the chunk that was begun and not committed."""
        self._pending = None
        for layer in self._layers:
            layer.abandon()

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        softcap: float | None = None,
        sink_logits: Tensor | None = None,
    ) -> Tensor:
        """Attention of the begun chunk in one layer; reads and stages, so twice is the same as once.

        Args:
            query: ``[H, T, D]``, before rotation; key and value ``[K, T, D]``.
            scaling: factor on the logits.
            softcap: logits become ``softcap * tanh(logits / softcap)``.
            sink_logits: one logit per head that takes weight and has no value.

        Returns:
            ``[H, T, D]``, in the dtype of the query.

        Raises:
            InputError: no such chunk was begun, or gradients are asked for.
        """
        if self._pending is None or self._view is None or query.shape[1] != len(self._pending):
            begun = 0 if self._pending is None else len(self._pending)
            raise InputError(f"attend got {query.shape[1]} tokens, but the chunk that was begun has {begun}")
        if query.requires_grad or key.requires_grad or value.requires_grad:
            raise InputError("gradients do not go through a memory; call the model inside torch.no_grad()")
        options = AttentionOptions(scaling, softcap, sink_logits)
        return self._layers[layer_idx].attend(self._log, self._view, query, key, value, options)

    @torch.no_grad()
    def commit(self, token_ids: TokenIds, logits: Logits) -> None:
        """Append the chunk that every layer attended to, cut events, and index those that left the window.

        Args:
            token_ids: the tokens of the chunk.
            logits: row t is the prediction made after token t.

        Where there is no room for the chunk, the memory stays as it was; after any other error it refuses to
        go on (`check_whole`).

        Raises:
            ModelError: the logits are not finite; nothing is written.
            InputError: not all layers have attended, or the lengths are not those of the chunk.
        """
        staged = [layer.staged for layer in self._layers if layer.staged is not None]
        if len(staged) < len(self._layers):
            raise InputError(
                f"commit needs all {len(self._layers)} layers to have attended, got {len(staged)}"
            )
        num_new = staged[0].key.shape[1]
        if not len(token_ids) == len(logits) == num_new:
            raise InputError(
                f"commit got {len(token_ids)} tokens and {len(logits)} rows of logits, "
                f"but the chunk that was attended has {num_new}"
            )
        first = self.num_tokens
        chunk_surprise = self._cutter.surprise(token_ids, logits, first=first)
        self._log.append([s.key for s in staged], [s.value for s in staged], token_ids, chunk_surprise)
        self._is_torn = True
        for layer in self._layers:
            layer.commit()
        self._pending = None
        self.moment = Moment()
        self._events.close(self._cut(token_ids, chunk_surprise, logits, first=first))
        self._release_events()
        self._is_torn = False

    def _cut(self, token_ids: TokenIds, chunk_surprise: Surprise, logits: Logits, *, first: int) -> list[int]:
        """The boundaries that the chunk made final."""
        return self._cutter.advance(token_ids, chunk_surprise, logits, self._key_graph, first=first)

    def fork(self) -> Self:
        """A memory that begins with everything in this one; what either goes on to read stays its own."""
        self.check_whole()
        child = object.__new__(type(self))
        child.geometry, child.config = self.geometry, self.config
        child.piece_of = self.piece_of
        child.holes = self.holes
        child._log = self._log.fork()
        child._events = self._events.copy()
        child._cutter = self._cutter.fork()
        child._layers = [layer.fork(child._events) for layer in self._layers]
        child._pending = child._view = None
        child._is_torn = False
        child.moment = self.moment
        return child

    def rest(self) -> None:
        """Give back what is there for the next token only: an idle fork costs no more than its own tokens."""
        for layer in self._memory_layers:
            layer.rest()

    def closing_boundaries(self) -> list[int]:
        """Boundaries after the last closed event, as if the text ended here; changes nothing."""
        return self._cutter.closing(self._key_graph)

    def recallable_spans(self) -> NDArray[np.int64]:
        """Spans ``[n, 2]`` of the events that have left the local window, in time order."""
        return self._events.spans(0, self._events.num_recallable)

    @property
    def is_selective(self) -> bool:
        """Whether events have left the local window that cannot all be recalled at once."""
        view = self._current_view()
        ranked = any(layer.has_index for layer in self._memory_layers)
        return ranked and int(view.sizes.sum()) > view.recall_tokens

    def trace_recall(self, trace: RecallTrace | None = None) -> RecallTrace:
        """Record what is recalled from now on, over all layers, in a new trace or in one that is given."""
        trace = RecallTrace() if trace is None else trace
        for layer in self._memory_layers:
            layer.trace = trace
        return trace

    def end_trace(self) -> None:
        """Record no more."""
        for layer in self._memory_layers:
            layer.trace = None

    def observe_recall(self, observer: Observer | None) -> None:
        """Show an observer every recall that ranks events, layer by layer; None ends it. Forks have none."""
        for layer in self._memory_layers:
            layer.ranking.observer = observer

    def units_that_left(self) -> list[tuple[int, Unit]]:
        """Closed units that are raw, and that nothing asks for exactly any more."""
        before = min(
            self._current_view().local_start,
            self._events.recallable_stop,
            self._cutter.pending_start,
            *(one.raw_start(self.num_tokens) for one in self._layers if isinstance(one, WindowLayer)),
        )
        return raw_units(self._log, before)

    def _current_view(self) -> View:
        config, num_tokens = self.config, self.num_tokens
        window_start = max(num_tokens - config.local_tokens, 0)
        # The local view reaches back to the last recallable event, as far as the recall budget allows.
        earliest = max(window_start - config.recall_tokens, 0)
        local_start = min(max(self._events.recallable_stop, earliest), num_tokens)
        return View(
            num_tokens=num_tokens,
            sinks_stop=config.sink_tokens,
            local_start=local_start,
            recall_tokens=config.recall_tokens - max(window_start - local_start, 0),
            sizes=self._events.recallable_sizes(),
            holes=self.holes,
        )

    def _seal(self) -> None:
        """Encode the units that have left the window; without loss there is no hurry to.

        Done before a context is laid out and not while it lasts, so that one which is rebuilt from its plan
        holds the same bits.
        """
        if self._log.tiers is not None and not self._log.tiers.is_exact:
            with uninterrupted():  # in the midst of it a unit's tokens would lie nowhere
                seal(self._log, self.units_that_left())

    def _key_graph(self, start: int, stop: int) -> KeyGraph:
        return graph_of_span(self._log, self.geometry, self.config, start, stop)

    def _release_events(self) -> None:
        """Make recallable, and index, the events that have left the local window."""
        before, after = self._events.release(self.num_tokens - self.config.local_tokens)
        ranking = self._ranking_layers
        if after > before and ranking:
            spans = self._events.spans(before, after)
            frontier = self._events.frontier
            index_events(self._log, ranking, spans, frontier=frontier, dtype=self.geometry.dtype)

    @property
    def _memory_layers(self) -> list[MemoryLayer]:
        return [layer for layer in self._layers if isinstance(layer, MemoryLayer)]

    @property
    def _ranking_layers(self) -> list[MemoryLayer]:
        return [layer for layer in self._memory_layers if layer.has_index]
