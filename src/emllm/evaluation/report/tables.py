"""The figures of a report: each row's score on each task, averages over tasks, differences to a reference.

A task's score is the mean over all its answered questions, as the benchmarks take it, shown times 100.
Intervals are 95 % bootstrap intervals that draw texts, each with all questions about it; those of an average
resample the texts within each of its tasks, those of several tasks (LoCoMo's conversations) once for all of
them, and those of a difference resample pairs: what both rows answered. Where a task has one text alone with
several questions, questions are drawn instead of texts; with one question
there is no interval, nor for an average that the task is in. An interval ends where scores do. A difference
is marked where its interval leaves out 0 and flipping the signs of pairs seldom gives as much. Perplexity is
``exp(nats)``, its difference is in nats; it is never averaged with scores. A failed sample has no score: it
is counted beside the mean and never in it.
This module does not know files, or how figures are laid out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from emllm.evaluation.report.comparison import Comparison
from emllm.evaluation.statistics import (
    Estimate,
    bootstrap_average,
    bootstrap_average_difference,
    bootstrap_difference,
    bootstrap_mean,
)
from emllm.evaluation.task_groups import groups_of

NUM_RESAMPLES = 2000
#: A difference whose p is not below is never marked.
MAX_P = 0.05
#: Fewer pairs with a difference never have such a p: chance alone gives five of one sign in 1 of 16 cases.
MIN_PAIRS = 6
#: Drawn again, one text is always itself: it tells nothing of others, so there is no interval.
MIN_DRAWN = 2

Scores = Float[np.ndarray, " S"]


@dataclass(frozen=True)
class Paired:
    """Scores of two rows on the questions that both answered, in one order, and what is drawn together."""

    ours: Scores
    theirs: Scores
    clusters: list[Hashable]


@dataclass(frozen=True)
class TaskScore:
    """One row on one task.

    Attributes:
        mean: of the answered questions, times 100, or the perplexity; None where none was answered.
        low: lower end of the interval; None of one text with one question.
        high: upper end of the interval; likewise.
        num_samples: answered samples.
        num_questions: of those samples, over which the mean goes.
        num_failed: samples without an answer.
        num_truncated: samples of which the row read less than the prompt.
    """

    task: str
    row: str
    mean: float | None
    low: float | None
    high: float | None
    num_samples: int
    num_questions: int
    num_failed: int
    num_truncated: int


@dataclass(frozen=True)
class Average:
    """Plain mean over the tasks of a suite or category, of the tasks that all its rows have a score for."""

    suite: str
    category: str
    row: str
    mean: float
    low: float | None
    high: float | None
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class RowDifference:
    """A row minus the reference over the questions that both answered.

    Attributes:
        name: a task, or a suite or ``suite, category`` for an average.
        mean: in points (score times 100), or in nats per token for perplexity.
        low: lower end of the interval; None where a task has one pair alone.
        high: upper end of the interval; likewise.
        num_pairs: what is drawn: texts about which both answered something, or questions of one text. A text
            that several tasks of an average have counts once.
        num_differing: of these pairs, those with a difference.
        p: two-sided, of flips of the pairs' signs.
        verdict: ``better`` or ``worse`` where the interval leaves out 0 and p is below `MAX_P`, else empty.
    """

    name: str
    row: str
    mean: float
    low: float | None
    high: float | None
    num_pairs: int
    num_differing: int
    p: float
    verdict: str

    @property
    def can_be_marked(self) -> bool:
        """Whether pairs enough differ for a verdict."""
        return self.low is not None and self.num_differing >= MIN_PAIRS


@dataclass(frozen=True)
class Figures:
    """All figures of one comparison."""

    scores: tuple[TaskScore, ...]
    averages: tuple[Average, ...]
    differences: tuple[RowDifference, ...]


def figures_of(comparison: Comparison) -> Figures:
    """Scores, averages and differences; the same runs give the same figures."""
    return Figures(
        tuple(task_scores(comparison)), tuple(averages(comparison)), tuple(differences(comparison))
    )


def task_scores(comparison: Comparison) -> list[TaskScore]:
    """Every row on every task it was asked."""
    return [_score(comparison, task, row) for task in comparison.tasks for row in comparison.rows_of(task)]


def _score(comparison: Comparison, task: str, row: str) -> TaskScore:
    records = comparison.records[task, row]
    answered = [record for record in records if record.score is not None]
    mean = low = high = None
    if answered:
        scores, clusters = _drawn(comparison, task, row)
        it = bootstrap_mean(scores, clusters=clusters, seed=comparison.seed, num_resamples=NUM_RESAMPLES)
        mean, low, high = (_shown(end, comparison.is_perplexity(task)) for end in (it.mean, it.low, it.high))
        low, high = (low, high) if _has_interval(it) else (None, None)
    return TaskScore(
        task=task,
        row=row,
        mean=mean,
        low=low,
        high=high,
        num_samples=len(answered),
        num_questions=sum(len(record.answers) for record in answered),
        num_failed=len(records) - len(answered),
        num_truncated=sum(record.read_tokens < record.tokens for record in answered),
    )


def _drawn(comparison: Comparison, task: str, row: str) -> tuple[list[float], list[Hashable]]:
    """Scores of a row, and what is drawn together."""
    scores = comparison.scores(task, row)
    return list(scores.values()), comparison.clusters(task, scores)


def _has_interval(it: Estimate) -> bool:
    return it.num_samples >= MIN_DRAWN


def _shown(value: float, is_perplexity: bool) -> float:
    """Perplexity, or points; an end of an interval that is no score is the nearest one."""
    return math.exp(min(max(value, 0.0), 700.0)) if is_perplexity else 100 * min(max(value, 0.0), 1.0)


def averages(comparison: Comparison) -> list[Average]:
    """Averages per category and suite, where there are two tasks or more."""
    found = []
    for suite, category, tasks in average_groups(comparison):
        for row in _rows_of(comparison, tasks):
            strata = [_drawn(comparison, task, row) for task in tasks]
            it = bootstrap_average(strata, seed=comparison.seed, num_resamples=NUM_RESAMPLES)
            mean, low, high = (_shown(end, False) for end in (it.mean, it.low, it.high))
            ends = (low, high) if _has_interval(it) else (None, None)
            found.append(Average(suite, category, row, mean, ends[0], ends[1], tuple(tasks)))
    return found


def average_groups(comparison: Comparison) -> list[tuple[str, str, list[str]]]:
    """Suite, category or group (empty: the whole suite) and the tasks that an average goes over."""
    groups = []
    for suite in comparison.suites():
        of_suite = [task for task in comparison.tasks if comparison.suite(task) == suite]
        asked = _rows_of(comparison, of_suite)
        tasks = [
            task
            for task in of_suite
            if not comparison.is_perplexity(task) and all(comparison.scores(task, row) for row in asked)
        ]
        categories = dict.fromkeys(str(comparison.tasks[task].get("category") or "") for task in tasks)
        for category in categories if len(categories) > 1 else ():
            members = [task for task in tasks if (comparison.tasks[task].get("category") or "") == category]
            if category and len(members) > 1:
                groups.append((suite, category, members))
        for name, named in groups_of([suite]).items():
            if set(named) < set(tasks):
                groups.append((suite, f"{name.partition('/')[2]}: {len(named)} tasks", list(named)))
        if len(tasks) > 1:
            groups.append((suite, "", tasks))
    return groups


def left_out(comparison: Comparison, suite: str) -> list[str]:
    """Scored tasks of a suite that its averages leave out, because a row has no score on them."""
    averaged = {task for name, _, tasks in average_groups(comparison) if name == suite for task in tasks}
    return [
        task
        for task in comparison.tasks
        if comparison.suite(task) == suite and not comparison.is_perplexity(task) and task not in averaged
    ]


def _rows_of(comparison: Comparison, tasks: Sequence[str]) -> list[str]:
    return [row for row in comparison.rows if any((task, row) in comparison.records for task in tasks)]


def differences(comparison: Comparison) -> list[RowDifference]:
    """Every other row against the reference: each task, then each average; none without a reference."""
    reference = comparison.reference
    if reference is None:
        return []
    found = []
    for task in comparison.tasks:
        for row in comparison.rows_of(task):
            pairs = paired(comparison, task, row, reference)
            if row != reference and pairs.clusters:
                is_less_better = comparison.is_perplexity(task)
                it = bootstrap_difference(
                    pairs.ours,
                    pairs.theirs,
                    clusters=pairs.clusters,
                    seed=comparison.seed,
                    num_resamples=NUM_RESAMPLES,
                )
                found.append(_difference(task, row, it, it.num_samples, is_less_better=is_less_better))
    return found + _average_differences(comparison, reference)


def _difference(
    name: str, row: str, it: Estimate, num_pairs: int, *, is_less_better: bool = False
) -> RowDifference:
    sign, scale, most = (-1, 1, math.inf) if is_less_better else (1, 100, 1.0)
    low, high, p = max(it.low, -most), min(it.high, most), it.p
    assert p is not None, "an estimate of a difference has a p"
    has_interval = _has_interval(it)
    return RowDifference(
        name=name,
        row=row,
        mean=scale * it.mean,
        low=scale * low if has_interval else None,
        high=scale * high if has_interval else None,
        num_pairs=num_pairs,
        num_differing=it.num_differing,
        p=p,
        verdict=_verdict(sign * low, sign * high, p) if has_interval else "",
    )


def _average_differences(comparison: Comparison, reference: str) -> list[RowDifference]:
    found = []
    for suite, category, tasks in average_groups(comparison):
        for row in _rows_of(comparison, tasks):
            pairs = [paired(comparison, task, row, reference) for task in tasks]
            if row == reference or not all(one.clusters for one in pairs):
                continue
            strata = [(one.ours - one.theirs, one.clusters) for one in pairs]
            it = bootstrap_average_difference(strata, seed=comparison.seed, num_resamples=NUM_RESAMPLES)
            num_pairs = len({cluster for one in pairs for cluster in one.clusters})
            found.append(_difference(f"{suite}, {category}" if category else suite, row, it, num_pairs))
    return found


def paired(comparison: Comparison, task: str, row: str, reference: str) -> Paired:
    """What a row and the reference scored on the questions that both answered.

    Of a perplexity only texts of which both read as much: full attention reads a long one in part, and its
    other tokens are easier or harder.
    """
    ours, theirs = comparison.scores(task, row), comparison.scores(task, reference)
    both = [asked for asked in ours if asked in theirs]
    if comparison.is_perplexity(task):
        read, other = comparison.read_tokens(task, row), comparison.read_tokens(task, reference)
        both = [(sample, number) for sample, number in both if read[sample] == other[sample]]
    return Paired(
        np.array([ours[asked] for asked in both]),
        np.array([theirs[asked] for asked in both]),
        comparison.clusters(task, both),
    )


def _verdict(low: float, high: float, p: float) -> str:
    """Of a difference in which more is better; the ends may come in either order."""
    if p >= MAX_P or min(low, high) <= 0 <= max(low, high):
        return ""
    return "better" if low > 0 else "worse"
