"""Ids and surprise of every token of a log, in RAM: twelve bytes a token.

A fork shares what was there. This module does not know keys and values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIRST_TOKENS = 512


_Part = tuple[NDArray[np.int64], NDArray[np.float32]]


class TokenTable:
    """Ids and surprise, written by `append` only."""

    def __init__(self) -> None:
        self._inherited: tuple[_Part, ...] = ()
        self._num_inherited = 0
        self._num_own = 0
        self._token_ids = np.zeros(0, dtype=np.int64)
        self._surprise = np.zeros(0, dtype=np.float32)

    def __len__(self) -> int:
        return self._num_inherited + self._num_own

    def append(self, token_ids: NDArray[np.int64], surprise: NDArray[np.float32]) -> None:
        """Add tokens."""
        self.reserve(len(token_ids))
        needed = self._num_own + len(token_ids)
        self._token_ids[self._num_own : needed] = token_ids
        self._surprise[self._num_own : needed] = surprise
        self._num_own = needed

    def reserve(self, num_tokens: int) -> None:
        """Have room for so many tokens more: adding them cannot fail then."""
        needed = self._num_own + num_tokens
        if needed > len(self._token_ids):
            capacity = max(FIRST_TOKENS, needed * 3 // 2)
            columns = (self._token_ids, self._surprise)
            self._token_ids, self._surprise = (_grown(one, capacity, self._num_own) for one in columns)

    def token_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ids of a span."""
        return self._span(0, start, stop)

    def surprise(self, start: int, stop: int) -> NDArray[np.float32]:
        """Surprise of a span, in nats."""
        return self._span(1, start, stop)

    def fork(self) -> TokenTable:
        """The same tokens, to go on apart from this."""
        child = TokenTable()
        child._inherited, child._num_inherited = self._parts(), len(self)
        return child

    def _parts(self) -> tuple[_Part, ...]:
        own = (self._token_ids[: self._num_own], self._surprise[: self._num_own])
        return (*self._inherited, own) if self._num_own else self._inherited

    def _span(self, column: int, start: int, stop: int) -> NDArray:
        pieces, first = [], 0
        for part in self._parts():
            values = part[column]
            low, high = max(start - first, 0), min(stop - first, len(values))
            if low < high:
                pieces.append(values[low:high])
            first += len(values)
        empty = (self._token_ids, self._surprise)[column][:0]
        return pieces[0].copy() if len(pieces) == 1 else np.concatenate([empty, *pieces])


def _grown(array: NDArray, capacity: int, used: int) -> NDArray:
    larger = np.empty(capacity, dtype=array.dtype)
    larger[:used] = array[:used]
    return larger
