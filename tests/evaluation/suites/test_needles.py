"""Many needles in one text: each stands once, at its depth, and is found by its own question alone."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError
from emllm.evaluation.metrics import metric
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites import samples_function
from emllm.evaluation.suites.made import planted, prompt_tokens
from emllm.evaluation.suites.made_names import ADJECTIVES, NOUNS
from emllm.evaluation.suites.needle_kinds import KINDS, LANDMARKS, NAMES
from emllm.evaluation.suites.needles import even_depths, most_needles, samples
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task, tasks_of

TASKS = {task.name.removeprefix("needles/"): task for task in tasks_of("needles")}
KIND_NAMES = sorted(TASKS)
SUBJECT = rf"\b(?:{'|'.join(ADJECTIVES)})[- ](?:{'|'.join(NOUNS)})\b"
LITTLE = {"the", "to", "is", "who", "which", "been", "has", "character"}


def count(text: str) -> int:
    return len(re.findall(r"\w{1,4}|[^\w\s]", text))


def made(
    name: str, *, data: Path | None = None, lengths=(2048, 8192), needles: int = 20, seed: int = 0
) -> list[Sample]:
    needs = SampleNeeds(data, count, lengths=lengths, seed=seed)
    task = replace(TASKS[name], source={**TASKS[name].source, "needles": needles})
    return list(samples(task, needs))


def depths_of(question: Question) -> list[float]:
    return question.facts.get("depths") or [question.facts["depth"]]


def content_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower())) - LITTLE


def test_there_is_a_task_of_every_kind_and_its_samples_are_registered():
    assert set(KIND_NAMES) == set(KINDS) == {task.source["kind"] for task in TASKS.values()}
    assert {samples_function(task.samples) for task in TASKS.values()} == {samples}


@pytest.mark.parametrize("name", KIND_NAMES)
def test_a_cell_has_all_its_needles_and_a_text_one_for_every_512_tokens_at_most(name):
    wanted = {600: [1] * 20, 2048: [4] * 5, 4096: [7, 7, 6], 16_384: [20]}
    found = made(name, lengths=tuple(wanted))
    for length, asked in wanted.items():
        assert [len(it.questions) for it in found if it.facts["length"] == length] == asked


@pytest.mark.parametrize("name", KIND_NAMES)
def test_every_answer_stands_in_the_text_exactly_once(name):
    for sample in made(name):
        text = sample.text.lower()
        for question in sample.questions:
            assert len(set(question.answers)) == len(question.answers) == (4 if name == "values" else 1)
            assert [text.count(answer.lower()) for answer in question.answers] == [1] * len(question.answers)


@pytest.mark.parametrize("name", KIND_NAMES)
def test_questions_are_distinct_and_tell_no_answer_of_the_text(name):
    for sample in made(name):
        answers = [answer.lower() for question in sample.questions for answer in question.answers]
        queries = [question.query for question in sample.questions]
        assert len(set(queries)) == len(queries)
        for question in sample.questions:
            told = (question.text + question.answer_begins + sample.before).lower()
            assert question.query in question.text
            assert not [answer for answer in answers if answer in told]
            assert metric("substring_all")(f" {', '.join(question.answers)}.", question) == 1
            others = [other for other in answers if other not in map(str.lower, question.answers)]
            assert metric("substring_all")(" ".join(others), question) == 0


@pytest.mark.parametrize("name", sorted(set(KIND_NAMES) - {"meaning"}))
def test_the_subject_that_a_question_asks_for_stands_once_beside_its_answer(name):
    for sample in made(name, lengths=(8192,)):
        needles = re.findall(r"[^.\n]*\n|[^.]*\.", sample.text + "\n")
        for question in sample.questions:
            (subject,) = re.findall(SUBJECT, question.query)
            held = [needle for needle in needles if subject in needle]
            assert len(held) == len(question.answers)
            assert all(answer in "".join(held) for answer in question.answers)
            assert subject in question.answer_begins


def test_no_content_word_of_a_question_by_meaning_stands_in_a_needle():
    for sample in made("meaning", lengths=(16_384,)):
        sentences = re.findall(r"\w+ lives next to [^.]*\.", sample.text)
        assert len(sentences) == 20
        for question in sample.questions:
            (needle,) = [it for it in sentences if it.startswith(question.answers[0])]
            asked = content_words(question.query + question.answer_begins)
            assert asked
            assert not asked & content_words(" ".join(sentences))
            landmark = re.search(r"next to (.*)\.", needle)[1]
            assert f"been to {dict(LANDMARKS)[landmark]}?" in question.query


@pytest.mark.parametrize("name", sorted(set(KIND_NAMES) - {"meaning"}))
def test_no_answer_stands_in_another_however_many_there_are(name):
    answers = [answer for needle in KINDS[name].draw(Random(0), 1000) for answer in needle.answers]
    whole = "\n".join(answers)
    assert [whole.count(answer) for answer in answers] == [1] * len(answers)


def test_landmarks_and_names_are_unambiguous():
    places = [place for _, place in LANDMARKS]
    assert len(LANDMARKS) >= 40
    assert len(set(places)) == len(places) == len(dict(LANDMARKS)) <= len(NAMES)
    everything = [*NAMES, *places, *dict(LANDMARKS)]
    for name in [*NAMES, *places]:
        assert [it for it in everything if name.lower() in it.lower()] == [name]


@pytest.mark.parametrize("name", KIND_NAMES)
@pytest.mark.parametrize("length", [600, 2048, 20_000])
def test_depths_are_spread_from_0_to_100_over_the_needles_of_a_cell(name, length):
    found = made(name, lengths=(length,), needles=12)
    depths = sorted(depth for s in found for q in s.questions for depth in depths_of(q))
    num_places = 12 * (4 if name == "values" else 1)
    even = [100 * place / (num_places - 1) for place in range(num_places)]
    assert len(depths) == num_places
    assert depths == pytest.approx(even, abs={600: 25, 2048: 12, 20_000: 3}[length])
    if length > 600:
        assert [depths[0], depths[-1]] == [0, 100]


def test_the_values_of_a_key_stand_apart():
    for sample in made("values", lengths=(8192,)):
        for question in sample.questions:
            assert all(after - before > 15 for before, after in pairwise(depths_of(question)))
            places = [sample.text.index(answer) for answer in question.answers]
            assert places == sorted(places)


@given(num_places=st.integers(1, 60), num_texts=st.integers(1, 12))
def test_even_depths_are_even_in_each_text_and_over_all(num_places, num_texts):
    texts = [even_depths(num_places, share=(idx, num_texts)) for idx in range(num_texts)]
    every = sorted(depth for text in texts for depth in text)
    if len(every) == 1:
        assert every == [0.5]
        return
    for depths in (every, *texts):
        gaps = {round(after - before, 9) for before, after in pairwise(depths)}
        assert len(gaps) <= 1
    assert every[0] == 0
    assert every[-1] == 1


@given(
    lengths=st.lists(st.integers(1, 60), max_size=60),
    depths=st.lists(st.floats(0, 1), max_size=8).map(sorted),
    is_line=st.booleans(),
)
def test_planting_keeps_background_and_sentences_in_order(lengths, depths, is_line):
    background = [f"{'b' * length}." for length in lengths]
    sentences = [f"needle{idx}" for idx in range(len(depths))]
    text = planted(background, sentences, depths, is_line=is_line)
    words = text.split()
    assert [word for word in words if word not in sentences] == background
    assert [word for word in words if word in sentences] == sentences
    if is_line:
        assert [line for line in text.split("\n") if line in sentences] == sentences
        assert text == "\n".join(line.strip() for line in text.split("\n") if line)


@pytest.mark.parametrize("name", KIND_NAMES)
@pytest.mark.parametrize("length", [1024, 2048, 10_000])
def test_the_wanted_length_is_reached_and_never_exceeded(name, length):
    for sample in made(name, lengths=(length,)):
        assert 0.95 * length <= prompt_tokens(sample, count) + TASKS[name].answer_tokens <= length


@pytest.mark.parametrize("name", KIND_NAMES)
def test_a_sample_depends_on_seed_length_and_index_alone(name):
    both = made(name)
    assert made(name, lengths=(8192,)) == both[5:]
    assert made(name) == both
    assert len({sample.text for sample in both}) == len({sample.sample_id for sample in both}) == 7
    assert len({frozenset(q.answers for q in sample.questions) for sample in both}) == 7
    other = made(name, seed=1)[0]
    assert {q.answers for q in other.questions} != {q.answers for q in both[0].questions}


def test_texts_of_a_cell_are_other_passages_of_the_books(shared_data):
    found = made("passkey", data=shared_data, lengths=(2048,))
    passages = {sample.text.replace("Remember it.", ".")[200:600] for sample in found}
    assert len(passages) == 5
    assert {sample.facts["haystack"] for sample in found} == {"books_eval"}


@pytest.mark.parametrize("name", KIND_NAMES)
def test_facts_say_length_kind_and_text(name):
    for sample in made(name, lengths=(2048,)):
        assert sample.facts == {"length": 2048, "kind": name, "haystack": "python"}
        assert {question.facts["kind"] for question in sample.questions} == {name}


@pytest.mark.parametrize("name", ["number", "meaning", "fact"])
def test_sentences_that_hold_a_needle_by_chance_give_way(name, tmp_path):
    before = made(name, lengths=(8192,))[0]
    taken = [answer.upper() for question in before.questions for answer in question.answers]
    taken += [question.query.partition("been to ")[2].rstrip("?") or "us" for question in before.questions]
    book = " ".join(f"Once there was {word} here. It was an old and very long tale." for word in taken)
    # Long sentences are cut between words, so that an answer may end in the next one.
    cuts = [
        f"\n\n{'of ' * 110}{'x' * pad} {word} {'to ' * 40}" for pad in range(46, 66) for word in taken[:3]
    ]
    (tmp_path / "books_eval").mkdir()
    (tmp_path / "books_eval/a.txt").write_text(book + "".join(cuts))
    after = made(name, data=tmp_path, lengths=(8192,))[0]
    assert [question.answers for question in after.questions] == [it.answers for it in before.questions]
    assert "It was an old and very long tale." in after.text
    for question in after.questions:
        assert after.text.lower().count(question.answers[0].lower()) == 1
        if name == "meaning":
            assert question.query.partition("been to ")[2].rstrip("?") not in after.text


def test_a_book_of_nothing_but_needles_is_replaced_whole(tmp_path):
    before = made("passkey", lengths=(1024,), needles=2)[0]
    (tmp_path / "books_eval").mkdir()
    (tmp_path / "books_eval/a.txt").write_text(f"It is {before.questions[0].answers[0]}.")
    after = made("passkey", data=tmp_path, lengths=(1024,), needles=2)[0]
    assert after.text.count(before.questions[0].answers[0]) == 1
    assert "The grass is green." in after.text


@pytest.mark.parametrize("name", ["passkey", "meaning"])
def test_ten_million_tokens_are_made_while_few_of_them_are_counted(name):
    counted = [0]

    def count_some(text: str) -> int:
        counted[0] += len(text)
        return len(text) // 4

    (sample,) = samples(TASKS[name], SampleNeeds(None, count_some, lengths=(10_000_000,)))
    assert 0.95 * 10_000_000 <= len(sample.text) / 4 <= 10_000_000
    assert counted[0] < len(sample.text) / 4
    assert [question.facts["depth"] for question in sample.questions] == pytest.approx(
        [100 * place / 19 for place in range(20)], abs=0.1
    )


def test_long_texts_of_books_keep_below_their_length_although_it_is_extrapolated(shared_data):
    (sample,) = made("passkey", data=shared_data, lengths=(600_000,))
    tokens = count(sample.before + sample.text + sample.questions[0].text)
    assert 0.95 * 600_000 <= tokens <= 600_000


def test_meaning_has_no_more_needles_in_a_text_than_landmarks():
    assert most_needles(KINDS["meaning"], 10_000_000) == len(LANDMARKS)
    found = made("meaning", lengths=(40_000,), needles=60)
    assert [len(sample.questions) for sample in found] == [30, 30]


def test_an_unknown_kind_and_numbers_of_needles_out_of_range_are_refused():
    def of(**source) -> Task:
        return replace(TASKS["fact"], source={**TASKS["fact"].source, **source})

    needs = SampleNeeds(None, count)
    with pytest.raises(ConfigError, match=r"kind must be one of fact, number, .* got 'x'"):
        list(samples(of(kind="x"), needs))
    for wrong in (0, 1001):
        with pytest.raises(ConfigError, match=f"needles must be 1 to 1000, got {wrong}"):
            list(samples(of(needles=wrong), needs))
