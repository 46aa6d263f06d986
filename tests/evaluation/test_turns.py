"""Readers that take turns read what they would have read alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.support.families import tiny_model
from tests.support.memory_cases import assert_same_bits, index_of, log_of

from emllm.config import MemoryConfig
from emllm.evaluation.turns import MemoryReader, StockReader
from emllm.lm import EpisodicLM
from emllm.models.windowed import windowed_cache
from emllm.reading import read_tokens

CONFIG = MemoryConfig(
    sink_tokens=4, local_tokens=32, recall_tokens=32, chunk_tokens=16, min_event_tokens=4, max_event_tokens=16
)


@pytest.fixture()
def make_lm() -> Callable[[], EpisodicLM]:
    model = tiny_model("llama")
    return lambda: EpisodicLM(model)


@pytest.fixture()
def ids(generator: torch.Generator) -> list[int]:
    return torch.randint(3, 90, (160,), generator=generator).tolist()


def test_a_memory_that_is_read_by_turns_is_the_memory_of_one_reading(
    make_lm: Callable[[], EpisodicLM], ids: list[int]
) -> None:
    with make_lm() as lm:
        model, alone = lm.model, lm.memory(config=CONFIG)
        read_tokens(model, lm.cache(alone), ids, chunk_tokens=16)
    ours = MemoryReader(make_lm, ids, config=CONFIG, chunk_tokens=16)
    stock = StockReader(model, windowed_cache(3, 68), ids, chunk_tokens=16)
    for _ in range(5):
        assert ours.read(32) > 0 and stock.read(48) > 0
    assert ours.memory.num_tokens == alone.num_tokens == len(ids)
    assert_same_bits(log_of(ours.memory, lm.geometry), log_of(alone, lm.geometry))
    assert_same_bits(index_of(ours.memory), index_of(alone))


def test_the_stock_model_begins_again_where_its_text_ends(
    make_lm: Callable[[], EpisodicLM], ids: list[int]
) -> None:
    with make_lm() as lm:
        model = lm.model
    read: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: read.extend(given[0][0].tolist()))
    stock = StockReader(model, windowed_cache(3, 68), ids, chunk_tokens=16)
    stock.read(112)
    stock.read(112)
    assert read == [*ids, *ids[:64]]
