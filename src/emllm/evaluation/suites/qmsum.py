"""QMSum: a meeting read once, and what a reader wants summed up of it, in general or in particular.

Source: Zhong et al. 2021. LongBench takes 200 of the queries, one a sample; here a meeting is one sample with
all its queries of a kind, `queries` in ``[source]``: ``general`` or ``specific``. A turn is a line ``speaker:
content``, as in LongBench. This module does not know how a summary is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.depths import placed
from emllm.evaluation.suites.files import lacking, records
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

KINDS = ("general", "specific")


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """One sample a meeting that has queries of the task's kind, numbered as in the file.

    Raises:
        SourceError: the meetings are not there, or one lacks what QMSum's have.
        ConfigError: `queries` is neither of the kinds.
    """
    kind = task.source.get("queries")
    if kind not in KINDS:
        raise ConfigError(f"queries of {task.name} must be one of {', '.join(KINDS)}, got {kind!r}")
    for number, record in enumerate(records(task, needs)):
        try:
            sample = _sample(task, needs, record, sample_id=f"meeting-{number}")
        except (KeyError, TypeError) as error:
            raise SourceError(
                f"task {task.name}: meeting {number} is not as QMSum's are: {lacking(error)}"
            ) from error
        if sample.questions:
            yield sample


def meeting_text(turns: list[Mapping[str, str]]) -> tuple[str, list[int]]:
    """The transcript, and where each turn starts, in characters."""
    lines = [f"{turn['speaker']}: {turn['content']}" for turn in turns]
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    return "\n".join(lines), starts[:-1]


def _sample(task: Task, needs: SampleNeeds, record: Mapping[str, Any], *, sample_id: str) -> Sample:
    turns = record["meeting_transcripts"]
    text, starts = meeting_text(turns)
    questions = tuple(
        Question(
            task.split_prompt(input=entry["query"])[1],
            (entry["answer"],),
            query=entry["query"],
            facts=placed(_depths(entry, starts, len(text))),
        )
        for entry in record[f"{task.source['queries']}_query_list"]
    )
    facts = {"length": needs.count_tokens(text), "turns": len(turns)}
    return Sample(sample_id, task.split_prompt()[0], text, questions, facts)


def _depths(entry: Mapping[str, Any], starts: list[int], length: int) -> list[float]:
    """Where the spans that a query is about start, in percent of the text; a general query names none."""
    first_turns = [int(span[0]) for span in entry.get("relevant_text_span", ())]
    return [100 * starts[turn] / length for turn in first_turns if turn < len(starts)]
