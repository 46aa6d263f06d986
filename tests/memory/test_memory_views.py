"""What a memory attends to, driven without a model: random queries, keys, values and logits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.driven_memory import (
    SCALING,
    attended,
    event_spans,
    geometry,
    memory_layers,
    random_tape,
    read,
    staged_plan,
    turned_at,
)
from tests.support.memory_cases import (
    HYBRID,
    NUM_TOKENS,
    SMALL,
    assert_close,
    assert_same_bits,
    chunkings,
    configs,
    full_attention,
    index_of,
    log_of,
    with_decoding,
)

from emllm.attention.eager import eager_part
from emllm.config import EVENT_KEYS, SCORERS, MemoryConfig
from emllm.memory import EpisodicMemory
from emllm.recall.event_keys import MAKERS, PaddedEvents
from emllm.recall.weights import attention_mass, mean_logit


@settings(max_examples=20)
@given(configs(recall_tokens="all"), st.one_of(chunkings, with_decoding))
def test_a_budget_that_covers_the_text_gives_full_attention(config, chunks):
    """The law of the whole package: in `ordered` positions the outputs are the stock model's."""
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    config = dataclasses.replace(config, positions="ordered")
    assert_close(read(EpisodicMemory(shape, config), tape, chunks), full_attention(shape, tape))


@settings(max_examples=20)
@given(configs(recall_tokens=NUM_TOKENS), st.one_of(chunkings, with_decoding))
def test_a_finite_budget_as_long_as_the_text_gives_full_attention(config, chunks):
    """The same with an index of events, which is made although all events fit."""
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    config = dataclasses.replace(config, positions="ordered")
    assert_close(read(EpisodicMemory(shape, config), tape, chunks), full_attention(shape, tape))


@settings(max_examples=20)
@given(configs(recall_tokens=NUM_TOKENS), chunkings, with_decoding)
def test_any_chunking_gives_the_same_events_event_keys_and_log(config, chunks, others):
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    config = dataclasses.replace(config, positions="ordered", index_precision="exact")
    one, other = EpisodicMemory(shape, config), EpisodicMemory(shape, config)
    read(one, tape, chunks)
    read(other, tape, others)
    assert event_spans(one) == event_spans(other)
    assert_same_bits(log_of(one, shape), log_of(other, shape))
    assert_close(index_of(one), index_of(other), atol=1e-4)


@settings(max_examples=20)
@given(configs(), chunkings, with_decoding)
def test_events_do_not_depend_on_the_chunking_when_little_is_recalled(config, chunks, others):
    """With the tape given, events are a function of the text alone."""
    shape = geometry()
    tape = random_tape(shape, NUM_TOKENS)
    one, other = EpisodicMemory(shape, config), EpisodicMemory(shape, config)
    read(one, tape, chunks)
    read(other, tape, others)
    assert event_spans(one) == event_spans(other)
    assert_same_bits(log_of(one, shape), log_of(other, shape))


def test_the_log_holds_what_was_read():
    shape = geometry(HYBRID, value_dim=6)
    tape = random_tape(shape, NUM_TOKENS)
    memory = EpisodicMemory(shape, MemoryConfig(**SMALL))
    read(memory, tape, [16] * 9 + [1] * 6)
    held = log_of(memory, shape)
    assert_same_bits(held[0:-2:2], [keys.transpose(0, 1) for keys in tape.keys])
    assert_same_bits(held[1:-2:2], [values.transpose(0, 1) for values in tape.values])
    assert torch.equal(held[-2], tape.token_ids)
    log_probs = tape.logits.double().log_softmax(-1)[:-1].gather(1, tape.token_ids[1:, None])[:, 0]
    torch.testing.assert_close(held[-1][1:].double(), -log_probs, atol=1e-5, rtol=0)
    assert np.isnan(memory.surprise()[0])


@pytest.mark.parametrize("event_key", EVENT_KEYS)
@pytest.mark.parametrize("chunks", [[16] * 9 + [6], [1] * NUM_TOKENS, [3, 100, 1, 46]])
def test_event_keys_are_made_of_their_own_tokens_and_of_the_queries_that_saw_them(event_key, chunks):
    """Against the makers and weights on the whole text: no chunk, sink or window is off by one."""
    shape = geometry(("full",))
    tape = random_tape(shape, NUM_TOKENS)
    config = MemoryConfig(
        **SMALL | {"recall_tokens": NUM_TOKENS}, event_key=event_key, index_precision="exact"
    )
    memory = EpisodicMemory(shape, config)
    read(memory, tape, chunks)
    (made,) = index_of(memory)
    spans = event_spans(memory)[: made.shape[1]]
    start, stop, local = spans[0][0], spans[-1][1], memory.config.local_tokens
    keys = tape.keys[0][:, start:stop]
    weights = None
    if event_key == "logit":
        sums = tape.queries[0].unflatten(0, (len(keys), -1)).sum(1)
        weights = mean_logit(keys, sums[:, start:], local_tokens=local)
    if event_key == "mass":
        query, key = (turned_at(x, range(NUM_TOKENS)).float() for x in (tape.queries[0], tape.keys[0]))
        _, lse = eager_part(query, key, key, scaling=SCALING, is_causal=True)
        mass = attention_mass(query, key, lse, scaling=SCALING, local_tokens=local)
        weights = mass[:, start:stop]
    sizes = torch.tensor([span[1] - span[0] for span in spans])
    expected = MAKERS[event_key](keys, PaddedEvents(sizes), weights, config.representatives)
    assert start == 4 and NUM_TOKENS - local - 8 < stop <= NUM_TOKENS - local
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


# A budget that does not.


@settings(max_examples=40)
@given(configs(), st.one_of(chunkings, with_decoding))
def test_no_token_is_attended_to_twice_and_the_budgets_are_kept(config, chunks):
    """For every chunk and layer the views are disjoint, ascending, before the chunk, and within bounds."""
    shape = geometry()
    tape = random_tape(shape, NUM_TOKENS)

    def look(start: int, stop: int, memory: EpisodicMemory) -> None:
        settled = memory.config
        for layer in memory_layers(memory):
            plan, seen = staged_plan(layer), attended(layer, start)
            assert (np.diff(seen) > 0).all() and (not len(seen) or seen[-1] == start - 1)
            bound = settled.sink_tokens + settled.local_tokens + settled.recall_tokens
            assert len(plan.token_idx) <= bound
            assert plan.num_chunk <= plan.max_chunk <= settled.recall_every_tokens + max(chunks)

    read(EpisodicMemory(shape, config), tape, chunks, look=look)


@settings(max_examples=40)
@given(configs(), st.one_of(chunkings, with_decoding))
def test_nothing_falls_between_the_views(config, chunks):
    """All sinks, whole events, and then every token from the last recallable event to the chunk.

    An overhang longer than the recall budget would have to be cut; with a budget of three events, as here,
    none is.
    """
    shape = geometry()
    tape = random_tape(shape, NUM_TOKENS)

    def look(start: int, stop: int, memory: EpisodicMemory) -> None:
        for layer in memory_layers(memory):
            plan = staged_plan(layer)
            if plan.num_chunk:  # laid out before; looked at then
                continue
            sinks = min(memory.config.sink_tokens, start)
            old = plan.token_idx[: len(plan.token_idx) - plan.num_local]
            local = plan.token_idx[len(old) :]
            assert old[:sinks].tolist() == list(range(sinks))
            closed = [span for span in event_spans(memory) if span[1] <= start - memory.config.local_tokens]
            last = max([stop for _, stop in closed], default=memory.config.sink_tokens)
            assert local.tolist() == list(range(min(last, start), start))
            recalled = set(old[sinks:].tolist())
            for first, stop_ in closed:
                assert len(recalled & set(range(first, stop_))) in (0, stop_ - first)

    read(EpisodicMemory(shape, config), tape, chunks, look=look)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("event_key", EVENT_KEYS)
def test_recall_finds_the_event_that_the_queries_look_for(scorer, event_key):
    """A planted event whose keys the present queries equal is recalled, and not all of the others."""
    shape = geometry(("bare",))
    tape = random_tape(shape, NUM_TOKENS)
    needle = range(44, 52)
    for token in needle:
        tape.keys[0][:, token] = 2.0 + 0.1 * tape.keys[0][:, token]
    tape.queries[0][:, 120:] = 2.0
    config = MemoryConfig(
        **SMALL | {"min_event_tokens": 4, "refine": "none", "segmenter": "fixed"},
        scorer=scorer,
        event_key=event_key,
    )
    memory = EpisodicMemory(shape, config)
    read(memory, tape, [20] * 6)
    found: list[set[int]] = []
    read(memory, tape, [30], look=lambda *args: found.append(set(attended(memory_layers(memory)[0], 120))))
    assert set(needle) <= found[0]
    assert not set(range(4, 44)) <= found[0]
