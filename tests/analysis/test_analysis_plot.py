"""The picture of a segmented text: a PNG whatever the text, without windows, warnings or global state."""

from __future__ import annotations

import sys
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emllm.analysis.plot import _with_room, figure, render_png, span_means
from emllm.analysis.segmented import SegmentedText
from emllm.errors import InputError, MissingExtraError


def segmented(num_tokens: int, piece: str = " $x_{", every: int = 10) -> SegmentedText:
    surprise = np.random.default_rng(0).gamma(1.0, 2.0, num_tokens).astype(np.float32)
    surprise[0] = np.nan
    threshold = np.full(num_tokens, np.nan, np.float32)
    return SegmentedText(
        "a $book$", "m", [piece] * num_tokens, surprise, threshold, list(range(0, num_tokens, every))
    )


@given(
    st.lists(st.one_of(st.just(np.nan), st.floats(0, 100)), min_size=1, max_size=40),
    st.data(),
)
def test_span_means_are_the_means_of_the_known_values(nats: list[float], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(nats) - 1))
    stop = data.draw(st.integers(start + 1, len(nats)))
    known = [value for value in nats[start:stop] if value == value]
    found = span_means(np.array(nats), np.array([start]), stops=np.array([stop]))[0]
    assert found == pytest.approx(np.mean(known), abs=1e-9) if known else np.isnan(found)


@given(st.sets(st.integers(0, 99)), st.integers(1, 30))
def test_labels_keep_their_distance(boundaries: set[int], spacing: int) -> None:
    surprise = np.random.default_rng(1).random(100).astype(np.float32)
    chosen = _with_room(np.array(sorted(boundaries), dtype=int), surprise, spacing=float(spacing))
    assert set(chosen) <= boundaries
    assert bool(chosen) == bool(boundaries)
    assert all(b - a >= spacing for a, b in pairwise(chosen))


@settings(max_examples=5)
@given(st.text(min_size=1, max_size=6))
def test_any_piece_of_text_can_be_a_label_without_a_warning(piece: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render_png(segmented(12, piece), dpi=40).startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("num_tokens", [1, 2, 401, 200_000])
def test_a_text_of_any_length_gives_a_picture_of_bounded_size(num_tokens: int) -> None:
    picture = render_png(segmented(num_tokens, every=25), dpi=60)
    assert picture.startswith(b"\x89PNG") and len(picture) < 400_000


def test_the_detail_shows_the_stretch_that_was_asked_for() -> None:
    detail = figure(segmented(1000), start=300, stop=360).axes[2]
    assert detail.get_xlim() == (299.5, 359.5)
    assert {round(label.xy[0]) for label in detail.texts} == {300, 310, 320, 330, 340, 350}
    assert "nats" in detail.get_ylabel() and "tokens" in detail.get_xlabel()


def test_every_event_has_a_dot_and_the_most_surprising_are_quoted() -> None:
    text = segmented(1000)
    axes = figure(text).axes[1]
    assert len(axes.lines[0].get_xdata()) == len(text.events)
    *numbers, quotes = axes.texts
    assert [number.get_text() for number in numbers] == ["1", "2", "3", "4", "5"]
    for number, event, line in zip(
        numbers, text.most_surprising(5), quotes.get_text().split("\n"), strict=True
    ):
        assert number.xy == ((event.start + event.stop) / 2, event.mean_surprise)
        assert f"at token {event.start:,}: " in line
    assert "nats" in axes.get_ylabel() and "tokens" in axes.get_xlabel()


def test_a_short_detail_of_a_long_text_is_marked_wide_enough_to_be_seen() -> None:
    overview = figure(segmented(200_000, every=50), start=100, stop=110).axes[0]
    assert overview.patches[-1].get_width() >= 200_000 / 400


def test_drawing_leaves_the_global_state_of_matplotlib_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    render_png(segmented(50), dpi=40)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (100, None), (7, 3)])
def test_a_detail_outside_the_text_is_refused(start: int, stop: int | None) -> None:
    with pytest.raises(InputError, match="start < stop <= 100 tokens"):
        figure(segmented(100), start=start, stop=stop)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'emllm\[plot\]'"):
        render_png(segmented(5))
