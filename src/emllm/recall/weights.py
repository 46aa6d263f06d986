"""Weights that say which tokens of an event stand for it, gathered while they are in the local window.

Both measures look at the queries at most `local_tokens` later than a token, so that they do not depend
on how the text was cut into chunks. This module does not know what the weights are used for.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from emllm.dims import Keys

#: Queries whose logits exist at once: with many, most of their keys are in the window of some of them only.
QUERIES_AT_ONCE = 128


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
    num_older = num_keys - num_queries
    grouped = (query * scaling).to(key.dtype).unflatten(0, (num_kv_heads, -1))
    normaliser = lse.unflatten(0, (num_kv_heads, -1))[..., None]
    mass = torch.zeros(num_kv_heads, num_keys, dtype=torch.float32, device=key.device)
    for start in range(0, num_queries, QUERIES_AT_ONCE):
        rows = slice(start, min(start + QUERIES_AT_ONCE, num_queries))
        own = torch.arange(num_older + rows.start, num_older + rows.stop, device=key.device)[:, None]
        seen = slice(max(num_older + rows.start - local_tokens + 1, 0), num_older + rows.stop)
        # Only keys that are younger than the first query, or too old for the last one, need a mask.
        num_leaving = max(seen.stop - local_tokens - seen.start, 0)
        num_own = rows.stop - rows.start
        ends = [slice(0, num_leaving), slice(seen.stop - seen.start - num_own, seen.stop - seen.start)]
        places = torch.arange(seen.start, seen.stop, device=key.device)
        hidden = [(own < places[end]) | (own - places[end] >= local_tokens) for end in ends]
        for head in range(num_kv_heads):  # a head's logits at a time stay in cache
            queries = grouped[head, :, rows]
            logits = (queries.flatten(0, 1) @ key[head, seen].T).float().view(*queries.shape[:2], -1)
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            shares = logits.sub_(normaliser[head, :, rows]).exp_()
            for end, mask in zip(ends, hidden, strict=True):
                shares[..., end].masked_fill_(mask, 0.0)
            mass[head, seen] += shares.new_ones(shares.shape[:2].numel()) @ shares.flatten(0, 1)
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
