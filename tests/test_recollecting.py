"""Answers from passages that are read again: what stands in the context, and what stays in the memory."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import stories
from tests.support.stories import SHORT, STORY
from transformers import AutoModelForCausalLM

from emllm import MemoryConfig, Sampling
from emllm.attention.rotary import RotaryTable
from emllm.errors import ConfigError
from emllm.framing import Frame
from emllm.generation import generate_tokens
from emllm.memory.compacting import compact
from emllm.models.sampling import make_chooser
from emllm.reading import read_tokens
from emllm.recall.trace import Usual
from emllm.recollecting import Asking, alike, is_surprising, recollects
from emllm.store.maintenance import copy

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
    trace.take_off(lm.asking.usual(memory))
    prompt = lm.chat_format.question(QUESTION, is_first=True)
    num_template = len(lm.chat_format.piece(lm.chat_format.before_answer))
    read_tokens(lm.model, lm.cache(fork), prompt[:-num_template], chunk_tokens=32)
    head, tail = memory.documents[0].start, memory.documents[-1].stop
    frame = Frame.of(fork, head_stop=head, tail_start=tail, question_start=memory.num_tokens)
    passages = lm.asking.passages(fork, trace, prompt[:-num_template], frame)
    return [*lm.asking.context(fork, passages, frame, prompt), *prompt], head, prompt


def traced(lm, memory, prompt, **options):
    """What was recalled for a prompt that a fork answers."""
    fork = memory.fork()
    trace = fork.trace_recall()
    answer = lm.asking.answer(
        fork,
        prompt,
        choose=lambda logits, generated: 1,
        max_new_tokens=1,
        trace=trace,
        head_stop=1,
        tail_start=memory.num_tokens,
        keep=False,
        **options,
    )
    list(answer)
    return trace


def pieces_of(context, log, between):
    """The spans of the log that follow one another in a context, parted by `between`."""
    spans, at = [], 0
    while at < len(context):
        first = spans[-1][1] if spans else 0
        longest = max((agreeing(context[at:], log[start:]), -start) for start in range(first, len(log)))
        spans.append((-longest[1], -longest[1] + longest[0]))
        at += longest[0]
        if at < len(context):
            assert context[at : at + len(between)] == between
            at += len(between)
    return spans


def parting(lm, following):
    """What stands between a passage and what follows it."""
    between = list(lm.asking.between)
    return [] if list(following[: len(between)]) == between else between


def agreeing(one, other):
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def chosen(trace):
    """What was chosen of a trace: events and spans."""
    return [one if isinstance(one, range) else one.event for one in trace.chosen]


def test_the_context_is_the_head_then_passages_of_the_text_in_order_then_the_tail(lm):
    voting = {
        "scorer": "votes",
        "event_key": "spread",
        "contiguity": 0.3,
    }  # of which this model agrees on more
    memory = read(lm, recollect_tokens=200, **voting, rerank_events=0)
    context, head, prompt = asked(lm, memory)
    log = memory.token_ids().tolist() + list(prompt)
    first, *passages, last = pieces_of(context, log, list(lm.asking.between))
    assert first[0] == 0 and first[1] >= max(head, SMALL.sink_tokens)
    assert last[1] == len(log) and last[0] <= memory.num_tokens
    assert passages and all(stop < start for (_, stop), (start, _) in pairwise([first, *passages, last]))


def test_a_passage_is_parted_from_the_question_once(lm):
    memory = read(lm)
    between = list(lm.asking.between)
    start = memory.num_tokens
    frame = Frame.of(memory, head_stop=1, tail_start=start, question_start=start)
    bare = lm.chat_format.encode("Who?")
    passages = [frame.num_events // 2]
    begun = lm.asking.context(memory, passages, frame, [*between, *bare])
    assert len(begun) > 1 and begun[-len(between) :] != between
    assert lm.asking.context(memory, passages, frame, bare) == [*begun, *between]


@pytest.mark.parametrize("head_tokens", [0, 3, 20, 60])
@pytest.mark.parametrize("budget", [1, 80, 200])
def test_what_no_recall_can_bring_back_stands_in_the_context(lm, head_tokens, budget):
    memory = read(lm, recollect_tokens=budget)
    fork = memory.fork()
    trace = fork.trace_recall()
    start = memory.num_tokens
    read_tokens(lm.model, lm.cache(fork), lm.chat_format.question(QUESTION, is_first=True), chunk_tokens=32)
    frame = Frame.of(fork, head_stop=head_tokens, tail_start=start, question_start=start)
    log = fork.token_ids().tolist()
    events = [one.event for one in trace.strongest(256)]
    ids = [*lm.asking.context(fork, [*events, *frame.unranked], frame, log[start:]), *log[start:]]
    unrecalled = int(fork.recallable_spans()[-1, 1])
    assert start - SMALL.local_tokens <= unrecalled < start  # some of the text is in the local window
    head_stop = max(head_tokens, SMALL.sink_tokens)
    assert ids[:head_stop] == log[:head_stop]
    assert ids[-(len(log) - unrecalled) :] == log[unrecalled:]
    num_unranked = sum(map(len, frame.unranked))
    most = max(budget - num_unranked, budget // 2)
    num_passages = len(ids) - head_tokens - num_unranked - (len(log) - start)
    assert num_passages <= most + (2 + most) * len(lm.asking.between)
    first_stop = int(fork.recallable_spans()[0, 1])
    assert frame.unranked == (
        *([range(head_tokens, first_stop)] if head_tokens < head_stop else []),
        range(unrecalled, start),
    )


@pytest.mark.parametrize("budget", [1, 80, 200])
def test_what_does_not_fit_the_question_is_left_out_wherever_it_stands(lm, budget):
    memory = read(lm, recollect_tokens=budget)
    fork = memory.fork()
    trace = fork.trace_recall()
    start = memory.num_tokens
    read_tokens(lm.model, lm.cache(fork), lm.chat_format.question(QUESTION, is_first=True), chunk_tokens=32)
    frame = Frame.of(fork, head_stop=3, tail_start=start, question_start=start)
    log = fork.token_ids().tolist()
    ids = lm.asking.context(fork, [one.event for one in trace.strongest(256)], frame, log[start:])
    assert ids[:3] == log[:3]
    assert len(ids) - 3 <= budget + (1 + budget) * len(lm.asking.between)
    recent = log[frame.unranked[-1].start : start]
    assert all(ids[i : i + len(recent)] != recent for i in range(len(ids)))


def test_an_event_that_begins_in_the_instructions_is_read_from_the_text_on(lm):
    memory = read(lm, recollect_tokens=4000)
    fork = memory.fork()
    trace = fork.trace_recall()
    start = memory.num_tokens
    read_tokens(lm.model, lm.cache(fork), lm.chat_format.question(QUESTION, is_first=True), chunk_tokens=32)
    first = fork.recallable_spans()[0]
    head = int(first[0]) + 1
    assert head < first[1]
    frame = Frame.of(fork, head_stop=head, tail_start=start, question_start=start)
    passages = [*(one.event for one in trace.strongest(256)), *frame.unranked]
    ids = lm.asking.context(fork, passages, frame, fork.token_ids(start).tolist())
    if 0 in [one.event for one in trace.strongest(256)]:
        assert ids[: first[1]] == fork.token_ids(0, int(first[1])).tolist()


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


@pytest.fixture(scope="module")
def stock(shared_data):
    return AutoModelForCausalLM.from_pretrained(
        shared_data / "models" / "stories260K", dtype=torch.float32
    ).eval()


def surprise_after(model, passage, question):
    """What the stock model's surprise at a question adds up to, in nats, after a passage."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*passage, *question]])).logits[0, :-1].double()
    nats = -logits.log_softmax(-1)[range(len(passage) - 1, len(logits)), list(question)]
    return float(nats.sum())


@pytest.mark.parametrize("unranked", [(), (range(1, 9),), (range(1, 9), range(300, 301))])
@pytest.mark.parametrize("nats", [0.0, 2.0, 1e9])
def test_passages_are_reranked_by_the_stock_models_surprise_at_the_question(
    lm, stock, monkeypatch, nats, unranked
):
    monkeypatch.setattr("emllm.recollecting.RERANK_NATS", nats)
    memory = lm.memory(config=dataclasses.replace(SMALL, rerank_events=5))
    once = STORY[: len(STORY) // 12]
    names = ("Lily", "Tom", "Sue", "Ann", "Ben", "Max", "Sam", "Mia", "Tim", "Joe", "Amy", "Bob")
    # Of two passages that are alike, rounding alone would decide.
    memory.read("".join(once.replace("Lily", name) for name in names), name="story")
    fork = memory.fork()
    trace = fork.trace_recall()
    question = lm.chat_format.question(QUESTION, is_first=True)
    lm.asking._ask(fork, question)
    before = [one.event for one in trace.strongest(256)]
    num_tokens = memory.num_tokens
    frame = Frame(len(fork.recallable_spans()), 1, num_tokens, unranked, range(num_tokens, num_tokens))
    passages = lm.asking.passages(fork, trace, question, frame)
    known, log = fork.recallable_spans(), fork.token_ids().tolist()
    spans = [
        *((known[max(one - 1, 0), 0], known[min(one + 1, len(known) - 1), 1]) for one in before[:5]),
        *((one.start, one.stop) for one in unranked),
    ]
    surprises = [
        surprise_after(stock, [*log[start:stop], *parting(lm, question)], question) for start, stop in spans
    ]
    most = min(surprises) + nats + 1e-4
    assert len(set(before[:5])) == 5
    order = [i for i in np.argsort(surprises) if surprises[i] <= most]
    assert passages == chosen(trace) == [[*before[:5], *unranked][i] for i in order]
    assert [one.event for one in trace.strongest(256)] == before
    assert fork.token_ids().tolist() == log


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_texts_of_like_length_are_read_together(lengths, most):
    groups = alike(lengths, most_tokens=most)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    ordered = [lengths[i] for group in groups for i in group]
    assert ordered == sorted(lengths)
    assert all(len(group) == 1 or len(group) * lengths[group[-1]] <= most for group in groups)


def test_a_long_question_is_no_passage_of_its_own_and_an_earlier_turn_not_the_measure(lm, monkeypatch):
    monkeypatch.setattr("emllm.recollecting.RERANK_NATS", 0.0)
    memory = read(lm, rerank_events=5)
    turn_start = memory.num_tokens
    read_tokens(
        lm.model, lm.cache(memory), lm.chat_format.question(STORY[:300], is_first=True), chunk_tokens=32
    )
    start = memory.num_tokens
    trace = memory.trace_recall()
    question = lm.chat_format.question(STORY[:300], is_first=False)
    read_tokens(lm.model, lm.cache(memory), question, chunk_tokens=32)
    frame = Frame.of(memory, head_stop=1, tail_start=turn_start, question_start=start)
    assert frame.text_stop == turn_start and frame.conversation.stop == start
    assert turn_start < frame.conversation.start  # some of the turn has left the local window
    known = memory.recallable_spans()
    assert known[-1, 0] >= start  # and some of the question too
    monkeypatch.setattr(
        lm.asking.__class__,
        "_surprises_after",
        lambda self, memory, spans, ids: np.array([-float(low) for low, _ in spans]),
    )
    passages = lm.asking.passages(memory, trace, question, frame)
    events = [one for one in passages if isinstance(one, int)]
    assert events and (known[events, 0] < frame.conversation.start).all()
    assert (known[events, 0] < turn_start).any() or len(events) < len(passages)


def test_where_nothing_is_reranked_the_consensus_is_read_again(lm):
    memory = read(lm, rerank_events=0)
    fork = memory.fork()
    trace = fork.trace_recall()
    question = lm.chat_format.question(QUESTION, is_first=True)
    read_tokens(lm.model, lm.cache(fork), question, chunk_tokens=32)
    before = trace.strongest(256)
    ends = (range(1, 4), range(memory.num_tokens - 9, memory.num_tokens))
    frame = Frame(
        len(fork.recallable_spans()), 1, memory.num_tokens, ends, range(memory.num_tokens, memory.num_tokens)
    )
    passages = lm.asking.passages(fork, trace, question, frame)
    assert passages == [*(one.event for one in before), *ends]
    assert trace.strongest(256) == before


@pytest.mark.parametrize("reranked", [0, 4])
def test_what_an_answer_asks_for_is_read_anew_where_it_surprises(lm, monkeypatch, reranked):
    memory = read(lm, recollect_every_tokens=3, rerank_events=reranked)
    sought, contexts = [], []
    find, put = Asking.passages, Asking.context

    def passages(self, memory, trace, query, frame):
        found = find(self, memory, trace, query, frame)
        sought.append((list(query), found))
        return found

    def context(self, memory, passages, frame, prompt_ids):
        contexts.append(put(self, memory, passages, frame, prompt_ids))
        return contexts[-1]

    monkeypatch.setattr(Asking, "passages", passages)
    monkeypatch.setattr(Asking, "context", context)
    monkeypatch.setattr("emllm.recollecting.is_surprising", lambda surprise, *, gamma: len(surprise) >= 4)
    prompt = list(lm.chat_format.question(QUESTION, is_first=True))
    trace = memory.trace_recall()
    before: list[list[int]] = []
    stream = lm.asking.answer(
        memory,
        prompt,
        choose=lambda logits, generated: before.append(list(generated)) or int(logits.argmax()),
        max_new_tokens=13,
        trace=trace,
        head_stop=memory.documents[0].start,
        tail_start=memory.num_tokens,
    )
    ids = list(stream)
    assert before == [ids[:i] for i in range(13)]
    assert len(ids) == 13 and memory.token_ids(memory.num_tokens - 13).tolist() == ids
    assert [query for query, _ in sought] == [prompt, prompt + ids[:5], prompt + ids[5:10]]
    for begun, seen in zip((0, 5, 10), contexts, strict=True):
        fresh = lm.memory(config=MemoryConfig.preset("full", chunk_tokens=32))
        again = generate_tokens(
            lm.model,
            lm.cache(fresh),
            [*seen, *prompt, *ids[:begun]],
            choose=lambda logits, generated: int(logits.argmax()),
            max_new_tokens=min(5, 13 - begun),
            stop_ids=frozenset(),
            chunk_tokens=32,
        )
        assert list(again) == ids[begun : begun + 5]
    assert len(chosen(trace)) == len(set(chosen(trace)))
    assert set(chosen(trace)) == {one for _, found in sought for one in found}
    assert chosen(trace)[: len(sought[-1][1])] == sought[-1][1]  # the latest first
    assert len(lm.evidence(memory, trace, 1000)) == len(trace.chosen)


def test_a_token_surprises_beyond_those_before_it():
    values = np.array([1.0, 3.0, 1.0, 3.0, 3.5], dtype=np.float32)
    assert is_surprising(values, gamma=1.0) and not is_surprising(values, gamma=2.0)
    assert not is_surprising(values[:1], gamma=0.0) and not is_surprising(values[:0], gamma=0.0)


def test_what_the_template_recalls_is_no_part_of_the_consensus(lm):
    memory = read(lm)
    prompt = lm.chat_format.question(QUESTION, is_first=True)
    totals = []
    for template in (range(len(prompt) - 4, len(prompt)), range(0)):
        totals.append(traced(lm, memory, prompt, template=template).totals.copy())
    fork = memory.fork()
    alone = fork.trace_recall()
    alone.take_off(lm.asking.usual(memory))
    read_tokens(lm.model, lm.cache(fork), prompt[:-4], chunk_tokens=32)
    assert (totals[0] == alone.totals).all() and (totals[0] != totals[1]).any()


@pytest.mark.parametrize("num_asked", [20, 256, 257, 300])
def test_a_question_of_any_length_is_compared_with_all_events_in_every_layer(lm, monkeypatch, num_asked):
    monkeypatch.setattr("emllm.recall.shortlist.EVENTS_PER_RECALL", 1)
    memory = read(lm, chunk_tokens=392, shortlist_events=4)
    read_tokens(lm.model, lm.cache(memory), memory.token_ids().tolist(), chunk_tokens=64)
    question = lm.chat_format.encode(STORY)[:num_asked]
    assert len(question) == num_asked
    assert len(traced(lm, memory, question).standing) == lm.geometry.num_layers


def test_a_text_is_never_taken_for_a_question_however_short_its_chunks(lm, monkeypatch):
    """Once there is a shortlist, a layer ranks nothing else between its turns."""
    monkeypatch.setattr("emllm.memory.ranking.is_ranking_of_all_due", lambda *args, **kwargs: False)
    memory = lm.memory(config=dataclasses.replace(SMALL, shortlist_events=4))
    ranked = []
    memory.observe_recall(lambda moment: ranked.append((moment.candidates is None, moment.is_asking)))
    read_tokens(lm.model, lm.cache(memory), lm.chat_format.encode(STORY), chunk_tokens=32)
    late = ranked[-3 * lm.geometry.num_layers : -lm.geometry.num_layers]
    assert late == [(False, False)] * len(late)
    read_tokens(lm.model, lm.cache(memory), lm.chat_format.encode(QUESTION), chunk_tokens=32)
    assert ranked[-1] == (True, True)


@pytest.mark.parametrize("recollect", ["auto", "always"])
def test_no_token_is_read_again_beyond_what_the_model_was_trained_on(lm, monkeypatch, recollect):
    """Neither a question nor an answer of any length."""
    farthest = 0

    def cos_sin(table, num_positions):
        nonlocal farthest
        farthest = max(farthest, num_positions)
        return of_table(table, num_positions)

    of_table = RotaryTable.cos_sin
    memory = read(lm, recollect=recollect)
    monkeypatch.setattr(RotaryTable, "cos_sin", cos_sin)
    trained = lm.geometry.trained_tokens
    for question, num_new in ((STORY, 4), (QUESTION, trained)):
        answer = lm.ask(memory, question, sampling=Sampling(max_new_tokens=num_new))
        assert answer.text and farthest <= trained
    assert len(lm.chat_format.encode(STORY)) > trained / 2


def test_what_was_forgotten_is_no_part_of_a_passage_that_is_shown(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(type(lm.chat_format), "decode", lambda self, ids: " ".join(map(str, list(ids))))
    with lm.memory(tmp_path / "mem", dataclasses.replace(SMALL, local_tokens=128)) as memory:
        for name, text in (("a", STORY), ("secret", "Tom had a red car. "), ("c", "Sam had a big cat.")):
            memory.read(text, name=name)
        memory.forget("secret")
        evidence = lm.ask(memory, "Who had a car?", sampling=SHORT, num_evidence=99).evidence
        ((start, stop),) = memory.holes.tolist()
        (end,) = (one for one in evidence if one.start < start and stop < one.stop)
        ids = [*memory.token_ids(end.start, start), *memory.token_ids(stop, end.stop)]
        assert end.text == lm.chat_format.decode(ids)


def test_a_memory_that_has_read_nothing_answers_from_the_question_alone(lm, monkeypatch):
    memory = lm.memory(config=dataclasses.replace(SMALL, recollect="always"))
    monkeypatch.setattr(lm, "_chat", dataclasses.replace(lm.chat_format, opening=(), opening_text=""))
    assert lm.ask(memory, QUESTION, sampling=SHORT).text


def test_what_a_neutral_question_recalls_is_taken_off_and_the_memory_is_as_before(lm):
    memory = read(lm)
    num_tokens = memory.num_tokens
    usual = lm.asking.usual(memory)
    fork = memory.fork()
    trace = fork.trace_recall()
    read_tokens(lm.model, lm.cache(fork), lm.asking.neutral, chunk_tokens=32)
    assert trace.totals.any()
    assert all((usual.standing[layer_idx] == one).all() for layer_idx, one in trace.standing.items())
    trace.take_off(usual)
    assert not trace.totals.any() and memory.num_tokens == num_tokens


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
    head = memory.documents[0].start
    frame = Frame.of(memory, head_stop=head, tail_start=documents_stop, question_start=start)
    passages = lm.asking.passages(memory, trace, prompt, frame)
    context = [*lm.asking.context(memory, passages, frame, prompt), *prompt]
    tail = memory.token_ids(max(documents_stop, memory.num_tokens - SMALL.local_tokens)).tolist()
    assert context[-len(tail) :] == tail and len(tail) > len(prompt)


def test_a_stored_memory_may_be_asked_in_another_way_than_it_was_made_for(lm, tmp_path):
    with lm.memory(tmp_path / "m", dataclasses.replace(SMALL, recollect="never")) as memory:
        memory.read(STORY, name="story")
    with lm.memory(tmp_path / "m") as memory:
        assert memory.config.recollect == "never"
    with lm.memory(tmp_path / "m", dataclasses.replace(SMALL, recollect="always")) as memory:
        assert memory.config.recollect == "always"


def test_an_answer_that_is_broken_off_is_kept_so_where_nothing_is_read_again_too(lm):
    memory = lm.memory(config=dataclasses.replace(SMALL, recollect="never"))
    memory.read(STORY, name="story")
    heard: list[str] = []
    lm.answer(
        memory, QUESTION, sampling=SHORT, on_text=lambda piece: bool(heard.append(piece)) or len(heard) < 3
    )
    assert len(heard) == 3
    assert lm.chat_format.decode(memory.token_ids().tolist()).endswith("".join(heard))


@pytest.mark.parametrize("preset", ["em-llm", "inf-llm", "streaming-llm", "full", "em-llm-llama-3"])
def test_the_papers_methods_answer_from_what_they_recall(preset):
    assert MemoryConfig.preset(preset).recollect == "never"


def test_a_way_to_recollect_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="recollect must be one of never, always, auto"):
        MemoryConfig(recollect="sometimes")


def test_the_neutral_question_is_asked_once_until_the_memory_reads_on(lm):
    memory = lm.memory(config=SMALL)
    memory.read(STORY, name="story")
    assert memory.moment.usual is None
    lm.ask(memory, "Who was sad?", sampling=SHORT)
    usual = memory.moment.usual
    assert usual is not None and usual is lm.asking.usual(memory.fork())
    lm.ask(memory, "Where did she play?", sampling=SHORT)
    assert memory.moment.usual is usual
    memory.read(STORY, name="again")
    assert memory.moment.usual is None
    lm.ask(memory, "Who was sad?", sampling=SHORT)
    assert memory.moment.usual is not usual


def test_what_another_neutral_question_recalled_is_not_believed(lm):
    memory = lm.memory(config=SMALL)
    memory.read(STORY, name="story")
    expected = lm.asking.usual(memory)
    memory.moment.usual = Usual((*expected.asked, 1), {})
    found = lm.asking.usual(memory)
    assert found.asked == expected.asked
    assert all((found.standing[i] == one).all() for i, one in expected.standing.items())


def neutral_questions(monkeypatch):
    """How often a neutral question is read from now on."""
    asked = []
    read = Asking._read

    def noted(self, memory, token_ids):
        asked.append(tuple(token_ids) == self.neutral)
        read(self, memory, token_ids)

    monkeypatch.setattr(Asking, "_read", noted)
    return lambda: sum(asked)


def test_a_memory_that_was_prepared_asks_no_neutral_question_when_it_is_opened(lm, tmp_path, monkeypatch):
    with lm.memory(tmp_path / "m", SMALL) as memory:
        memory.read(STORY, name="story")
        lm.prepare(memory)
        before = lm.ask(memory, "Who was sad?", sampling=SHORT)
    count = neutral_questions(monkeypatch)
    with lm.memory(tmp_path / "m", read_only=True) as memory:
        after = lm.ask(memory, "Who was sad?", sampling=SHORT)
        assert count() == 0
    assert (after.text, after.evidence) == (before.text, before.evidence)
    copy(tmp_path / "m", tmp_path / "copy")
    compact(tmp_path / "copy")
    with lm.memory(tmp_path / "copy", read_only=True) as memory:
        assert lm.ask(memory, "Who was sad?", sampling=SHORT).text == before.text
        assert count() == 0
    with lm.memory(tmp_path / "m") as memory:
        memory.read(STORY, name="again")
    with lm.memory(tmp_path / "m", read_only=True) as memory:
        lm.ask(memory, "Who was sad?", sampling=SHORT)
        assert count() == 1


def test_what_was_prepared_is_forgotten_with_a_document(lm, tmp_path):
    with lm.memory(tmp_path / "m", SMALL) as memory:
        memory.read(STORY, name="story")
        memory.read(STORY[::-1], name="other")
        lm.prepare(memory)
        memory.forget("story")
        assert memory.moment.usual is None
        assert lm.asking.usual(memory).standing


def test_a_text_that_can_be_attended_to_needs_no_preparation(lm):
    memory = lm.memory(config=SMALL)
    memory.read("Few words.", name="story")
    lm.prepare(memory)
    assert memory.moment.usual is None
