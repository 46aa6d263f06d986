"""Ids and surprise of every token of a log, in RAM: twelve bytes a token.

A fork shares what was there. This module does not know keys and values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIRST_TOKENS = 512


class TokenTable:
    """Ids and surprise, written by `append` and `erase` only."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self._token_ids = np.zeros(0, dtype=np.int64)
        self._surprise = np.zeros(0, dtype=np.float32)

    def __len__(self) -> int:
        return self._num_tokens

    def append(self, token_ids: NDArray[np.int64], surprise: NDArray[np.float32]) -> None:
        """Add tokens."""
        needed = self._num_tokens + len(token_ids)
        if needed > len(self._token_ids):
            capacity = max(FIRST_TOKENS, needed * 3 // 2)
            self._token_ids = _grown(self._token_ids, capacity, self._num_tokens)
            self._surprise = _grown(self._surprise, capacity, self._num_tokens)
        self._token_ids[self._num_tokens : needed] = token_ids
        self._surprise[self._num_tokens : needed] = surprise
        self._num_tokens = needed

    def token_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ids of a span."""
        return self._token_ids[start : min(stop, self._num_tokens)].copy()

    def surprise(self, start: int, stop: int) -> NDArray[np.float32]:
        """Surprise of a span, in nats."""
        return self._surprise[start : min(stop, self._num_tokens)].copy()

    def fork(self) -> TokenTable:
        """The same tokens, to go on apart from this."""
        child = TokenTable()
        # Rows past num_tokens belong to the parent; the child grows into arrays of its own.
        child._num_tokens = self._num_tokens
        child._token_ids = self._token_ids[: self._num_tokens]
        child._surprise = self._surprise[: self._num_tokens]
        return child


def _grown(array: NDArray, capacity: int, used: int) -> NDArray:
    larger = np.empty(capacity, dtype=array.dtype)
    larger[:used] = array[:used]
    return larger
