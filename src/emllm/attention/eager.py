"""Attention with every logit written out: the reference, and the path for logits that no fused kernel forms.

Used with float64 tensors it is the oracle of the tests. It also serves models that cap their logits
(gemma 2), which the fused kernels cannot. This module does not know where the keys came from.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def eager_part(
    query: Float[Tensor, "H T D"],
    key: Float[Tensor, "K S D"],
    value: Float[Tensor, "K S E"],
    *,
    scaling: float,
    is_causal: bool = False,
    mask: Bool[Tensor, "T S"] | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "H T E"], Float[Tensor, "H T"]]:
    """Softmax attention over one part of the context, and the log of its normaliser.

    Args:
        is_causal: query t sees keys ``[0, t]`` of this part.
        mask: True where a query sees a key; excludes `is_causal`.
        softcap: logits become ``softcap * tanh(logits / softcap)``.

    Returns:
        Output in the dtype of `query`, and log-sum-exp of the logits in at least float32; a query that
        sees nothing has output 0 and log-sum-exp -inf.
    """
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    num_kv_heads = key.shape[0]
    grouped = query.to(compute).unflatten(0, (num_kv_heads, -1))
    logits = torch.einsum("KGTD,KSD->KGTS", grouped, key.to(compute)) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if is_causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.nan_to_num(neginf=0.0)[..., None])
    out = torch.einsum("KGTS,KSE->KGTE", weights, value.to(compute))
    return out.flatten(0, 1).to(query.dtype), lse.flatten(0, 1)
