"""LoCoMo: conversations of many days, each read once, and all its questions of one category.

Source: Maharana et al. 2024, the prompts of its own question answering. **Deviation.** Sessions stand in the
order of time; LoCoMo's script puts each session before the ones it has written. The options of an adversarial
question are drawn from the seed and not by the run.

This module does not know how an answer is compared with the right one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from emllm.errors import SourceError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.depths import placed
from emllm.evaluation.suites.files import lacking, records
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

MULTI_HOP, TEMPORAL, OPEN_DOMAIN, SINGLE_HOP, ADVERSARIAL = 1, 2, 3, 4, 5
UNANSWERABLE = "Not mentioned in the conversation"
_SESSION = re.compile(r"session_(\d+)")
_TURN = re.compile(r"D:?(\d+):(\d+)")


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """One sample a conversation that has questions of the task's category.

    Raises:
        SourceError: the conversations are not there, or one lacks what LoCoMo's have.
    """
    for record in records(task, needs):
        try:
            sample = _sample(task, needs, record)
        except (KeyError, TypeError, AttributeError) as error:
            raise SourceError(
                f"task {task.name}: conversation {record.get('sample_id')} is not as LoCoMo's are: "
                f"{lacking(error)}"
            ) from error
        if sample.questions:
            yield sample


def conversation_text(conversation: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """The text of a conversation as LoCoMo's prompt has it, and where each turn starts, in characters."""
    found = (match for match in map(_SESSION.fullmatch, conversation) if match)
    text = ""
    starts: dict[str, int] = {}
    for number in sorted(int(match[1]) for match in found):
        date = conversation[f"session_{number}_date_time"]
        text += "\n\n" * bool(text) + f"DATE: {date}\nCONVERSATION:\n"
        for turn in conversation[f"session_{number}"]:
            starts[turn["dia_id"]] = len(text)
            text += f'{turn["speaker"]} said, "{turn["text"]}"\n'
            text += f" and shared {turn['blip_caption']}." if "blip_caption" in turn else ""
            text += "\n"
    return text, starts


def evidence_turns(evidence: list[str]) -> list[str]:
    """The turns that evidence names, one by one; some stand there as ``D8:6; D9:17`` or ``D:11:26``."""
    return [f"D{session}:{turn}" for entry in evidence for session, turn in _TURN.findall(entry)]


def _sample(task: Task, needs: SampleNeeds, record: Mapping[str, Any]) -> Sample:
    conversation = record["conversation"]
    speakers = {name: conversation[name] for name in ("speaker_a", "speaker_b")}
    text, starts = conversation_text(conversation)
    asked = [entry for entry in record["qa"] if entry["category"] == task.source["category"]]
    draw = Random(f"{needs.seed} {record['sample_id']}")
    questions = tuple(_question(task, entry, draw, text, starts) for entry in asked)
    facts = {"length": needs.count_tokens(text), "turns": len(starts), **speakers}
    return Sample(record["sample_id"], task.split_prompt(**speakers)[0], text, questions, facts)


def _question(
    task: Task, entry: Mapping[str, Any], draw: Random, text: str, starts: Mapping[str, int]
) -> Question:
    turns = [turn for turn in evidence_turns(entry["evidence"]) if turn in starts]
    depths = [100 * starts[turn] / len(text) for turn in turns]
    facts = {"category": entry["category"], "evidence": turns, **placed(depths)}
    fields, answer = {"question": entry["question"]}, str(entry.get("answer"))
    if entry["category"] == ADVERSARIAL:
        options = [UNANSWERABLE, str(entry["answer"] if "answer" in entry else entry["adversarial_answer"])]
        draw.shuffle(options)
        facts["options"] = dict(zip("ab", options, strict=True))
        fields, answer = fields | facts["options"], UNANSWERABLE
    after = task.split_prompt(**fields)[1]
    return Question(after, (answer,), query=entry["question"], facts=facts)
