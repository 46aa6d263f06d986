"""Attention in fused parts, merged by their log-sum-exp.

The context before the chunk needs no mask and the chunk itself is causal, so two fused calls replace
one call with a materialised ``[T, S]`` mask, and parts may see their keys from different positions. Each
part gives its output and the log of its softmax normaliser; `merge` weighs them into one softmax. The
private ATen operators that return the normaliser are named here and nowhere else.

This module does not know which tokens a part holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from emllm.attention.eager import eager_part

Part = tuple[Float[Tensor, "H T E"], Float[Tensor, "H T"]]

_aten = torch.ops.aten


def attend_part(
    query: Float[Tensor, "H T D"],
    key: Float[Tensor, "K S D"],
    value: Float[Tensor, "K S E"],
    *,
    scaling: float,
    is_causal: bool = False,
    mask: Bool[Tensor, "T S"] | None = None,
    softcap: float | None = None,
) -> Part:
    """Softmax attention over one part of the context, and the log of its normaliser.

    The arguments are those of `eager_part`, which is also the path for capped logits and where there is no
    fused kernel for the device and the dtype. Keys and values may be strided views with unit stride in the
    last dimension.
    """
    if softcap is not None or not _has_kernel(query):
        return eager_part(query, key, value, scaling=scaling, is_causal=is_causal, mask=mask, softcap=softcap)
    key_dim, value_dim = key.shape[-1], value.shape[-1]
    if value_dim < key_dim:  # latent attention (MLA): the kernels want equal widths
        value = pad(value, (0, key_dim - value_dim))
    elif value_dim > key_dim:
        query, key = (pad(x, (0, value_dim - key_dim)) for x in (query, key))
    kernel = _cpu_part if query.device.type == "cpu" else _cuda_part
    out, lse = kernel(query, key, value, scaling, is_causal, mask)
    if mask is not None:  # the kernels give a query that sees nothing the normaliser of one logit of 0
        is_blind = ~mask.any(dim=-1)
        out, lse = out.masked_fill(is_blind[:, None], 0.0), lse.masked_fill(is_blind, -torch.inf)
    return out[..., :value_dim], lse


def cuda_kernels(dtype: torch.dtype, capability: tuple[int, int]) -> tuple[str, ...]:
    """The fused kernels that a GPU of a compute capability has for a dtype, the faster one first.

    Flash attention begins with Ampere (8.0). So does bfloat16 in the memory-efficient kernel, which computes
    float32 and float16 on older ones, too. Neither knows float64.
    """
    is_ampere = capability >= (8, 0)
    if dtype == torch.float32:
        return ("efficient",)
    if dtype == torch.float16:
        return ("flash", "efficient") if is_ampere else ("efficient",)
    return ("flash", "efficient") if dtype == torch.bfloat16 and is_ampere else ()


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _has_kernel(query: Tensor) -> bool:
    if query.device.type == "cuda":
        return bool(cuda_kernels(query.dtype, _capability(query.device)))
    return query.device.type == "cpu"


def _cpu_part(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, is_causal: bool, mask: Tensor | None
) -> Part:
    num_heads, num_queries, head_dim = query.shape
    # Without a mask the queries of a group are just more queries of their head, and the kernel is slow with
    # few: three queries of three heads take 127 us, one of nine 611, on a processor without bfloat16 tiles.
    if not is_causal and mask is None:
        query = query.reshape(key.shape[0], -1, head_dim)
    bias = None if mask is None else query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)[None, None]
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
        query[None], key[None], value[None], 0.0, is_causal, attn_mask=bias, scale=scaling
    )
    # The kernel's normalisers lie query by query, which makes every operation on them slower than one copy.
    return out[0].reshape(num_heads, num_queries, -1), lse[0].contiguous().view(num_heads, num_queries)


def _cuda_part(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, is_causal: bool, mask: Tensor | None
) -> Part:
    num_heads, num_queries, head_dim = query.shape
    if not is_causal and mask is None:
        query = query.reshape(key.shape[0], -1, head_dim)
    else:
        key, value = (x.repeat_interleave(num_heads // key.shape[0], dim=0) for x in (key, value))
    q, k, v = query[None], key[None], value[None]
    has_flash = "flash" in cuda_kernels(query.dtype, _capability(query.device))
    if mask is None and has_flash and head_dim % 8 == 0 and head_dim <= 256:
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, is_causal, False, scale=scaling
        )
    else:
        bias = None if mask is None else _additive(mask, query)
        out, lse, *_ = _aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, 0.0, is_causal, scale=scaling
        )
        lse = lse[..., : q.shape[2]]  # the kernel pads the query dimension
    return out[0].reshape(num_heads, num_queries, -1), lse[0].reshape(num_heads, num_queries)


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    """The mask as a bias whose rows are aligned to 16 bytes, which the kernel demands."""
    num_queries, num_keys = mask.shape
    bias = query.new_zeros(num_queries, (num_keys + 7) // 8 * 8)[:, :num_keys]
    return bias.masked_fill_(~mask, -torch.inf)[None, None].expand(1, query.shape[0], -1, -1)


def merge(
    parts: Sequence[Part], *, sink_logits: Float[Tensor, " H"] | None = None
) -> tuple[Float[Tensor, "H T E"], Float[Tensor, "H T"]]:
    """One softmax over the keys of all parts, and its log-sum-exp.

    Args:
        sink_logits: one more logit per head that takes weight but has no value (gpt-oss). It is counted
            here, once, and is part of the log-sum-exp that is returned.
    """
    out, total = parts[0]
    for part_out, lse in parts[1:]:
        # In the dtype of the outputs: a weight is rounded as they are; mixed dtypes would be converted anew.
        out = torch.lerp(out, part_out, torch.sigmoid(lse - total).to(out.dtype)[..., None])
        total = torch.logaddexp(total, lse)
    if sink_logits is None:
        return out, total
    with_sink = torch.logaddexp(total, sink_logits.to(total.dtype)[:, None])
    return out * torch.exp(total - with_sink).to(out.dtype)[..., None], with_sink
