"""Turning queries and keys by their position, the way the model at hand does it.

Keys are stored unrotated, so a memory can place them anywhere; this is where they are placed. The
angles come from the model's own rotary module (Su et al., arXiv 2104.09864; with the model's own
scaling, YaRN and longrope included), the way of pairing features is found by experiment when a model
is attached. This module does not know models, caches or which positions are the right ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: How features pair up: feature i with i + rotary_dim / 2, with its neighbour, the former with the
#: angle negated, or not at all.
CONVENTIONS = ("half", "pairs", "half_negated", "none")

#: Features that are turned at once, so that their float32 copies stay in cache.
CACHED_FEATURES = 1 << 19

_MIN_POSITIONS = 1024
_NUM_CACHED = 4

CosSin = tuple[Float[Tensor, "P C"], Float[Tensor, "P C"]]


@dataclass(frozen=True)
class Rotation:
    """How one layer turns its queries and keys.

    Attributes:
        convention: one of `CONVENTIONS`.
        rotary_dim: features that are turned; 0 for ``none``.
        first_dim: the first feature turned: 0, or ``head_dim - rotary_dim`` (latent attention).
        table: the angles; None for ``none``.
    """

    convention: str
    rotary_dim: int
    first_dim: int
    table: RotaryTable | None


#: A layer without positions.
NO_ROTATION = Rotation(convention="none", rotary_dim=0, first_dim=0, table=None)


class RotaryTable:
    """Cosines and sines of positions 0, 1, 2, ..., float32, as the model itself computes them.

    Some scalings (longrope, dynamic) choose their frequencies by the length of the text. There the
    table for n positions is what the model would use on exactly n tokens, and differs from the first
    n rows of a longer one.

    Only this class writes its cache; it may be asked from several threads.

    Args:
        source: answers ``(num_positions) -> cos, sin``, both ``[num_positions, rotary_dim / 2]``.
        lengths_alike: for a length, the range of lengths whose tables agree with it row by row; None
            where all do.
    """

    def __init__(
        self, source: Callable[[int], CosSin], *, lengths_alike: Callable[[int], range] | None = None
    ) -> None:
        self._source = source
        self._lengths_alike = lengths_alike
        self._cached: dict[int, CosSin] = {}
        self._lock = threading.Lock()

    def cos_sin(self, num_positions: int) -> CosSin:
        """Rows 0 to ``num_positions - 1``; views of the cache, not to be written to."""
        alike = self._lengths_alike(num_positions) if self._lengths_alike else None
        regime = alike.start if alike is not None else 0
        cached = self._cached.get(regime)
        if cached is None or len(cached[0]) < num_positions:
            cached = self._grow(
                regime, num_positions, num_limit=alike.stop - 1 if alike is not None else None
            )
        return cached[0][:num_positions], cached[1][:num_positions]

    def _grow(self, regime: int, num_positions: int, *, num_limit: int | None) -> CosSin:
        with self._lock:
            cached = self._cached.pop(regime, None)
            num_cached = 0 if cached is None else len(cached[0])
            if cached is None or num_cached < num_positions:
                num_rows = max(num_positions, 2 * num_cached, _MIN_POSITIONS)
                num_rows = num_rows if num_limit is None else min(num_rows, num_limit)
                cos, sin = self._source(num_rows)
                cached = cos.float().contiguous(), sin.float().contiguous()
            while len(self._cached) >= _NUM_CACHED:
                del self._cached[next(iter(self._cached))]
            self._cached[regime] = cached
            return cached


def rotate(
    x: Float[Tensor, "*lead S D"],
    cos: Float[Tensor, "#S C"],
    sin: Float[Tensor, "#S C"],
    rotation: Rotation,
    out: Float[Tensor, "*lead S D"] | None = None,
) -> Float[Tensor, "*lead S D"]:
    """Queries or keys turned by the angle of each token's position.

    ``(a, b) -> (a cos - b sin, b cos + a sin)`` for every pair of features (arXiv 2104.09864, Eq. 34).
    **Deviation** from transformers: float32 inside and one rounding to the dtype of ``x``, where
    transformers rounds cos, sin and each product; the two differ by that rounding alone.

    Args:
        x: any strides; features outside the turned ones are copied.
        cos: row s belongs to token s; one row serves all tokens.
        sin: as ``cos``.
        rotation: which features pair up. ``none`` ignores ``cos`` and ``sin``.
        out: where to write; must not overlap ``x``.

    Returns:
        ``out`` if given, else a new tensor in the memory order of ``x`` (``x`` itself for ``none``).
    """
    if rotation.convention == "none":
        return x if out is None else out.copy_(x)
    if out is None:
        out = torch.empty_like(x)
    num_parts = -(-x.numel() // CACHED_FEATURES)
    if x.ndim > 2 and min(num_parts, len(x)) > 1:
        at_once = -(-len(x) // num_parts)
        for some, some_out in zip(x.split(at_once), out.split(at_once), strict=True):
            rotate(some, cos, sin, rotation, out=some_out)
        return out
    start, stop = rotation.first_dim, rotation.first_dim + rotation.rotary_dim
    sign = -1 if rotation.convention == "half_negated" else 1
    turned = out[..., start:stop]
    # One conversion there and one back: operators on mixed dtypes convert at every step, on their own copies.
    # In the memory order of the result, as most time goes into strides.
    wide = torch.promote_types(x.dtype, cos.dtype)
    exact = turned if out.dtype == wide else torch.empty_like(turned, dtype=wide)
    exact.copy_(x[..., start:stop])
    left, right = _paired(exact, rotation)
    crossed = left * sin
    left.mul_(cos).addcmul_(right, sin, value=-sign)
    right.mul_(cos).add_(crossed, alpha=sign)
    if exact is not turned:
        turned.copy_(exact)
    if start > 0:
        out[..., :start] = x[..., :start]
    if stop < x.shape[-1]:
        out[..., stop:] = x[..., stop:]
    return out


def _paired(x: Float[Tensor, "*lead S R"], rotation: Rotation) -> tuple[Tensor, Tensor]:
    """The first and the second feature of every pair, as views."""
    if rotation.convention == "pairs":
        return x[..., 0::2], x[..., 1::2]
    half = rotation.rotary_dim // 2
    return x[..., :half], x[..., half:]
