"""Made samples: lengths are reached and kept, facts stand where they should, names are unambiguous."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.filler import Filler, sentences_of
from emllm.evaluation.suites.made import (
    EXACT_CHARS,
    Recipe,
    depth_of,
    fitted,
    measured,
    planted,
    prompt_tokens,
)
from emllm.evaluation.suites.made_names import ADJECTIVES, NOUNS, Names, num_words, word_parts
from emllm.evaluation.suites.needs import SampleNeeds


def count_words(text: str) -> int:
    return len(text.split())


def recipe(unit: str, *, most: int | None = None) -> Recipe:
    def make(num_units: int) -> Sample:
        return Sample("made-1", "Before. ", unit * num_units, (Question("Asked?", ("x",)),))

    return Recipe(make, most=most)


@given(words=st.integers(1, 40), tokens=st.integers(60, 30_000))
def test_a_fitted_sample_is_never_too_long_and_lacks_less_than_one_unit_or_two_percent(words, tokens):
    unit = "word " * words
    found = prompt_tokens(fitted(recipe(unit), count_words, tokens=tokens), count_words)
    assert found <= tokens
    assert found > tokens - words or found >= 0.98 * tokens


def test_a_recipe_that_grows_unevenly_is_fitted_too():
    def make(num_units: int) -> Sample:
        return Sample("made-1", "", "word " * (num_units + num_units**2 // 50), (Question("?", ("x",)),))

    found = prompt_tokens(fitted(Recipe(make), count_words, tokens=20_000), count_words)
    assert 0.98 * 20_000 <= found <= 20_000


def test_a_length_below_the_shortest_sample_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="shortest prompt has 102 tokens, 52 more than this length leaves"):
        fitted(recipe("word " * 100), count_words, tokens=50)


def test_units_that_run_out_are_refused():
    with pytest.raises(ConfigError, match="1000 tokens wanted, all there is makes 302"):
        fitted(recipe("word " * 10, most=30), count_words, tokens=1000)


def test_a_long_text_is_measured_without_counting_all_of_it_and_within_one_percent():
    random = Random(0)
    text = " ".join("w" * random.randint(1, 9) for _ in range(EXACT_CHARS))
    counted = []

    def count(part: str) -> int:
        counted.append(len(part))
        return count_words(part)

    assert measured(text, count) == pytest.approx(count_words(text), rel=0.01)
    assert sum(counted) < len(text) / 5


@given(depth=st.floats(0, 100), lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80))
def test_a_planted_fact_stands_once_and_within_half_a_piece_of_its_depth(depth, lengths):
    pieces = ["a" * length for length in lengths]
    text = planted(pieces, ["FACT"], [depth / 100])
    assert text.split(" ").count("FACT") == 1
    assert text.replace("FACT", "").split() == pieces
    whole = sum(lengths) + len(lengths)
    assert abs(text.index("FACT") - whole * depth / 100) <= max(lengths) / 2 + 1


@pytest.mark.parametrize("depth", [0.0, 100.0])
def test_the_ends_of_a_text_are_exact_depths(depth):
    assert depth_of(planted(["one.", "two.", "three."], ["FACT"], [depth / 100]), "FACT") == depth


def test_no_word_is_part_of_another():
    words = [*ADJECTIVES, *NOUNS]
    assert not [(one, other) for one in words for other in words if one in other and one is not other]


@pytest.mark.parametrize("kind", ["words", "numbers", "uuids"])
def test_names_never_repeat(kind):
    names = Names(Random(1), parts=2)
    drawn = [names.draw(kind) for _ in range(5000)]
    assert len(set(drawn)) == len(drawn)


def test_words_that_are_used_up_are_refused():
    names = Names(Random(1), parts=1)
    drawn = {names.draw("words") for _ in range(num_words(1))}
    assert drawn == {*ADJECTIVES, *NOUNS}
    with pytest.raises(ConfigError, match=f"more than the {num_words(1)} words"):
        names.draw("words")


@given(num_wanted=st.integers(1, 5_000_000))
def test_enough_words_are_there_for_ten_million_tokens(num_wanted):
    assert num_words(word_parts(num_wanted)) >= num_wanted


def test_sentences_are_not_cut_after_a_title_and_are_cut_after_a_quote():
    text = 'Mr. Hall  left.\n"Why?" he said. St. John\nstayed.\n\nNo stop here\n\nEnd.'
    assert sentences_of(text) == [
        "Mr. Hall left.",
        '"Why?"',
        "he said.",
        "St. John stayed.",
        "No stop here",
        "End.",
    ]


def test_a_text_without_full_stops_is_cut_between_words():
    text = "word " * 1000
    assert " ".join(sentences_of(text)) == text.strip()
    assert max(map(len, sentences_of(text))) <= 400


def test_without_a_data_folder_the_filler_is_pythons_help_and_goes_round():
    filler = Filler(SampleNeeds(None, count_words), "books_eval")
    sentences = filler.sentences(30_000, first=3)
    assert filler.name == "python"
    assert len(sentences) == 30_000
    assert sentences[:100] in [sentences[start : start + 100] for start in range(1, 29_000)]


def test_a_data_folder_without_the_books_is_one_line(tmp_path: Path):
    with pytest.raises(SourceError, match=r"no \.txt or \.txt\.xz file in"):
        Filler(SampleNeeds(tmp_path, count_words), "books_eval")


def test_books_follow_one_another(tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.txt").write_text("A one. A two.")
    (folder / "b.txt").write_text("B one.")
    filler = Filler(SampleNeeds(tmp_path, count_words), "mine")
    assert filler.name == "mine"
    assert filler.sentences(5, first=1) == ["B one.", "A one.", "A two.", "B one.", "A one."]
