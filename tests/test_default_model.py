"""The default model itself: exact where everything is in view, and of use where it is not."""

from __future__ import annotations

import lzma

import pytest
import torch
from tests.support.exactness import logits_in_chunks
from transformers import DynamicCache

from emllm import EpisodicLM, MemoryConfig
from emllm.errors import ModelError
from emllm.models.load import load_model
from emllm.reading import read_tokens

NUM_TOKENS = 3000


@pytest.fixture(scope="module")
def book(shared_data) -> str:
    path = shared_data / "books_eval" / "pg00120_treasure-island.txt.xz"
    return lzma.open(path, "rt", encoding="utf-8").read()[: NUM_TOKENS * 6]


@pytest.fixture(scope="module")
def default_model():
    try:
        return load_model("default", dtype="float32")
    except ModelError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_logits_equal_the_stock_models_on_3000_tokens_of_a_book(default_model, book):
    model, tokenizer = default_model
    ids = torch.tensor([tokenizer(book)["input_ids"][:NUM_TOKENS]])
    chunks = (512, 1, 300, 700, 512, 512, 463)
    assert sum(chunks) == NUM_TOKENS
    with torch.no_grad():
        stock = model(ids).logits[0]
    in_chunks = logits_in_chunks(model, ids, chunks, DynamicCache())
    with EpisodicLM(model, tokenizer) as lm:
        memory = lm.memory(config=MemoryConfig(recall_tokens="all"))
        worst = (logits_in_chunks(model, ids, chunks, lm.cache(memory)) - stock).abs().max()
    # Logits reach 40: where rounding alone moves the stock model by more, then no further than twice that.
    assert worst <= max(2e-4, 2 * float((in_chunks - stock).abs().max()))


@pytest.mark.slow
def test_greedy_text_equals_the_stock_models(default_model, book):
    model, tokenizer = default_model
    ids = torch.tensor([tokenizer(book)["input_ids"][:1000]])
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    stock = model.generate(ids, **options)
    with EpisodicLM(model, tokenizer) as lm:
        memory = lm.memory(config=MemoryConfig(recall_tokens="all"))
        read_tokens(model, lm.cache(memory), ids[0, :-1].tolist(), chunk_tokens=512)
        ours = model.generate(ids, past_key_values=lm.cache(memory), **options)
    assert torch.equal(ours, stock)
