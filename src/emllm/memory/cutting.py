"""From logits to events: surprise across the border of chunks, the segmenter's signal, new boundaries.

Holds what one chunk must leave for the next: the last prediction, and the state of the segmenter. This
module does not know layers or the log; it is given the keys that a refinement asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.config import ResolvedConfig
from emllm.dims import Logits, Surprise, TokenIds
from emllm.errors import InputError
from emllm.segmentation.baselines import NEEDS, POSITION_FLAGS, SentenceStarts
from emllm.segmentation.segmenter import EventSegmenter, GraphMaker
from emllm.segmentation.surprise import check_finite, kl_surprise, surprise

#: Text of a token id.
PieceOf = Callable[[int], str]


class EventCutter:
    """Turns chunks into final boundaries. `advance` alone writes.

    Args:
        config: settings of the segmenter.
        piece_of: needed by the `sentence` segmenter only.
    """

    def __init__(self, config: ResolvedConfig, *, piece_of: PieceOf | None = None) -> None:
        if NEEDS[config.segmenter] == "text" and piece_of is None:
            raise InputError(f"segmenter={config.segmenter} needs the text of the tokens, got no tokenizer")
        self._config = config
        self._piece_of = piece_of
        self._segmenter = EventSegmenter(config, start=config.sink_tokens)
        self._sentences = SentenceStarts()
        self._last_logits: Tensor | None = None

    def surprise(self, token_ids: TokenIds, logits: Logits, *, first: int) -> Surprise:
        """Surprise of a chunk's tokens in nats, NaN for the very first token; changes nothing.

        Args:
            logits: row t is the prediction made after token t.
            first: position of the chunk's first token.

        Raises:
            ModelError: some logits are not finite, those after the last token included.
        """
        own = surprise(logits[:-1], token_ids[1:], first=first)
        if self._last_logits is None:
            before = own.new_full((1,), torch.nan)
        else:
            before = surprise(self._last_logits[None], token_ids[:1], first=first)
        check_finite(logits[-1:].amax(dim=-1), first=first + len(token_ids) - 1)
        return torch.cat([before, own])

    def advance(
        self, token_ids: TokenIds, chunk_surprise: Surprise, logits: Logits, graph: GraphMaker, *, first: int
    ) -> list[int]:
        """The boundaries that became final with this chunk, whose tokens the log must hold already."""
        signal = self._signal(token_ids, chunk_surprise, logits, first)
        self._last_logits = logits[-1].clone()
        return self._segmenter.extend(signal, graph)

    def _signal(
        self, token_ids: TokenIds, chunk_surprise: Surprise, logits: Logits, first: int
    ) -> NDArray[np.float64] | NDArray[np.bool_]:
        config = self._config
        if config.segmenter in POSITION_FLAGS:
            return POSITION_FLAGS[config.segmenter](config, config.sink_tokens)(first, len(token_ids))
        if config.segmenter == "sentence":
            assert self._piece_of is not None
            return self._sentences.extend([self._piece_of(token) for token in token_ids.tolist()])
        values = self._kl(logits, first) if config.segmenter == "kl" else chunk_surprise
        return values.cpu().double().numpy()

    def _kl(self, logits: Logits, first: int) -> Surprise:
        own = kl_surprise(logits[1:], logits[:-1], first=first + 1)
        if self._last_logits is None:
            return torch.cat([own.new_full((1,), torch.nan), own])
        return torch.cat([kl_surprise(logits[:1], self._last_logits[None], first=first), own])

    def restart(self, graph: GraphMaker) -> list[int]:
        """End the open event where a document begins or ends: the boundaries that this makes final."""
        return self._segmenter.restart(graph)

    @property
    def pending_start(self) -> int:
        """The smallest token whose keys a later refinement may still ask for."""
        return self._segmenter.pending_start

    def state(self) -> tuple[dict[str, Any], Tensor | None]:
        """All that one chunk leaves for the next: numbers for JSON, and the last prediction."""
        numbers = {"segmenter": self._segmenter.state(), "sentences": self._sentences.state()}
        return numbers, self._last_logits

    def restore(self, numbers: Mapping[str, Any], last_logits: Tensor | None) -> None:
        """Go on where another cutter of the same settings was."""
        self._segmenter = EventSegmenter.from_state(numbers["segmenter"], config=self._config)
        self._sentences = SentenceStarts.from_state(numbers["sentences"])
        self._last_logits = last_logits

    def closing(self, graph: GraphMaker) -> list[int]:
        """The boundaries that would become final if the text ended here; changes nothing."""
        return self._segmenter.copy().finish(graph)

    def fork(self) -> EventCutter:
        """An independent continuation from here."""
        child = EventCutter(self._config, piece_of=self._piece_of)
        child._segmenter = self._segmenter.copy()
        child._sentences = self._sentences.copy()
        child._last_logits = self._last_logits
        return child
