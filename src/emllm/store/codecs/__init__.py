"""How a page of keys and values becomes bytes, and back: the codecs, by name.

A page is ``P = page_tokens`` consecutive tokens of one layer, with ``K`` key-value heads, keys of ``D`` and
values of ``E`` channels. Everything below is part of **format version 1** and must not change.

A page is a row of ``page_bytes`` bytes: sections one after another, first all of the keys', then all of the
values'. A section is an array in C order, little-endian, and is followed by zero bytes up to the next
multiple of 16. Write ``X`` for the array and ``W`` for its width: the keys ``[P, K, D]``, ``W = D``; the
values ``[P, K, E]``, ``W = E``.

| codec | sections, for the keys and again for the values |
|---|---|
| `exact` | ``X`` in the model's dtype |
| `bf16` | ``X`` in bfloat16 |
| `fp8` | codes: ``X`` in float8 e4m3fn; peak: float16, keys ``[1, K, D]``, values ``[P, K, 1]`` |
| `int8` | codes: uint8 ``[P, K * W]``; low: float16; radius: float16 |
| `int4` | codes: uint8 ``[P, ceil(K * W / 2)]``; low: float16; radius: float16 |

`fp8`: ``x = code * (peak / 256)``, where the peak is the largest magnitude of the keys of one head and
channel in the page, or of the values of one head and token.

`int8` and `int4`: ``x = low + code * step``, ``step = radius * (2 / top)``, ``top`` 255 or 15, in float32.
The numbers that share ``low`` and ``radius`` are a group: keys of one head and channel, over up to 64
consecutive tokens; values of one head and token, over up to 64 consecutive channels. Groups start at
multiples of 64, the last may be shorter, so ``low`` and ``radius`` are ``[ceil(P / 64), K, D]`` for keys and
``[P, K, ceil(E / 64)]`` for values. `int4` writes a token's ``K * W`` codes into ``h = ceil(K * W / 2)``
bytes: code ``i`` is the low half of byte ``i``, code ``h + i`` its high half.

What is lost: `exact` gives back the same bits, and so does `bf16` of a bfloat16 model. The others never make
NaN or infinity out of finite numbers; groups whose numbers are all the same come back exactly if float16 can
write that number. In `bf16` NaN stays NaN and infinity becomes the largest number; `fp8` and `int*` take NaN
for 0 and saturate at ±61440. Encoding is deterministic, on any number of threads.

This module does not know files, checksums, nor which tokens are whose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emllm.errors import ConfigError
from emllm.store.codecs.layout import Layout
from emllm.store.codecs.packings import CHANNELS, TOKENS, Float8, Integer, Packing, Plain
from emllm.store.slabs import LayerShape, empty_rows

_MakePacking = Callable[[Layout, LayerShape, tuple[int, int, int], int], Packing]

_PACKINGS: Mapping[str, _MakePacking] = {
    "exact": lambda layout, shape, size, _: Plain.place(layout, size, shape.dtype, shape.dtype),
    "bf16": lambda layout, shape, size, _: Plain.place(layout, size, torch.bfloat16, shape.dtype),
    "fp8": lambda layout, _, size, dim: Float8.place(layout, size, dim),
    "int8": lambda layout, _, size, dim: Integer.place(layout, size, dim, bits=8),
    "int4": lambda layout, _, size, dim: Integer.place(layout, size, dim, bits=4),
}

#: The names of the codecs, from the most to the least precise.
CODECS = tuple(_PACKINGS)


@dataclass(frozen=True)
class Codec:
    """Keys and values of one layer as bytes, and back. Holds no tensors; any device."""

    name: str
    shape: LayerShape
    page_tokens: int
    page_bytes: int
    keys: Packing
    values: Packing

    def encode_tokens(self, keys: Tensor, values: Tensor) -> Tensor:
        """Pages of consecutive tokens' keys and values ``[T, K, D]``; the last token fills the last page."""
        return self.encode(*(_paged(x, self.page_tokens) for x in (keys, values)))

    def decode_tokens(self, pages: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[T, K, D]`` of the first tokens of consecutive pages, as the layer has them."""
        size = (len(pages), self.page_tokens)
        keys, values = (
            empty_rows(len(pages) * self.page_tokens, self.shape, width)
            for width in (self.shape.head_dim, self.shape.value_dim)
        )
        self.decode(pages, keys=keys.unflatten(0, size), values=values.unflatten(0, size))
        return keys[:num_tokens], values[:num_tokens]

    def encode(self, keys: Tensor, values: Tensor) -> Tensor:
        """Pages ``[n, page_bytes]`` of keys ``[n, P, K, D]`` and values ``[n, P, K, E]``, on their device."""
        # Outside inference mode: pages born inside it could not be erased outside.
        with torch.inference_mode(False):
            pages = torch.zeros(len(keys), self.page_bytes, dtype=torch.uint8, device=keys.device)
        self.keys.encode(pages, keys.detach())
        self.values.encode(pages, values.detach())
        return pages

    def decode(self, pages: Tensor, *, keys: Tensor, values: Tensor | None) -> None:
        """Write what the pages ``[n, page_bytes]`` hold into ``keys [n, P, K, D]`` and ``values [n, P, K,
        E]``.

        These may have any dtype and device; bytes travel between devices encoded.
        """
        pages = pages.to(keys.device)
        self.keys.decode(pages, keys)
        if values is not None:
            self.values.decode(pages, values)

    def erase(self, pages: Tensor, rows: Tensor) -> None:
        """Forget tokens, in place: zero their bytes; all other tokens decode to what they did.

        What a group of keys shares (peak, or low and radius) stays while one of its tokens does, and is
        zeroed when all of them are named in one call; erasing a token again does nothing, so name those too.

        Args:
            pages: ``[n, page_bytes]``.
            rows: ``[n, P]``, true for the tokens to forget.
        """
        rows = rows.to(pages.device)
        self.keys.erase(pages, rows)
        self.values.erase(pages, rows)


def make_codec(name: str, shape: LayerShape, page_tokens: int) -> Codec:
    """The codec of that name for pages of one layer.

    Raises:
        ConfigError: there is no such codec.
    """
    if name not in _PACKINGS:
        raise ConfigError(f"codec must be one of {', '.join(CODECS)}, got {name!r}")
    make, layout = _PACKINGS[name], Layout()
    keys = make(layout, shape, (page_tokens, shape.num_kv_heads, shape.head_dim), TOKENS)
    values = make(layout, shape, (page_tokens, shape.num_kv_heads, shape.value_dim), CHANNELS)
    return Codec(name, shape, page_tokens, layout.num_bytes, keys, values)


def _paged(x: Tensor, page_tokens: int) -> Tensor:
    """Tokens ``[T, K, D]`` as pages ``[n, P, K, D]``; the last token fills the last page."""
    missing = -len(x) % page_tokens
    if missing:
        x = torch.cat([x, x[-1:].expand(missing, -1, -1)])
    return x.unflatten(0, (-1, page_tokens))
