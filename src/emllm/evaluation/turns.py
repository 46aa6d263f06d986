"""Two readers that take turns: a memory's, and the stock model's over a plain sliding window.

Each reads on where it stopped and tells the seconds that it took; in the other's turn the model is not
attached to, or not used. This module does not know what is made of the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from emllm.config import MemoryConfig
from emllm.evaluation.probe import synchronise
from emllm.lm import EpisodicLM
from emllm.reading import read_tokens


class MemoryReader:
    """Reads a text into a memory, turn by turn; the model is the stock model's in between."""

    def __init__(
        self,
        make_lm: Callable[[], EpisodicLM],
        token_ids: Sequence[int],
        *,
        config: MemoryConfig,
        chunk_tokens: int,
    ) -> None:
        self._make_lm = make_lm
        self._token_ids = token_ids
        self._chunk_tokens = chunk_tokens
        self._num_read = 0
        with make_lm() as lm:
            self.memory = lm.memory(config=config)

    def read(self, num_tokens: int) -> float:
        """Seconds of reading so many tokens on."""
        ids = self._token_ids[self._num_read : self._num_read + num_tokens]
        with self._make_lm() as lm:
            cache = lm.cache(self.memory)
            begun = time.perf_counter()
            read_tokens(lm.model, cache, ids, chunk_tokens=self._chunk_tokens)
            synchronise(lm.model.device)
            seconds = time.perf_counter() - begun
        self._num_read += len(ids)
        return seconds


class StockReader:
    """Reads a text, over and over, with the stock model and a cache, turn by turn."""

    def __init__(self, model: Any, cache: Any, token_ids: Sequence[int], *, chunk_tokens: int) -> None:
        self.cache = cache
        self._model = model
        self._ids = torch.tensor(list(token_ids), device=model.device)
        self._chunk_tokens = chunk_tokens
        self._num_read = 0

    @torch.no_grad()
    def read(self, num_tokens: int) -> float:
        """Seconds of reading so many tokens on."""
        at = torch.arange(self._num_read, self._num_read + num_tokens, device=self._ids.device) % len(
            self._ids
        )
        ids = self._ids[at][None]
        begun = time.perf_counter()
        for chunk in ids.split(self._chunk_tokens, dim=1):
            self._model(input_ids=chunk, past_key_values=self.cache, use_cache=True)
        synchronise(self._model.device)
        self._num_read += num_tokens
        return time.perf_counter() - begun
