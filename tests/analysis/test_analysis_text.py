"""A segmented text in plain characters: one paragraph an event, nothing that a terminal would obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.analysis.segmented import SegmentedText
from emllm.analysis.text import render_text

ODD = st.text(st.sampled_from("ab \n\r\t\x1b\x07\x9b\x00é猫"), max_size=8)


def segmented(pieces: list[str], boundaries: list[int]) -> SegmentedText:
    surprise = np.arange(len(pieces), dtype=np.float32)
    surprise[0] = np.nan
    return SegmentedText("book", "tiny", pieces, surprise, np.full(len(pieces), np.nan), boundaries)


@given(st.lists(ODD, min_size=4, max_size=12), st.sampled_from([None, 1, 20, 80]))
def test_blank_lines_separate_events_and_nothing_else(pieces: list[str], width: int | None) -> None:
    paragraphs = render_text(segmented(pieces, [0, 1, 3]), width=width).rstrip("\n").split("\n\n")
    assert [paragraph.split(" ")[0] for paragraph in paragraphs[1:]] == ["[0]", "[1]", "[2]"]


@given(st.lists(ODD, min_size=4, max_size=12), st.sampled_from([None, 20]))
def test_no_control_character_reaches_the_terminal(pieces: list[str], width: int | None) -> None:
    shown = render_text(segmented(pieces, [0, 2]), width=width)
    assert not {char for char in shown if ord(char) < 32 or 127 <= ord(char) < 160} - set("\t\n")


@given(st.lists(st.text("abc \n", max_size=5), min_size=4, max_size=30), st.sampled_from([None, 12]))
def test_every_word_is_shown_once_and_in_order(pieces: list[str], width: int | None) -> None:
    shown = render_text(segmented(pieces, [0, 2]), width=width)
    lines = [line for line in shown.splitlines()[1:] if not line.startswith("[")]
    assert "".join("".join(lines).split()) == "".join("".join(pieces).split())


def test_a_header_gives_event_span_length_and_surprise() -> None:
    shown = render_text(segmented(["One", " day", "\n\n He", " left", "."], [0, 2, 4]))
    assert shown == (
        "book: 5 tokens, 3 events, mean surprise 2.50 nats, read with tiny\n\n"
        "[0] tokens 0-2 (2 tokens), mean 1.00 nats, max 1.00 nats\nOne day\n\n"
        "[1] tokens 2-4 (2 tokens), mean 2.50 nats, max 3.00 nats\n He left\n\n"
        "[2] tokens 4-5 (1 token), mean 4.00 nats, max 4.00 nats\n.\n"
    )


@pytest.mark.parametrize("width", [10, 30])
def test_lines_stay_within_the_width(width: int) -> None:
    shown = render_text(segmented(["word "] * 50, [0, 25]), width=width)
    assert all(len(line) <= width for line in shown.splitlines()[1:] if not line.startswith("["))
