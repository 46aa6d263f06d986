"""Scores by the groups of samples that a benchmark itself reports: LongBench-E's and LongBench v2's.

A group's score is the mean over all questions of its answered samples, times 100, as LongBench's ``scorer_e``
takes it. This module does not know files or formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from emllm.evaluation.report.comparison import Comparison
from emllm.evaluation.report.layout import Cell, Section, Table, number

#: Of a fact of samples, what its table is called, and its groups in order; other values make no group.
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bucket": ("By length in words", ("0-4k", "4-8k", "8k+")),
    "difficulty": ("By difficulty", ("easy", "hard")),
    "length": ("By length of the text", ("short", "medium", "long")),
}


@dataclass(frozen=True)
class GroupScore:
    """One row on those samples of a task that have one value of a fact; a group without answers has none."""

    task: str
    row: str
    fact: str
    group: str
    mean: float
    num_samples: int


def group_scores(comparison: Comparison) -> list[GroupScore]:
    """Of each fact the groups of every task and row that has some."""
    return [
        score
        for fact, (_, groups) in GROUPS.items()
        for task in comparison.tasks
        if not comparison.is_perplexity(task)
        for row in comparison.rows_of(task)
        for score in _of_row(comparison, task, row, fact, groups)
    ]


def _of_row(
    comparison: Comparison, task: str, row: str, fact: str, groups: tuple[str, ...]
) -> Iterator[GroupScore]:
    for group in groups:
        members = [
            record.scores
            for record in comparison.records[task, row]
            if record.scores and record.facts.get(fact) == group
        ]
        if members:
            mean = 100 * fmean(score for scores in members for score in scores)
            yield GroupScore(task, row, fact, group, mean, len(members))


def group_section(comparison: Comparison) -> Section:
    """A table a fact, a line a task and row, with the number of samples of each group."""
    found = {(it.fact, it.task, it.row, it.group): it for it in group_scores(comparison)}
    tables = []
    for fact, (title, groups) in GROUPS.items():
        lines = tuple(
            (Cell(task, row), *(_cell(found.get((fact, task, row, group))) for group in groups))
            for task, row in dict.fromkeys((it.task, it.row) for it in found.values() if it.fact == fact)
        )
        if lines:
            tables.append(Table(title, ("task and row", *groups), lines))
    said = "Groups of samples that the benchmark tells apart, each with the number of its answered samples."
    return Section("By group of samples", (said, *tables) if tables else ())


def _cell(score: GroupScore | None) -> Cell:
    return Cell("–") if score is None else Cell(number(score.mean), f"of {score.num_samples}")
