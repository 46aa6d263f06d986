"""Answers from passages that are read again: what stands in the context, and what stays in the memory."""

from __future__ import annotations

import dataclasses

import pytest
from tests.support import stories
from tests.support.stories import SHORT, STORY

from emllm import MemoryConfig
from emllm.errors import ConfigError
from emllm.generation import generate_tokens
from emllm.models.sampling import make_chooser
from emllm.reading import read_tokens
from emllm.recollecting import recollects

SMALL = dataclasses.replace(stories.SMALL, recollect_tokens=80)
QUESTION = "Who was sad?"


def read(lm, **changed):
    memory = lm.memory(config=dataclasses.replace(SMALL, **changed))
    memory.read(STORY, name="story")
    return memory


def asked(lm, memory):
    """The context in which the first question is answered, and the head's and question's lengths."""
    fork = memory.fork()
    trace = fork.trace_recall()
    prompt = lm.chat_format.question(QUESTION, is_first=True)
    num_template = len(lm.chat_format.encode(lm.chat_format.before_answer))
    read_tokens(lm.model, lm.cache(fork), prompt[:-num_template], chunk_tokens=32)
    fork.end_trace()
    read_tokens(lm.model, lm.cache(fork), prompt[-num_template:], chunk_tokens=32)
    head, tail = memory.documents[0].start, memory.documents[-1].stop
    context = lm.asking.context(
        fork, trace, head_stop=head, tail_start=tail, question_start=memory.num_tokens
    )
    return context, head, prompt


def test_the_context_is_the_opening_then_passages_of_the_text_in_order_then_the_question(lm):
    memory = read(lm)
    context, head, prompt = asked(lm, memory)
    assert context[:head] == memory.token_ids(0, head).tolist()
    assert context[-len(prompt) :] == list(prompt)
    passages = context[head : -len(prompt)]
    assert 0 < len(passages) <= SMALL.recollect_tokens + 20 * len(lm.asking.between)
    between, log, at = list(lm.asking.between), memory.token_ids().tolist(), head
    piece: list[int] = []
    while passages:
        if passages[: len(between)] == between:
            passages = passages[len(between) :]
            at = next(i for i in range(at, len(log)) if log[i : i + len(piece)] == piece) + len(piece)
            piece = []
        else:
            piece.append(passages.pop(0))


def test_the_answer_is_what_stock_attention_says_in_that_context(lm):
    memory = read(lm)
    context, _, _ = asked(lm, memory)
    fresh = lm.memory(config=MemoryConfig.preset("full", chunk_tokens=32))
    choose = make_chooser(temperature=0.0, top_p=1.0, repetition_penalty=1.0, seed=None)
    ids = generate_tokens(
        lm.model,
        lm.cache(fresh),
        context,
        choose=choose,
        max_new_tokens=SHORT.max_new_tokens,
        stop_ids=lm.chat_format.stop_ids,
        chunk_tokens=32,
    )
    assert lm.ask(memory, QUESTION, sampling=SHORT).text == lm.chat_format.decode(list(ids)).strip()


def test_what_the_template_recalls_is_no_part_of_the_consensus(lm):
    memory = read(lm)
    prompt = lm.chat_format.question(QUESTION, is_first=True)
    totals = []
    for template in (range(len(prompt) - 4, len(prompt)), range(0)):
        fork = memory.fork()
        trace = fork.trace_recall()
        ids = lm.asking.answer(
            fork,
            prompt,
            choose=lambda logits, generated: 1,
            max_new_tokens=1,
            trace=trace,
            head_stop=1,
            tail_start=memory.num_tokens,
            template=template,
            keep=False,
        )
        list(ids)
        totals.append(trace.totals.copy())
    fork = memory.fork()
    alone = fork.trace_recall()
    read_tokens(lm.model, lm.cache(fork), prompt[:-4], chunk_tokens=32)
    assert (totals[0] == alone.totals).all() and (totals[0] != totals[1]).any()


def test_a_text_that_is_attended_to_whole_is_not_read_again(lm):
    memory = lm.memory(config=SMALL)
    memory.read(STORY[:200], name="story")
    assert not memory.is_selective and not recollects(memory)
    plain = lm.memory(config=dataclasses.replace(SMALL, recollect="never"))
    plain.read(STORY[:200], name="story")
    assert lm.ask(memory, QUESTION, sampling=SHORT).text == lm.ask(plain, QUESTION, sampling=SHORT).text


def test_never_is_never_and_always_is_always(lm):
    assert not recollects(read(lm, recollect="never"))
    assert recollects(read(lm)) and recollects(read(lm, recollect="always"))
    short = lm.memory(config=dataclasses.replace(SMALL, recollect="always"))
    short.read(STORY[:200], name="story")
    assert recollects(short)
    assert lm.ask(short, QUESTION, sampling=SHORT).text is not None


def test_question_and_answer_become_part_of_a_conversation_and_nothing_else_does(lm):
    memory = read(lm)
    before = memory.num_tokens
    prompt = lm.chat_format.question(QUESTION, is_first=True)
    answer = lm.answer(memory, QUESTION, sampling=SHORT)
    kept = memory.token_ids(before).tolist()
    assert kept[: len(prompt)] == list(prompt)
    assert lm.chat_format.decode(kept[len(prompt) :]).strip() == answer.text


def test_an_answer_that_is_broken_off_is_kept_as_far_as_it_was_heard(lm):
    memory = read(lm)
    before = memory.num_tokens
    prompt = lm.chat_format.question(QUESTION, is_first=True)
    heard: list[str] = []
    lm.answer(memory, QUESTION, sampling=SHORT, on_text=lambda piece: bool(heard.append(piece)))
    assert lm.chat_format.decode(memory.token_ids(before + len(prompt))) == "".join(heard)


def test_a_later_turn_is_answered_with_the_conversation_in_view(lm):
    memory = read(lm)
    lm.answer(memory, QUESTION, sampling=SHORT)
    documents_stop = memory.documents[-1].stop
    trace = memory.trace_recall()
    prompt = lm.chat_format.question("And who helped?", is_first=False)
    start = memory.num_tokens
    read_tokens(lm.model, lm.cache(memory), prompt, chunk_tokens=32)
    context = lm.asking.context(
        memory, trace, head_stop=memory.documents[0].start, tail_start=documents_stop, question_start=start
    )
    tail = memory.token_ids(max(documents_stop, memory.num_tokens - SMALL.local_tokens)).tolist()
    assert context[-len(tail) :] == tail and len(tail) > len(prompt)


def test_a_stored_memory_may_be_asked_in_another_way_than_it_was_made_for(lm, tmp_path):
    with lm.memory(tmp_path / "m", dataclasses.replace(SMALL, recollect="never")) as memory:
        memory.read(STORY, name="story")
    with lm.memory(tmp_path / "m") as memory:
        assert memory.config.recollect == "never"
    with lm.memory(tmp_path / "m", dataclasses.replace(SMALL, recollect="always")) as memory:
        assert memory.config.recollect == "always"


@pytest.mark.parametrize("preset", ["em-llm", "inf-llm", "streaming-llm", "full", "em-llm-llama-3"])
def test_the_papers_methods_answer_from_what_they_recall(preset):
    assert MemoryConfig.preset(preset).recollect == "never"


def test_a_way_to_recollect_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="recollect must be one of never, always, auto"):
        MemoryConfig(recollect="sometimes")
