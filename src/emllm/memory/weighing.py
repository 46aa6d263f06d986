"""What the tokens of a layer weigh until an event key holds them: sums over the queries that saw them.

This module does not know events or how keys are made of weights (`emllm.recall.event_keys`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from emllm.attention.context import ContextPlan
from emllm.attention.geometry import LayerGeometry
from emllm.config import ResolvedConfig
from emllm.memory.staging import AttentionOptions, Staged
from emllm.recall.event_keys import WEIGHTS_NEEDED
from emllm.recall.weights import attention_mass, mean_logit


class TokenWeights:
    """Weights of the oldest tokens of a layer that are in no event key yet.

    Attributes:
        values: ``[H_kv, T]`` attention mass, or ``[H_kv, T, D]`` sums of queries, whichever `event_key` needs
            (Eq. 3 of InfLLM, and EM-LLM's code); None where it needs none, or nothing was read yet.
    """

    def __init__(self, geometry: LayerGeometry, config: ResolvedConfig, *, is_needed: bool) -> None:
        self._num_kv_heads = geometry.num_kv_heads
        self._local_tokens = config.local_tokens
        self._needs = WEIGHTS_NEEDED[config.event_key] if is_needed else None
        self.values: Tensor | None = None

    def stage(
        self,
        staged: Staged,
        *,
        num_tokens: int,
        unindexed: int,
        query: Tensor,
        near_query: Tensor,
        lse: Tensor,
        options: AttentionOptions,
    ) -> None:
        """Collect what the event keys will need of a chunk's queries.

        Args:
            num_tokens: in the log before the chunk.
            unindexed: the first token that is in no event key.
            query: ``[H, T, D]``, before rotation.
            near_query: the same as they attended to the local window.
            lse: log-sum-exp of their logits.
        """
        if self._needs == "logit":
            sums = query.unflatten(0, (self._num_kv_heads, -1)).float().sum(dim=1)
            staged.query_sums = sums[:, max(0, unindexed - num_tokens) :]
        elif self._needs == "mass":
            assert staged.context is not None
            plan = staged.context.plan
            stop = len(plan.token_idx) + plan.num_chunk + query.shape[1]
            start = len(plan.token_idx) - plan.num_local
            mass = attention_mass(
                near_query,
                staged.context.buffers.keys[start:stop].transpose(0, 1),
                lse,
                scaling=options.scaling,
                local_tokens=self._local_tokens,
                softcap=options.softcap,
            )
            num_columns = max(0, num_tokens + query.shape[1] - unindexed)
            if plan.num_local and plan.token_idx[-1] - plan.token_idx[-plan.num_local] >= plan.num_local:
                mass = _spread_columns(mass, plan, num_tokens + query.shape[1])
            staged.mass = _last_columns(mass, num_columns)

    def commit(self, staged: Staged) -> None:
        """Add what was staged for a chunk."""
        if staged.query_sums is not None:
            self.values = _joined(self.values, staged.query_sums)
        if staged.mass is not None:
            self.values = _added(self.values, staged.mass)

    def of(self, keys: Tensor, *, alive: Tensor | None = None) -> Tensor | None:
        """Weights of the oldest tokens.

        Args:
            keys: of these tokens.
            alive: which of the oldest tokens they are, where some in between were forgotten.
        """
        if self.values is None:
            return None
        if self._needs == "logit":
            if alive is not None:
                whole = keys.new_zeros(keys.shape[0], int(alive[-1]) + 1, keys.shape[2])
                whole[:, alive.to(keys.device)] = keys
                keys = whole
            weights = mean_logit(keys, self.values, local_tokens=self._local_tokens)
        else:
            weights = self.values[:, : keys.shape[1] if alive is None else int(alive[-1]) + 1]
        return weights if alive is None else weights[:, alive.to(weights.device)]

    def drop(self, num_tokens: int) -> None:
        """Forget the weights of the oldest tokens, which are in event keys now."""
        if self.values is not None:
            self.values = self.values[:, num_tokens:]


def _last_columns(x: Tensor, num: int) -> Tensor:
    """The last `num` columns, with zeros in front where there are fewer."""
    num_columns = x.shape[1]
    if num <= num_columns:
        return x[:, num_columns - num :]
    return torch.cat([x.new_zeros(len(x), num - num_columns), x], dim=1)


def _spread_columns(x: Tensor, plan: ContextPlan, num_tokens: int) -> Tensor:
    """The columns of a local view with holes at their places, zeros for what was forgotten."""
    first = int(plan.token_idx[-plan.num_local])
    places = torch.from_numpy(plan.token_idx[-plan.num_local :] - first)
    spread = x.new_zeros(len(x), num_tokens - first)
    spread[:, places.to(x.device)] = x[:, : plan.num_local]
    num_chunk = x.shape[1] - plan.num_local
    spread[:, num_tokens - first - num_chunk :] = x[:, plan.num_local :]
    return spread


def _joined(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.cat([old, new], dim=1)


def _added(old: Tensor | None, new: Tensor) -> Tensor:
    """The sum of the weights so far and those of a chunk, which cover more tokens."""
    if old is not None:
        new[:, : old.shape[1]] += old
    return new
