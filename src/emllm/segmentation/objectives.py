"""How good a cut of the key graph into two neighbouring events is, in closed form.

Every objective is a function of five numbers of a split: the similarity within the left side, within the
right side and between them (each token counted with every token, itself included), and the two lengths.
`key_graph` reads them for all candidate splits of a window from prefix sums, so that an objective costs a
few vector operations and no sum over the graph.

Scale-free: multiplying all similarities by a positive number changes no value. Similarities may be negative,
which Eq. 4 and 5 of the paper do not foresee; what happens then is said at each objective. A denominator of
zero (to rounding) is read as the smallest positive number in proportion to the window, so that values may
be very large but are always finite: never NaN, never infinite.

This module does not know tokens, layers, or which of the values is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from emllm.segmentation.key_graph import SplitTerms, Values

#: What counts as zero, as a share of the similarities of a split.
ZERO = 1e-12


@dataclass(frozen=True)
class Objective:
    """A way to judge splits: one value per graph and candidate, and whether more is better."""

    values: Callable[[SplitTerms], Values]
    is_maximised: bool


def modularity(terms: SplitTerms) -> Values:
    """Modularity of the two sides, ``||c_t - proj_{c_T} c_t||^2 / ||c_T||^2`` (EM-LLM, Eq. 3).

    The paper's ``1/(4m) sum_ij (A_ij - k_i k_j / 2m) delta_ij``, with ``2m`` the sum of A: half of Newman's
    modularity, which has ``1/(2m)``. For a Gram matrix it is a squared distance: the part of the left side's
    summed keys that the whole window does not point to. So it is never negative, whatever the signs of the
    similarities, and 0 where all keys are parallel. A window whose keys sum to nothing has none: all 0.
    """
    total = terms.left + terms.right + 2.0 * terms.cut
    to_whole = terms.left + terms.cut
    is_some = np.abs(total) > _smallest(terms)
    share = to_whole / np.where(is_some, total, 1.0)
    distance = terms.left - share * to_whole
    return np.where(is_some, distance / np.where(is_some, total, 1.0), 0.0)


def conductance(terms: SplitTerms) -> Values:
    """The smaller of the two sides' ``cut / min(vol, total - vol)`` (EM-LLM, Eq. 4); less is better.

    ``vol`` is the similarity within the side and ``total`` that of the whole window.

    **Deviation** from the text, where the second volume is that within the *other* side: this is the
    definition of the released code, whose ``total - vol`` holds the other side and the cut twice. Neither
    is the usual conductance, which divides by volumes of degrees. Negative similarities keep the formula: a
    cut below zero means that the sides repel, and counts as better than any positive cut, except where it
    outweighs the other side and turns a denominator negative.
    """
    total = terms.left + terms.right + 2.0 * terms.cut
    smallest = _smallest(terms)
    of_left = terms.cut / _non_zero(np.minimum(terms.left, total - terms.left), smallest)
    of_right = terms.cut / _non_zero(np.minimum(terms.right, total - terms.right), smallest)
    return np.minimum(of_left, of_right)


def intra_inter(terms: SplitTerms) -> Values:
    """Mean similarity within a side over that between the sides, averaged over both (EM-LLM, Eq. 5).

    **Deviation** from the text, which divides sums: the ratio of means, as in the released code, so that a
    long side is not preferred for its length. Negative similarities keep the formula: if the sides repel,
    the ratio is negative and the split counts as a bad one. Prefer `modularity` for such keys.
    """
    pairs = terms.left_tokens * terms.right_tokens
    between = _non_zero(terms.cut, _smallest(terms)) / np.maximum(pairs, 1.0)
    of_left = terms.left / np.maximum(terms.left_tokens, 1.0) ** 2
    of_right = terms.right / np.maximum(terms.right_tokens, 1.0) ** 2
    return 0.5 * (of_left + of_right) / between


#: The objectives by the names of the setting `refine`.
REGISTRY: Mapping[str, Objective] = {
    "modularity": Objective(modularity, is_maximised=True),
    "conductance": Objective(conductance, is_maximised=False),
    "intra_inter": Objective(intra_inter, is_maximised=True),
}


def _smallest(terms: SplitTerms) -> Values:
    return ZERO * (np.abs(terms.left) + np.abs(terms.right) + np.abs(terms.cut)) + np.finfo(np.float64).tiny


def _non_zero(denominator: Values, smallest: Values) -> Values:
    return np.where(np.abs(denominator) < smallest, smallest, denominator)
