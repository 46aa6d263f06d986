"""Which values stand out from the recent past: the causal threshold mean + gamma * deviation.

The statistics of a window are differences of running sums that are carried from the first token on.
``numpy.cumsum`` adds strictly from left to right, so a sum carried into the next chunk gives the same bits
as one that was never interrupted: boundaries do not depend on how a text is chunked.

This module does not know what the values mean, nor what becomes of a flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

Signal = Float[np.ndarray, " T"]  # nats; NaN where unknown

#: Share of the window's root mean square below which a difference is rounding, not signal.
RESOLUTION = 1e-9
#: Share of the window's mean square below which its variance is rounding.
VARIANCE_RESOLUTION = 1e-13


def boundary_flags(
    values: Signal, *, gamma: float, window_tokens: int
) -> tuple[Bool[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Tokens whose surprise exceeds the threshold of the tokens before them, and the thresholds.

    The whole-text form of `RollingThreshold`, with the same bits.
    """
    return RollingThreshold(gamma=gamma, window_tokens=window_tokens).extend(values)


@dataclass
class RollingThreshold:
    """The moving threshold ``s_t > mu + gamma * sigma`` (EM-LLM, Eq. 1, right-hand side), chunk by chunk.

    ``mu`` and ``sigma`` (unbiased, n - 1) are those of the known values among the up to ``window_tokens``
    values before ``t``; token ``t`` itself never counts. While fewer than two values are known there is no
    threshold (NaN) and no boundary: nothing can stand out from one value.

    A NaN value is unknown (the first token of a text was not predicted): it is no boundary and does not
    count. An infinite value is a boundary as soon as there is a threshold, and does not count either.

    **Deviation.** The paper leaves the window's length open. The released code keeps one threshold for a
    chunk, from the tokens before it, and takes the first chunk's from that chunk; here every token has its
    own, so the chunk length has no influence and the future never changes the past. The threshold lies
    1e-9 of the window's root mean square higher than the formula, so that rounding makes no boundary.

    The state is three sums and the window's values. `extend` alone writes; `copy` costs nothing, because
    arrays are replaced and never changed in place.
    """

    gamma: float
    window_tokens: int
    _sums: Float[np.ndarray, " 3"] = field(default_factory=lambda: np.zeros(3))
    _tail: Float[np.ndarray, " S"] = field(default_factory=lambda: np.zeros(0))

    def extend(self, values: Signal) -> tuple[Bool[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Flags and thresholds of the next tokens."""
        values = np.asarray(values, dtype=np.float64)
        known = np.concatenate([self._tail, values])
        prefix = _prefix_sums(known, carry=self._sums)
        ends = np.arange(len(self._tail), len(known))
        starts = np.maximum(ends - self.window_tokens, 0)
        thresholds = _threshold(prefix[:, ends] - prefix[:, starts], gamma=self.gamma)
        kept = max(len(known) - self.window_tokens, 0)
        self._sums, self._tail = prefix[:, kept].copy(), known[kept:].copy()
        return values > thresholds, thresholds

    def copy(self) -> RollingThreshold:
        """An independent continuation from here."""
        return RollingThreshold(self.gamma, self.window_tokens, self._sums, self._tail)

    def state(self) -> dict[str, Any]:
        """Everything but the settings, in plain numbers for JSON; unknown values are None."""
        tail = [value if np.isfinite(value) else None for value in self._tail.tolist()]
        return {"sums": self._sums.tolist(), "tail": tail}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, gamma: float, window_tokens: int) -> RollingThreshold:
        """The continuation of a threshold whose `state` was kept."""
        tail = np.array([np.nan if value is None else value for value in state["tail"]], dtype=np.float64)
        return cls(gamma, window_tokens, np.array(state["sums"], dtype=np.float64), tail)


def _prefix_sums(values: Signal, *, carry: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 T+1"]:
    """Running count, sum and sum of squares of the known values, starting from those of the past."""
    is_known = np.isfinite(values)
    counted = np.where(is_known, values, 0.0)
    terms = np.stack([is_known.astype(np.float64), counted, counted * counted])
    return np.cumsum(np.concatenate([carry[:, None], terms], axis=1), axis=1)


def _threshold(window_sums: Float[np.ndarray, "3 T"], *, gamma: float) -> Float[np.ndarray, " T"]:
    """Mean + gamma * unbiased deviation of windows given by count, sum and sum of squares."""
    count, total, squares = window_sums
    has_two = count >= 2
    count = np.where(has_two, count, 2.0)
    mean = total / count
    mean_square = np.maximum(squares / count, mean * mean)
    variance = np.maximum(mean_square - mean * mean, 0.0)
    variance = np.where(variance > VARIANCE_RESOLUTION * mean_square, variance, 0.0) * (count / (count - 1.0))
    thresholds = mean + gamma * np.sqrt(variance) + RESOLUTION * np.sqrt(mean_square)
    return np.where(has_two, thresholds, np.nan)
