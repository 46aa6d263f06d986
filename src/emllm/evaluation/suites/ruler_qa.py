"""RULER's question answering: the documents that a question needs, among many that it does not.

``source.layout`` says what the records are: `squad` (SQuAD 2.0, as published or as on the hub), `hotpotqa`
(the distractor setting, as published or as on the hub) or `fairytaleqa` (sections of stories as documents).
**The last is ours, not RULER's**: a task of this kind that needs no hub; questions whose answer is said in
one section. Documents come in RULER's order of preference: those needed, those of the same article or story,
any others. Questions are drawn by the seed, the same for every length. This module does not know other kinds
of task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.samples import Sample
from emllm.evaluation.suites.files import records
from emllm.evaluation.suites.made import (
    Recipe,
    asked_sample,
    depth_facts,
    made_samples,
    random_of,
    sample_name,
)
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

#: Words of a short answer at most.
_SHORT = 5


@dataclass(frozen=True)
class _Asked:
    """A question of a data set.

    Attributes:
        query: the question.
        answers: the references.
        needed: documents that must be in the text.
        evidence: those of them that hold the answer.
        near: documents that come before any others: of the same article.
    """

    query: str
    answers: tuple[str, ...]
    needed: tuple[str, ...]
    evidence: tuple[str, ...]
    near: tuple[str, ...] = ()


def qa_samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """Samples of question answering; the unit is a document.

    Raises:
        ConfigError: no such layout, or all documents together are too short.
        SourceError: the data set is neither in the data folder nor on the hub, or has another form.
    """
    layout = task.source.get("layout")
    if layout not in _LAYOUTS:
        raise ConfigError(f"task {task.name}: layout must be one of {', '.join(_LAYOUTS)}, got {layout!r}")
    try:
        questions = list(_LAYOUTS[layout](_records(task, needs)))
        fillers = _filler_documents(task, needs)
    except SourceError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"task {task.name}: the records are not of the form {layout}: {error}") from error
    if not questions:
        raise SourceError(f"task {task.name}: the records hold no question")
    documents = sorted({text for asked in questions for text in (*asked.needed, *asked.near)} | set(fillers))
    random_of(task, needs).shuffle(questions)

    def recipe_of(length: int, index: int) -> Recipe:
        return _recipe(
            task, questions[index], documents, random_of(task, needs, length, index), length, index
        )

    yield from made_samples(task, needs, recipe_of, available=len(questions))


def _recipe(
    task: Task, asked: _Asked, documents: list[str], random: Random, length: int, index: int
) -> Recipe:
    """One question among documents."""
    near = random.sample(asked.near, len(asked.near))
    known = {*asked.needed, *near}
    others = [document for document in random.sample(documents, len(documents)) if document not in known]
    chosen = [*asked.needed, *near, *others]
    order_seed = random.getrandbits(64)

    def make(num_documents: int) -> Sample:
        texts = chosen[:num_documents]
        Random(order_seed).shuffle(texts)
        text = "\n\n".join(f"Document {number}:\n{document}" for number, document in enumerate(texts, 1))
        return asked_sample(
            task,
            sample_name(task, length, index),
            text,
            answers=asked.answers,
            fields={"query": asked.query},
            facts={"length": length},
            question_facts=depth_facts(text, asked.evidence),
            query=asked.query,
        )

    return Recipe(make, least=len(asked.needed), most=len(chosen))


def _records(task: Task, needs: SampleNeeds) -> Iterator[dict[str, Any]]:
    """The records; SQuAD's own file is an object whose `data` are the records."""
    name = task.source.get("file")
    path = None if needs.data is None or not isinstance(name, str) else needs.data / name
    if path is None or task.source["layout"] != "squad" or not path.is_file():
        yield from records(task, needs)
        return
    needs.on_file(str(name))
    try:
        whole = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    yield from whole["data"] if isinstance(whole, dict) else whole


def _filler_documents(task: Task, needs: SampleNeeds) -> list[str]:
    """Documents of ``source.filler``, a file of the same layout of which no question is asked."""
    if "filler" not in task.source:
        return []
    other = replace(task, source={**task.source, "file": task.source["filler"]})
    return [
        text
        for asked in _LAYOUTS[task.source["layout"]](records(other, needs))
        for text in (*asked.needed, *asked.near)
    ]


def _squad(found: Iterator[dict[str, Any]]) -> Iterator[_Asked]:
    """SQuAD: paragraphs of articles; questions without an answer are left out."""
    articles: dict[str, dict[str, list[tuple[str, tuple[str, ...]]]]] = {}
    for record in found:
        paragraphs = record.get("paragraphs") or [{"context": record["context"], "qas": [record]}]
        article = articles.setdefault(record["title"], {})
        for paragraph in paragraphs:
            questions = article.setdefault(paragraph["context"], [])
            questions += [(asked["question"], _squad_answers(asked)) for asked in paragraph["qas"]]
    for article in articles.values():
        for context, questions in article.items():
            near = tuple(other for other in article if other != context)
            for query, answers in questions:
                if answers:
                    yield _Asked(query, answers, (context,), (context,), near)


def _squad_answers(asked: dict[str, Any]) -> tuple[str, ...]:
    if asked.get("is_impossible", False):
        return ()
    answers = asked["answers"]
    texts = answers["text"] if isinstance(answers, dict) else [answer["text"] for answer in answers]
    return tuple(dict.fromkeys(texts))


def _hotpotqa(found: Iterator[dict[str, Any]]) -> Iterator[_Asked]:
    """HotpotQA: ten paragraphs a question, all of them needed as RULER has it, two of them evidence."""
    for record in found:
        context, support = record["context"], record.get("supporting_facts", [])
        pairs = (
            zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        )
        documents = {title: f"{title}\n{''.join(sentences)}" for title, sentences in pairs}
        titles = support["title"] if isinstance(support, dict) else [title for title, _ in support]
        evidence = tuple(documents[title] for title in dict.fromkeys(titles) if title in documents)
        yield _Asked(record["question"], (record["answer"],), tuple(documents.values()), evidence)


def _fairytaleqa(found: Iterator[dict[str, Any]]) -> Iterator[_Asked]:
    """FairytaleQA: sections of a story; questions with a short answer that stands in one of them."""
    for record in found:
        sections = [" ".join(section.split()) for section in record["sections"]]
        for asked in record["qas"]:
            place = asked["cor_section"].strip()
            section = sections[int(place) - 1] if place.isdecimal() else ""
            answers = tuple(dict.fromkeys(asked["answers"]))
            if any(len(answer.split()) <= _SHORT and answer.lower() in section.lower() for answer in answers):
                near = tuple(other for other in dict.fromkeys(sections) if other != section)
                yield _Asked(asked["question"], answers, (section,), (section,), near)


_LAYOUTS: dict[str, Callable[[Iterator[dict[str, Any]]], Iterator[_Asked]]] = {
    "squad": _squad,
    "hotpotqa": _hotpotqa,
    "fairytaleqa": _fairytaleqa,
}
