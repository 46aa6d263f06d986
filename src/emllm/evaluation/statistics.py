"""How far a mean of scores, or a difference of two, can be trusted: the bootstrap, and flips of signs.

Samples are drawn again with replacement as often as there are samples, many times, and the mean of each draw
is taken (Efron and Tibshirani 1993). Draws from n samples spread by sqrt((n - 1) / n) too little, which is
much with few: their deviations from the mean are widened by as much. Of a mean over questions of texts that
have different numbers of them, a ratio, that is right to first order only. An interval of few samples stays
too narrow: whether two rows differ is told by their p.

Two rows are compared on the same samples, drawn together, so that what is hard for both does not blur their
difference. If both are as good, each of its signs could as well be the other one (Fisher 1935, section 21):
p is how often flipped signs give a mean difference as large. Questions about one text share what makes it
hard: their scores are one cluster, drawn and flipped together.

This module does not know tasks, rows or files.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from emllm.errors import ConfigError

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
#: All flips of the signs of so many clusters are gone through, of more clusters `_NUM_FLIPS` are drawn.
_MAX_ENUMERATED = 12
_NUM_FLIPS = 10_000
#: Drawn indices that are held at a time.
_MAX_DRAWN = 2_000_000
#: Means closer to 0 than this are 0: sums of decimals such as 0.1 are not exact.
_ZERO = 1e-12

Scores = Float[np.ndarray, " S"]
Sums = Float[np.ndarray, "K C"]
#: Of each cluster the sum of its scores, and their number.
Clustered = dict[Hashable, tuple[float, float]]


@dataclass(frozen=True)
class Estimate:
    """A mean and its percentile interval.

    Attributes:
        mean: over all scores.
        low: lower end of the interval.
        high: upper end of the interval.
        num_samples: clusters that were drawn from, of an average those of the smallest task; of one alone the
            interval says nothing and is its mean.
        p: of a difference, two-sided: how often its signs, flipped by chance, give as much. None of a mean.
        num_differing: of a difference, the clusters with one; fewer than six never have a p below 0.05.
    """

    mean: float
    low: float
    high: float
    num_samples: int
    p: float | None = None
    num_differing: int = 0


def bootstrap_mean(
    scores: Sequence[float] | Scores,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of one row's scores and its interval.

    Args:
        scores: one a question, or one a sample.
        clusters: to which sample each score belongs; None: each is a sample of its own. The mean is over
            scores, so that a sample with more questions weighs more.
        confidence: share of the draws whose means lie in the interval.
        num_resamples: draws.
        seed: of the draws; the same scores and seed give the same interval.

    Raises:
        ConfigError: no scores, a score that is no finite number, not a cluster for each score, a confidence
            that is not between 0 and 1, or no draws.
    """
    return bootstrap_average(
        [(scores, clusters)], confidence=confidence, num_resamples=num_resamples, seed=seed
    )


def bootstrap_average(
    strata: Sequence[tuple[Sequence[float] | Scores, Sequence[Hashable] | None]],
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Plain mean of the means of several tasks, whatever their sizes, and its interval.

    Each draw draws clusters again within each task. Tasks that have clusters in common ask about the
    same texts: these are drawn once for all of them (anew where one of the tasks would have none).

    Args:
        strata: scores and clusters of each task, as in `bootstrap_mean`, as are the other settings.

    Raises:
        ConfigError: as `bootstrap_mean`, or there is no task.
    """
    if not strata:
        raise ConfigError("an average needs one task at least")
    generator = np.random.default_rng(seed)
    grouped = _grouped(strata, confidence=confidence, num_resamples=num_resamples)
    total = np.zeros(num_resamples)
    for together in _sharing([clusters for _, clusters in strata]):
        sums, sizes = _side_by_side([grouped[idx] for idx in together])
        total += _resampled(sums, sizes, num_resamples=num_resamples, generator=generator).sum(axis=1)
    low, high = _ends(total / len(strata), confidence)
    mean = float(np.mean([_mean(one) for one in grouped]))
    return Estimate(mean, low, high, min(len(one) for one in grouped))


def bootstrap_difference(
    first: Sequence[float] | Scores,
    second: Sequence[float] | Scores,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean difference of two rows on the same samples in one order, its interval and two-sided p.

    Args:
        first: scores of one row.
        second: scores of the other, taken from them.
        clusters: as in `bootstrap_mean`, as are the other settings.

    Raises:
        ConfigError: as `bootstrap_mean`, or not as many scores of both rows.
    """
    if len(first) != len(second):
        raise ConfigError(
            f"two rows must have scores of the same samples, got {len(first)} and {len(second)}"
        )
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_average_difference(
        [(differences, clusters)], confidence=confidence, num_resamples=num_resamples, seed=seed
    )


def bootstrap_average_difference(
    strata: Sequence[tuple[Sequence[float] | Scores, Sequence[Hashable] | None]],
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Plain mean of several tasks' mean differences, its interval and two-sided p.

    A cluster that several tasks have in common has one sign in all of them.

    Args:
        strata: differences of two rows and their clusters of each task, as in `bootstrap_average`, as are the
            other settings.

    Raises:
        ConfigError: as `bootstrap_average`.
    """
    found = bootstrap_average(strata, confidence=confidence, num_resamples=num_resamples, seed=seed)
    shares: dict[Hashable, float] = {}
    for one in _grouped(strata, confidence=confidence, num_resamples=num_resamples):
        num_scores = sum(size for _, size in one.values())
        for cluster, (total, _) in one.items():
            shares[cluster] = shares.get(cluster, 0.0) + total / (num_scores * len(strata))
    differing = np.array([share for share in shares.values() if abs(share) > _ZERO])
    return replace(found, p=_flipped(differing, seed=seed), num_differing=len(differing))


def _flipped(shares: Scores, *, seed: int) -> float:
    """How often the sum of these, each with a sign of chance, is as far from 0 as theirs is.

    Of many shares some flips are drawn, and theirs counted as one more, so that the answer is never 0.
    """
    if len(shares) <= _MAX_ENUMERATED:
        sums = np.zeros(1)
        for share in shares:
            sums = np.concatenate([sums + share, sums - share])
    else:
        generator = np.random.default_rng(seed)
        drawn = np.zeros(_NUM_FLIPS)
        for share in shares:
            drawn += share * (1 - 2 * generator.integers(2, size=_NUM_FLIPS, dtype=np.int8))
        sums = np.append(drawn, shares.sum())
    return float(np.mean(np.abs(sums) >= abs(shares.sum()) - _ZERO))


def _checked(scores: Sequence[float] | Scores, *, confidence: float, num_resamples: int) -> Scores:
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ConfigError("scores must be finite numbers, one at least")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence}")
    if num_resamples < 1:
        raise ConfigError(f"num_resamples must be >= 1, got {num_resamples}")
    return values


def _grouped(
    strata: Sequence[tuple[Sequence[float] | Scores, Sequence[Hashable] | None]],
    *,
    confidence: float,
    num_resamples: int,
) -> list[Clustered]:
    """The scores of each task by cluster, and everything checked."""
    return [
        _by_cluster(_checked(scores, confidence=confidence, num_resamples=num_resamples), clusters)
        for scores, clusters in strata
    ]


def _mean(clusters: Clustered) -> float:
    """The mean over all scores of a task."""
    return sum(total for total, _ in clusters.values()) / sum(size for _, size in clusters.values())


def _by_cluster(values: Scores, clusters: Sequence[Hashable] | None) -> Clustered:
    """Sum and number of the scores of each cluster, in the order in which the clusters first stand."""
    if clusters is None:
        return {object(): (value, 1.0) for value in values.tolist()}
    if len(clusters) != len(values):
        raise ConfigError(f"each score needs its cluster: {len(values)} scores, {len(clusters)} clusters")
    found: dict[Hashable, tuple[float, float]] = {}
    for cluster, value in zip(clusters, values.tolist(), strict=True):
        total, size = found.get(cluster, (0.0, 0.0))
        found[cluster] = total + value, size + 1.0
    return found


def _sharing(clusters: Sequence[Sequence[Hashable] | None]) -> list[list[int]]:
    """The tasks in groups: two with a cluster in common are in one, in the order of their first."""
    groups: list[tuple[list[int], set[Hashable]]] = []
    for idx, own in enumerate(clusters):
        members, names = [idx], set(own or ())
        for group in [group for group in groups if group[1] & names]:
            groups.remove(group)
            members, names = group[0] + members, names | group[1]
        groups.append((members, names))
    return sorted(members for members, _ in groups)


def _side_by_side(tasks: Sequence[Clustered]) -> tuple[Sums, Sums]:
    """Sums and numbers of every cluster in every task, 0 where a task has nothing of it."""
    names = list(dict.fromkeys(name for task in tasks for name in task))
    both = np.array([[task.get(name, (0.0, 0.0)) for name in names] for task in tasks])
    return both[..., 0], both[..., 1]


def _resampled(
    sums: Sums, sizes: Sums, *, num_resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "N K"]:
    """The mean over each task's scores of each draw of clusters, widened; of one cluster always the same."""
    num_clusters = sums.shape[1]
    num_at_a_time = max(1, _MAX_DRAWN // sums.size)
    means = np.empty((0, len(sums)))
    while len(means) < num_resamples:
        num_draws = min(num_at_a_time, num_resamples - len(means))
        drawn = generator.integers(num_clusters, size=(num_draws, num_clusters))
        counts = sizes[:, drawn].sum(axis=-1)
        has_all = (counts > 0).all(axis=0)
        means = np.concatenate([means, (sums[:, drawn].sum(axis=-1)[:, has_all] / counts[:, has_all]).T])
    observed = sums.sum(axis=-1) / sizes.sum(axis=-1)
    num_own = np.count_nonzero(sizes, axis=-1)
    return observed + (means - observed) * np.sqrt(num_own / np.maximum(num_own - 1, 1))


def _ends(means: Float[np.ndarray, " N"], confidence: float) -> tuple[float, float]:
    outside = (1 - confidence) / 2
    low, high = np.quantile(means, [outside, 1 - outside])
    return float(low), float(high)
