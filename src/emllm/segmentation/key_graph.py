"""The graph of tokens whose edges are similarities of keys, in a form in which every cut is a look-up.

The adjacency of EM-LLM (section 3.2) is a Gram matrix, ``A = X X^T`` with a token's keys of the chosen layers
and heads side by side in a row of X. Sums of A over a rectangle are dot products of sums of rows, so the
graph is never walked, and two forms of prefix sums answer every question about a window:

- `PrefixKeys`, the summed keys themselves: ``n * F`` numbers and no matrix product. The cheaper on a CPU.
- `PrefixGram`, the dot products of all pairs of them: ``n * n`` numbers, few enough to leave a GPU.

This module does not know events, objectives, or which layers were chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emllm.dims import Keys
from emllm.errors import ConfigError

#: A square matrix of similarities for every graph; one graph where the heads are pooled.
Adjacency = Float[Tensor, "graphs S S"]
PrefixSums = Float[np.ndarray, "graphs edges edges"]
KeySums = Float[np.ndarray, "edges graphs F"]
Values = Float[np.ndarray, "graphs C"]


@dataclass(frozen=True)
class SplitTerms:
    """What the splits of one window ``[w, e)`` at C candidates are judged by.

    With ``c_t`` the sum of the keys of ``[w, t)``: ``left = ||c_t||^2``, ``cut = c_t . (c_e - c_t)``.

    Attributes:
        left: similarity within ``[w, t)``, non-negative for a Gram matrix.
        right: similarity within ``[t, e)``, likewise.
        cut: similarity between the two, once (not twice); may be negative.
        left_tokens: length of the left side.
        right_tokens: length of the right side.
    """

    left: Values
    right: Values
    cut: Values
    left_tokens: Float[np.ndarray, " C"]
    right_tokens: Float[np.ndarray, " C"]


@dataclass(frozen=True)
class PrefixGram:
    """Double prefix sums of the adjacency of the tokens ``[start, stop)``: ``P[t, u] = sum_{i<t, j<u} A_ij``.

    ``P[t, u]`` is also the dot product of the summed keys of the first t and the first u tokens, hence the
    name. Row 0 and column 0 are zero, so there is one row more than tokens.

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

    def split_terms(self, splits: Int[np.ndarray, " C"], *, start: int, stop: int) -> SplitTerms:
        """The terms of cutting the window ``[start, stop)`` at each of `splits`, from O(C) look-ups."""
        low, high, cuts = start - self.start, stop - self.start, splits - self.start
        at_low, at_high = self.sums[:, low, :], self.sums[:, high, :]
        origin = at_low[:, low, None]
        left = self.sums[:, cuts, cuts] - 2.0 * at_low[:, cuts] + origin
        to_whole = at_high[:, cuts] - at_low[:, cuts] - at_high[:, low, None] + origin
        total = at_high[:, high, None] - 2.0 * at_high[:, low, None] + origin
        return _terms(left, to_whole, total, splits, start=start, stop=stop)


@dataclass(frozen=True)
class PrefixKeys:
    """Running sums of the keys of the tokens ``[start, stop)``, in float64, with a leading zero row.

    Attributes:
        sums: per graph, the keys of one token side by side.
        start: absolute position of the first token.
    """

    sums: KeySums
    start: int = 0

    @property
    def stop(self) -> int:
        """Absolute position after the last token."""
        return self.start + self.sums.shape[0] - 1

    def split_terms(self, splits: Int[np.ndarray, " C"], *, start: int, stop: int) -> SplitTerms:
        """The terms of cutting the window ``[start, stop)`` at each of `splits`, in O(C F)."""
        origin = self.sums[start - self.start]
        whole = self.sums[stop - self.start] - origin
        lefts = self.sums[splits - self.start] - origin
        left = np.einsum("CgF,CgF->gC", lefts, lefts)
        to_whole = np.einsum("CgF,gF->gC", lefts, whole)
        total = np.einsum("gF,gF->g", whole, whole)[:, None]
        return _terms(left, to_whole, total, splits, start=start, stop=stop)


#: The key graph of a span of tokens, to be asked about cuts; positions are absolute. Read-only.
KeyGraph = PrefixGram | PrefixKeys
#: One layer's keys; layers may differ in heads and in their width.
LayerKeys = Float[Tensor, "_ S _"]


def key_graph(keys: Sequence[LayerKeys], *, start: int = 0, heads: str = "all") -> KeyGraph:
    """The key graph of some tokens, in the form that is cheaper where the keys are.

    Args:
        keys: unrotated keys of the chosen layers, on any device, in any dtype.
        start: absolute position of the first of the S tokens.
        heads: `all` pools layers and heads in one graph; `each` keeps one graph per layer and head.

    Raises:
        ConfigError: `heads` is neither.
    """
    # Running sums per head need heads of one width.
    is_even = heads == "all" or len({layer_keys.shape[2] for layer_keys in keys}) == 1
    if is_even and all(layer_keys.device.type == "cpu" for layer_keys in keys):
        return prefix_keys(keys, start=start, heads=heads)
    return prefix_gram(keys, start=start, heads=heads)


def prefix_keys(keys: Sequence[LayerKeys], *, start: int = 0, heads: str = "all") -> PrefixKeys:
    """Running sums of keys that are on the CPU; see `key_graph`."""
    _check_heads(heads)
    num_tokens = keys[0].shape[1]
    rows = torch.cat([layer_keys.transpose(0, 1).flatten(1) for layer_keys in keys], dim=1)
    graphs = 1 if heads == "all" else sum(layer_keys.shape[0] for layer_keys in keys)
    sums = np.zeros((num_tokens + 1, rows.shape[1]))
    sums[1:] = rows.float().numpy()
    _accumulate_rows(sums)
    return PrefixKeys(sums.reshape(num_tokens + 1, graphs, -1), start)


def prefix_gram(keys: Sequence[LayerKeys], *, start: int = 0, heads: str = "all") -> PrefixGram:
    """Prefix sums of the adjacency of keys on any device; see `key_graph`."""
    return PrefixGram(prefix_sums(adjacency(keys, heads=heads)), start)


def adjacency(keys: Sequence[LayerKeys], *, heads: str = "all") -> Adjacency:
    """Dot products of the tokens' keys, summed over layers and heads or kept apart (EM-LLM, section 3.2).

    **Deviation.** The paper's text has one graph per head; the released code sums all of them, in the
    model's dtype. Both are here, and sums are float32, because rounding to bfloat16 can move a cut.
    """
    _check_heads(heads)
    if heads == "each":
        return torch.cat([_grams(layer_keys).cpu() for layer_keys in keys])
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
    np.cumsum(weights, axis=2, dtype=np.float64, out=sums[:, 1:, 1:])
    for graph_sums in sums:
        _accumulate_rows(graph_sums)
    return sums


def _accumulate_rows(rows: Float[np.ndarray, "edges columns"]) -> None:
    """Running sums down the rows, in place; whole rows at a time, which is many times faster than cumsum."""
    for above, row in itertools.pairwise(rows):
        np.add(above, row, out=row)


def _grams(keys: Keys) -> Adjacency:
    rows = keys.float()
    return torch.einsum("KSD,KTD->KST", rows, rows)


def _terms(
    left: Values,
    to_whole: Values,
    total: Float[np.ndarray, "graphs 1"],
    splits: Int[np.ndarray, " C"],
    *,
    start: int,
    stop: int,
) -> SplitTerms:
    """From ``||c_t||^2``, ``c_t . c_e`` and ``||c_e||^2`` to what objectives are made of."""
    cut = to_whole - left
    left_tokens, right_tokens = (splits - start).astype(np.float64), (stop - splits).astype(np.float64)
    return SplitTerms(left, total - 2.0 * cut - left, cut, left_tokens, right_tokens)


def _check_heads(heads: str) -> None:
    if heads not in ("all", "each"):
        raise ConfigError(f"refine_heads must be all or each, got {heads!r}")
