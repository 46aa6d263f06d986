"""Passages tile the text, whatever it is, and have the size they should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError
from emllm.evaluation.rag.passages import Passage, event_passages, fixed_passages, num_words

TEXT = st.text(alphabet="ab \n\t.,日本é", max_size=400)


def tiles(passages, text):
    assert [one.text for one in passages] == [text[one.start : one.stop] for one in passages]
    return "".join(one.text for one in passages) == text


@given(text=TEXT, words=st.integers(1, 9))
def test_fixed_passages_tile_the_text_in_so_many_words(text, words):
    passages = fixed_passages(text, words=words)
    assert tiles(passages, text) or not text.strip()
    assert all(one.num_words == words for one in passages[:-1])
    assert all(1 <= one.num_words <= words for one in passages[-1:])


@given(text=TEXT, words=st.integers(1, 9))
def test_no_word_between_spaces_is_cut(text, words):
    for one in fixed_passages(text, words=words)[1:]:
        left, right = text[one.start - 1], text[one.start]
        assert left.isspace() or left in "日本" or right in "日本"


@given(events=st.lists(TEXT.filter(bool), max_size=20), words=st.integers(1, 9))
def test_event_passages_tile_the_text_at_events_and_have_the_least_size(events, words):
    text = "".join(events)
    passages = event_passages(events, least_words=words)
    assert tiles(passages, text) or not text.strip()
    edges = {0, *(len("".join(events[:n])) for n in range(1, len(events) + 1))}
    assert {one.start for one in passages} | {one.stop for one in passages} <= edges
    if len(passages) > 1:
        assert all(one.num_words >= words for one in passages)


def test_large_events_are_not_joined():
    events = ["one two three ", "four five six ", "seven eight nine"]
    assert [one.text for one in event_passages(events, least_words=3)] == events


def test_a_run_without_spaces_is_many_words():
    assert num_words("x" * 1001) == 11
    assert num_words("漢字かな word") == 5


@given(text=TEXT, words=st.integers(1, 30))
def test_first_words_are_the_beginning(text, words):
    for one in fixed_passages(text, words=20):
        first = one.first_words(words)
        assert first.text == text[first.start : first.stop] and one.text.startswith(first.text)
        assert first.num_words == (words if words <= one.num_words else 0)


@given(text=TEXT)
def test_a_stripped_passage_is_where_it_says(text):
    for one in map(Passage.stripped, fixed_passages(text, words=3)):
        assert one.text == text[one.start : one.stop] == one.text.strip()


def test_less_than_one_word_is_refused():
    with pytest.raises(ConfigError, match=r"passage_words must be >= 1, got 0"):
        fixed_passages("a b", words=0)
