"""What the memory tells a layer of a chunk, what the layer stages for it, and what stays between chunks.

Records without behaviour of their own, shared by the kinds of layers. This module does not know who fills
them in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emllm.attention.context import ContextPlan, LayerContext
from emllm.recall.exact import KeysOf
from emllm.recall.index import IndexPart
from emllm.recall.shortlist import Shortlist


@dataclass(frozen=True)
class AttentionOptions:
    """What a layer's own attention adds to plain softmax attention."""

    scaling: float
    softcap: float | None = None
    sink_logits: Tensor | None = None


@dataclass(frozen=True)
class View:
    """What every layer is told about the log before a chunk.

    Attributes:
        num_tokens: tokens in the log; the chunk comes after them.
        sinks_stop: first token after the sinks.
        local_start: first token of the local view.
        recall_tokens: budget for recalled events, the overhang of the local view taken off.
        sizes: tokens of each recallable event.
        holes: spans ``[n, 2]`` of the log that were forgotten.
    """

    num_tokens: int
    sinks_stop: int
    local_start: int
    recall_tokens: int
    sizes: NDArray[np.int64]
    holes: NDArray[np.int64]

    def alive(self, start: int, stop: int) -> NDArray[np.int64]:
        """The tokens of a span that were not forgotten."""
        return alive(start, stop, self.holes)


def alive(start: int, stop: int, holes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tokens of a span that lie in none of the holes ``[n, 2]``."""
    token_idx = np.arange(start, stop)
    for hole_start, hole_stop in holes:
        if hole_start < stop and start < hole_stop:
            token_idx = token_idx[(token_idx < hole_start) | (token_idx >= hole_stop)]
    return token_idx


@dataclass
class Staged:
    """What a layer computed for a chunk that is not committed yet."""

    key: Tensor
    value: Tensor
    context: LayerContext | None = None
    queue: list[int] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    query_sums: Tensor | None = None
    mass: Tensor | None = None
    trace: tuple[NDArray[np.float32], list[int]] | None = None
    shortlist: Shortlist | None = None
    is_recall: bool = False


@dataclass(frozen=True)
class RecallMoment:
    """One recall of a layer, for whoever observes it; its tensors and arrays are not to be written to.

    Attributes:
        query: that recalls, ``[H, T, D]``, before rotation.
        turned: queries as they are compared with events, all at one distance.
        keys_of: the keys of all tokens that may be recalled, event after event.
        parts: the event keys.
        sizes: tokens of each event.
        scaling: factor on the logits.
        is_asking: whether the chunk is a question, or is decoded; else it is read.
        scores: of all events, or of the candidates.
        candidates: events that were ranked, ascending; None is all.
        recalled: events that were recalled, in time order.
    """

    layer_idx: int
    query: Tensor
    turned: Callable[[Tensor], Tensor]
    keys_of: KeysOf
    parts: Sequence[IndexPart]
    sizes: NDArray[np.int64]
    scaling: float
    is_asking: bool
    scores: NDArray[np.float32]
    candidates: NDArray[np.int64] | None
    recalled: list[int]


Observer = Callable[[RecallMoment], None]


@dataclass(frozen=True)
class LayerState:
    """What a layer keeps from one chunk to the next, so that it can go on elsewhere.

    Attributes:
        plan: the committed context.
        queue: the contiguity queue.
        queries: those since the last recall while decoding, ``[H, T, D]``.
        weights: of tokens that have no event key yet.
        shortlist: the best events of the last ranking of all.
        num_recalls: recalls so far.
    """

    plan: ContextPlan | None
    queue: list[int]
    queries: Tensor | None
    weights: Tensor | None
    shortlist: Shortlist | None = None
    num_recalls: int = 0
