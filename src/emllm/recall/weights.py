"""Weights that say which tokens of an event stand for it, gathered while they are in the local window.

Both measures look at the queries at most `local_tokens` later than a token, so that they do not depend
on how the text was cut into chunks. This module does not know what the weights are used for.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from emllm.dims import Keys


def attention_mass(
    query: Float[Tensor, "H T D"],
    key: Keys,
    lse: Float[Tensor, "H T"],
    *,
    scaling: float,
    local_tokens: int,
    softcap: float | None = None,
) -> Float[Tensor, "K S"]:
    """Attention that each key receives from the queries of a chunk, summed over a group's heads.

    The representative score of the released code (probability under the joint softmax over the whole
    context, EM-LLM section 3.3), counted once for every query that has the key in its local window.

    Args:
        query: rotated; the queries of the last T keys.
        key: rotated; local context and chunk.
        lse: log-sum-exp of each query's logits over everything it attended to.
        local_tokens: a query counts for the `local_tokens` keys that end with its own.
    """
    num_kv_heads, num_keys, _ = key.shape
    num_queries = query.shape[1]
    grouped = (query * scaling).to(key.dtype).unflatten(0, (num_kv_heads, -1))
    normaliser = lse.unflatten(0, (num_kv_heads, -1))
    # Only keys that are younger than the first query, or too old for the last one, need a mask.
    num_older = num_keys - num_queries
    num_leaving = max(0, min(num_keys - local_tokens, num_older))
    distance = torch.arange(num_queries, device=key.device)[:, None] + num_older
    too_old = distance - torch.arange(num_leaving, device=key.device) >= local_tokens
    own = distance - torch.arange(num_older, num_keys, device=key.device)
    hidden = (own < 0) | (own >= local_tokens)
    ones = torch.ones(1, num_queries, dtype=torch.float32, device=key.device)
    mass = torch.zeros(num_kv_heads, num_keys, dtype=torch.float32, device=key.device)
    for head in range(num_kv_heads):  # a head's logits at a time stay in cache
        for member in range(grouped.shape[1]):
            logits = (grouped[head, member] @ key[head].T).float()
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            shares = logits.sub_(normaliser[head, member][:, None]).exp_()
            shares[:, num_older:].masked_fill_(hidden, 0.0)
            shares[:, :num_leaving].masked_fill_(too_old, 0.0)
            mass[head] += (ones @ shares)[0]
    return mass


def mean_logit(key: Keys, query_sums: Float[Tensor, "K P D"], *, local_tokens: int) -> Float[Tensor, "K S"]:
    """Mean raw logit of each key over the `local_tokens` queries after it (InfLLM, section 3.2).

    ``r_m = 1 / l_L * sum_j q_{m+j} k_m`` is linear in the queries, so prefix sums of them suffice: no
    logit is ever formed. Queries and keys are unrotated.

    Args:
        key: S consecutive tokens.
        query_sums: per KV head the sum of its group's queries, for the tokens from the first key on;
            at least ``S + local_tokens`` of them.
    """
    num_keys = key.shape[1]
    prefix = torch.cumsum(query_sums.float(), dim=1)
    later = prefix[:, local_tokens : local_tokens + num_keys] - prefix[:, :num_keys]
    return torch.einsum("KSD,KSD->KS", key.float(), later) / local_tokens
