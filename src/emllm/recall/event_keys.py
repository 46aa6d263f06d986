"""What stands for an event when queries look for it: per layer and KV head, a few of its keys.

A maker gets the keys of consecutive events and gives ``[K, N, R, D]``. Keys are unrotated throughout.

- `mean`: the mean of all keys; R = 1.
- `mass`: the mean of the keys that drew the most attention while in the local window; R = 1. The paper's.
- `logit`: the same with the mean raw logit in place of attention, as InfLLM's text has it; R = 1.
- `spread`: the keys that lie farthest from the event's mean, each kept; R = `representatives`.
- `outliers`: the same but for the last, and the mean of all other keys, second; R = `representatives`.

**Deviation** of `mass` and `logit` from the released code: one choice per KV head, from the weight summed
over its group of query heads, instead of one per query head; the keys are the KV head's anyway, and
the index is smaller by the size of the group.

This module does not know how weights are gathered, nor how keys are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emllm.dims import EventKeys, Keys

Weights = Float[Tensor, "K S"]

#: Features of keys that are worked on at once.
CACHED_FEATURES = 1 << 19


class PaddedEvents:
    """Consecutive events of different sizes as rows of one index, with a mask.

    Args:
        sizes: tokens of each event; together they cover the keys that are given.
    """

    def __init__(self, sizes: Int[Tensor, " N"]) -> None:
        starts = torch.cumsum(sizes, 0) - sizes
        offsets = torch.arange(int(sizes.max()), device=sizes.device)
        self.is_token: Bool[Tensor, "N W"] = offsets < sizes[:, None]
        self.token_idx: Int[Tensor, "N W"] = torch.where(
            self.is_token, starts[:, None] + offsets, starts[:, None]
        )
        self.event_idx: Int[Tensor, " S"] = torch.repeat_interleave(sizes)
        is_member = self.event_idx == torch.arange(len(sizes), device=sizes.device)[:, None]
        self.shares: Float[Tensor, "N S"] = is_member.float() / sizes[:, None]


def mean_key(keys: Keys, events: PaddedEvents) -> Float[Tensor, "K N D"]:
    """The mean key of each event, in float32."""
    return torch.matmul(events.shares, keys.float())


def make_mean(keys: Keys, events: PaddedEvents, weights: Weights | None, representatives: int) -> EventKeys:
    """The mean of all keys of the event."""
    return mean_key(keys, events)[:, :, None].to(keys.dtype)


def top_tokens(weights: Weights, events: PaddedEvents, num: int) -> tuple[Int[Tensor, "K N R"], Tensor]:
    """Per KV head and event, the tokens of largest weight, and which of them exist (short events)."""
    padded = weights[:, events.token_idx].masked_fill(~events.is_token, -torch.inf)
    num = min(num, padded.shape[-1])
    values, columns = padded.topk(num, dim=-1)
    idx = events.token_idx.expand(len(weights), -1, -1).gather(-1, columns)
    return idx, values > -torch.inf


def make_weighted(
    keys: Keys, events: PaddedEvents, weights: Weights | None, representatives: int
) -> EventKeys:
    """The mean of the `representatives` keys of largest weight (EM-LLM and InfLLM: 4)."""
    assert weights is not None
    idx, exists = top_tokens(weights, events, representatives)
    chosen = _gather_tokens(keys, idx).float()
    shares = exists.float() / exists.sum(dim=-1, keepdim=True)
    return torch.einsum("KNRD,KNR->KND", chosen, shares)[:, :, None].to(keys.dtype)


def make_spread(keys: Keys, events: PaddedEvents, weights: Weights | None, representatives: int) -> EventKeys:
    """The keys farthest from the event's mean key; an event of fewer tokens repeats its farthest.

    Not from the paper. What is far from the mean is what the mean does not stand for, and what a
    question asks about (docs/lab-notes.md).
    """
    return torch.cat([farthest(some, events, representatives)[0] for some in _in_cache(keys)])


def make_outliers(
    keys: Keys, events: PaddedEvents, weights: Weights | None, representatives: int
) -> EventKeys:
    """All but one as `make_spread` has them, and, second, the mean of the event's other keys.

    Not from the paper. Single keys stand for what single queries look for, the mean for the attention that
    all other tokens draw together (docs/lab-notes.md); `key_tokens` says for how many each stands.
    """
    num = representatives - 1
    if num == 0:
        return make_mean(keys, events, None, 1)
    made = []
    sizes = events.is_token.sum(dim=1)[:, None]
    for some in _in_cache(keys):
        far, mean = farthest(some, events, num)
        others = (mean * sizes - far.float().sum(dim=2)) / (sizes - num).clamp(min=1)
        rest = torch.where(sizes > num, others, mean).to(keys.dtype)
        made.append(torch.cat([far[:, :, :1], rest[:, :, None], far[:, :, 1:]], dim=2))
    return torch.cat(made)


def farthest(keys: Keys, events: PaddedEvents, num: int) -> tuple[EventKeys, Float[Tensor, "K N D"]]:
    """The keys farthest from each event's mean key, farthest first, and the mean keys in float32."""
    centred = keys.float()
    mean = torch.matmul(events.shares, centred)
    centred = centred - mean[:, events.event_idx]
    distance = torch.linalg.vector_norm(centred, dim=-1)[:, events.token_idx]
    distance = distance.masked_fill(~events.is_token, -1.0)
    found = min(num, distance.shape[-1])
    values, columns = distance.topk(found, dim=-1)
    columns = torch.where(values >= 0, columns, columns[..., :1])
    if found < num:
        columns = torch.cat([columns, columns[..., :1].expand(-1, -1, num - found)], dim=-1)
    idx = events.token_idx.expand(len(keys), -1, -1).gather(-1, columns)
    return _gather_tokens(keys, idx), mean


def _in_cache(keys: Keys) -> Sequence[Keys]:
    """Some heads at a time, so that they stay in cache: 5 ms instead of 13 for 90 heads of a chunk."""
    return keys.split(max(1, CACHED_FEATURES // (keys.shape[1] * keys.shape[2])))


def key_tokens(event_key: str, sizes: Int[np.ndarray, " N"], num_keys: int) -> Float[Tensor, "R N"]:
    """How many tokens each of an event's first `num_keys` keys stands for; they add up to the event's.

    Of `outliers` every key stands for itself and the second for all others; else all stand for as many.
    """
    counts = sizes.astype(np.float32)  # NumPy: small arrays, for every layer of every chunk
    if event_key != "outliers" or num_keys == 1:
        return torch.from_numpy(counts / num_keys).expand(num_keys, -1)
    num_outliers = num_keys - 1
    tokens = np.empty((num_keys, len(counts)), dtype=np.float32)
    tokens[:] = np.minimum(counts / num_outliers, 1)
    tokens[1] = np.maximum(counts - num_outliers, 0)
    return torch.from_numpy(tokens)


def _gather_tokens(keys: Keys, idx: Int[Tensor, "K N R"]) -> EventKeys:
    flat = idx.flatten(1)[..., None].expand(-1, -1, keys.shape[-1])
    return keys.gather(1, flat).unflatten(1, idx.shape[1:])


Maker = Callable[[Keys, PaddedEvents, Weights | None, int], EventKeys]

MAKERS: Mapping[str, Maker] = {
    "mean": make_mean,
    "mass": make_weighted,
    "logit": make_weighted,
    "spread": make_spread,
    "outliers": make_outliers,
}

#: What each maker needs to have been gathered while the tokens were in the local window.
WEIGHTS_NEEDED: Mapping[str, str | None] = {
    "mean": None,
    "mass": "mass",
    "logit": "logit",
    "spread": None,
    "outliers": None,
}
