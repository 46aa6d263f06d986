"""What a memory must know of a model: the shape of every layer and how it turns positions.

Made once by `emllm.models` when it attaches; the memory never sees the model itself. This module does
not know transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from emllm.attention.rotary import Rotation


@dataclass(frozen=True)
class LayerGeometry:
    """One attention layer.

    Attributes:
        window_tokens: None for a full-attention layer, which gets memory; otherwise the width of the
            layer's own sliding window (query t sees keys in ``(t - window_tokens, t]``), and no memory.
        rotation: how the layer turns queries and keys by position.
        device: where the layer computes.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    rotation: Rotation
    window_tokens: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def with_real_windows(layers: Sequence[LayerGeometry], trained_tokens: int) -> tuple[LayerGeometry, ...]:
    """The layers, those with full attention whose window is as wide as what the model was trained on.

    Such a window hides nothing that the model could have attended to (Phi-3-mini-128k names 262,144 tokens of
    131,072), so it is no reason to do without memory.
    """
    return tuple(
        replace(layer, window_tokens=None)
        if layer.window_tokens is not None and layer.window_tokens >= trained_tokens
        else layer
        for layer in layers
    )


@dataclass(frozen=True)
class ModelGeometry:
    """The layers of a model and what they have in common.

    Attributes:
        trained_tokens: positions that the model was trained on (``max_position_embeddings``).
        dtype: of keys and values.
    """

    layers: tuple[LayerGeometry, ...]
    trained_tokens: int
    vocab_size: int
    dtype: torch.dtype

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def has_memory(self) -> bool:
        """Whether any layer attends to more than a window, and so to what is recalled."""
        return any(layer.window_tokens is None for layer in self.layers)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token adds to the log, over all layers."""
        per_token = sum(layer.num_kv_heads * (layer.head_dim + layer.value_dim) for layer in self.layers)
        return per_token * self.dtype.itemsize
