"""What attention itself would have recalled: every event's share of exact attention over all stored tokens.

The oracle that cheaper rankings are held against, and a way to rank of its own (``scorer="exact"``). It reads
every key of the log at every recall, so its cost grows with the text. This module does not know where keys
lie.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emllm.dims import Keys, Scores

#: Tokens whose keys are looked at together, and logits that exist at a time.
BLOCK_TOKENS = 8192
LOGITS_AT_ONCE = 1 << 24

#: Keys of the tokens ``[start, stop)`` of those that are ranked, unrotated.
KeysOf = Callable[[int, int], Keys]


def event_mass(
    query: Float[Tensor, "H T D"], keys_of: KeysOf, sizes: Int[Tensor, " N"], *, scaling: float
) -> Float[Tensor, "K Q N"]:
    """Each query's softmax attention over the tokens of all events, added up per event.

    The Q queries of a KV head are those of its group, head by head. Every token is seen at one distance, as
    in every ranking; ``H Q`` rows of numbers exist for all tokens at a time, so give few queries.

    Args:
        query: turned as at the end of the local window.
        keys_of: the keys of a span of tokens; the events follow one another without gaps in it.
        sizes: tokens of each event.
    """
    num_tokens = int(sizes.sum())
    blocks = [(start, min(start + BLOCK_TOKENS, num_tokens)) for start in range(0, num_tokens, BLOCK_TOKENS)]
    logits: list[Tensor] = []
    grouped = query
    for start, stop in blocks:
        keys = keys_of(start, stop)
        if not logits:
            grouped = (query * scaling).to(keys.dtype).reshape(len(keys), -1, keys.shape[-1])
        logits.append(torch.matmul(grouped, keys.transpose(1, 2)).float())
    shares = torch.softmax(torch.cat(logits, dim=-1), dim=-1)
    event_idx = torch.repeat_interleave(
        torch.arange(len(sizes), device=shares.device), sizes.to(shares.device)
    )
    mass = shares.new_zeros(*shares.shape[:2], len(sizes))
    return mass.index_add_(2, event_idx, shares)


def exact(query: Float[Tensor, "H T D"], keys_of: KeysOf, sizes: Int[Tensor, " N"], scaling: float) -> Scores:
    """Exact votes: the sum over KV heads of the largest share of its attention that any query gives an event.

    What `recall.scorers.votes` estimates from a few keys of each event.
    """
    num_kv_heads = keys_of(0, 1).shape[0]
    groups = query.shape[0] // num_kv_heads
    at_once = max(1, LOGITS_AT_ONCE // max(1, int(sizes.sum()) * num_kv_heads * groups))
    best: Tensor | None = None
    for some in query.split(at_once, dim=1):
        largest = event_mass(some, keys_of, sizes, scaling=scaling).amax(dim=1)
        best = largest if best is None else torch.maximum(best, largest)
    assert best is not None
    return best.sum(dim=0)
