"""Several questions on one text: every answer can be derived from the text that is read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from emllm.errors import ConfigError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.suites.shared_text import samples
from emllm.evaluation.task import tasks_of

TASKS = {task.name.removeprefix("shared-text/"): task for task in tasks_of("shared-text")}


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture()
def needs(tmp_path: Path) -> SampleNeeds:
    (tmp_path / "books_eval").mkdir()
    text = "\n\n".join(f"Chapter {n}. " + "It was a very long day for all of them. " * 12 for n in range(90))
    (tmp_path / "books_eval" / "book.txt").write_text(text, "utf-8")
    return SampleNeeds(tmp_path, words, lengths=(1500, 6000), num_samples=3)


def derived(question: Question, text: str) -> set[str]:
    """The answer, found again by reading the text."""
    register = re.findall(r"The register gives (\S+) the number (\d+)\.", text)
    if question.facts["kind"] == "number":
        return {number for name, number in register if f"give {name}?" in question.query}
    if question.facts["kind"] == "first":
        return {next(number for name, number in register if re.search(rf" {name}[ .]", question.query))}
    if question.facts["kind"] == "passwords":
        (place,) = re.findall(r"passwords of (\S+)\?", question.query)
        return set(re.findall(rf"One password of {place} is (\d+)\.", text))
    (place,) = re.findall(r"the bell of (\S+) rang", question.query)
    return {str(len(re.findall(rf"That night the bell of {place} rang\.", text)))}


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_is_derived_from_the_text_alone(name: str, needs: SampleNeeds) -> None:
    for sample in samples(TASKS[name], needs):
        assert [q.facts["kind"] for q in sample.questions] == list(TASKS[name].source["questions"])
        assert len({q.query for q in sample.questions}) == len(sample.questions) == 5
        for question in sample.questions:
            assert derived(question, sample.text) == set(question.answers)
            assert question.query in question.text


@pytest.mark.parametrize("name", TASKS)
def test_lengths_are_met_from_below_with_the_longest_question_and_an_answer(
    name: str, needs: SampleNeeds
) -> None:
    found = list(samples(TASKS[name], needs))
    assert len({sample.sample_id for sample in found}) == len(found) == 6
    for sample in found:
        assert 0.95 * sample.facts["length"] <= longest(sample) + 32 <= sample.facts["length"]


def longest(sample: Sample) -> int:
    return max(words(sample.before + sample.text + question.text) for question in sample.questions)


def test_look_ups_are_spread_over_the_text(needs: SampleNeeds) -> None:
    for sample in samples(TASKS["lookup"], dataclasses.replace(needs, lengths=(20_000,))):
        depths = sorted(question.facts["depth"] for question in sample.questions)
        assert depths[0] < 35 and depths[-1] > 65


def test_depths_say_where_the_evidence_stands(needs: SampleNeeds) -> None:
    for sample in samples(TASKS["lookup"], needs):
        for question in sample.questions:
            share = sample.text.index(f"the number {question.answers[0]}.") / len(sample.text)
            assert 100 * share == pytest.approx(question.facts["depth"], abs=5)


def test_the_same_seed_makes_the_same_samples_and_another_one_others(needs: SampleNeeds) -> None:
    first, again = list(samples(TASKS["mixed"], needs)), list(samples(TASKS["mixed"], needs))
    other = list(samples(TASKS["mixed"], dataclasses.replace(needs, seed=1)))
    assert first == again
    assert not {sample.text for sample in first} & {sample.text for sample in other}


def test_a_length_without_room_is_refused(needs: SampleNeeds) -> None:
    with pytest.raises(ConfigError, match="got 200"):
        list(samples(TASKS["mixed"], dataclasses.replace(needs, lengths=(200,))))


def test_an_unknown_kind_of_question_is_refused(needs: SampleNeeds) -> None:
    task = dataclasses.replace(TASKS["mixed"], source={"questions": ["colour"], "rings": [2, 9]})
    with pytest.raises(ConfigError, match="number, passwords, first, rings, got 'colour'"):
        list(samples(task, needs))
