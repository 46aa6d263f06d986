"""InfiniteBench (Zhang et al., 2024), as its files have it: read from the data folder or the hub.

Source: prompts, references and answer lengths of the released code (``src/prompt.py``, ``src/eval_utils.py``,
commit 88b3daa), in the form that it gives open models (``yarn_mistral_templates``). Its last words, such as
"The correct option is:", are put into the model's mouth.

**Deviations.** The text is never cut. Questions about one book are one sample, so that it is read once.

This module does not know how answers are scored, nor how texts are made (`infinitebench_made`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from emllm.errors import SourceError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.answer_prefix import split_answer_prefix
from emllm.evaluation.suites.files import records
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

_LETTERS = "ABCD"


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """One sample a text, with all its questions where ``[source] shares_texts`` is true.

    Raises:
        SourceError: a record is no InfiniteBench record of this task.
    """
    yield from samples_of(task, records(task, needs))


def samples_of(task: Task, found: Iterable[dict[str, Any]]) -> Iterator[Sample]:
    """The samples of these records.

    Raises:
        SourceError: a record is no InfiniteBench record of this task.
    """
    asked = (_asked(task, record, number) for number, record in enumerate(found))
    for number, before, text, questions in _by_text(asked) if task.source.get("shares_texts") else asked:
        is_chinese = task.source.get("language") == "zh"
        yield Sample(
            sample_id=f"{task.name.rpartition('/')[2]}-{number}",
            before=before,
            text=text,
            questions=tuple(questions),
            facts={"length": len(text) if is_chinese else len(text.split())},
        )


#: Number of the record, instructions before the text, the text, questions.
_Asked = tuple[int, str, str, list[Question]]


def _by_text(asked: Iterable[_Asked]) -> list[_Asked]:
    """The questions of one text together, where the first of them stood."""
    together: dict[tuple[str, str], _Asked] = {}
    for number, before, text, questions in asked:
        together.setdefault((before, text), (number, before, text, []))[3].extend(questions)
    return list(together.values())


def _asked(task: Task, record: dict[str, Any], number: int) -> _Asked:
    try:
        before, after = task.split_prompt(**prompt_fields(task, record))
        text, answer_begins = split_answer_prefix(task, after)
        question = Question(
            text=text,
            answers=_answers(record),
            query=str(record.get("input") or ""),
            answer_begins=answer_begins,
            facts=_facts(task, record),
        )
        return number, before, str(record["context"]), [question]
    except (KeyError, ValueError, IndexError) as error:
        raise SourceError(f"task {task.name}, record {number + 1}: not a record of this task") from error


def prompt_fields(task: Task, record: Mapping[str, Any]) -> dict[str, str]:
    """What fills the prompt's braces."""
    fields = dict.fromkeys(("input", "question"), str(record.get("input") or ""))
    if "{func}" in task.prompt:
        fields["func_call"] = re.findall(r"func_[0-9]+\(-?[0-9]+\)", fields["input"])[0]
        fields["func"] = fields["func_call"].partition("(")[0]
    if "{prefix}" in task.prompt:
        wanted = re.findall(r"The .+ of", fields["input"])[0].lower().removesuffix(" of")
        fields["prefix"] = f"What is {wanted} in the following list?"
    if "{OPTION_A}" in task.prompt:
        fields |= {f"OPTION_{letter}": record["options"][idx] for idx, letter in enumerate(_LETTERS)}
    return fields


def _references(record: dict[str, Any]) -> list[str]:
    answer = record["answer"]
    return [str(one) for one in answer] if isinstance(answer, list) else [str(answer)]


def _answers(record: dict[str, Any]) -> tuple[str, ...]:
    """The references; of a choice, the right option and its letter."""
    references = _references(record)
    if not record.get("options"):
        return tuple(references)
    return references[0], _letter(record, references)


def _letter(record: dict[str, Any], references: list[str]) -> str:
    if len(references) == 2 and references[1] in _LETTERS:
        return references[1]
    return _LETTERS[record["options"].index(references[0])]


def _facts(task: Task, record: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if "language" in task.source:
        facts["language"] = task.source["language"]
    if record.get("options"):
        facts["choices"] = list(record["options"])
        facts["letter"] = _letter(record, _references(record))
    return facts
