"""What a run of an evaluation left in its folder, read and checked: answers, costs and how the run was made.

The files are ``run.json`` (how), ``results.jsonl`` (one line a task, sample and row) and ``costs.jsonl`` (the
same keys with seconds and bytes). A run may still be going on: a last line without its end is left out and
said. This module does not know models, how answers were scored or what a report shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emllm.errors import StoreError
from emllm.evaluation.results import COSTS, FORMAT, RESULTS, RUN

PERPLEXITY = "perplexity"
_NEEDED = ("model", "rows", "tasks")


@dataclass(frozen=True)
class Answer:
    """What a row answered to one question, and what that was worth from 0 to 1."""

    prediction: str
    score: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One sample as one row answered it.

    Attributes:
        text: names the text, in every task that asks about it; None of older runs.
        tokens: of the prompt before the question.
        read_tokens: those of them that the row really read.
        score: mean of the answers' scores, 0 to 1; of a perplexity task, nats per token; None where failed.
        failed: why there is no score, one line; None where there is one.
    """

    task: str
    index: int
    sample: str
    row: str
    tokens: int
    read_tokens: int
    facts: Mapping[str, Any]
    score: float | None
    answers: tuple[Answer, ...]
    failed: str | None
    text: str | None = None

    @property
    def scores(self) -> tuple[float, ...]:
        """Of each question; of a perplexity the one number that there is, where it failed none."""
        if self.score is None:
            return ()
        return tuple(answer.score for answer in self.answers) or (self.score,)


@dataclass(frozen=True)
class Cost:
    """What one sample cost one row; None where it was not measured.

    Attributes:
        peak_rss_bytes: of the process.
        peak_rss_since: what that is the peak of: `sample`, or the whole `process` so far.
        peak_device_bytes: of all CUDA devices.
        recalled_tokens: budget of recalled tokens per layer.
    """

    task: str
    sample: str
    row: str
    read_seconds: float | None
    answer_seconds: float | None
    first_token_seconds: float | None
    peak_rss_bytes: float | None
    peak_rss_since: str
    peak_device_bytes: float | None
    recalled_tokens: float | None


@dataclass(frozen=True)
class RunFolder:
    """A run: its description as in run.json, its records and costs in the files' order, and remarks."""

    folder: Path
    about: Mapping[str, Any]
    records: tuple[Record, ...]
    costs: tuple[Cost, ...]
    remarks: tuple[str, ...]


def read_run(folder: Path) -> RunFolder:
    """A run folder, every line checked.

    Raises:
        StoreError: a file is missing, or a line is malformed; the message names file and line number.
    """
    if not (folder / RUN).exists():
        why = "no results in it" if folder.is_dir() else "no such folder"
        raise StoreError(f"{folder}: {why}")
    about = _about(folder / RUN)
    remarks: list[str] = []
    records = [
        _record(values, place, about)
        for values, place in _lines(folder / RESULTS, remarks.append, without="no results are there yet")
    ]
    _refuse_twice(folder / RESULTS, [(record.task, record.sample, record.row) for record in records])
    costs_file = folder / COSTS
    costs = [
        _cost(values, place)
        for values, place in _lines(costs_file, remarks.append, without="no costs are shown")
    ]
    remarks += _missing_results(folder, about, len(records))
    return RunFolder(folder, about, tuple(records), tuple(costs), tuple(remarks))


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(_bytes(path))
    except ValueError as error:
        raise StoreError(f"{path}: not JSON: {_one_line(error)}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = about.get("format") if isinstance(about, dict) else about
        raise StoreError(f"{path}: format must be {FORMAT}, got {got!r:.40}")
    missing = [name for name in _NEEDED if name not in about]
    if missing:
        raise StoreError(f"{path}: missing {', '.join(missing)}")
    for name in ("rows", "tasks"):
        if not isinstance(about[name], dict) or not all(isinstance(it, dict) for it in about[name].values()):
            raise StoreError(f"{path}: {name} must be an object of objects")
    return about


def _missing_results(folder: Path, about: Mapping[str, Any], num_results: int) -> list[str]:
    """A remark where not every sample of every task has a result of every row."""
    shards, shard = about.get("shards") or 1, about.get("shard") or 0
    num_planned = sum(
        len(range(shard, task.get("num_samples", 0), shards))
        for task in about["tasks"].values()
        for row in about["rows"].values()
        if task.get("metric") != PERPLEXITY or row.get("kind") != "passages"
    )
    if num_results >= num_planned:
        return []
    return [f"{folder.name}: {num_results:,} of {num_planned:,} results of its tasks and rows are there."]


def _lines(
    path: Path, remark: Callable[[str], None], *, without: str
) -> Iterator[tuple[dict[str, Any], str]]:
    """Each line's object, and its place for a message."""
    if not path.exists():
        remark(f"{path.name} is missing: {without}.")
        return
    lines = _bytes(path).split(b"\n")
    for number, line in enumerate(lines, start=1):
        place, is_unfinished = f"{path}, line {number}", number == len(lines)
        if not line.strip():
            if is_unfinished:
                return
            raise StoreError(f"{place}: empty line")
        try:
            values = json.loads(line)
        except ValueError as error:
            if is_unfinished:
                remark(f"The last line of {path.name} was incomplete and is left out: the run goes on.")
                return
            raise StoreError(f"{place}: not JSON: {_one_line(error)}") from error
        if not isinstance(values, dict):
            raise StoreError(f"{place}: must be an object, got {values!s:.40}")
        yield values, place


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _record(values: dict[str, Any], place: str, about: Mapping[str, Any]) -> Record:
    task, row = _text(values, "task", place), _text(values, "row", place)
    for name, known in ((task, "tasks"), (row, "rows")):
        if name not in about[known]:
            raise StoreError(f"{place}: {name!r} is not among the {known} of run.json")
    failed = _text(values, "failed", place) if values.get("failed") is not None else None
    score = None
    if failed is None:
        limit = math.inf if about["tasks"][task].get("metric") == PERPLEXITY else 1.0
        score = _number(values, "score", place, limit=limit)
    elif values.get("score") is not None:
        raise StoreError(f"{place}: a failed sample has no score, got {values['score']!r:.40}")
    return Record(
        task=task,
        index=int(_number(values, "index", place)),
        sample=_text(values, "sample", place),
        row=row,
        tokens=int(_number(values, "tokens", place)),
        read_tokens=int(_number(values, "read_tokens", place)),
        facts=_object(values, "facts", place),
        score=score,
        answers=tuple(_answers(values, place)),
        failed=failed,
        text=_text(values, "text", place) if "text" in values else None,
    )


def _answers(values: dict[str, Any], place: str) -> Iterator[Answer]:
    answers = values.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise StoreError(f"{place}: answers must be a list of objects")
    for answer in answers:
        yield Answer(
            prediction=_text(answer, "prediction", place),
            score=_number(answer, "score", place, limit=1.0),
            facts=_object(answer, "facts", place),
        )


def _cost(values: dict[str, Any], place: str) -> Cost:
    def known(name: str) -> float | None:
        return None if values.get(name) is None else _number(values, name, place)

    task, sample, row = (_text(values, name, place) for name in ("task", "sample", "row"))
    return Cost(
        task=task,
        sample=sample,
        row=row,
        read_seconds=known("read_seconds"),
        answer_seconds=known("answer_seconds"),
        first_token_seconds=known("first_token_seconds"),
        peak_rss_bytes=known("peak_rss_bytes"),
        peak_rss_since=_text({"peak_rss_since": "process", **values}, "peak_rss_since", place),
        peak_device_bytes=known("peak_device_bytes"),
        recalled_tokens=known("recalled_tokens"),
    )


def _text(values: Mapping[str, Any], name: str, place: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise StoreError(f"{place}: {name} must be text, got {_shown(values, name)}")
    return value


def _number(values: Mapping[str, Any], name: str, place: str, *, limit: float = math.inf) -> float:
    value = values.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not 0 <= value <= limit:  # type: ignore[operator]
        wanted = "a number >= 0" if math.isinf(limit) else f"a number from 0 to {limit:g}"
        raise StoreError(f"{place}: {name} must be {wanted}, got {_shown(values, name)}")
    return float(value)  # type: ignore[arg-type]


def _object(values: Mapping[str, Any], name: str, place: str) -> dict[str, Any]:
    value = values.get(name, {})
    if not isinstance(value, dict):
        raise StoreError(f"{place}: {name} must be an object, got {_shown(values, name)}")
    return value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return f"{values[name]!r:.40}" if name in values else "nothing"


def _refuse_twice(path: Path, keys: list[tuple[str, str, str]]) -> None:
    seen: set[tuple[str, str, str]] = set()
    for number, key in enumerate(keys, start=1):
        if key in seen:
            raise StoreError(f"{path}, line {number}: {' / '.join(key)} is there twice")
        seen.add(key)
