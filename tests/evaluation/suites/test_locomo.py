"""LoCoMo: a conversation is read whole and in order of time, and the evidence of a question stands in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emllm.errors import SourceError
from emllm.evaluation.suites.locomo import UNANSWERABLE, conversation_text, evidence_turns, samples
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import tasks_of

TASKS = {task.name.removeprefix("locomo/"): task for task in tasks_of("locomo")}
CONVERSATION = {
    "speaker_a": "Ann",
    "speaker_b": "Bo",
    "session_10_date_time": "10 May, 2023",
    "session_10": [{"speaker": "Bo", "dia_id": "D10:1", "text": "Late."}],
    "session_2_date_time": "2 May, 2023",
    "session_2": [
        {"speaker": "Ann", "dia_id": "D2:1", "text": "Look {a}!", "blip_caption": "a photo of a dog"},
        {"speaker": "Bo", "dia_id": "D2:2", "text": "Nice."},
    ],
    "session_11_date_time": "11 May, 2023",
}
RECORD = {
    "sample_id": "conv-1",
    "conversation": CONVERSATION,
    "qa": [
        {"question": "What?", "answer": 2022, "evidence": ["D2:1; D10:1"], "category": 2},
        {"question": "Why?", "adversarial_answer": "a cat", "evidence": ["D2:2"], "category": 5},
    ],
}


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture()
def own(tmp_path: Path) -> SampleNeeds:
    (tmp_path / "locomo").mkdir()
    (tmp_path / "locomo" / "locomo10.json").write_text(json.dumps([RECORD]), "utf-8")
    return SampleNeeds(tmp_path, words)


def test_sessions_stand_in_the_order_of_time_with_dates_and_captions() -> None:
    text, starts = conversation_text(CONVERSATION)
    assert text == (
        "DATE: 2 May, 2023\nCONVERSATION:\n"
        'Ann said, "Look {a}!"\n and shared a photo of a dog.\n'
        'Bo said, "Nice."\n\n'
        "\n\nDATE: 10 May, 2023\nCONVERSATION:\n"
        'Bo said, "Late."\n\n'
    )
    assert {turn: text[start:].partition(" said")[0] for turn, start in starts.items()} == {
        "D2:1": "Ann",
        "D2:2": "Bo",
        "D10:1": "Bo",
    }


def test_evidence_is_read_however_it_is_written() -> None:
    assert evidence_turns(["D8:6; D9:17", "D:11:26", "D1:3 D4:4"]) == [
        "D8:6",
        "D9:17",
        "D11:26",
        "D1:3",
        "D4:4",
    ]


def test_a_temporal_question_asks_for_a_date_and_keeps_its_evidence(own: SampleNeeds) -> None:
    (sample,) = samples(TASKS["temporal"], own)
    (question,) = sample.questions
    assert sample.before.startswith("Below is a conversation between two people: Ann and Bo. The")
    assert question.answers == ("2022",) and question.query == "What?"
    assert (
        "Question: What? Use DATE of CONVERSATION to answer with an approximate date. Short" in question.text
    )
    assert question.facts["evidence"] == ["D2:1", "D10:1"]


def test_the_options_of_an_adversarial_question_are_drawn_from_the_seed(own: SampleNeeds) -> None:
    seen = set()
    for seed in range(20):
        needs = SampleNeeds(own.data, words, seed=seed)
        (sample,) = samples(TASKS["adversarial"], needs)
        assert [sample] == list(samples(TASKS["adversarial"], needs))
        (question,) = sample.questions
        options = question.facts["options"]
        assert sorted(options.values()) == sorted([UNANSWERABLE, "a cat"])
        assert f"(a) {options['a']} (b) {options['b']}. " in question.text
        assert question.answers == (UNANSWERABLE,)
        seen.add(options["a"])
    assert len(seen) == 2


def test_a_conversation_without_questions_of_the_category_is_left_out(own: SampleNeeds) -> None:
    assert list(samples(TASKS["single_hop"], own)) == []


def test_a_record_that_is_no_conversation_is_told(tmp_path: Path) -> None:
    (tmp_path / "locomo").mkdir()
    (tmp_path / "locomo" / "locomo10.json").write_text('[{"sample_id": "conv-9"}]', "utf-8")
    with pytest.raises(
        SourceError, match=r"^task locomo/temporal: conversation conv-9 .* it has no 'conversation'$"
    ):
        list(samples(TASKS["temporal"], SampleNeeds(tmp_path, words)))


@pytest.mark.parametrize("name", TASKS)
def test_questions_of_the_real_conversations_have_their_evidence_in_the_text(
    name: str, shared_data: Path
) -> None:
    found = list(samples(TASKS[name], SampleNeeds(shared_data, words)))
    assert len({sample.sample_id for sample in found}) == len(found) == 5
    questions = [question for sample in found for question in sample.questions]
    number = {"multi_hop": 151, "temporal": 157, "open_domain": 61, "single_hop": 419, "adversarial": 232}
    assert len(questions) == number[name]
    assert sum(not question.facts["evidence"] for question in questions) <= 3
    depths = [question.facts["depth"] for question in questions if "depth" in question.facts]
    assert all(0 <= depth < 100 for depth in depths)
    assert len(depths) == {"multi_hop": 9, "temporal": 144, "open_domain": 38, "single_hop": 419}.get(
        name, 232
    )
    for question in questions:
        num_turns = len(question.facts["evidence"])
        assert len(question.facts.get("depths", ())) == (num_turns if num_turns > 1 else 0)


def test_an_answer_of_one_turn_stands_in_that_turn(shared_data: Path) -> None:
    sample = next(samples(TASKS["single_hop"], SampleNeeds(shared_data, words)))
    question = next(q for q in sample.questions if q.answers == ("mental health",))
    start = int(question.facts["depth"] / 100 * len(sample.text))
    assert "mental health" in sample.text[start - 50 : start + 400]
