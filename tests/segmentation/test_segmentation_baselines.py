"""Grid, chance and sentences: the same in any chunking, and what they promise."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.config import SEGMENTERS, MemoryConfig
from emllm.segmentation.baselines import NEEDS, POSITION_FLAGS, SentenceStarts, fixed_flags, random_flags
from emllm.segmentation.segmenter import segment

CUTS = st.lists(st.integers(0, 200), max_size=8)


def test_every_segmenter_of_the_settings_says_what_it_needs() -> None:
    assert set(NEEDS) == set(SEGMENTERS)
    assert {name for name, need in NEEDS.items() if need == "positions"} == set(POSITION_FLAGS)


@pytest.mark.parametrize("name", POSITION_FLAGS)
@given(cuts=CUTS, start=st.integers(0, 30), refine=st.sampled_from(["none", "modularity"]))
def test_flags_of_positions_do_not_depend_on_chunking(name: str, cuts, start: int, refine: str) -> None:
    flags = POSITION_FLAGS[name](MemoryConfig(refine=refine), start)
    edges = [0, *sorted(cuts), 200]
    parts = [flags(low, high - low) for low, high in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), flags(0, 200))


def test_the_plain_grid_makes_events_of_the_greatest_length() -> None:
    config = MemoryConfig(segmenter="fixed", refine="none", max_event_tokens=32)
    flags = POSITION_FLAGS["fixed"](config, 10)(0, 200)
    assert segment(flags, config=config, start=10) == list(range(42, 200, 32))
    assert np.flatnonzero(flags).tolist() == list(range(42, 200, 32))


def test_the_grid_that_is_refined_is_half_as_wide() -> None:
    config = MemoryConfig(segmenter="fixed", refine="modularity", max_event_tokens=32)
    assert np.flatnonzero(POSITION_FLAGS["fixed"](config, 10)(0, 60)).tolist() == [26, 42, 58]
    assert np.flatnonzero(fixed_flags(20, 10, start=10, every_tokens=5)).tolist() == [0, 5]


def test_chance_has_the_rate_it_was_given_and_depends_on_the_seed() -> None:
    flags = random_flags(0, 200_000, mean_tokens=50.0)
    assert abs(flags.sum() - 4000) < 4 * 4000**0.5
    gaps = np.diff(np.flatnonzero(flags))
    assert abs((gaps <= 35).mean() - (1 - 0.98**35)) < 0.03
    other = random_flags(0, 200_000, mean_tokens=50.0, seed=1)
    assert (flags & other).sum() < 200
    assert random_flags(0, 100, mean_tokens=1.0).all()


def sentences(text: str, tokens: list[str] | None = None) -> list[str]:
    """The text cut at the tokens that are flagged; single characters as tokens by default."""
    tokens = list(text) if tokens is None else tokens
    flags = SentenceStarts().extend(tokens)
    edges = [*np.flatnonzero(flags).tolist(), len(tokens)]
    return ["".join(tokens[low:high]) for low, high in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    "parts",
    [
        ["He came. ", "She saw! ", "Who won?"],
        ['"Stop!" he said. ', '"Why?" ', '"So."'],
        ["“Yes.” ", "“No.”"],
        ["Mr. Smith met Dr. J. Doe at 3.15. ", "He left."],
        ["It was e.g. this one... and that."],
        ["Chapter 1\n\n", "it begins. ", "1999 came."],
        ["他来了。", "她走了！", "“谁？！”", "好。"],
        ["Really?! ", "Yes."],
    ],
)
def test_sentences_begin_where_a_reader_would_say(parts: list[str]) -> None:
    assert sentences("".join(parts)) == parts


def test_a_sentence_begins_at_the_token_that_holds_its_first_character() -> None:
    tokens = ["He", " came", ".", " She", " saw", ".\n\n", "they", " won", "! Oh", "."]
    assert np.flatnonzero(SentenceStarts().extend(tokens)).tolist() == [0, 3, 6, 8]


@given(st.lists(st.text(alphabet="aB .!?\n\"'。)", max_size=3), max_size=40), st.integers(0, 40))
def test_sentences_do_not_depend_on_chunking(tokens: list[str], cut: int) -> None:
    reading = SentenceStarts()
    first = reading.extend(tokens[:cut])
    reading.copy().extend([". Another text", "!"])
    restored = SentenceStarts.from_state(json.loads(json.dumps(reading.state())))
    rest = reading.extend(tokens[cut:])
    assert np.array_equal(np.concatenate([first, rest]), SentenceStarts().extend(tokens))
    assert np.array_equal(restored.extend(tokens[cut:]), rest)
