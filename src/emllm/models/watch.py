"""Watching a model's own attention for one pass, through the interface that it calls anyway.

Nothing is patched: a recording function is registered under a name of ours, calls the model's own
attention function and keeps what went in and out. This module does not know what the records are for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from emllm.errors import UnsupportedModelError
from emllm.models.self_check import LayerRecord

#: The name under which the recording function is registered with transformers.
WATCH_NAME = "emllm_watch"

#: The attention that is watched: the one in which softcaps and sinks always count.
BASELINE = "eager"

_FAR = 1 << 24
_WIDEST = 1 << 22


class Watcher:
    """Keeps what the layers of one pass were given and answered."""

    def __init__(self) -> None:
        self.layer_idxs: list[int] = []
        self.layers: dict[int, LayerRecord] = {}
        self._masks: dict[int, tuple[Tensor, Callable[..., Tensor]]] = {}

    def attend(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """The model's own attention, recorded."""
        output, weights = _stock(module)(module, *args, **kwargs)
        layer_idx: int = module.layer_idx  # type: ignore[assignment]
        query, key, value = args[:3]
        mask = args[3] if len(args) > 3 else kwargs.get("attention_mask")
        window_tokens = kwargs.get("sliding_window")
        if mask is not None and id(mask) in self._masks:
            window_tokens = window_of_mask(self._masks[id(mask)][1])
        self.layer_idxs.append(layer_idx)
        self.layers[layer_idx] = LayerRecord(
            query[0], key[0], value[0], output[0].transpose(0, 1), kwargs, window_tokens
        )
        return output, weights

    def mask(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """The mask that the model's own attention wants; what it stands for is kept beside it."""
        if "allow_is_causal_skip" in kwargs:
            kwargs["allow_is_causal_skip"] = False
        mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS[BASELINE](*args, **kwargs)
        if mask is not None and kwargs.get("mask_function") is not None:
            self._masks[id(mask)] = mask, kwargs["mask_function"]
        return mask


_watcher: ContextVar[Watcher | None] = ContextVar("emllm_watcher", default=None)


@contextmanager
def watching() -> Iterator[Watcher]:
    """A watcher that records every pass of a model whose attention is set to `WATCH_NAME`."""
    AttentionInterface.register(WATCH_NAME, _watched_attention)
    AttentionMaskInterface.register(WATCH_NAME, _watched_mask)
    watcher = Watcher()
    token = _watcher.set(watcher)
    try:
        yield watcher
    finally:
        _watcher.reset(token)


def window_of_mask(mask_function: Callable[..., Tensor]) -> int | None:
    """Width of the window that a mask stands for; None if it is causal without one.

    Raises:
        UnsupportedModelError: the mask shows the future, or is not the same window at every token.
    """
    widths = {_window_at(mask_function, query_idx) for query_idx in (_FAR, _FAR + 12345)}
    if len(widths) > 1:
        raise UnsupportedModelError(
            f"a layer's mask is not a sliding window: {sorted(map(str, widths))} tokens wide"
        )
    return widths.pop()


def _window_at(mask_function: Callable[..., Tensor], query_idx: int) -> int | None:
    zero = torch.zeros((), dtype=torch.long, device="cpu")

    def is_seen(distance: int) -> bool:
        return bool(mask_function(zero, zero, zero + query_idx, zero + query_idx - distance))

    if is_seen(-1) or not is_seen(0):
        raise UnsupportedModelError("a layer's mask is not causal")
    if is_seen(_WIDEST):
        return None
    low, high = 0, _WIDEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_seen(middle) else (low, middle)
    return high


def _stock(module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The eager attention function of the model's own code; it is registered nowhere."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise UnsupportedModelError(
            f"the code of {type(module).__name__} has no eager attention to compare with"
        )
    return eager


def _watched_attention(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    watcher = _watcher.get()
    assert watcher is not None
    return watcher.attend(module, *args, **kwargs)


def _watched_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    watcher = _watcher.get()
    assert watcher is not None
    return watcher.mask(*args, **kwargs)
