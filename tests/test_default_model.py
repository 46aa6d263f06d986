"""The default model itself: exact where everything is in view, and fed what its chat template writes."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.support.chat_templates import CHAT_TEMPLATES, template_ids
from tests.support.exactness import logits_in_chunks
from transformers import DynamicCache

from emllm import EpisodicLM, MemoryConfig, Sampling
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


@pytest.mark.slow
def test_documents_questions_and_answers_are_fed_as_the_chat_template_writes_them(default_model):
    model, tokenizer = default_model
    assert tokenizer.chat_template == CHAT_TEMPLATES["SmolLM2"]
    document = "Lily had a red ball and a big dog called Max.\n\nTom had a small cat."
    asked = ("Who is Max?", "And what did Tom have?")
    about = [f"{document}\n\n{question}" for question in asked]
    sampling = Sampling(max_new_tokens=8)
    with EpisodicLM(model, tokenizer) as lm, fed_to(model) as fed:
        memory = lm.memory(config=MemoryConfig(recall_tokens="all"))
        memory.read(document, name="text")
        read = list(fed)
        for number, question in enumerate(asked):
            fed.clear()
            answer = lm.ask(memory, question, sampling=sampling)
            assert [*read, *fed[: len(fed) - answer.stats.answer_tokens]] == template_ids(
                tokenizer, about[number]
            )
        for conversation, first in ((memory, about[0]), (lm.memory(config=memory.config), asked[0])):
            answered = []
            for question in asked:
                answer = lm.answer(conversation, question, sampling=sampling)
                whole = conversation.token_ids().tolist()
                answered.append(whole[len(whole) - answer.stats.answer_tokens :])
            turns = (first, tokenizer.decode(answered[0]), asked[1])
            assert whole == [*template_ids(tokenizer, *turns), *answered[1]]


@contextmanager
def fed_to(model) -> Iterator[list[int]]:
    """All ids that a model is given from now on."""
    ids: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: ids.extend(kwargs["input_ids"].flatten().tolist()), with_kwargs=True
    )
    try:
        yield ids
    finally:
        hook.remove()
