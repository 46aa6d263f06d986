"""How a run came about, laid out as sections: what it is, what failed, what rows answered, how it was run.

This module does not know figures or which format a section is written in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from emllm.evaluation.agreement import MACHINES, machines_of
from emllm.evaluation.report.comparison import Comparison
from emllm.evaluation.report.layout import Cell, Section, Table, plural
from emllm.evaluation.report.records import Record

#: Failures listed one by one, samples shown of a task, and characters shown of an answer.
MAX_FAILURES, MAX_EXAMPLES, MAX_CHARS = 20, 3, 300


def overview_section(comparison: Comparison) -> Section:
    """What the tables below are about, and what is missing from them."""
    num_samples = sum(map(comparison.num_samples, comparison.tasks))
    shared = sum(len(comparison.shared_samples(task)) for task in comparison.tasks)
    failures = Counter(record.row for it in comparison.records.values() for record in it if record.failed)
    lines = [
        f"{plural(len(comparison.tasks), 'task')}, {plural(num_samples, 'sample')}, "
        f"{plural(len(comparison.rows), 'row')}: {', '.join(comparison.rows)}. "
        f"{plural(shared, 'sample')} of {num_samples:,} answered by every row that was asked them.",
        "Scores are of each task's metric, times 100, and means over all questions; intervals are 95 % "
        "bootstrap intervals that draw texts, each with all questions about it, where there are two or more.",
    ]
    one_text = [task for task in comparison.tasks if comparison.is_one_text(task)]
    if one_text:
        lines.append(
            f"Of one text alone, with intervals over its questions that say nothing of other texts: "
            f"{', '.join(one_text)}."
        )
    if failures:
        failed = ", ".join(f"{row} {count:,}" for row, count in failures.items())
        lines.append(f"Failed samples, scored by nobody: {failed}.")
    return Section("Overview", (*lines, *comparison.remarks))


def failure_section(comparison: Comparison) -> Section:
    """Why samples have no score."""
    failed = [
        record
        for task in comparison.tasks
        for row in comparison.rows_of(task)
        for record in comparison.records[task, row]
        if record.failed is not None
    ]
    if not failed:
        return Section("Failures", ())
    lines = tuple(
        (
            Cell(record.row),
            Cell(record.task),
            Cell(record.sample),
            Cell(f"{record.tokens:,}" if record.tokens else "–"),
            Cell(_cut(record.failed or "")),
        )
        for record in failed[:MAX_FAILURES]
    )
    said = f"{plural(len(failed), 'failed sample')}" + (
        f", of which the first {MAX_FAILURES}:" if len(failed) > MAX_FAILURES else ":"
    )
    head = ("row", "task", "sample", "tokens", "why")
    return Section("Failures", (said, Table("Failed samples", head, lines, is_text=True)))


def example_section(comparison: Comparison) -> Section:
    """The samples of each task on which rows differ most, with what they answered."""
    tables = []
    for task in comparison.tasks:
        by_sample: dict[str, list[Record]] = {}
        for row in comparison.rows_of(task):
            for record in comparison.records[task, row]:
                if record.score is not None and record.answers:
                    by_sample.setdefault(record.sample, []).append(record)
        chosen = sorted(by_sample.values(), key=_spread, reverse=True)[:MAX_EXAMPLES]
        lines = tuple(
            (
                Cell(record.sample),
                Cell(record.row),
                Cell(f"{100 * answer.score:.1f}"),
                Cell(_cut(answer.prediction)),
            )
            for records in chosen
            for record, answer in ((record, record.answers[_most_apart(records)]) for record in records)
        )
        if lines:
            head = ("sample", "row", "score", "answer")
            tables.append(Table(task, head, lines, is_text=True, is_folded=True, is_page_only=True))
    said = f"Of each task the {MAX_EXAMPLES} samples on which rows differ most; the beginning of each answer."
    return Section("Answers", (said, *tables) if tables else ())


def _spread(records: list[Record]) -> float:
    scores = [record.score for record in records if record.score is not None]
    return max(scores) - min(scores)


def _most_apart(records: list[Record]) -> int:
    """The question whose answers' scores are farthest apart; every record answered the same questions."""
    num_questions = min(len(record.answers) for record in records)
    scores = [[record.answers[i].score for record in records] for i in range(num_questions)]
    return max(range(num_questions), key=lambda i: max(scores[i]) - min(scores[i]))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARS else line[: MAX_CHARS - 1] + "…"


def method_section(comparison: Comparison) -> Section:
    """Settings of rows, prompts' limits, machine, versions and commands: what a second run needs."""
    rows = tuple(
        (Cell(row), Cell(str(about.get("kind", ""))), Cell(_settings(about.get("settings") or {})))
        for row, about in comparison.rows.items()
    )
    tasks = tuple(
        (
            Cell(task),
            *(Cell(_plain(about.get(name))) for name in ("metric", "answer_tokens", "questions")),
            Cell(", ".join(about.get("files") or ("–",))),
        )
        for task, about in comparison.tasks.items()
    )
    return Section(
        "How it was run",
        (
            Table("Rows", ("row", "kind", "settings"), rows, is_text=True, is_folded=True),
            Table(
                "Tasks",
                ("task", "metric", "answer tokens", "questions", "files of the data folder"),
                tasks,
                is_text=True,
                is_folded=True,
            ),
            Table("Runs", ("", *_run_names(comparison)), tuple(_run_lines(comparison)), is_text=True),
        ),
    )


def _run_names(comparison: Comparison) -> list[str]:
    return [f"run {number}" for number in range(1, len(comparison.runs) + 1)]


def _run_lines(comparison: Comparison) -> list[tuple[Cell, ...]]:
    names = ("created", "dtype", "device", *MACHINES, "seed", "lengths", "num_samples", "limit")
    lines = [
        (Cell(name.replace("_", " ")), *(Cell(_said(run.about, name)) for run in comparison.runs))
        for name in names
    ]
    lines.append((Cell("shard"), *(Cell(_shard(run.about)) for run in comparison.runs)))
    lines.append(
        (Cell("versions"), *(Cell(_settings(run.about.get("versions") or {})) for run in comparison.runs))
    )
    lines.append(
        (Cell("code"), *(Cell(", ".join(run.about.get("code") or ("–",))) for run in comparison.runs))
    )
    commands = (
        " && ".join(_command(it) for it in run.about.get("commands") or ()) for run in comparison.runs
    )
    return [*lines, (Cell("commands"), *map(Cell, commands))]


def _said(about: Mapping[str, Any], name: str) -> str:
    """A fact of a run; of its machines all."""
    if name in MACHINES:
        return "; ".join(map(str, machines_of(about, name))) or "–"
    return _plain(about.get(name))


def _shard(about: Mapping[str, Any]) -> str:
    total = about.get("shards") or 1
    return "–" if total == 1 else f"{about.get('shard')} of {total}, from 0"


def _command(argv: Any) -> str:
    return " ".join(map(str, argv)) if isinstance(argv, list) else str(argv)


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in settings.items())


def _plain(value: Any) -> str:
    if value is None or value == []:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
