"""Scores by the length of the text and by the depth of what was asked for, counted over questions.

A length is in tokens: where all samples of a suite are made to lengths the one that was asked for (`length`
of its facts) if these are few, else the prompt's, in steps of a factor 2. A depth is the question's, or the
sample's, in percent; a question with evidence at several places has none (`suites.depths`): it is in no curve
by depth, and counted. Failed samples count in no mean; a point that rests on fewer questions than another
row's is said to be thin.
This module does not know how curves are drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from emllm.evaluation.report.comparison import Comparison
from emllm.evaluation.report.records import Record
from emllm.evaluation.suites import BY_LENGTH
from emllm.evaluation.task import suite_names, tasks_of

#: More distinct lengths or depths than these are put into bins.
MAX_LENGTHS, MAX_DEPTHS = 12, 11

#: A bin: what it is sorted by, and its label.
Bin = tuple[float, str]
_Placed = tuple[Bin, Bin | None, float]


@dataclass(frozen=True)
class Point:
    """Mean of the scores in a bin, times 100 (or their perplexity).

    Attributes:
        num_scores: scores in the mean.
        is_thin: another row has more of them here, so that the two do not rest on the same questions.
    """

    mean: float
    num_scores: int
    is_thin: bool


@dataclass(frozen=True)
class Curve:
    """One suite's scores along one axis, row by row; None where a row has none.

    Attributes:
        num_left_out: scores that have no place on the axis, of the row that has most of them.
    """

    suite: str
    axis: str
    is_perplexity: bool
    labels: tuple[str, ...]
    rows: Mapping[str, tuple[Point | None, ...]]
    num_left_out: int = 0


@dataclass(frozen=True)
class Grid:
    """One suite's scores by length and depth, for each row; `cells` is depth by length, None where empty."""

    suite: str
    lengths: tuple[str, ...]
    depths: tuple[str, ...]
    rows: Mapping[str, tuple[tuple[float | None, ...], ...]]


def curves(comparison: Comparison) -> list[Curve]:
    """Score by length and score by depth of each suite, where there are two bins or more."""
    found = []
    for suite in comparison.suites():
        for is_perplexity in (False, True):
            placed = _placed(comparison, suite, is_perplexity)
            lengths = {row: [(length, score) for length, _, score in it] for row, it in placed.items()}
            depths = {row: [(deep, score) for _, deep, score in it if deep] for row, it in placed.items()}
            for axis, scores in (("length", lengths), ("depth", depths)):
                num_left_out = max((len(placed[row]) - len(it) for row, it in scores.items()), default=0)
                curve = _curve(suite, axis, is_perplexity, scores, num_left_out)
                if len(curve.labels) > 1:
                    found.append(curve)
    return found


def grids(comparison: Comparison) -> list[Grid]:
    """Length by depth of each suite that has both, with two bins or more of each."""
    found = []
    for suite in comparison.suites():
        placed = _placed(comparison, suite, False)
        known = [(length, deep) for it in placed.values() for length, deep, _ in it if deep]
        lengths, depths = (sorted({pair[i] for pair in known}) for i in (0, 1))
        if len(lengths) > 1 and len(depths) > 1:
            rows = {}
            for row, it in placed.items():
                cells = _means(((deep, length), score) for length, deep, score in it if deep)
                rows[row] = tuple(tuple(cells.get((deep, length)) for length in lengths) for deep in depths)
            found.append(Grid(suite, _labels(lengths), _labels(depths), rows))
    return found


def _placed(comparison: Comparison, suite: str, is_perplexity: bool) -> dict[str, list[_Placed]]:
    """Of each row, every score with the bins of its length and depth."""
    tasks = [
        task
        for task in comparison.tasks
        if comparison.suite(task) == suite and comparison.is_perplexity(task) == is_perplexity
    ]
    records = [
        (row, r) for task in tasks for row in comparison.rows_of(task) for r in comparison.records[task, row]
    ]
    answered = [record for _, record in records if record.score is not None]
    length_of = _length_bins(answered, are_made=_are_made_to_lengths(suite))
    depth_of = _depth_bins([depth for _, record in records for depth, _ in _scores(record)])
    placed: dict[str, list[_Placed]] = {}
    for row, record in records:
        for depth, score in _scores(record):
            placed.setdefault(row, []).append((length_of(record), depth_of(depth), score))
    return {row: placed[row] for row in comparison.rows if row in placed}


def _scores(record: Record) -> list[tuple[float | None, float]]:
    """Depth and score of each question; those without a depth have the sample's, if none has its own."""
    depths = [_number(answer.facts.get("depth")) for answer in record.answers]
    if all(depth is None for depth in depths):
        depths = [_number(record.facts.get("depth"))] * len(record.scores)
    return list(zip(depths, record.scores, strict=True))


def _are_made_to_lengths(suite: str) -> bool:
    """Whether the samples of all its tasks are; the `length` of others may be in words or characters."""
    return suite in suite_names() and all(task.samples in BY_LENGTH for task in tasks_of(suite))


def _length_bins(records: list[Record], *, are_made: bool) -> Callable[[Record], Bin]:
    lengths = {_number(record.facts.get("length")) for record in records}
    if are_made and None not in lengths and len(lengths) <= MAX_LENGTHS:
        return lambda record: _length_bin(_number(record.facts["length"]) or 0.0)
    return lambda record: _token_bin(record.tokens)


def _length_bin(length: float) -> Bin:
    return length, _thousands(length)


def _token_bin(tokens: int) -> Bin:
    power = max(math.ceil(math.log2(max(tokens, 1))), 10)
    low, high = 2.0 ** (power - 1), 2.0**power
    return high, f"to {_thousands(high)}" if power == 10 else f"{_thousands(low)}–{_thousands(high)}"


def _thousands(number: float) -> str:
    for unit, letter in ((2**20, "M"), (2**10, "K")):
        if number >= unit and number % unit == 0:
            return f"{int(number) // unit}{letter}"
    return f"{number:,.0f}"


def _depth_bins(depths: Iterable[float | None]) -> Callable[[float | None], Bin | None]:
    known = {depth for depth in depths if depth is not None}

    def place(depth: float | None) -> Bin | None:
        if depth is None:
            return None
        if len(known) <= MAX_DEPTHS:
            return depth, f"{depth:g} %"
        low = min(int(depth // 10) * 10, 90)
        return float(low), f"{low}–{low + 10} %"

    return place


def _number(value: Any) -> float | None:
    """A number as it is, or of text such as ``4k``."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmM]?)", value) if isinstance(value, str) else None
    return float(found[1]) * {"": 1, "k": 2**10, "m": 2**20}[found[2].lower()] if found else None


def _curve(
    suite: str,
    axis: str,
    is_perplexity: bool,
    scores: Mapping[str, list[tuple[Bin, float]]],
    num_left_out: int,
) -> Curve:
    bins = sorted({place for it in scores.values() for place, _ in it})
    counts = {row: [sum(place == it for place, _ in scores[row]) for it in bins] for row in scores}
    most = [max((counts[row][i] for row in scores), default=0) for i in range(len(bins))]
    rows = {}
    for row in scores:
        means = _means(scores[row], is_perplexity=is_perplexity)
        rows[row] = tuple(
            Point(means[it], counts[row][i], counts[row][i] < most[i]) if it in means else None
            for i, it in enumerate(bins)
        )
    return Curve(suite, axis, is_perplexity, _labels(bins), rows, num_left_out)


def _means(scores: Iterable[tuple[Any, float]], *, is_perplexity: bool = False) -> dict[Any, float]:
    sums: dict[Any, tuple[float, int]] = {}
    for key, score in scores:
        total, count = sums.get(key, (0.0, 0))
        sums[key] = total + score, count + 1
    means = {key: total / count for key, (total, count) in sums.items()}
    return {key: math.exp(min(mean, 700.0)) if is_perplexity else 100 * mean for key, mean in means.items()}


def _labels(bins: Iterable[Bin]) -> tuple[str, ...]:
    return tuple(label for _, label in bins)
