"""Queries against event keys: the best dot product with each event's keys, and how much a query gives to all.

Two ways, by how the keys are stored: a matrix product in the keys' own precision, or one of integers, which
is exact. What follows a product costs more than the product, so it is done while the numbers are in cache.
This module does not know what is made of the numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

from emllm.recall.index import IndexPart

#: Numbers that are formed at once, for all heads and queries, so that they stay in cache.
CACHED_LOGITS = 1 << 19
LEAST_EVENTS = 256
#: Events whose keys are copied rather than multiplied one representative after the other.
COPIED_EVENTS = 1024


def best_logits(
    queries: Float[Tensor, "K Q D"], parts: Sequence[IndexPart]
) -> tuple[Float[Tensor, "K Q N"], Float[Tensor, "K Q"]]:
    """For every query and event the largest dot product with one of the event's keys, and their log-sum-exp.

    With int8 keys the queries are rounded to int8 too, and every query's numbers are off by a constant of its
    own: what all keys have in common (`recall.index.Int8`). Sums are formed over the same events whatever the
    parts, so that they are the same bits however an index is cut.
    """
    num_events = sum(part.num_events for part in parts)
    logits = queries.new_empty(*queries.shape[:2], num_events, dtype=torch.float32)
    asked = rounded(queries) if any(part.scales is not None for part in parts) else None
    sums = []
    for start, pieces in _in_blocks(parts, block_events(*queries.shape[:2])):
        first = start
        for piece in pieces:
            place = logits[:, :, first : first + piece.num_events]
            if piece.scales is None or asked is None:
                place.copy_(_float_products(queries, piece))
            else:
                steps, scales = asked
                best = _all_byte_products(steps, piece.keys).amax(dim=1)
                place.copy_(best).mul_(piece.scales[:, None]).mul_(scales)
            first += piece.num_events
        sums.append(torch.logsumexp(logits[:, :, start:first], dim=-1))
    return logits, sums[0] if len(sums) == 1 else torch.logsumexp(torch.stack(sums), dim=0)


def most_standing_out(logits: Float[Tensor, "K Q N"], lse: Float[Tensor, "K Q"]) -> Float[Tensor, "K N"]:
    """The largest log share that any query of a head gives an event; `logits` are used up."""
    best = logits.new_empty(logits.shape[0], logits.shape[2])
    at_once = block_events(*logits.shape[:2])
    for start in range(0, logits.shape[2], at_once):
        block = logits[:, :, start : start + at_once].sub_(lse[:, :, None])
        torch.amax(block, dim=1, out=best[:, start : start + at_once])
    return best


def attention_shares(
    queries: Float[Tensor, "K Q D"], parts: Sequence[IndexPart], key_tokens: Float[Tensor, "R N"]
) -> Float[Tensor, " N"]:
    """The share of attention that each event gets, its keys taken for so many tokens each; mean over queries.

    A softmax of each query over all keys of all events. As in `best_logits`, sums are formed over the same
    events whatever the parts.
    """
    num_kv_heads, num_queries, _ = queries.shape
    num_keys, num_events = key_tokens.shape
    is_bytes = any(part.scales is not None for part in parts)
    steps, step = rounded(queries) if is_bytes else (queries, None)
    key_tokens = key_tokens.to(queries.device)
    held = queries.new_empty(num_kv_heads, num_queries, num_events, dtype=torch.float32)
    tops, sums, spans = [], [], []
    for start, pieces in _in_blocks(parts, block_events(num_kv_heads, num_queries * num_keys)):
        stop = start + sum(piece.num_events for piece in pieces)
        logits = held.new_empty(num_kv_heads, num_keys, num_queries, stop - start)
        first = 0
        for piece in pieces:
            _put_products(steps, piece, logits[..., first : first + piece.num_events])
            first += piece.num_events
        if step is not None:
            logits.mul_(step[:, None])
        top = logits.amax(dim=(1, 3))
        logits.sub_(top[:, None, :, None]).exp_().mul_(key_tokens[:, None, start:stop])
        block = torch.sum(logits, dim=1, out=held[:, :, start:stop])
        tops.append(top)
        sums.append(block.sum(dim=-1))
        spans.append(slice(start, stop))
    held = held.flatten(0, 1)
    shares = [
        weights.flatten() @ held[:, span] for weights, span in zip(_weights(tops, sums), spans, strict=True)
    ]
    return torch.cat(shares).div_(num_kv_heads * num_queries)


def _weights(tops: Sequence[Tensor], sums: Sequence[Tensor]) -> list[Tensor]:
    """What turns each block's sums, formed less the block's largest logit, into shares of all blocks."""
    if len(tops) == 1:
        return [sums[0].reciprocal()]
    top = torch.stack(list(tops)).amax(dim=0)
    scales = [(one - top).exp_() for one in tops]
    total = torch.stack([one * scale for one, scale in zip(sums, scales, strict=True)]).sum(dim=0)
    return [scale / total for scale in scales]


def _put_products(queries: Tensor, part: IndexPart, out: Float[Tensor, "K R Q N"]) -> None:
    """The products of all queries with all keys of a part; of int8 keys with queries rounded to steps."""
    if part.scales is None:
        out.copy_(torch.matmul(queries.to(part.keys.dtype)[:, None], part.keys.transpose(2, 3)))
        return
    out.copy_(_all_byte_products(queries, part.keys)).mul_(part.scales[:, None, None])


def _all_byte_products(
    queries: Int8[Tensor, "K Q D"], keys: Int8[Tensor, "K R N D"]
) -> Int32[Tensor, "K R Q N"] | Float[Tensor, "K R Q N"]:
    """All products of bytes, exact.

    On a CPU a head at a time where its keys lie together or are few: a small product takes less than to begin
    it.
    """
    if keys.device.type != "cpu":
        # Exact in float32: no sum of products of bytes reaches 2**24 below 1,040 features.
        return torch.matmul(queries.float()[:, None], keys.float().transpose(2, 3))
    num_kv_heads, num_keys, num_events, _ = keys.shape
    num_queries = queries.shape[1]
    if num_events <= COPIED_EVENTS:
        keys = keys.contiguous()
    if keys.stride(1) == num_events * keys.stride(2):
        of_heads = torch.empty((num_kv_heads, 1, num_queries, num_keys * num_events), dtype=torch.int32)
        _put_byte_products(queries, keys.flatten(1, 2)[:, None], of_heads)
        return of_heads[:, 0].unflatten(2, (num_keys, num_events)).transpose(1, 2)
    products = torch.empty((num_kv_heads, num_keys, num_queries, num_events), dtype=torch.int32)
    _put_byte_products(queries, keys, products)
    return products


def _put_byte_products(
    queries: Int8[Tensor, "K Q D"], keys: Int8[Tensor, "K R N D"], out: Int32[Tensor, "K R Q N"]
) -> None:
    """All products of bytes on a CPU; unbound once, as indexing costs as much as a small product."""
    for steps, of_head, places in zip(queries.unbind(), keys.mT.unbind(), out.unbind(), strict=True):
        for columns, place in zip(of_head.unbind(), places.unbind(), strict=True):
            torch._int_mm(steps, columns, out=place)


def block_events(num_kv_heads: int, num_queries: int) -> int:
    """Events that are compared at once."""
    return max(LEAST_EVENTS, CACHED_LOGITS // (num_kv_heads * num_queries))


def rounded(queries: Float[Tensor, "K Q D"]) -> tuple[Int8[Tensor, "K Q D"], Float[Tensor, "K Q 1"]]:
    """Queries in 127 steps of their largest feature, and the steps' sizes."""
    queries = queries.float()
    scales = torch.linalg.vector_norm(queries, ord=torch.inf, dim=-1, keepdim=True).div_(127)
    scales.clamp_(min=torch.finfo(torch.float32).tiny)  # a query of zeros stays one
    return (queries / scales).round_().to(torch.int8), scales


def _in_blocks(parts: Sequence[IndexPart], at_once: int) -> Iterator[tuple[int, list[IndexPart]]]:
    """The first event of every block of so many, and the pieces of parts that make it up."""
    start, held, pieces = 0, 0, []
    for part in parts:
        done = 0
        while done < part.num_events:
            pieces.append(part.events(done, done + at_once - held))
            done += pieces[-1].num_events
            held += pieces[-1].num_events
            if held == at_once:
                yield start, pieces
                start, held, pieces = start + at_once, 0, []
    if pieces:
        yield start, pieces


def _float_products(queries: Float[Tensor, "K Q D"], part: IndexPart) -> Tensor:
    """The largest product over an event's keys, in the keys' precision, ``[K, Q, N]``."""
    # Keys first: with the queries first the product copies every key, five times the cost.
    columns = queries.to(part.keys.dtype).transpose(1, 2)
    products = [torch.bmm(keys, columns) for keys in part.keys.unbind(dim=1)]
    return functools.reduce(torch.maximum, products).transpose(1, 2)
