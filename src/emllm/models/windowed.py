"""The baseline of every speed figure: the stock model over a plain sliding window of keys.

A cache of transformers' own sliding-window layers, for a model whose attention is otherwise full; the
chunk sees the last tokens before it, as in a memory without recall, and nothing of ours runs. This module
does not know memories.
"""

from __future__ import annotations

from transformers.cache_utils import Cache, DynamicSlidingWindowLayer


def windowed_cache(num_layers: int, width_tokens: int) -> Cache:
    """A cache that keeps the last `width_tokens` tokens of each layer."""
    # The layer keeps one token less than its window, which counts the query itself.
    return Cache(layers=[DynamicSlidingWindowLayer(width_tokens + 1) for _ in range(num_layers)])
