"""Dot products of queries with event keys: the best of each event's keys for every query.

Two ways, by how the keys are stored: a matrix product in the keys' own precision, or one of integers, which
is exact. This module does not know what is made of the numbers.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from emllm.recall.index import IndexPart

#: Products that are formed at once, so that they stay in cache.
CACHED_PRODUCTS = 1 << 19
LEAST_EVENTS = 256


def best_logits(queries: Float[Tensor, "K Q D"], part: IndexPart) -> Float[Tensor, "K Q N"]:
    """For every query and event the largest dot product with one of the event's keys.

    With int8 keys the queries are rounded to int8 too, and every query's numbers are off by a constant of its
    own: what all keys have in common (`recall.index.Int8`).
    """
    if part.scales is None:
        # Keys first: with the queries first the product copies every key, five times the cost.
        columns = queries.to(part.keys.dtype).transpose(1, 2)
        products = [torch.bmm(keys, columns) for keys in part.keys.unbind(dim=1)]
        return functools.reduce(torch.maximum, products).float().transpose(1, 2).contiguous()
    steps, query_scales = rounded(queries)
    logits = queries.new_empty(*queries.shape[:2], part.num_events, dtype=torch.float32)
    num_products = queries.shape[0] * queries.shape[1] * part.keys.shape[1]
    at_once = max(LEAST_EVENTS, CACHED_PRODUCTS // num_products)
    for start in range(0, part.num_events, at_once):
        some = part.events(start, start + at_once)
        assert some.scales is not None
        block = logits[:, :, start : start + at_once].copy_(_best_products(steps, some.keys))
        block.mul_(some.scales[:, None]).mul_(query_scales)
    return logits


def rounded(queries: Float[Tensor, "K Q D"]) -> tuple[Int8[Tensor, "K Q D"], Float[Tensor, "K Q 1"]]:
    """Queries in 127 steps of their largest feature, and the steps' sizes."""
    queries = queries.float()
    scales = queries.abs().amax(dim=-1, keepdim=True) / 127
    scales = torch.where(scales > 0, scales, 1.0)
    return (queries / scales).round_().to(torch.int8), scales


def _best_products(queries: Int8[Tensor, "K Q D"], keys: Int8[Tensor, "K R N D"]) -> Tensor:
    """The largest integer product over an event's keys, ``[K, Q, N]`` int32."""
    if keys.is_cuda:
        # Exact in float32: no sum of products of bytes reaches 2**24 below 1,040 features.
        products = torch.einsum("KQD,KRND->KRQN", queries.float(), keys.float())
        return products.amax(dim=1)
    num_kv_heads, num_representatives, num_events, _ = keys.shape
    products = torch.empty(
        num_kv_heads, num_representatives, queries.shape[1], num_events, dtype=torch.int32, device=keys.device
    )
    for head in range(num_kv_heads):
        for representative in range(num_representatives):
            torch._int_mm(queries[head], keys[head, representative].T, out=products[head, representative])
    return functools.reduce(torch.maximum, products.unbind(dim=1))
