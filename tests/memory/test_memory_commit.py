"""What changes a memory and what does not: attending, abandoning, forking, errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.driven_memory import (
    Tape,
    attend,
    event_spans,
    geometry,
    memory_layers,
    random_tape,
    read,
)
from tests.support.memory_cases import (
    HYBRID,
    NUM_TOKENS,
    SMALL,
    assert_same_bits,
    configs,
    index_of,
    log_of,
    summing_to,
    with_decoding,
)

from emllm.attention.geometry import ModelGeometry
from emllm.config import MemoryConfig
from emllm.errors import InputError, ModelError
from emllm.memory import EpisodicMemory
from emllm.store.slabs import empty_rows
from emllm.store.tokens import _grown


def some_memory(config: MemoryConfig, chunks: Sequence[int]) -> tuple[ModelGeometry, Tape, EpisodicMemory]:
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    memory = EpisodicMemory(shape, config)
    read(memory, tape, chunks)
    return shape, tape, memory


read_so_far = st.sampled_from([[16] * 5, [16] * 4 + [1] * 3, [40, 1, 1, 1, 1, 1], [1], [3, 30, 2]])
lengths = st.sampled_from([1, 2, 16])


@settings(max_examples=20)
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
    rest = summing_to([1, 1, 7, 1, 1, 1, 1, 20], NUM_TOKENS - stop)
    assert_same_bits(read(memory, tape, rest), read(twin, tape, rest))
    assert_same_bits(index_of(memory), index_of(twin))


@settings(max_examples=20)
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
    rest = summing_to([1, 1, 7, 1, 1, 1, 1, 20], NUM_TOKENS - sum(so_far))
    assert_same_bits(read(memory, tape, rest), read(twin, tape, rest))
    assert_same_bits(log_of(memory, shape), log_of(twin, shape))
    assert_same_bits(index_of(memory), index_of(twin))
    assert event_spans(memory) == event_spans(twin)


@settings(max_examples=20)
@given(configs(), read_so_far, with_decoding)
def test_a_fork_that_is_thrown_away_leaves_its_parent_as_it_was(config, so_far, chunks):
    shape, tape, memory = some_memory(config, so_far)
    _, _, twin = some_memory(config, so_far)
    other = random_tape(shape, NUM_TOKENS, seed=1)
    rest = NUM_TOKENS - sum(so_far)
    child = memory.fork()
    read(child, other, summing_to(chunks, rest))
    grandchild = memory.fork().fork()
    read(grandchild, other, summing_to(chunks[::-1], rest))
    assert_same_bits(read(memory, tape, summing_to(chunks, rest)), read(twin, tape, summing_to(chunks, rest)))
    assert_same_bits(log_of(memory, shape), log_of(twin, shape))
    assert_same_bits(index_of(memory), index_of(twin))
    assert event_spans(memory) == event_spans(twin)


@settings(max_examples=25)
@given(configs(), with_decoding, st.integers(1, 40), with_decoding)
def test_a_fork_goes_on_as_its_parent_does_bit_for_bit(config, so_far, num_read, chunks):
    """Wherever the fork is made, in the middle of decoding too, and whoever goes on first."""
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    memory = EpisodicMemory(shape, config)
    read(memory, tape, so_far[:num_read])
    rest = summing_to(chunks, NUM_TOKENS - memory.num_tokens)
    child = memory.fork()
    early = [child.fork()] if num_read % 2 else []
    for other in early:
        read(other, random_tape(shape, NUM_TOKENS, seed=1), rest[: len(rest) // 2])
    if rest[0]:
        assert_same_bits(read(child, tape, rest), read(memory, tape, rest))
    assert_same_bits(log_of(child, shape), log_of(memory, shape))
    assert_same_bits(index_of(child), index_of(memory))
    assert event_spans(child) == event_spans(memory)


@pytest.mark.parametrize("lengths_of_child", [[1, 1, 5, 1, 16, 1, 1, 1, 20], [9, 1, 1, 1, 1, 1, 1, 1, 30]])
def test_a_fork_and_its_parent_may_take_turns(lengths_of_child):
    """Each goes on as it would have alone: nothing that they share is written to."""
    shape = geometry(HYBRID)
    tape, other = random_tape(shape, NUM_TOKENS), random_tape(shape, NUM_TOKENS, seed=1)
    config = MemoryConfig(**SMALL)
    memory, alone, child_alone = (EpisodicMemory(shape, config) for _ in range(3))
    for each in (memory, alone, child_alone):
        read(each, tape, [16] * 4)
    child = memory.fork()
    for length, of_child in zip(lengths_of_child[::-1], lengths_of_child, strict=True):
        assert_same_bits(read(child, other, [of_child]), read(child_alone, other, [of_child]))
        assert_same_bits(read(memory, tape, [length]), read(alone, tape, [length]))
        assert event_spans(memory) == event_spans(alone)
        assert event_spans(child) == event_spans(child_alone)
    for one, twin in ((memory, alone), (child, child_alone)):
        assert_same_bits(log_of(one, shape), log_of(twin, shape))
        assert_same_bits(index_of(one), index_of(twin))


def test_the_queue_of_neighbours_goes_with_a_fork():
    """What was near in time to what was similar stays recalled; here it decides what is attended to."""
    shape = geometry()
    tape = random_tape(shape, 400)
    config = MemoryConfig(**SMALL | {"recall_tokens": 64}, contiguity=0.7, refine="none")
    memory, forgetful = EpisodicMemory(shape, config), EpisodicMemory(shape, config)
    for each in (memory, forgetful):
        read(each, tape, [16] * 20)
    child = memory.fork()
    for layer in memory_layers(forgetful):
        assert layer.ranking.queue
        layer.ranking.queue = []
    outs = [read(each, tape, [16] * 5) for each in (memory, child, forgetful)]
    assert_same_bits(outs[0], outs[1])
    assert not all(torch.equal(one, other) for one, other in zip(outs[0], outs[2], strict=True))


# Errors.


def test_a_trace_of_what_is_recalled_changes_nothing_else():
    """Tracing ranks events even where all fit, and that must not be seen in what is attended to."""
    for recall_tokens in (24, NUM_TOKENS):
        config = MemoryConfig(**SMALL | {"recall_tokens": recall_tokens})
        _, tape, memory = some_memory(config, [16] * 5)
        _, _, twin = some_memory(config, [16] * 5)
        trace = memory.trace_recall()
        assert_same_bits(read(memory, tape, [16, 1, 1, 20]), read(twin, tape, [16, 1, 1, 20]))
        found = trace.strongest(3)
        assert 0 < len(found) <= 3 and all(event.event < memory.num_events for event in found)
        assert found[0].score >= found[-1].score and max(event.layers for event in found) == 3


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
    with pytest.raises((InputError, TypeError)):  # where shapes are checked, the signature refuses it first
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


@settings(max_examples=15)
@given(configs(), read_so_far, st.integers(0, 6))
def test_where_there_is_no_room_for_a_chunk_the_memory_stays_as_it_was(config, so_far, skipped):
    """An allocation fails, the caller makes room and goes on."""
    shape, tape, memory = some_memory(config, so_far)
    _, _, twin = some_memory(config, so_far)
    left = skipped

    def out_of_room(allocate: Callable[..., Any]) -> Callable[..., Any]:
        def allocated(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise torch.OutOfMemoryError("no room")
            return allocate(*args)

        return allocated

    rest = [20, 1, 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emllm.store.slabs.empty_rows", out_of_room(empty_rows))
        patch.setattr("emllm.store.tokens._grown", out_of_room(_grown))
        memory._log._tokens = memory._log._tokens.fork()  # without room for more
        patch.setattr(memory._log._slabs, "_largest_tokens", 8)
        try:
            read(memory, tape, rest[:1])
        except torch.OutOfMemoryError:
            assert memory.num_tokens == sum(so_far)
            read_again = rest
        else:
            read_again = rest[1:]
    read(memory, tape, read_again)
    read(twin, tape, rest)
    assert_same_bits(log_of(memory, shape), log_of(twin, shape))
    assert_same_bits(index_of(memory), index_of(twin))
    assert event_spans(memory) == event_spans(twin)


@pytest.mark.parametrize("step", ["index_events", "graph_of_span", "EventTable.close", "MemoryLayer.commit"])
def test_a_commit_that_fails_half_way_leaves_a_memory_that_refuses_to_go_on(step, monkeypatch):
    _, tape, memory = some_memory(MemoryConfig(**SMALL), [16] * 5)
    calls = 0

    def fails(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        raise torch.OutOfMemoryError("no room")

    fork = memory.fork()
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(f"emllm.memory.sequence.{step}", fails)
        read(memory, tape, [16] * 3)
    assert calls == 1
    for use in (memory.fork, lambda: read(memory, tape, [1]), memory.check_whole):
        with pytest.raises(InputError, match="is not whole; open it again"):
            use()
    read(fork, tape, [16] * 3)
    assert fork.num_tokens == 16 * 8
