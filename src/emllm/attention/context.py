"""The attended context of one layer, laid out in order, rotated, and ready for the fused parts.

A context is frozen when it is laid out: ``[sinks | episodes | local]`` and then the chunk, which may
come at once (reading) or token by token (decoding) as long as there is room. It is described by token
indices alone, so a fork rebuilds the same context, bit for bit, from the log. `write` puts tokens behind
the committed ones without counting them; only `advance` counts, so attending twice equals attending once.

This module does not know why these tokens were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from emllm.attention.fused import attend_part, merge
from emllm.attention.layout import Layout
from emllm.attention.rotary import Rotation, rotate


@dataclass(frozen=True)
class ContextPlan:
    """Which tokens of the log a context holds, and where they stand.

    Attributes:
        token_idx: ascending indices of the sinks, episodes and local tokens.
        layout: their positions.
        num_local: how many of them, the last ones, are local context.
        first_chunk: tokens that came with the first write; with the near tokens they are the length
            for which the rotary table is taken.
        max_chunk: tokens that may be written in all before the context must be laid out anew.
        num_chunk: committed tokens of the chunk so far.
    """

    token_idx: NDArray[np.int64]
    layout: Layout
    num_local: int
    first_chunk: int
    max_chunk: int
    num_chunk: int = 0

    @property
    def room(self) -> int:
        """Tokens that still fit behind the committed ones."""
        return self.max_chunk - self.num_chunk

    @property
    def capacity(self) -> int:
        """Tokens that the buffers must hold."""
        return len(self.token_idx) + self.max_chunk


def turned(
    x: Float[Tensor, "X S D"],
    position: int,
    rotation: Rotation,
    *,
    length: int,
    is_alike: bool = False,
    meets_raw_keys: bool = False,
    out: Float[Tensor, "X S D"] | None = None,
) -> Float[Tensor, "X S D"]:
    """Tokens turned as at ``position, position + 1, ...`` of a context of `length` tokens.

    Args:
        is_alike: all as at one position.
        meets_raw_keys: they are compared with keys that were not turned, and so lack the factor that some
            scalings (YaRN, longrope) give queries and keys alike; it is applied here for both.
        out: where to write; else a new tensor, or `x` itself where nothing is turned.
    """
    if rotation.table is None:
        return x if out is None else out.copy_(x)
    stop = position + (1 if is_alike else x.shape[-2])
    cos, sin = rotation.table.cos_sin(max(length, stop))
    angles = cos[position:stop], sin[position:stop]
    if meets_raw_keys:  # the factor is the cosine at position 0
        angles = angles[0] * cos[0], angles[1] * cos[0]
    return rotate(x, *angles, rotation, out=out)


class ContextBuffers:
    """Token-major keys (rotated) and values of one context. Written by `LayerContext` only."""

    def __init__(self, capacity: int, *, like_key: Tensor, like_value: Tensor) -> None:
        with torch.inference_mode(False):
            self.keys = like_key.new_empty(capacity, like_key.shape[0], like_key.shape[-1])
            self.values = like_value.new_empty(capacity, like_value.shape[0], like_value.shape[-1])

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return len(self.keys)


class LayerContext:
    """A planned context with its keys and values in buffers."""

    def __init__(self, plan: ContextPlan, buffers: ContextBuffers, rotation: Rotation) -> None:
        self.plan = plan
        self.buffers = buffers
        self._rotation = rotation

    def place(self, raw: Float[Tensor, "S K D"]) -> None:
        """Put the gathered keys of the plan where they stand: near ones turned, far ones as they are."""
        layout = self.plan.layout
        target = self.buffers.keys[: layout.num_tokens]
        (far, near), (far_target, near_target) = (
            (x[: layout.num_far].transpose(0, 1), x[layout.num_far :].transpose(0, 1)) for x in (raw, target)
        )
        if layout.num_far:
            # Position 0 turns nothing, but YaRN and longrope scale every position.
            self._rotated(far, 0, is_alike=True, out=far_target)
        self._rotated(near, 0, out=near_target)

    def _rotated(self, x: Tensor, position: int, *, is_alike: bool = False, out: Tensor) -> Tensor:
        """See `turned`."""
        return turned(x, position, self._rotation, length=self._length, is_alike=is_alike, out=out)

    @property
    def _length(self) -> int:
        """Tokens for which the rotary table is taken."""
        return self.plan.layout.num_near + self.plan.first_chunk

    def write(self, key: Float[Tensor, "K T D"], value: Float[Tensor, "K T E"]) -> None:
        """Put tokens behind the committed ones; writing the same again changes nothing."""
        keys, values = self._places(key.shape[1])
        self._rotated(key, self._position, out=keys)
        values.copy_(value)

    def _places(self, num_new: int) -> tuple[Tensor, Tensor]:
        """Where the keys and the values of tokens behind the committed ones belong, ``[K, T, D]``."""
        start = self.plan.layout.num_tokens + self.plan.num_chunk
        rows = slice(start, start + num_new)
        return self.buffers.keys[rows].transpose(0, 1), self.buffers.values[rows].transpose(0, 1)

    @property
    def _position(self) -> int:
        """Of the first token behind the committed ones."""
        return self.plan.layout.num_near + self.plan.num_chunk

    def _written(self, query: Tensor, key: Tensor, value: Tensor) -> Float[Tensor, "H T D"]:
        """As `write`, and the tokens' queries, turned as for the near tokens."""
        if query.shape[1] > 1:
            self.write(key, value)
            # Head by head in memory, so that the queries of a group can be seen as one head's without a copy.
            return self._rotated(query, self._position, out=query.new_empty(query.shape))
        # One token's operations cost what it takes to begin them, so queries and keys are turned together.
        both = torch.cat([query, key])
        near, near_key = self._rotated(both, self._position, out=torch.empty_like(both)).split(
            [len(query), len(key)]
        )
        keys, values = self._places(1)
        keys.copy_(near_key)
        values.copy_(value)
        return near

    def attend(
        self,
        query: Float[Tensor, "H T D"],
        key: Float[Tensor, "K T D"],
        value: Float[Tensor, "K T E"],
        *,
        scaling: float,
        softcap: float | None = None,
        sink_logits: Float[Tensor, " H"] | None = None,
    ) -> tuple[Float[Tensor, "H T E"], Float[Tensor, "H T"], Float[Tensor, "H T D"]]:
        """Attention of tokens, put behind the committed ones, over everything before them and themselves.

        Returns:
            Output, the log of the softmax normaliser, and the queries as turned for the near tokens.
        """
        layout, num_new = self.plan.layout, query.shape[1]
        keys, values = (x.transpose(0, 1) for x in (self.buffers.keys, self.buffers.values))
        chunk = layout.num_tokens + self.plan.num_chunk
        near = self._written(query, key, value)
        options: dict[str, Any] = {"scaling": scaling, "softcap": softcap}
        parts = []
        if layout.num_far:
            far = self._rotated(query, layout.far_distance, is_alike=True, out=query.new_empty(query.shape))
            parts.append(attend_part(far, keys[:, : layout.num_far], values[:, : layout.num_far], **options))
        if num_new == 1:  # decoding: one call over all near tokens, itself included
            span = slice(layout.num_far, chunk + 1)
            parts.append(attend_part(near, keys[:, span], values[:, span], **options))
        else:
            if chunk > layout.num_far:
                span = slice(layout.num_far, chunk)
                parts.append(attend_part(near, keys[:, span], values[:, span], **options))
            span = slice(chunk, chunk + num_new)
            parts.append(attend_part(near, keys[:, span], values[:, span], is_causal=True, **options))
        return *merge(parts, sink_logits=sink_logits), near

    def advance(self, num_tokens: int) -> None:
        """Count the tokens last written as part of the chunk."""
        self.plan = replace(self.plan, num_chunk=self.plan.num_chunk + num_tokens)
