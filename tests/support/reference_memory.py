"""The simplest memory there is, for checking others against: it remembers everything, in eager float math."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from emllm.attention.geometry import ModelGeometry
from emllm.attention.rotary import rotate


class ReferenceMemory:
    """Keeps every key unrotated, rotates all of them at every call, attends to all (or to the window)."""

    def __init__(self, geometry: ModelGeometry) -> None:
        self.geometry = geometry
        self.token_ids: list[int] = []
        self.logits: list[Tensor] = []
        self._log: dict[int, tuple[Tensor, Tensor]] = {}
        self._staged: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def begin_chunk(self, token_ids: Tensor) -> None:
        assert token_ids.ndim == 1
        self._staged = {}

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
        layer = self.geometry.layers[layer_idx]
        assert query.shape[0] == layer.num_heads and query.shape[2] == layer.head_dim
        assert key.shape[0] == layer.num_kv_heads and value.shape[2] == layer.value_dim
        if layer_idx in self._log:
            past_key, past_value = self._log[layer_idx]
            key, value = torch.cat((past_key, key), 1), torch.cat((past_value, value), 1)
        self._staged[layer_idx] = key, value
        num_new, num_all = query.shape[1], key.shape[1]
        if layer.rotation.table is not None:
            cos, sin = layer.rotation.table.cos_sin(num_all)
            query = rotate(query, cos[-num_new:], sin[-num_new:], layer.rotation)
            key = rotate(key, cos, sin, layer.rotation)
        groups = layer.num_heads // layer.num_kv_heads
        logits = (
            torch.einsum("HTD,HSD->HTS", query.float(), key.float().repeat_interleave(groups, 0)) * scaling
        )
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        distance = torch.arange(num_all - num_new, num_all)[:, None] - torch.arange(num_all)
        is_hidden = distance < 0
        if layer.window_tokens is not None:
            is_hidden |= distance >= layer.window_tokens
        logits = logits.masked_fill(is_hidden, float("-inf"))
        if sink_logits is not None:
            logits = torch.cat((logits, sink_logits.float()[:, None, None].expand(-1, num_new, 1)), -1)
        weights = logits.softmax(-1)[..., :num_all]
        output = torch.einsum("HTS,HSD->HTD", weights, value.float().repeat_interleave(groups, 0))
        return output.to(value.dtype)

    def commit(self, token_ids: Tensor, logits: Tensor) -> None:
        assert len(self._staged) == self.geometry.num_layers
        assert logits.shape == (len(token_ids), self.geometry.vocab_size)
        self._log, self._staged = self._staged, {}
        self.token_ids += token_ids.tolist()
        self.logits.append(logits.detach())

    def fork(self) -> ReferenceMemory:
        child = copy.copy(self)
        child.token_ids, child.logits = list(self.token_ids), list(self.logits)
        return child
