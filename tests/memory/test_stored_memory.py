"""A memory in a folder: what is reopened goes on exactly as what never left RAM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.support.driven_memory import event_spans, geometry, random_tape, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.memory_cases import (
    HYBRID,
    assert_same_bits,
    configs,
    index_of,
    log_of,
    with_decoding,
)

from emllm.config import CODECS
from emllm.memory import EpisodicMemory
from emllm.memory.stored import open_memory

NUM_TOKENS = 150
folders = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def opened(path: Path, shape, config=None, **kwargs) -> EpisodicMemory:
    return open_memory(path, shape, config, identity={"fingerprint": {}}, **kwargs)


def fresh(tmp_path: Path) -> Path:
    return tmp_path / f"memory-{len(list(tmp_path.iterdir()))}"


def assert_same_memory(one: EpisodicMemory, other: EpisodicMemory, shape) -> None:
    assert one.num_tokens == other.num_tokens
    assert_same_bits(log_of(one, shape), log_of(other, shape))
    assert_same_bits(index_of(one), index_of(other))
    assert event_spans(one) == event_spans(other)
    assert one.config.codec == other.config.codec


@folders
@given(configs(), with_decoding, st.data())
def test_a_reopened_memory_goes_on_as_one_in_ram_does_to_the_last_bit(tmp_path, config, chunks, data):
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    config = dataclasses.replace(
        config,
        codec=data.draw(st.sampled_from(CODECS)),
        device_budget=data.draw(st.sampled_from([0, 1 << 20])),
    )
    in_ram = EpisodicMemory(shape, config)
    path = fresh(tmp_path)
    stored = opened(path, shape, config)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(chunks)), max_size=3)))
    done = 0
    for cut in [*cuts, len(chunks)]:
        assert_same_bits(read(in_ram, tape, chunks[done:cut]), read(stored, tape, chunks[done:cut]))
        done = cut
        stored.close()
        stored = opened(path, shape, config)
        assert_same_memory(stored, in_ram, shape)
    stored.close()
