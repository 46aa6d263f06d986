"""The record of a segmented text: events partition it, JSON keeps it, bad lengths are refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.analysis.segmented import SegmentedText, mean_and_max
from emllm.errors import InputError


@st.composite
def segmented_texts(draw: st.DrawFn) -> SegmentedText:
    pieces = draw(st.lists(st.text(max_size=6), min_size=1, max_size=40))
    num_tokens = len(pieces)
    numbers = st.lists(
        st.one_of(st.just(math.nan), st.floats(0, 1000, width=32)), min_size=num_tokens, max_size=num_tokens
    )
    later = draw(st.sets(st.integers(1, max(num_tokens - 1, 1)), max_size=num_tokens - 1))
    return SegmentedText(
        "name",
        "model",
        pieces,
        np.array(draw(numbers), dtype=np.float32),
        np.array(draw(numbers), dtype=np.float32),
        [0, *sorted(later)],
        {"gamma": 1.0},
    )


def small(**changes: object) -> SegmentedText:
    fields = {
        "document": "d",
        "model": "m",
        "pieces": ["a", " b", " c"],
        "surprise": np.array([np.nan, 1.0, 3.0], np.float32),
        "threshold": np.full(3, np.nan, np.float32),
        "boundaries": [0, 2],
    }
    return SegmentedText(**(fields | changes))


@given(segmented_texts())
def test_event_spans_partition_the_tokens_and_their_texts_the_document(text: SegmentedText) -> None:
    assert [event.start for event in text.events] == list(text.boundaries)
    assert [event.stop for event in text.events] == [*text.boundaries[1:], text.num_tokens]
    assert "".join(event.text for event in text.events) == "".join(text.pieces)
    assert [event.event_idx for event in text.events] == list(range(len(text.events)))


@given(segmented_texts())
def test_json_has_the_documented_keys_and_survives_a_strict_round_trip(text: SegmentedText) -> None:
    answer = json.loads(json.dumps(text.to_json(), allow_nan=False))
    assert list(answer) == ["tokens", "events", "surprise", "settings"]
    assert answer["tokens"] == len(answer["surprise"]) == text.num_tokens
    assert all(list(event) == ["start", "stop", "text", "surprise"] for event in answer["events"])
    for nats, value in zip(text.surprise.tolist(), answer["surprise"], strict=True):
        assert (value is None) == math.isnan(nats)
        assert value is None or value == pytest.approx(nats, abs=1e-6)


@given(segmented_texts())
def test_the_mean_of_an_event_is_never_above_its_maximum(text: SegmentedText) -> None:
    for event in text.events:
        assert math.isnan(event.mean_surprise) or event.mean_surprise <= event.max_surprise + 1e-9


@given(segmented_texts(), st.integers(0, 8))
def test_no_event_outside_the_most_surprising_is_more_surprising(text: SegmentedText, number: int) -> None:
    chosen = text.most_surprising(number)
    means = [event.mean_surprise for event in chosen]
    known = [event.mean_surprise for event in text.events if not math.isnan(event.mean_surprise)]
    assert means == sorted(known, reverse=True)[:number]


@given(segmented_texts(), st.integers(2, 20))
def test_an_opening_is_one_line_of_the_events_own_words(text: SegmentedText, max_chars: int) -> None:
    for event in text.events:
        opening = text.opening(event.event_idx, max_chars=max_chars)
        assert len(opening) <= max_chars and opening.split() == opening.split(" " if opening else None)
        words = opening.removeprefix("…").removesuffix("…").rstrip()
        assert " ".join(event.text.split()).startswith(words) or "…" in event.text


def test_an_event_that_begins_inside_a_word_says_so() -> None:
    inside = small(pieces=["carb", "uncle", " geese"], boundaries=[0, 1, 2])
    openings = [inside.opening(event_idx, max_chars=9) for event_idx in range(3)]
    assert openings == ["carb", "…uncle", "geese"]


def test_unknown_surprise_is_left_out_of_mean_and_maximum() -> None:
    assert mean_and_max(np.array([np.nan, 1.0, 3.0])) == (2.0, 3.0)
    assert small().events[0].mean_surprise == 1.0
    assert small().to_json()["surprise"] == [None, 1.0, 3.0]


def test_an_event_without_known_surprise_is_null_in_json() -> None:
    text = small(boundaries=[0, 1])
    assert text.to_json()["events"][0] == {"start": 0, "stop": 1, "text": "a", "surprise": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pieces": []}, "at least 1 token, got 0"),
        ({"surprise": np.zeros(2, np.float32)}, r"surprise must have shape \(3,\).*\(2,\)"),
        ({"threshold": np.zeros(4, np.float32)}, r"threshold must have shape \(3,\).*\(4,\)"),
        ({"surprise": np.array([0, np.inf, 0], np.float32)}, "1 infinite"),
        ({"boundaries": []}, "first boundary must be token 0"),
        ({"boundaries": [1]}, r"first boundary must be token 0, got \[1\]"),
        ({"boundaries": [0, 2, 2]}, "got 2 before 2"),
        ({"boundaries": [0, 3]}, "below 3, got 3"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_in_one_line(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)
