"""Questions about whole books: LiteraryQA and NarrativeQA, a book read once and all its questions.

LiteraryQA (Bonomi et al. 2025) corrects a part of NarrativeQA (Kočiský et al. 2018) and names files of book
text; NarrativeQA's records hold a question each and the whole text again. This module does not know how an
answer is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from emllm.errors import SourceError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.files import lacking, records, text_of
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task


@dataclass(frozen=True)
class Book:
    """A text, and its questions with their references."""

    book_id: str
    title: str
    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """One sample a book, in the order of the records.

    Raises:
        SourceError: records or books are not there, or a record is of neither data set.
    """
    before = task.split_prompt()[0]
    for book in _books(task, needs):
        questions = tuple(
            Question(task.split_prompt(input=asked)[1], references, query=asked)
            for asked, references in book.questions
        )
        facts = {"length": needs.count_tokens(book.text), "title": book.title, "characters": len(book.text)}
        yield Sample(book.book_id, before, book.text, questions, facts)


def _books(task: Task, needs: SampleNeeds) -> Iterator[Book]:
    seen: set[str] = set()
    for _, group in groupby(records(task, needs), key=_book_id):
        try:
            book = _book(needs, list(group))
        except (KeyError, TypeError) as error:
            raise SourceError(
                f"task {task.name}: a record is not as the data set has them: {lacking(error)}"
            ) from error
        if book.book_id in seen:
            raise SourceError(f"the questions of {book.book_id} must follow one another in {task.name}")
        seen.add(book.book_id)
        yield book


def _book_id(record: Mapping[str, Any]) -> str:
    """LiteraryQA has one record a book; a book that NarrativeQA names twice keeps its records apart."""
    document = record.get("document")
    found = document.get("id") if isinstance(document, Mapping) else record.get("narrativeqa_id")
    if not found:
        raise SourceError(f"a record names no book; it has {', '.join(sorted(record))}")
    return str(found)


def _book(needs: SampleNeeds, group: list[Mapping[str, Any]]) -> Book:
    first = group[0]
    if "qas" in first:
        questions = tuple((qa["question"], tuple(qa["answers"])) for qa in first["qas"])
        text = first["text"] if "text" in first else text_of(needs, f"books_eval/{first['book_file']}")
        return Book(_book_id(first), first["title"], text, questions)
    questions = tuple(
        (record["question"]["text"], tuple(answer["text"] for answer in record["answers"]))
        for record in group
    )
    document = first["document"]
    return Book(_book_id(first), document["summary"]["title"], document["text"], questions)
