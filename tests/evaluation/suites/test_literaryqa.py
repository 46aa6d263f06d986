"""Questions about books: a book is read once, with all its questions and both references of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emllm.errors import SourceError
from emllm.evaluation.suites.literaryqa import samples
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import tasks_of

(LITERARY,) = tasks_of("literaryqa")
(NARRATIVE,) = tasks_of("narrativeqa")


def words(text: str) -> int:
    return len(text.split())


def narrative(book: str, question: str) -> dict[str, object]:
    document = {"id": book, "text": f"The story of {book}.", "summary": {"title": book.upper()}}
    return {"document": document, "question": {"text": question}, "answers": [{"text": "x"}, {"text": "y"}]}


def written(tmp_path: Path, records: list[dict[str, object]]) -> SampleNeeds:
    (tmp_path / "narrativeqa").mkdir()
    lines = "\n".join(json.dumps(record) for record in records)
    (tmp_path / "narrativeqa" / "narrativeqa_test.jsonl").write_text(lines, "utf-8")
    return SampleNeeds(tmp_path, words)


def test_the_questions_of_a_book_are_one_sample(tmp_path: Path) -> None:
    needs = written(tmp_path, [narrative("a", "Who?"), narrative("a", "Why {x}?"), narrative("b", "When?")])
    first, second = samples(NARRATIVE, needs)
    assert (first.sample_id, first.text, first.facts["title"]) == ("a", "The story of a.", "A")
    assert [q.query for q in first.questions] == ["Who?", "Why {x}?"]
    assert first.questions[1].answers == ("x", "y")
    assert first.questions[1].text.endswith("\n\nQuestion: Why {x}?\n\nAnswer:")
    assert first.before.endswith("Do not provide any explanation.\n\nStory: ")
    assert len(second.questions) == 1


def test_a_book_whose_questions_are_scattered_is_refused(tmp_path: Path) -> None:
    needs = written(tmp_path, [narrative("a", "1"), narrative("b", "2"), narrative("a", "3")])
    with pytest.raises(SourceError, match="questions of a must follow one another"):
        list(samples(NARRATIVE, needs))


@pytest.mark.parametrize(
    "record", [{"x": 1}, {"document": {"id": "a"}}, {"narrativeqa_id": "a", "qas": [{}]}]
)
def test_a_record_of_another_kind_is_told(tmp_path: Path, record: dict[str, object]) -> None:
    with pytest.raises(SourceError, match="record"):
        list(samples(NARRATIVE, written(tmp_path, [record])))


def test_the_real_books_are_whole_and_their_questions_complete(shared_data: Path) -> None:
    found = list(samples(LITERARY, SampleNeeds(shared_data, words)))
    assert len({sample.sample_id for sample in found}) == len(found) == 38
    assert sum(len(sample.questions) for sample in found) == 1050
    references = [len(question.answers) for sample in found for question in sample.questions]
    assert (references.count(2), references.count(1)) == (1002, 48)
    machine = next(sample for sample in found if sample.facts["title"] == "The Time Machine")
    assert "Eloi" in machine.text and machine.facts["characters"] == len(machine.text) > 150_000
    assert machine.facts["length"] == words(machine.text)
