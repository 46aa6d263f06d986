"""LongBench and LongBench-E: 21 and 13 tasks with one question a text.

Source: Bai et al. 2024; prompts, answer lengths and rules are those of the release (``config/*.json``,
``pred.py``, ``eval.py``). **Deviation**: its ``pred.py`` cuts the middle out of what is longer than the
model's window; here nothing is cut, as in the EM-LLM paper: how much it can read is a row's own affair.

Of trec, triviaqa, samsum and lsht the release scores the first line alone (and stops samsum there); here all
four stop at the end of that line, which gives the same scores with fewer tokens written.

This module does not know how answers are scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from emllm.errors import SourceError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.files import records, require
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """One sample a record of the task's data set, in the order of the file.

    A file may hold several data sets; ``[source] dataset`` says which records are this task's. The facts of a
    sample are `length` (words, in Chinese characters, as the benchmark counts them), `language` and, with
    ``[source] buckets = true``, the `bucket` of LongBench-E.

    Raises:
        SourceError: the file lacks such records, or one of them lacks a field.
    """
    dataset = task.source["dataset"]
    num_seen: Counter[str] = Counter()
    for record in records(task, needs):
        if record.get("dataset", dataset) not in (dataset, f"{dataset}_e"):
            continue
        require(task, record, "_id", "context", "input", "answers", "length")
        num_seen[record["_id"]] += 1
        yield _sample(task, record, num_before=num_seen[record["_id"]] - 1)
    if not num_seen:
        raise SourceError(f"task {task.name}: its source has no record of the data set {dataset!r}")


def bucket(length: int) -> str:
    """The length group of LongBench-E, by words."""
    return "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"


def _sample(task: Task, record: Mapping[str, Any], *, num_before: int) -> Sample:
    """The sample of a record; one whose id was there before gets its number behind it."""
    before, after = task.split_prompt(input=record["input"])
    facts = {"length": record["length"], "language": record.get("language", "")}
    if task.source.get("buckets", False):
        facts["bucket"] = bucket(record["length"])
    classes = record.get("all_classes")
    question = Question(
        text=after,
        answers=tuple(record["answers"]),
        query=record["input"],
        facts={"all_classes": list(classes)} if classes else {},
    )
    sample_id = f"{record['_id']}-{num_before + 1}" if num_before else record["_id"]
    return Sample(sample_id, before, record["context"], (question,), facts)
