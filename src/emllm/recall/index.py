"""The event keys of one layer, growing as events leave the local window.

A fork shares what was there and adds to a part of its own. Only `append` writes. Keys are stored by
representative, so that a ranking that looks at the first few of them reads no more than those. This module
does not know how keys are made or compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emllm.dims import EventKeys

FIRST_EVENTS = 256


class EventIndex:
    """Event keys ``[K, N, R, D]`` of one layer, as a short list of parts in time order."""

    def __init__(self, inherited: tuple[Tensor, ...] = ()) -> None:
        self._inherited = inherited
        self._own: Tensor | None = None
        self._num_own = 0

    def __len__(self) -> int:
        return sum(part.shape[1] for part in self._inherited) + self._num_own

    def append(self, event_keys: EventKeys) -> None:
        """Add events, later than all that are here."""
        needed = self._num_own + event_keys.shape[1]
        if self._own is None or needed > self._own.shape[2]:
            num_kv_heads, _, num_representatives, head_dim = event_keys.shape
            with torch.inference_mode(False):
                larger = event_keys.new_empty(
                    num_kv_heads, num_representatives, max(FIRST_EVENTS, needed * 3 // 2), head_dim
                )
            if self._own is not None:
                larger[:, :, : self._num_own] = self._own[:, :, : self._num_own]
            self._own = larger
        self._own[:, :, self._num_own : needed] = event_keys.transpose(1, 2)
        self._num_own = needed

    def parts(self) -> tuple[EventKeys, ...]:
        """All event keys, as views in time order; not to be written to."""
        own = () if self._own is None else (self._own[:, :, : self._num_own].transpose(1, 2),)
        return (*self._inherited, *own)

    def fork(self) -> EventIndex:
        """An index that begins with everything in this one."""
        return EventIndex(self.parts())
