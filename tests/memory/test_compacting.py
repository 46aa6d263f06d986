"""Compacting: many small files become a few of the usual size, and nothing that they hold changes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.driven_memory import event_spans, geometry, random_tape, read
from tests.support.memory_cases import HYBRID, assert_same_bits, configs, index_of, log_of
from tests.support.torture import habits_of

from emllm.config import CODECS, MemoryConfig
from emllm.errors import StoreError
from emllm.memory import EpisodicMemory, forgetting
from emllm.memory.compacting import ELEMENTWISE, compact
from emllm.memory.stored import open_memory
from emllm.memory.truncating import truncate
from emllm.store import maintenance
from emllm.store.contents import DocumentRecord
from emllm.store.folder import MemoryFolder

SHAPE = geometry(HYBRID, dtype=torch.bfloat16)
TAPE = random_tape(SHAPE, 700)
SMALL = MemoryConfig(
    sink_tokens=4, local_tokens=24, recall_tokens=48, chunk_tokens=16, min_event_tokens=3,
    max_event_tokens=8, surprise_window_tokens=20,
)  # fmt: skip
folders = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
lengths = st.lists(st.sampled_from([1, 2, 5, 17, 64, 70]), min_size=2, max_size=9)


def opened(path: Path, config: MemoryConfig | None = None, **kwargs) -> EpisodicMemory:
    return open_memory(path, SHAPE, config, identity={"fingerprint": {}}, **kwargs)


def read_documents(path: Path, config: MemoryConfig, tokens: list[int]) -> None:
    """A document after the other, in chunks, and a few tokens after them."""
    with opened(path, config) as memory:
        for number, length in enumerate(tokens):
            start = memory.num_tokens
            record = DocumentRecord(f"the {number}th", start, start, length, "0" * 64, "text", 9, 0.0)
            memory.begin_document(record)
            read(memory, TAPE, [*[16] * (length // 16), *([length % 16] if length % 16 else [])])
        read(memory, TAPE, [1, 1, 9])


def assert_same(path: Path, other: Path) -> None:
    with opened(path, read_only=True) as one, opened(other, read_only=True) as two:
        assert_same_bits(log_of(one, SHAPE), log_of(two, SHAPE))
        assert_same_bits(index_of(one), index_of(two))
        assert_same_bits(habits_of(one), habits_of(two))
        assert event_spans(one) == event_spans(two)
        assert one.documents == two.documents
        fork, twin = one.fork(), two.fork()
        assert_same_bits(read(fork, TAPE, [5, 1, 20]), read(twin, TAPE, [5, 1, 20]))


def files_of(path: Path) -> list[str]:
    with MemoryFolder.open(path) as folder:
        return [record.name for record in folder.contents.files]


def pair(tmp_path: Path, config: MemoryConfig, tokens: list[int]) -> tuple[Path, Path]:
    """The same memory twice."""
    number = len(list(tmp_path.iterdir()))
    path, other = tmp_path / f"one-{number}", tmp_path / f"other-{number}"
    read_documents(path, config, tokens)
    maintenance.clone(path, other)
    return path, other


@folders
@given(configs(), st.sampled_from(CODECS), lengths)
def test_a_compacted_memory_is_the_same_to_the_last_bit_and_goes_on_so(tmp_path, config, codec, tokens):
    path, other = pair(tmp_path, dataclasses.replace(config, codec=codec), tokens)
    before = files_of(other)
    compact(path)
    assert maintenance.verify(path) == maintenance.verify(other) == []
    assert files_of(other) == before and maintenance.extras(path) == []
    assert_same(path, other)
    merged = files_of(path)
    compact(path)
    assert files_of(path) == merged


@pytest.mark.parametrize("codec", CODECS)
def test_small_files_become_files_of_a_chunk_or_a_page_where_the_codec_takes_tokens_one_by_one(
    tmp_path, codec
):
    path, _ = pair(tmp_path, dataclasses.replace(SMALL, codec=codec, chunk_tokens=128), [10] * 30)
    done = compact(path)
    assert done.files_before > 30
    if codec in ELEMENTWISE:
        assert done.files_after <= 10 and done.bytes_after < done.bytes_before // 2
    else:
        assert done.files_after == done.files_before


@folders
@given(st.sampled_from(CODECS), lengths, st.data())
def test_forgetting_in_a_compacted_memory_and_compacting_what_forgot_are_the_same(
    tmp_path, codec, tokens, data
):
    path, other = pair(tmp_path, dataclasses.replace(SMALL, codec=codec), tokens)
    gone = f"the {data.draw(st.integers(0, len(tokens) - 1))}th"
    compact(path)
    forgetting.forget(path, gone)
    forgetting.forget(other, gone)
    assert_same(path, other)
    assert gone.encode() not in b"".join(one.read_bytes() for one in path.rglob("*") if one.is_file())
    compact(other)
    assert_same(path, other)
    assert maintenance.verify(path) == []


@folders
@given(st.sampled_from(CODECS), lengths, st.data())
def test_a_merged_log_is_cut_where_a_document_begins_as_if_it_had_not_been_merged(
    tmp_path, codec, tokens, data
):
    path, other = pair(tmp_path, dataclasses.replace(SMALL, codec=codec), tokens)
    token = sum(tokens[: data.draw(st.integers(0, len(tokens) - 1))])
    compact(path)
    truncate(path, token)
    truncate(other, token)
    assert maintenance.verify(path) == []
    assert_same(path, other)
    compact(path)
    assert_same(path, other)


def test_a_merged_log_cannot_be_cut_inside_a_unit(tmp_path):
    path, _ = pair(tmp_path, SMALL, [10, 10, 10, 90])
    compact(path)
    whole = shutil.copytree(path, tmp_path / "whole")
    with pytest.raises(StoreError, match="no unit begins at token 15"):
        truncate(path, 15)
    assert_same(path, whole)
