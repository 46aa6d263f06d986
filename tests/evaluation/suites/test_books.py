"""Parts of books: of the length that is wanted, from the place that is wanted, and with no questions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.suites.books import samples
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import tasks_of

(TASK,) = tasks_of("books")


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture()
def needs(tmp_path: Path) -> SampleNeeds:
    (tmp_path / "books_eval").mkdir()
    for name, num_paragraphs in (("long", 100), ("short", 10)):
        text = "\n\n".join(f"Paragraph {n}. " + "They went on, said he. " * 20 for n in range(num_paragraphs))
        (tmp_path / "books_eval" / f"{name}.txt").write_text(text, "utf-8")
    return SampleNeeds(tmp_path, words, lengths=(500, 4000))


def test_parts_meet_their_length_and_short_books_are_left_out(needs: SampleNeeds) -> None:
    found = list(samples(TASK, needs))
    assert [sample.sample_id for sample in found] == ["long-500", "long-4000", "short-500"]
    for sample in found:
        assert 0.95 * sample.facts["length"] <= words(sample.text) <= sample.facts["length"]
        assert sample.before == "" and sample.questions == ()
        assert sample.text.startswith("Paragraph 0.")


def test_a_limit_is_of_each_length(needs: SampleNeeds) -> None:
    task = dataclasses.replace(TASK, source={**TASK.source, "starts": [0.0, 0.5]})
    for limit, names in (
        (1, ["long-500", "long-4000"]),
        (3, ["long-500", "long-500-0.5", "long-4000", "long-4000-0.5", "short-500"]),
    ):
        found = samples(task, dataclasses.replace(needs, limit=limit))
        assert [sample.sample_id for sample in found] == names


def test_a_part_may_begin_in_the_middle(needs: SampleNeeds) -> None:
    task = dataclasses.replace(TASK, source={**TASK.source, "starts": [0.0, 0.5]})
    found = {sample.sample_id: sample for sample in samples(task, needs)}
    assert set(found) == {"long-500", "long-500-0.5", "long-4000", "long-4000-0.5", "short-500"}
    assert 45 <= int(found["long-500-0.5"].text.split()[1].rstrip(".")) <= 55


def test_length_zero_is_the_whole_book(needs: SampleNeeds) -> None:
    task = dataclasses.replace(TASK, source={**TASK.source, "lengths": [0]})
    found = list(samples(task, dataclasses.replace(needs, lengths=())))
    assert [sample.sample_id for sample in found] == ["long-whole", "short-whole"]
    assert needs.data is not None
    assert found[0].text == (needs.data / "books_eval" / "long.txt").read_text("utf-8").rstrip()
    assert found[0].facts["length"] == words(found[0].text)


@pytest.mark.parametrize(("key", "value"), [("starts", [1.0]), ("lengths", [-1])])
def test_a_start_or_length_out_of_range_is_refused(needs: SampleNeeds, key: str, value: list[float]) -> None:
    task = dataclasses.replace(TASK, source={**TASK.source, key: value})
    with pytest.raises(ConfigError, match=f"{key} of books/perplexity"):
        list(samples(task, dataclasses.replace(needs, lengths=())))


def test_books_that_are_all_too_short_are_told_with_the_length(needs: SampleNeeds) -> None:
    with pytest.raises(SourceError, match=r"^task books/perplexity: no book has 90,000 tokens$"):
        list(samples(TASK, dataclasses.replace(needs, lengths=(100_000, 90_000))))


def test_every_real_book_has_its_first_sixteen_thousand_words(shared_data: Path) -> None:
    found = list(samples(TASK, SampleNeeds(shared_data, words, lengths=(16384,))))
    assert len({sample.sample_id for sample in found}) == len(found) > 30
    for sample in found:
        assert 0.95 * 16384 <= words(sample.text) <= 16384
