"""A memory in a folder: what is reopened goes on exactly as what never left RAM."""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.driven_memory import (
    Tape,
    event_spans,
    geometry,
    memory_layers,
    random_tape,
    read,
    staged_plan,
)
from tests.support.memory_cases import (
    HYBRID,
    SMALL,
    assert_same_bits,
    configs,
    index_of,
    log_of,
    with_decoding,
)

from emllm.config import CODECS, MemoryConfig
from emllm.errors import StoreError
from emllm.memory import EpisodicMemory
from emllm.memory.stored import open_memory
from emllm.store import disk
from emllm.store.contents import DocumentRecord
from emllm.store.folder import MemoryFolder
from emllm.store.maintenance import extras, verify

NUM_TOKENS = 150
folders = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def few_events_are_many(monkeypatch):
    """Layers take turns in ranking all events from the fifth one on."""
    monkeypatch.setattr("emllm.recall.shortlist.EVENTS_PER_RECALL", 4)
    monkeypatch.setattr("emllm.memory.ranking.NEWER_EVENTS", 3)


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


def document(name: str, start: int, num_tokens: int) -> DocumentRecord:
    return DocumentRecord(name, start, start, num_tokens, name, "text", num_tokens, 0.0)


def read_documents(memory: EpisodicMemory, tape: Tape, lengths: Sequence[int]) -> None:
    for number, length in enumerate(lengths):
        memory.begin_document(document(f"the-{number}th-document", memory.num_tokens, length))
        read(memory, tape, [*[16] * (length // 16), *([length % 16] if length % 16 else [])])


@folders
@given(configs(), st.sampled_from(CODECS), st.sampled_from([0, 1, 2]), st.data())
def test_a_forgotten_document_is_gone_from_folder_events_and_views_and_the_rest_stays(
    tmp_path, config, codec, which, data
):
    shape = geometry(HYBRID)
    tape = random_tape(shape, 150)
    config = dataclasses.replace(config, codec=codec)
    lengths = [data.draw(st.integers(1, 45)) for _ in range(3)]
    path = fresh(tmp_path)
    memory = opened(path, shape, config)
    read_documents(memory, tape, lengths)
    before = log_of(memory, shape)
    gone = memory.documents[which]
    spans = event_spans(memory)
    forgotten = memory.forget(gone.name)
    assert forgotten.num_tokens == lengths[which]
    assert forgotten.later == [f"the-{number}th-document" for number in range(which + 1, 3)]
    assert [one.name for one in memory.documents] == [f"the-{i}th-document" for i in range(3) if i != which]
    assert event_spans(memory) == [one for one in spans if not gone.start <= one[0] < gone.stop]
    alive = torch.ones(sum(lengths), dtype=torch.bool)
    alive[gone.start : gone.stop] = False
    for ours, theirs in zip(log_of(memory, shape), before, strict=True):
        assert torch.equal(ours[alive], theirs[alive])
    assert (memory.token_ids(gone.start, gone.stop) == 0).all()
    stored = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
    assert gone.name.encode() not in stored
    for layer in range(2):
        raw = tape.keys[layer][:, gone.start : gone.stop].transpose(0, 1).contiguous()
        assert codec != "exact" or raw[0].numpy().tobytes() not in stored
    assert verify(path) == []
    num_tokens = memory.num_tokens

    def sees_no_forgotten(start, stop, now):
        for layer in memory_layers(now):
            seen = staged_plan(layer).token_idx
            assert not ((seen >= gone.start) & (seen < gone.stop)).any()

    assert num_tokens == sum(lengths)
    read(memory, tape, [16, 1, 1, 9, 16][: (150 - num_tokens) // 16], look=sees_no_forgotten)
    memory.close()
    assert verify(path) == []


def reopened(path: Path, shape) -> EpisodicMemory:
    """Once who wrote it is gone, which the collector may take a moment to see."""
    until = time.monotonic() + 10
    while True:
        gc.collect()
        try:
            return opened(path, shape)
        except StoreError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def test_a_memory_that_is_dropped_writes_what_was_committed_and_lets_go_of_its_folder(tmp_path):
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    memory = opened(tmp_path / "memory", shape, MemoryConfig(**SMALL))
    disk.hook = lambda *_: time.sleep(0.01)
    try:
        read(memory, tape, [16] * 3)
        before = log_of(memory, shape)
        del memory
        again = reopened(tmp_path / "memory", shape)
    finally:
        disk.hook = None
    assert_same_bits(log_of(again, shape), before)
    again.close()


def test_a_fork_of_a_memory_that_is_dropped_keeps_others_from_its_files(tmp_path):
    shape = geometry(HYBRID)
    tape = random_tape(shape, NUM_TOKENS)
    path = tmp_path / "memory"
    with opened(path, shape, MemoryConfig(**SMALL)) as memory:
        read(memory, tape, [16] * 8)
        before = log_of(memory, shape)
    memory = opened(path, shape, read_only=True)
    fork = memory.fork()
    del memory
    gc.collect()
    with MemoryFolder.open(path, writable=True) as folder:
        with pytest.raises(StoreError, match="is being read"), folder.exclusive():
            pass
        assert_same_bits(log_of(fork, shape), before)
        del fork
        gc.collect()
        with folder.exclusive():
            pass


def test_a_memory_that_cannot_be_read_anew_after_forgetting_lets_go_of_its_folder(tmp_path, monkeypatch):
    shape = geometry(HYBRID)
    memory = opened(tmp_path / "memory", shape, MemoryConfig(**SMALL))
    read_documents(memory, random_tape(shape, NUM_TOKENS), [32, 16])

    def broken(*_):
        raise StoreError("damaged")

    with monkeypatch.context() as patched:
        patched.setattr("emllm.memory.home.load", broken)
        with pytest.raises(StoreError, match="damaged"):
            memory.forget("the-0th-document")
    again = opened(tmp_path / "memory", shape)
    assert [one.name for one in again.documents] == ["the-1th-document"]
    again.close()


@pytest.mark.parametrize("at", ["write", "fsync", "rename", "commit"])
def test_commits_that_fail_on_a_full_disk_leave_no_files_however_often_they_are_tried(tmp_path, at):
    shape = geometry(HYBRID)
    path = tmp_path / "memory"
    memory = opened(path, shape, MemoryConfig(**SMALL))
    tape = random_tape(shape, NUM_TOKENS)
    read(memory, tape, [16] * 3)
    memory.flush()

    def full(what: str, where: Path) -> None:
        is_state = "recent" in where.parts and where.name.startswith("000000000064-000000000064")
        if what == at and (is_state or what == "commit"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.hook = full
    try:
        read(memory, tape, [16])
        for _ in range(3):
            with pytest.raises(StoreError, match="No space left"):
                memory.flush()
            assert extras(path) == []
    finally:
        disk.hook = None
    memory.close()
    assert verify(path) == [] and extras(path) == []
