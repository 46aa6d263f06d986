"""Samples with one text follow one another, and none is lost or run twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emllm.evaluation.reading_order import Place, reading_order, text_digest
from emllm.evaluation.samples import Sample

TASKS = st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from("pqrs"), max_size=6))


def placed(tasks: dict[str, list[str]]) -> dict[Place, str]:
    return {Place(task, i): text for task, texts in tasks.items() for i, text in enumerate(texts)}


@given(tasks=TASKS)
def test_every_sample_comes_once_in_its_tasks_order_beside_samples_with_its_text(tasks):
    texts = placed(tasks)
    groups = list(reading_order(texts.items()))
    seen = [place for group in groups for place in group]
    assert sorted(seen) == sorted(texts)
    for task in tasks:
        numbers = [place.number for place in seen if place.task == task]
        assert numbers == sorted(numbers)
    assert all(len({texts[place] for place in group}) == 1 for group in groups)


@given(
    texts=st.lists(st.sampled_from("pqrs"), unique=True), names=st.sets(st.sampled_from("abcd"), min_size=1)
)
def test_tasks_with_the_same_texts_in_the_same_order_read_each_once(texts, names):
    groups = list(reading_order(placed(dict.fromkeys(sorted(names), texts)).items()))
    assert [len(group) for group in groups] == [len(names)] * len(texts)


def test_neighbours_with_one_text_are_read_once():
    texts = placed({"a": ["p", "p", "q", "p"], "b": ["p"]})
    assert [len(group) for group in reading_order(texts.items())] == [3, 1, 1]


def test_tasks_with_texts_of_their_own_follow_one_another():
    texts = placed({"a": ["p", "q"], "b": ["r", "s"]})
    assert list(reading_order(texts.items())) == [[place] for place in texts]


def test_what_is_read_names_a_text():
    one = Sample("1", "Read.", "A text.", ())
    assert text_digest(one) == text_digest(Sample("2", "Read.", "A text.", ()))
    assert text_digest(one) != text_digest(Sample("1", "Read", ".A text.", ()))
