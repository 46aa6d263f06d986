"""Which queries of a chunk take part in a ranking.

A question looks for one thing, and a chunk that is read for everything it may go on with; so a question of a
few tokens asks with many of them. This module does not know what queries are compared with.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: A chunk of up to so many tokens is taken for a question, where text comes in longer ones.
ASKING_TOKENS = 256


def asking_tokens(chunk_tokens: int) -> int:
    """A chunk of 2 to so many tokens is taken for a question: always fewer than a chunk of text has."""
    return min(ASKING_TOKENS, max(chunk_tokens - 1, 1))


def mean_query(query: Float[Tensor, "H T D"]) -> Float[Tensor, "H 1 D"]:
    """The mean of a chunk's queries: all that a linear scorer needs."""
    return query.float().mean(dim=1, keepdim=True).to(query.dtype)


def evenly(query: Float[Tensor, "H T D"], num: int) -> Float[Tensor, "H votes D"]:
    """So many of a chunk's queries at even distances, the last included; all, where there are no more."""
    num_queries = query.shape[1]
    if num_queries <= num:
        return query
    return query[:, [round((i + 1) * num_queries / num) - 1 for i in range(num)]]


def longest(query: Float[Tensor, "H T D"], num: int) -> Float[Tensor, "H votes D"]:
    """The queries of so many tokens whose vectors are the longest, as the mean over heads.

    What they look for stands out most: a softmax is the more peaked the longer its query.
    """
    num = min(num, query.shape[1])
    lengths = torch.linalg.vector_norm(query.float(), dim=-1).mean(dim=0)
    return query[:, lengths.topk(num).indices.sort().values]


def part_means(query: Float[Tensor, "H T D"], num: int) -> Float[Tensor, "H votes D"]:
    """The mean query of each of so many parts of a chunk."""
    if query.shape[1] % num == 0:  # all at once takes two thirds of the time
        return query.unflatten(1, (num, -1)).mean(dim=2, dtype=torch.float32).to(query.dtype)
    means = [part.float().mean(dim=1) for part in query.tensor_split(num, dim=1)]
    return torch.stack(means, dim=1).to(query.dtype)
