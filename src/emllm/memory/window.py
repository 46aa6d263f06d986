"""A sliding-window layer of a hybrid model: no recall, the window only.

This module does not know events.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emllm.attention.geometry import LayerGeometry
from emllm.attention.window import attend_window
from emllm.memory.events import EventTable
from emllm.memory.staging import AttentionOptions, Staged, View
from emllm.store.log import Log


class WindowLayer:
    """A layer that sees its own sliding window and nothing else."""

    def __init__(self, layer_idx: int, geometry: LayerGeometry) -> None:
        assert geometry.window_tokens is not None
        self.layer_idx = layer_idx
        self.geometry = geometry
        self._window_tokens = geometry.window_tokens
        self.staged: Staged | None = None

    def attend(
        self, log: Log, view: View, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions
    ) -> Tensor:
        """Sliding-window attention of the chunk; stages its keys and values."""
        self.staged = Staged(key, value)
        old = view.alive(max(0, view.num_tokens - self._window_tokens + 1), view.num_tokens)
        old_key = key.new_empty(len(old), key.shape[0], key.shape[-1])
        old_value = value.new_empty(len(old), value.shape[0], value.shape[-1])
        log.gather(self.layer_idx, old, keys=old_key, values=old_value)
        return attend_window(
            query,
            torch.cat([old_key.transpose(0, 1), key], dim=1),
            torch.cat([old_value.transpose(0, 1), value], dim=1),
            rotation=self.geometry.rotation,
            window_tokens=self._window_tokens,
            scaling=options.scaling,
            softcap=options.softcap,
            sink_logits=options.sink_logits,
        )

    def commit(self) -> None:
        """Forget what was staged; the log has it now."""
        self.staged = None

    def abandon(self) -> None:
        """Forget what was staged."""
        self.staged = None

    def raw_start(self, num_tokens: int) -> int:
        """The first token that this layer may ask for exactly as it was computed."""
        return max(0, num_tokens - self._window_tokens + 1)

    def fork(self, events: EventTable) -> WindowLayer:
        """The same layer for a fork; events mean nothing to it."""
        return WindowLayer(self.layer_idx, self.geometry)
