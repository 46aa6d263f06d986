"""Plain sliding-window attention, for the layers of hybrid models that never see further.

These layers get no memory: query t sees the keys in ``(t - window_tokens, t]``, as in the stock model.
This module does not know the log; it is given the keys of the window.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from emllm.attention.fused import attend_part, merge
from emllm.attention.rotary import Rotation, rotate


def window_mask(
    num_queries: int, num_keys: int, window_tokens: int, device: torch.device
) -> Bool[Tensor, "T S"]:
    """True where a query sees a key; the last key is the last query's own."""
    distance = (
        torch.arange(num_queries, device=device)[:, None]
        + (num_keys - num_queries)
        - torch.arange(num_keys, device=device)
    )
    return (distance >= 0) & (distance < window_tokens)


def attend_window(
    query: Float[Tensor, "H T D"],
    key: Float[Tensor, "K S D"],
    value: Float[Tensor, "K S E"],
    *,
    rotation: Rotation,
    window_tokens: int,
    scaling: float,
    softcap: float | None = None,
    sink_logits: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "H T E"]:
    """Causal attention of the last T of S tokens within a sliding window; keys and queries unrotated."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    if rotation.table is not None:
        cos, sin = rotation.table.cos_sin(num_keys)
        query = rotate(query, cos[-num_queries:], sin[-num_queries:], rotation)
        key = rotate(key, cos, sin, rotation)
    mask = None
    if num_queries > 1 or num_keys > window_tokens:
        mask = window_mask(num_queries, num_keys, window_tokens, query.device)
    part = attend_part(query, key, value, scaling=scaling, mask=mask, softcap=softcap)
    return merge([part], sink_logits=sink_logits)[0]
