"""Segmenting one document with a model: pieces that are the text, events that partition it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emllm import Document, EpisodicLM, MemoryConfig
from emllm.analysis.segment import decoded_pieces, segment, shown_name, tokens_and_pieces
from emllm.reading import read_tokens

CONFIG = MemoryConfig(
    min_event_tokens=4, max_event_tokens=16, chunk_tokens=32, local_tokens=32, recall_tokens=64, gamma=0.5
)
TEXT = "The girl saw 日本 and a 👩‍🚀.\n\n\tThen  she left. " * 12


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every token is a byte, so that most characters have several."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = byte_tokenizer()
SLOW = SimpleNamespace(decode=TOKENIZER.decode)


@pytest.fixture(scope="module")
def lm():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
        )
    )
    with EpisodicLM(model, TOKENIZER, name="tiny") as lm:
        yield lm


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1))
def test_pieces_joined_are_the_text(text: str) -> None:
    token_ids, pieces = tokens_and_pieces(TOKENIZER, text)
    assert "".join(pieces) == text
    assert len(pieces) == len(token_ids)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1))
def test_decoded_pieces_joined_are_the_decoded_text(text: str) -> None:
    token_ids = TOKENIZER(text)["input_ids"]
    pieces = decoded_pieces(SLOW, token_ids)
    assert "".join(pieces) == TOKENIZER.decode(token_ids)
    assert len(pieces) == len(token_ids)


def test_characters_that_have_no_token_belong_to_one_all_the_same() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    text = "\n a   b c \n\n"
    _, pieces = tokens_and_pieces(PreTrainedTokenizerFast(tokenizer_object=words), text)
    assert len(pieces) == 3 and "".join(pieces) == text


def test_events_partition_the_whole_text_in_sizes_that_the_settings_allow(lm) -> None:
    segmented = segment(lm, Document("a", TEXT), CONFIG)
    assert "".join(event.text for event in segmented.events) == TEXT
    sizes = [event.num_tokens for event in segmented.events]
    assert max(sizes) <= 16 and min(sizes[:-1]) >= 4


def test_the_chunk_length_has_no_influence_on_the_last_boundaries(lm) -> None:
    fixed = dataclasses.replace(CONFIG, segmenter="fixed", refine="none", max_event_tokens=8)
    found = [
        segment(lm, Document("a", TEXT), dataclasses.replace(fixed, chunk_tokens=chunk)).boundaries
        for chunk in (7, 32)
    ]
    assert found[0] == found[1] == list(range(0, len(TOKENIZER(TEXT)["input_ids"]), 8))


def test_asking_for_the_closing_boundaries_changes_nothing(lm) -> None:
    token_ids = TOKENIZER(TEXT)["input_ids"]

    def stops(asks: bool) -> list[int]:
        memory = lm.memory(config=dataclasses.replace(CONFIG, sink_tokens=0))
        for start in range(0, len(token_ids), 50):
            read_tokens(lm.model, lm.cache(memory), token_ids[start : start + 50], chunk_tokens=50)
            if asks:
                assert memory.closing_boundaries() == memory.closing_boundaries()
        return [event.start for event in memory.events()]

    assert stops(asks=True) == stops(asks=False)


def test_boundaries_that_wait_for_more_tokens_are_settled_at_the_end(lm) -> None:
    waiting = 0
    for length in range(40, 200, 10):
        memory = lm.memory(config=dataclasses.replace(CONFIG, sink_tokens=0))
        read_tokens(lm.model, lm.cache(memory), TOKENIZER(TEXT)["input_ids"][:length], chunk_tokens=32)
        closing = memory.closing_boundaries()
        document = Document("a", TOKENIZER.decode(TOKENIZER(TEXT)["input_ids"][:length]).strip("\ufffd"))
        if closing and len(TOKENIZER(document.text)["input_ids"]) == length:
            waiting += 1
            assert list(segment(lm, document, CONFIG).boundaries[-len(closing) :]) == closing
    assert waiting


def test_a_boundary_by_surprise_lies_above_the_shown_threshold(lm) -> None:
    plain = dataclasses.replace(CONFIG, refine="none")
    segmented = segment(lm, Document("a", TEXT), plain)
    sizes = np.diff(segmented.boundaries)
    chosen = [b for b, size in zip(segmented.boundaries[1:], sizes, strict=True) if size < 16]
    assert chosen
    assert (segmented.surprise[chosen] > segmented.threshold[chosen]).all()


@pytest.mark.parametrize("segmenter", ["kl", "fixed", "random", "sentence"])
def test_there_is_no_threshold_where_surprise_does_not_decide(lm, segmenter: str) -> None:
    segmented = segment(lm, Document("a", TEXT), dataclasses.replace(CONFIG, segmenter=segmenter))
    assert np.isnan(segmented.threshold).all()


def test_one_token_is_one_event(lm) -> None:
    segmented = segment(lm, Document("a", "x"))
    assert list(segmented.boundaries) == [0] and np.isnan(segmented.surprise).all()


def test_progress_ends_at_the_last_token(lm) -> None:
    seen = []
    segment(lm, Document("a", TEXT), CONFIG, seen.append)
    assert seen[-1].num_read == seen[-1].num_total == len(TOKENIZER(TEXT)["input_ids"])


def test_a_model_is_shown_by_its_own_name_without_the_place_it_lies_in(tmp_path) -> None:
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    assert shown_name("default") == "SmolLM2-135M-Instruct"
    assert shown_name(str(folder)) == "tiny-model"
    assert shown_name("owner/model-of-a-hub") == "owner/model-of-a-hub"
