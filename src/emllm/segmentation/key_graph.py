"""The graph of tokens whose edges are similarities of keys, in the form in which every cut is a look-up.

The adjacency of EM-LLM (section 3.2) is a Gram matrix, ``A = X X^T`` with a token's keys of the chosen layers
and heads side by side in a row of X. The sum of A over any rectangle comes from four entries of its double
prefix sum, so the graph is never walked: see `objectives`.

This module does not know events, objectives, or which layers were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emllm.dims import Keys
from emllm.errors import ConfigError

#: A square matrix of similarities for every graph; one graph where the heads are pooled.
Adjacency = Float[Tensor, "graphs S S"]
PrefixSums = Float[np.ndarray, "graphs edges edges"]


@dataclass(frozen=True)
class PrefixGram:
    """Double prefix sums of the adjacency of the tokens ``[start, stop)``: ``P[t, u] = sum_{i<t, j<u} A_ij``.

    ``P[t, u]`` is also the dot product of the summed keys of the first t and the first u tokens, hence the
    name. Row 0 and column 0 are zero, so there is one row more than tokens. Read-only.

    Attributes:
        sums: one such matrix per graph: a single one, or one per layer and head.
        start: absolute position of the first token.
    """

    sums: PrefixSums
    start: int = 0

    @property
    def stop(self) -> int:
        """Absolute position after the last token."""
        return self.start + self.sums.shape[-1] - 1


def prefix_gram(keys: Sequence[Keys], *, start: int = 0, heads: str = "all") -> PrefixGram:
    """The prefix sums of the key graph of some tokens.

    Args:
        keys: unrotated keys of the chosen layers, on any device, in any dtype.
        start: absolute position of the first of the S tokens.
        heads: `all` pools layers and heads in one graph; `each` keeps one graph per layer and head, at that
            many times the memory.
    """
    return PrefixGram(prefix_sums(adjacency(keys, heads=heads)), start)


def adjacency(keys: Sequence[Keys], *, heads: str = "all") -> Adjacency:
    """Dot products of the tokens' keys, summed over layers and heads or kept apart (EM-LLM, section 3.2).

    **Deviation.** The paper's text has one graph per head; the released code sums all of them, in the
    model's dtype. Both are here, and sums are float32, because rounding to bfloat16 can move a cut.

    Raises:
        ConfigError: `heads` is neither `all` nor `each`.
    """
    if heads == "each":
        return torch.cat([_grams(layer_keys).cpu() for layer_keys in keys])
    if heads != "all":
        raise ConfigError(f"refine_heads must be all or each, got {heads!r}")
    on_device: dict[torch.device, Tensor] = {}
    for layer_keys in keys:
        gram = _grams(layer_keys.transpose(0, 1).flatten(1)[None])
        on_device[gram.device] = on_device[gram.device] + gram if gram.device in on_device else gram
    return torch.stack([gram.cpu() for gram in on_device.values()]).sum(0)


def prefix_sums(adjacency: Adjacency | Float[np.ndarray, "graphs S S"]) -> PrefixSums:
    """Double cumulative sums in float64, with a leading row and column of zeros."""
    weights = np.asarray(adjacency)
    graphs, tokens, _ = weights.shape
    sums = np.zeros((graphs, tokens + 1, tokens + 1))
    inner = sums[:, 1:, 1:]
    np.cumsum(weights, axis=2, dtype=np.float64, out=inner)
    np.cumsum(inner, axis=1, out=inner)
    return sums


def _grams(keys: Keys) -> Adjacency:
    rows = keys.float()
    return torch.einsum("KSD,KTD->KST", rows, rows)
