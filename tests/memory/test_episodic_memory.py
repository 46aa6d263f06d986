"""Laws of EpisodicMemory, driven without a model: random queries, keys, values and logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.driven_memory import (
    SCALING,
    Tape,
    attend,
    attended,
    event_spans,
    geometry,
    memory_layers,
    random_tape,
    read,
    staged_plan,
)
from tests.support.reference_memory import ReferenceMemory
from torch import Tensor

from emllm.attention.geometry import ModelGeometry
from emllm.config import EVENT_KEYS, OBJECTIVES, PRESETS, SCORERS, SEGMENTERS, VARIANTS, MemoryConfig
from emllm.errors import InputError, ModelError
from emllm.memory import EpisodicMemory

SMALL = {
    "sink_tokens": 4,
    "local_tokens": 24,
    "recall_tokens": 24,
    "chunk_tokens": 16,
    "min_event_tokens": 3,
    "max_event_tokens": 8,
    "surprise_window_tokens": 20,
    "recall_every_tokens": 4,
}
NUM_TOKENS = 150
HYBRID = ("window", "full", "bare", "full")

chunkings = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(
    lambda lengths: _summing_to(lengths, NUM_TOKENS)
)
#: Reading in chunks and then, or in between, one token at a time.
with_decoding = st.lists(st.sampled_from([1, 1, 1, 2, 5, 16, 33]), min_size=20, max_size=60).map(
    lambda lengths: _summing_to(lengths, NUM_TOKENS)
)


def _summing_to(lengths: Sequence[int], total: int) -> list[int]:
    kept, left = [], total
    for length in lengths:
        kept.append(min(length, left))
        left -= kept[-1]
        if not left:
            return kept
    return [*kept, left]


@st.composite
def configs(draw: st.DrawFn, *, recall_tokens: int | str = 24) -> MemoryConfig:
    return MemoryConfig(
        segmenter=draw(st.sampled_from([name for name in SEGMENTERS if name != "sentence"])),
        refine=draw(st.sampled_from(OBJECTIVES)),
        refine_heads=draw(st.sampled_from(["all", "each"])),
        scorer=draw(st.sampled_from(SCORERS)),
        event_key=draw(st.sampled_from(EVENT_KEYS)),
        positions=draw(st.sampled_from(["ordered", "paper"])),
        contiguity=draw(st.sampled_from([0.0, 0.3, 0.7])),
        representatives=draw(st.integers(1, 5)),
        gamma=draw(st.sampled_from([0.2, 1.0])),
        sink_tokens=draw(st.sampled_from([0, 1, 4, 20])),
        local_tokens=draw(st.sampled_from([1, 9, 24])),
        recall_tokens=recall_tokens,
        chunk_tokens=16,
        min_event_tokens=3,
        max_event_tokens=8,
        surprise_window_tokens=20,
        recall_every_tokens=draw(st.sampled_from([1, 4, 7])),
    )


def full_attention(shape: ModelGeometry, tape: Tape) -> list[Tensor]:
    """What the stock model would compute: every token sees all before it, or its layer's window."""
    reference = ReferenceMemory(shape)
    reference.begin_chunk(tape.token_ids)
    return [
        reference.attend(idx, tape.queries[idx], tape.keys[idx], tape.values[idx], scaling=SCALING)
        for idx in range(shape.num_layers)
    ]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], atol: float = 2e-5) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


def assert_same_bits(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def index_of(memory: EpisodicMemory) -> list[Tensor]:
    """Every layer's event keys, ``[K, N, R, D]``."""
    return [torch.cat(layer.index.parts(), 1) for layer in memory_layers(memory) if len(layer.index)]


def log_of(memory: EpisodicMemory, shape: ModelGeometry) -> list[Tensor]:
    """Every layer's keys and values, ids and surprise."""
    everything: list[Tensor] = []
    num = memory.num_tokens
    for idx, layer in enumerate(shape.layers):
        keys = torch.empty(num, layer.num_kv_heads, layer.head_dim, dtype=shape.dtype)
        values = torch.empty(num, layer.num_kv_heads, layer.value_dim, dtype=shape.dtype)
        memory._log.gather(idx, np.arange(num), keys=keys, values=values)
        everything += [keys, values]
    surprise = torch.from_numpy(memory.surprise()).nan_to_num(nan=-1.0)
    return [*everything, torch.from_numpy(memory.token_ids()), surprise]


# A budget that covers the text.


@settings(max_examples=25)
@given(configs(recall_tokens="all"), st.one_of(chunkings, with_decoding))
def test_a_budget_that_covers_the_text_gives_full_attention(config, chunks):
    """The law of the whole package: in `ordered` positions the outputs are the stock model's."""
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    config = dataclasses.replace(config, positions="ordered")
    assert_close(read(EpisodicMemory(shape, config), tape, chunks), full_attention(shape, tape))


@settings(max_examples=25)
@given(configs(recall_tokens=NUM_TOKENS), st.one_of(chunkings, with_decoding))
def test_a_finite_budget_as_long_as_the_text_gives_full_attention(config, chunks):
    """The same with an index of events, which is made although all events fit."""
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    config = dataclasses.replace(config, positions="ordered")
    assert_close(read(EpisodicMemory(shape, config), tape, chunks), full_attention(shape, tape))


@settings(max_examples=30)
@given(configs(recall_tokens=NUM_TOKENS), chunkings, with_decoding)
def test_any_chunking_gives_the_same_events_event_keys_and_log(config, chunks, others):
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    config = dataclasses.replace(config, positions="ordered")
    one, other = EpisodicMemory(shape, config), EpisodicMemory(shape, config)
    read(one, tape, chunks)
    read(other, tape, others)
    assert event_spans(one) == event_spans(other)
    assert_same_bits(log_of(one, shape), log_of(other, shape))
    assert_close(index_of(one), index_of(other), atol=1e-4)


@settings(max_examples=30)
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


# A budget that does not.


@settings(max_examples=60)
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


@settings(max_examples=60)
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


# Reading, staging and writing.


def some_memory(config: MemoryConfig, chunks: Sequence[int]) -> tuple[ModelGeometry, Tape, EpisodicMemory]:
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    memory = EpisodicMemory(shape, config)
    read(memory, tape, chunks)
    return shape, tape, memory


read_so_far = st.sampled_from([[16] * 5, [16] * 4 + [1] * 3, [40, 1, 1, 1, 1, 1], [1], [3, 30, 2]])
lengths = st.sampled_from([1, 2, 16])


@settings(max_examples=30)
@given(configs(), read_so_far, lengths)
def test_attending_twice_is_attending_once(config, so_far, length):
    _, tape, memory = some_memory(config, so_far)
    _, _, twin = some_memory(config, so_far)
    start, stop = sum(so_far), sum(so_far) + length
    for each in (memory, twin):
        each.begin_chunk(tape.token_ids[start:stop])
    first = [out.clone() for out in attend(memory, tape, start, stop)]
    assert_same_bits(first, attend(memory, tape, start, stop))
    assert_same_bits(first, attend(twin, tape, start, stop))
    for each in (memory, twin):
        each.commit(tape.token_ids[start:stop], tape.logits[start:stop])
    rest = _summing_to([1, 1, 7, 1, 1, 1, 1, 20], NUM_TOKENS - stop)
    assert_same_bits(read(memory, tape, rest), read(twin, tape, rest))
    assert_same_bits(index_of(memory), index_of(twin))


@settings(max_examples=30)
@given(configs(), read_so_far, lengths, st.booleans())
def test_a_chunk_that_is_not_committed_leaves_no_trace(config, so_far, length, abandoned):
    shape, tape, memory = some_memory(config, so_far)
    _, _, twin = some_memory(config, so_far)
    other = random_tape(shape, length, seed=1)
    for count in (length, 1):
        memory.begin_chunk(other.token_ids[:count])
        attend(memory, other, 0, count)
    if abandoned:
        memory.abandon()
    rest = _summing_to([1, 1, 7, 1, 1, 1, 1, 20], NUM_TOKENS - sum(so_far))
    assert_same_bits(read(memory, tape, rest), read(twin, tape, rest))
    assert_same_bits(log_of(memory, shape), log_of(twin, shape))
    assert_same_bits(index_of(memory), index_of(twin))
    assert event_spans(memory) == event_spans(twin)


@settings(max_examples=30)
@given(configs(), read_so_far, with_decoding)
def test_a_fork_that_is_thrown_away_leaves_its_parent_as_it_was(config, so_far, chunks):
    shape, tape, memory = some_memory(config, so_far)
    _, _, twin = some_memory(config, so_far)
    other = random_tape(shape, NUM_TOKENS, seed=1)
    rest = NUM_TOKENS - sum(so_far)
    child = memory.fork()
    read(child, other, _summing_to(chunks, rest))
    grandchild = memory.fork().fork()
    read(grandchild, other, _summing_to(chunks[::-1], rest))
    assert_same_bits(
        read(memory, tape, _summing_to(chunks, rest)), read(twin, tape, _summing_to(chunks, rest))
    )
    assert_same_bits(log_of(memory, shape), log_of(twin, shape))
    assert_same_bits(index_of(memory), index_of(twin))
    assert event_spans(memory) == event_spans(twin)


@settings(max_examples=40)
@given(configs(), with_decoding, st.integers(1, 40), with_decoding)
def test_a_fork_goes_on_as_its_parent_does_bit_for_bit(config, so_far, num_read, chunks):
    """Wherever the fork is made, in the middle of decoding too, and whoever goes on first."""
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    memory = EpisodicMemory(shape, config)
    read(memory, tape, so_far[:num_read])
    rest = _summing_to(chunks, NUM_TOKENS - memory.num_tokens)
    child = memory.fork()
    early = [child.fork()] if num_read % 2 else []
    for other in early:
        read(other, random_tape(shape, NUM_TOKENS, seed=1), rest[: len(rest) // 2])
    if rest[0]:
        assert_same_bits(read(child, tape, rest), read(memory, tape, rest))
    assert_same_bits(log_of(child, shape), log_of(memory, shape))
    assert_same_bits(index_of(child), index_of(memory))
    assert event_spans(child) == event_spans(memory)


def test_a_fork_and_its_parent_may_take_turns():
    shape = geometry(HYBRID)
    tape, other = random_tape(shape, NUM_TOKENS), random_tape(shape, NUM_TOKENS, seed=1)
    config = MemoryConfig(**SMALL)
    memory, alone = EpisodicMemory(shape, config), EpisodicMemory(shape, config)
    read(memory, tape, [16] * 4)
    read(alone, tape, [16] * 4)
    child = memory.fork()
    for length in [1, 1, 5, 1, 16, 1, 1, 1, 1, 1, 20]:
        read(child, other, [length])
        assert_same_bits(read(memory, tape, [length]), read(alone, tape, [length]))
    assert_same_bits(log_of(memory, shape), log_of(alone, shape))


# Errors.


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 3, 6])
def test_logits_that_are_not_numbers_are_refused_and_nothing_is_written(bad, row):
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    memory, twin = EpisodicMemory(shape, MemoryConfig(**SMALL)), EpisodicMemory(shape, MemoryConfig(**SMALL))
    read(memory, tape, [30, 30])
    read(twin, tape, [30, 30])
    spoilt = tape.logits[60:67].clone()
    spoilt[row, 2] = bad
    memory.begin_chunk(tape.token_ids[60:67])
    attend(memory, tape, 60, 67)
    with pytest.raises(ModelError, match=r"NaN|inf"):
        memory.commit(tape.token_ids[60:67], spoilt)
    assert memory.num_tokens == 60
    assert_same_bits(read(memory, tape, [7, 1, 40]), read(twin, tape, [7, 1, 40]))
    assert_same_bits(log_of(memory, shape), log_of(twin, shape))
    assert event_spans(memory) == event_spans(twin)


def test_lengths_that_do_not_fit_are_refused():
    shape = geometry()
    tape = random_tape(shape, 20)
    memory = EpisodicMemory(shape, MemoryConfig(**SMALL))
    with pytest.raises(InputError, match="at least one token, got 0"):
        memory.begin_chunk(tape.token_ids[:0])
    with pytest.raises(InputError, match="has 0"):
        attend(memory, tape, 0, 4)
    memory.begin_chunk(tape.token_ids[:5])
    with pytest.raises(InputError, match=r"got 4 tokens.*has 5"):
        attend(memory, tape, 0, 4)
    with pytest.raises(InputError, match="all 2 layers to have attended, got 0"):
        memory.commit(tape.token_ids[:5], tape.logits[:5])
    attend(memory, tape, 0, 5)
    with pytest.raises(InputError):
        memory.commit(tape.token_ids[:4], tape.logits[:4])
    with pytest.raises(InputError):
        memory.commit(tape.token_ids[:5], tape.logits[:4])
    assert memory.num_tokens == 0 and len(memory.events()) == 0
    memory.commit(tape.token_ids[:5], tape.logits[:5])
    assert memory.num_tokens == 5


def test_a_chunk_cannot_be_committed_twice():
    shape = geometry()
    tape = random_tape(shape, 20)
    memory = EpisodicMemory(shape, MemoryConfig(**SMALL))
    read(memory, tape, [10])
    with pytest.raises(InputError):
        memory.commit(tape.token_ids[:10], tape.logits[:10])
    with pytest.raises(InputError):
        attend(memory, tape, 0, 10)
    assert memory.num_tokens == 10


def test_the_sentence_segmenter_needs_the_text_of_tokens():
    with pytest.raises(InputError, match="sentence"):
        EpisodicMemory(geometry(), MemoryConfig(**SMALL, segmenter="sentence"))


# All configurations.


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_every_preset_and_variant_reads_and_decodes(preset, variant):
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    given_ = dict(SMALL)
    if preset in ("streaming-llm", "full"):
        del given_["recall_tokens"]
    memory = EpisodicMemory(shape, MemoryConfig.preset(preset, variant=variant, **given_))
    outs = read(memory, tape, [16] * 8 + [1] * 22)
    assert all(torch.isfinite(out).all() for out in outs)
    assert memory.num_tokens == NUM_TOKENS and memory.num_events > 8
    if preset == "full":
        assert_close(outs, full_attention(shape, tape))


def test_sentences_are_events():
    pieces = [" Cat"] * 5 + [". "] + [" The"] * 6 + ["! "]
    shape = geometry(vocab_size=len(pieces))
    tape = random_tape(shape, 130)
    tape = dataclasses.replace(tape, token_ids=torch.arange(130) % 13)
    config = MemoryConfig(**SMALL | {"max_event_tokens": 16}, segmenter="sentence", refine="none")
    memory = EpisodicMemory(shape, config, piece_of=pieces.__getitem__)
    read(memory, tape, [16] * 8)
    assert {start % 13 for start, _ in event_spans(memory)[1:]} == {0, 6}


def test_streaming_recalls_nothing_and_sees_sinks_and_the_window():
    shape = geometry()
    tape = random_tape(shape, NUM_TOKENS)
    config = MemoryConfig.preset("streaming-llm", **{k: SMALL[k] for k in SMALL if k != "recall_tokens"})

    def look(start: int, stop: int, memory: EpisodicMemory) -> None:
        expected = [*range(min(4, start)), *range(max(4, start - 24), start)]
        assert all(
            staged_plan(layer).token_idx.tolist() == expected or staged_plan(layer).num_chunk
            for layer in memory_layers(memory)
        )

    read(EpisodicMemory(shape, config), tape, [16] * 8 + [1] * 22, look=look)


def test_half_precision_memories_read_like_full_ones():
    """bfloat16 keys and values: same events from the same logits, outputs within rounding."""
    exact, rounded = geometry(HYBRID), geometry(HYBRID, dtype=torch.bfloat16)
    tape = random_tape(exact, NUM_TOKENS)
    half = Tape(
        tape.token_ids,
        *([[x.bfloat16() for x in xs] for xs in (tape.queries, tape.keys, tape.values)]),
        tape.logits,
    )
    config = MemoryConfig(**SMALL | {"recall_tokens": "all", "refine": "none"})
    outs = read(EpisodicMemory(rounded, config), half, [16] * 8 + [1] * 22)
    assert_close([out.float() for out in outs], full_attention(exact, tape), atol=6e-2)
