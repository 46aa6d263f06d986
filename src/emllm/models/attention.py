"""The attention function that an attached model calls in place of its own.

It takes the arguments of transformers' attention interface, finds the memories of the present cache
and lets each attend for its row. A keyword that it does not know might change what attention means,
so it is an error. This module does not know how a memory attends, nor which layers have one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from emllm.errors import InputError, UnsupportedModelError
from emllm.models.cache import take_present

#: The name under which the function is registered with transformers.
ATTENTION_NAME = "emllm"

#: Keywords that say nothing about what is attended to.
_IGNORED = frozenset(
    {
        "cache_position",
        "is_causal",
        "layer_idx",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",
        "token_type_ids",
        "use_cache",
    }
)


def register() -> None:
    """Makes the function known to transformers under our name; doing so twice changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, episodic_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)


def episodic_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface, answered by the memories: ``[B, H, T, D]`` to ``[B, T, H, Dv]``.

    Raises:
        InputError: no cache of ours, a mask, or dropout.
        UnsupportedModelError: the layer asks for something that a memory does not do.
    """
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    cache = take_present(layer_idx)
    check_arguments(
        layer_idx, query=query, key=key, attention_mask=attention_mask, dropout=dropout, keywords=kwargs
    )
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    outputs = [
        memory.attend(
            layer_idx, query[row], key[row], value[row], scaling=scaling, softcap=softcap, sink_logits=s_aux
        )
        for row, memory in enumerate(cache.memories)
    ]
    output = outputs[0][None] if len(outputs) == 1 else torch.stack(outputs)
    return output.transpose(1, 2).contiguous(), None


def check_arguments(
    layer_idx: int,
    *,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    keywords: dict[str, Any],
) -> None:
    """Refuses what would be silently left out."""
    if attention_mask is not None:
        raise InputError(
            f"layer {layer_idx} is given an attention mask; a memory attends causally, without one"
        )
    if dropout:
        raise InputError(f"layer {layer_idx} is given dropout {dropout}; call model.eval() before reading")
    if keywords.get("is_causal") is False:
        raise UnsupportedModelError(f"layer {layer_idx} attends in both directions, not causally")
    for name, given in keywords.items():
        if given is not None and name not in _IGNORED:
            raise UnsupportedModelError(f"layer {layer_idx} gives its attention an unknown argument {name!r}")
    if key.shape[-2] != query.shape[-2]:
        raise UnsupportedModelError(
            f"layer {layer_idx} attends to {key.shape[-2]} keys for {query.shape[-2]} tokens "
            "(compressed or shared keys)"
        )


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask is built: causal and window masks are the memory's, padding is refused before the pass."""
