"""BABILong: a story's facts stand whole and in order in the text, whatever the length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.samples import Sample
from emllm.evaluation.suites.babilong import babi_text, read_stories, samples
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task, tasks_of

TASKS = {task.name.removeprefix("babilong/"): task for task in tasks_of("babilong")}
STORIES = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Mary moved to the garden.
6 Where is Mary? \tgarden\t5
1 Sandra took the milk.
2 What is Sandra carrying?\tmilk\t1
"""


def words(text: str) -> int:
    return len(text.split())


def prompt_tokens(sample: Sample, count: Callable[[str], int]) -> int:
    return count(sample.before + sample.text + sample.questions[0].text)


@pytest.fixture()
def own_data(tmp_path: Path) -> Path:
    (tmp_path / "babi").mkdir()
    (tmp_path / "babi" / "qa1_valid.txt").write_text(STORIES, "utf-8")
    (tmp_path / "books_eval").mkdir()
    text = "\n\n".join(f"Chapter {n}. " + "It was a very long day for all of them. " * 12 for n in range(90))
    (tmp_path / "books_eval" / "book.txt").write_text(text, "utf-8")
    return tmp_path


def test_a_question_makes_a_story_of_the_facts_before_it() -> None:
    first, second, third = read_stories(STORIES)
    assert first.facts == ("Mary moved to the bathroom.", "John went to the hallway.")
    assert (first.question, first.answer, first.supporting) == ("Where is Mary?", "bathroom", (0,))
    assert second.facts[3:] == ("Mary moved to the garden.",) and second.supporting == (3,)
    assert third.facts == ("Sandra took the milk.",)


@pytest.mark.parametrize(
    "line", ["Where is Mary?\tx\t1", "1 a\tb\n", "x fact\n1 Where?\ta\t1", "1 f\n2 q?\ta\t7"]
)
def test_a_line_that_is_not_babi_is_told_by_its_number(line: str) -> None:
    with pytest.raises(SourceError, match=r"line \d of a bAbI file"):
        read_stories(line)


@pytest.mark.parametrize("name", TASKS)
def test_the_twenty_tasks_hold_facts_in_order_within_the_length(name: str, shared_data: Path) -> None:
    needs = SampleNeeds(shared_data, words, lengths=(2048,), num_samples=3)
    stories = read_stories(babi_text(shared_data, TASKS[name].source["file"], TASKS[name].source["member"]))
    for sample in samples(TASKS[name], needs):
        question = sample.questions[0]
        told = [s for s in stories if s.question == question.query and s.answer == question.answers[0]]
        assert any(stands_in(story.facts, sample.text) for story in told)
        assert 0.95 * 2048 <= prompt_tokens(sample, words) <= 2048
        assert (
            all(answer in question.facts["labels"] for answer in question.answers[0].split(","))
            or name == "qa19"
        )


def stands_in(facts: tuple[str, ...], text: str) -> bool:
    at = 0
    for fact in facts:
        at = text.find(fact, at) + len(fact)
        if at < len(fact):
            return False
    return True


def test_supporting_facts_stand_where_the_sample_says(shared_data: Path) -> None:
    needs = SampleNeeds(shared_data, words, lengths=(4096,), num_samples=5)
    for sample in samples(TASKS["qa1"], needs):
        (start,) = sample.facts["positions"]
        fact = sample.text[start:].partition(".")[0]
        assert fact.endswith(sample.questions[0].answers[0])
        assert 100 * start / len(sample.text) == pytest.approx(sample.questions[0].facts["depth"], abs=3)


def test_lengths_of_a_real_tokenizer_are_met_from_below(shared_data: Path) -> None:
    path = shared_data / "models" / "smollm2-135m-tokenizer-only" / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    needs = SampleNeeds(shared_data, count, lengths=(4096, 16384), num_samples=2)
    for sample in samples(TASKS["qa2"], needs):
        length = sample.facts["length"]
        assert 0.95 * length <= prompt_tokens(sample, count) <= length


def test_the_same_seed_makes_the_same_samples_and_another_one_others(own_data: Path) -> None:
    needs = SampleNeeds(own_data, words, lengths=(300, 600), num_samples=3)
    first, again = list(samples(TASKS["qa1"], needs)), list(samples(TASKS["qa1"], needs))
    other = list(samples(TASKS["qa1"], dataclasses.replace(needs, seed=1)))
    assert first == again
    assert [s.text for s in first] != [s.text for s in other]
    assert len({sample.sample_id for sample in first}) == len(first) == 6


def test_a_limit_is_of_each_length(own_data: Path) -> None:
    needs = SampleNeeds(own_data, words, lengths=(300, 600), num_samples=3, limit=2)
    found = [sample.sample_id for sample in samples(TASKS["qa1"], needs)]
    assert found == ["qa1-300-0", "qa1-300-1", "qa1-600-0", "qa1-600-1"]


def test_a_sample_does_not_depend_on_how_many_are_made(own_data: Path) -> None:
    needs = SampleNeeds(own_data, words, lengths=(600,), num_samples=3)
    one = next(samples(TASKS["qa1"], dataclasses.replace(needs, num_samples=1)))
    assert one == next(samples(TASKS["qa1"], needs))


def test_millions_of_words_come_from_books_that_are_counted_once(own_data: Path) -> None:
    counted = []

    def count(text: str) -> int:
        counted.append(len(text))
        return words(text)

    needs = SampleNeeds(own_data, count, lengths=(1_000_000,), num_samples=2)
    for sample in samples(TASKS["qa1"], needs):
        assert 0.95 * 1_000_000 <= prompt_tokens(sample, words) <= 1_000_000
    assert sum(counted) < 200_000


def test_a_length_without_room_for_a_story_is_refused(own_data: Path) -> None:
    with pytest.raises(ConfigError, match="got 50"):
        list(samples(TASKS["qa1"], SampleNeeds(own_data, words, lengths=(50,))))


def test_missing_stories_are_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"neither .*tar\.xz nor qa1_valid\.txt"):
        list(samples(TASKS["qa1"], SampleNeeds(tmp_path, words)))


def test_without_a_data_folder_the_published_length_below_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Task] = []

    def from_hub(task: Task, needs: SampleNeeds):
        asked.append(task)
        yield from [{"input": "text", "question": "Where is Mary? ", "target": "office"}] * 3

    monkeypatch.setattr("emllm.evaluation.suites.babilong.records", from_hub)
    found = list(samples(TASKS["qa1"], SampleNeeds(None, words, lengths=(9000, 131072), num_samples=2)))
    assert [task.source["subset"] for task in asked] == ["8k", "128k"]
    assert [s.sample_id for s in found] == ["qa1-9000-0", "qa1-9000-1", "qa1-131072-0", "qa1-131072-1"]
    assert found[0].questions[0].answers == ("office",)
