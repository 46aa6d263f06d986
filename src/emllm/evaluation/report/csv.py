"""The figures of a report as comma-separated numbers, one line a task and row.

Scores are times 100, perplexity is itself, its difference in nats; an empty field is an unknown. Groups of
samples, where there are any, have two columns each behind the others.
This module does not know how figures are computed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from emllm.evaluation.report.comparison import Comparison
from emllm.evaluation.report.groups import group_scores
from emllm.evaluation.report.tables import Figures

COLUMNS = (
    "model",
    "suite",
    "category",
    "task",
    "metric",
    "row",
    "mean",
    "low",
    "high",
    "num_samples",
    "num_questions",
    "num_failed",
    "num_truncated",
    "reference",
    "difference",
    "difference_low",
    "difference_high",
    "num_pairs",
    "p",
    "verdict",
)


def render_csv(found: Sequence[tuple[Comparison, Figures]]) -> str:
    """All tasks and rows of all comparisons, under one line of names."""
    buffer = StringIO()
    lines = [line for comparison, figures in found for line in _lines(comparison, figures)]
    of_groups = dict.fromkeys(name for line in lines for name in line if name not in COLUMNS)
    writer = csv.DictWriter(buffer, (*COLUMNS, *of_groups), restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _field(value) for name, value in line.items()})
    return buffer.getvalue()


def _lines(comparison: Comparison, figures: Figures) -> list[dict[str, Any]]:
    groups = group_scores(comparison)
    compared = {(it.name, it.row): it for it in figures.differences}
    lines = []
    for score in figures.scores:
        about = comparison.tasks[score.task]
        line = {
            "model": comparison.title,
            "suite": comparison.suite(score.task),
            "category": about.get("category", ""),
            "metric": about.get("metric", ""),
            **asdict(score),
        }
        it = compared.get((score.task, score.row))
        if it is not None:
            line |= {"difference": it.mean, "difference_low": it.low, "difference_high": it.high}
            line |= {"reference": comparison.reference, "num_pairs": it.num_pairs}
            line |= {"p": it.p, "verdict": it.verdict}
        for group in (it for it in groups if (it.task, it.row) == (score.task, score.row)):
            name = f"{group.fact} {group.group}"
            line |= {name: group.mean, f"{name} num_samples": group.num_samples}
        lines.append(line)
    return lines


def _field(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
