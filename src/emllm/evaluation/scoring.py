"""From what a row made of a sample to a line of results and a line of costs.

This module does not know how a row answers or where lines are written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from emllm.evaluation.answering import Outcome
from emllm.evaluation.metrics import metric
from emllm.evaluation.peaks import Peaks
from emllm.evaluation.results import encoded
from emllm.evaluation.samples import Sample
from emllm.evaluation.task import Task
from emllm.evaluation.wishes import PERPLEXITY

#: Longest text, or list of numbers, among a question's facts that is written down with its answer.
_LONGEST_FACT = 100
_LONGEST_REASON = 300


def result_line(task: Task, index: int, sample: Sample, row: str, outcome: Outcome) -> dict[str, Any]:
    """A sample's scores and answers; the same however often it is computed.

    Raises:
        ValueError: the metric's score is not in 0..1, a fact is no JSON, or nothing was asked.
    """
    answers: list[dict[str, Any]] = [
        {
            "prediction": reply.prediction,
            "score": _score(task, reply.prediction, question),
            "answer_tokens": reply.answer_tokens,
            "facts": _small(question.facts),
            "evidence": list(reply.evidence),
        }
        for question, reply in zip(sample.questions, outcome.replies, strict=True)
    ]
    if task.metric == PERPLEXITY:
        score, answers = outcome.mean_surprise, []
    else:
        if not answers:
            raise ValueError("the sample has no question")
        score = fmean(answer["score"] for answer in answers)
    line = _line(task, index, sample, row)
    line.update(tokens=outcome.tokens, read_tokens=outcome.read_tokens, facts=dict(sample.facts))
    line.update(score=score, answers=answers, failed=None)
    encoded(line)
    return line


def failed_line(task: Task, index: int, sample: Sample, row: str, reason: str) -> dict[str, Any]:
    """A sample that could not be answered, and why."""
    line = _line(task, index, sample, row)
    line.update(tokens=0, read_tokens=0, facts=_small(sample.facts), score=None, answers=[])
    return {**line, "failed": " ".join(reason.split())[:_LONGEST_REASON]}


def costs_line(task: Task, sample: Sample, row: str, outcome: Outcome | None, peaks: Peaks) -> dict[str, Any]:
    """What a sample took; without an outcome nothing but its name and its memory."""
    line: dict[str, Any] = {"task": task.name, "sample": sample.sample_id, "row": row}
    replies = outcome.replies if outcome is not None else ()
    return {
        **line,
        "read_seconds": None if outcome is None else outcome.read_seconds,
        "answer_seconds": sum(reply.seconds for reply in replies) if replies else None,
        "first_token_seconds": fmean(reply.first_token_seconds for reply in replies) if replies else None,
        "peak_rss_bytes": peaks.rss_bytes,
        "peak_rss_since": peaks.since,
        "peak_device_bytes": peaks.device_bytes,
        "recalled_tokens": None if outcome is None else outcome.recalled_tokens,
    }


def _line(task: Task, index: int, sample: Sample, row: str) -> dict[str, Any]:
    """What the line is about; `text` is a digest, the same for all samples with that text."""
    text = hashlib.sha256(sample.text.encode("utf-8", "replace")).hexdigest()[:16]
    return {"task": task.name, "index": index, "sample": sample.sample_id, "row": row, "text": text}


def _score(task: Task, prediction: str, question: Any) -> float:
    score = float(metric(task.metric)(prediction, question))
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"metric {task.metric} must be in 0..1, got {score}")
    return score


def _small(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that are a number, a word or a yes, or several numbers: what tables and plots ask for."""
    return {
        name: value
        for name, value in facts.items()
        if value is None
        or (isinstance(value, str) and len(value) <= _LONGEST_FACT)
        or _is_number(value)
        or (isinstance(value, list) and 0 < len(value) <= _LONGEST_FACT and all(map(_is_number, value)))
    }


def _is_number(value: Any) -> bool:
    """Whether it is one that JSON can hold, or a yes or no."""
    return isinstance(value, bool | int | float) and math.isfinite(value)
