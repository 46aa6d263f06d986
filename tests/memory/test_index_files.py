"""Index files: a memory with them is, bit for bit, the one without, and they are nothing that can be lost."""

from __future__ import annotations

import dataclasses
import random
import shutil
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.memory.test_stored_machine import StoredMemory
from tests.support import corruption, crashes
from tests.support.driven_memory import event_spans, geometry, memory_layers, random_tape, read
from tests.support.memory_cases import HYBRID, assert_same_bits, configs, index_of, log_of
from tests.support.torture import CODECS, Case, habits_of, random_case

from emllm.config import MemoryConfig
from emllm.errors import StoreError
from emllm.memory import EpisodicMemory, index_files, opening
from emllm.memory.compacting import compact
from emllm.memory.forgetting import forget
from emllm.memory.index_files import write_index
from emllm.memory.stored import open_memory
from emllm.recall.index import LatePart
from emllm.store import disk, maintenance
from emllm.store.contents import Change, DocumentRecord
from emllm.store.folder import MemoryFolder

NUM_TOKENS = 600
SHAPE = geometry(HYBRID)
CONFIG = MemoryConfig(
    local_tokens=24,
    recall_tokens=24,
    chunk_tokens=16,
    min_event_tokens=3,
    max_event_tokens=8,
    surprise_window_tokens=20,
)
TAPE = random_tape(SHAPE, NUM_TOKENS)
folders = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def few_tokens_are_many(monkeypatch):
    """An index file is written once there are 32 tokens to cover."""
    monkeypatch.setattr(index_files, "LEAST_TOKENS", 32)
    monkeypatch.setattr(index_files, "SEGMENTS_AT_ONCE", 3)
    yield
    disk.hook = None


def opened(path: Path, config: MemoryConfig | None = CONFIG, **kwargs) -> EpisodicMemory:
    return open_memory(path, SHAPE, config, identity={"fingerprint": {}}, **kwargs)


def grown(path: Path, *lengths: int, config: MemoryConfig = CONFIG) -> None:
    """Reads on by so many tokens, and closes, for each."""
    for length in lengths:
        with opened(path, config) as memory:
            read(memory, TAPE, [*[16] * (length // 16), *([length % 16] if length % 16 else [])])


def spans(path: Path) -> list[tuple[int, int]]:
    with MemoryFolder.open(path) as folder:
        return [(record.start, record.stop) for record in folder.contents.index]


def without_index(path: Path) -> None:
    """As it was before there were index files."""
    with MemoryFolder.open(path, writable=True) as folder:
        contents = folder.contents
        names = [record.name for record in contents.index]
        none = np.zeros((0, 2), dtype=np.int64)
        folder.commit(
            Change(contents.num_tokens, [], names, len(contents.events), none, None, contents.state)
        )


def assert_same_memory(one: EpisodicMemory, other: EpisodicMemory) -> None:
    assert one.num_tokens == other.num_tokens and event_spans(one) == event_spans(other)
    assert_same_bits(log_of(one, SHAPE), log_of(other, SHAPE))
    assert_same_bits(index_of(one), index_of(other))
    assert_same_bits(habits_of(one), habits_of(other))
    assert (one.token_ids() == other.token_ids()).all()
    assert np.array_equal(one.surprise(), other.surprise(), equal_nan=True)


@folders
@given(configs(), st.sampled_from(CODECS), st.lists(st.integers(1, 70), min_size=1, max_size=6))
def test_a_memory_with_index_files_goes_on_as_one_in_ram_does_to_the_last_bit(
    tmp_path, config, codec, lengths
):
    config = dataclasses.replace(config, codec=codec)
    path = tmp_path / f"memory-{len(list(tmp_path.iterdir()))}"
    in_ram = EpisodicMemory(SHAPE, config)
    for length in lengths:
        with opened(path, config) as stored:
            assert_same_memory(stored, in_ram)
            chunks = [*[16] * (length // 16), *[1] * (length % 16)]
            assert_same_bits(read(in_ram, TAPE, chunks), read(stored, TAPE, chunks))
    with opened(path, config, read_only=True) as stored:
        assert_same_memory(stored, in_ram)
    assert maintenance.verify(path) == [] and maintenance.extras(path) == []
    with MemoryFolder.open(path) as folder:
        segments = [one for one in folder.contents.files if one.kind == "segment"]
        covered = folder.contents.index[-1].stop if folder.contents.index else 0
        assert not segments or segments[-1].stop - covered < 32


def test_what_an_index_file_covers_is_read_from_it_and_keys_when_they_are_looked_at(tmp_path, monkeypatch):
    path = tmp_path / "memory"
    grown(path, 300)
    was_read = []
    monkeypatch.setattr(
        opening, "_read_ahead", lambda folder, records, inner=opening._read_ahead: (
            was_read.extend(records) or inner(folder, records)
        )
    )  # fmt: skip
    (start, stop) = spans(path)[0]
    assert start == 0
    with opened(path, read_only=True) as memory:
        assert was_read and all(record.start >= stop for record in was_read)
        for layer in memory_layers(memory):
            late = [one for one in layer.ranking.index._pieces() if isinstance(one, LatePart)]
            assert len(late) == 1 and late[0]._part is None
            assert len(layer.ranking.index.parts()) >= 1 and late[0]._part is not None


def test_index_files_grow_geometrically_and_are_few(tmp_path):
    path = tmp_path / "memory"
    grown(path, *[36] * 15)
    sizes = [stop - start for start, stop in spans(path)]
    assert sum(sizes) > 500 and len(sizes) <= 5
    assert all(size >= index_files.GROWTH * after for size, after in pairwise(sizes))


def test_a_flush_writes_one_only_when_as_much_is_new_as_is_covered(tmp_path):
    path = tmp_path / "memory"
    found = []
    with opened(path) as memory:
        for _ in range(20):
            read(memory, TAPE, [16])
            memory.flush()
            found.append(spans(path))
    covered = sorted({one[-1][1] for one in found if one})
    assert covered == [32, 64, 128, 256]


def test_a_memory_without_index_files_is_opened_and_has_them_when_it_is_closed(tmp_path):
    path = tmp_path / "memory"
    grown(path, 300)
    with opened(path, read_only=True) as memory:
        before = index_of(memory)
    without_index(path)
    assert spans(path) == []
    shutil.rmtree(path / "index")  # there was none
    with opened(path, read_only=True) as memory:
        assert_same_bits(index_of(memory), before)
    opened(path).close()
    assert spans(path)
    with opened(path, read_only=True) as memory:
        assert_same_bits(index_of(memory), before)


def test_copies_and_clones_have_the_same_index_files(tmp_path):
    path = tmp_path / "memory"
    grown(path, 200, 40)
    for transfer in (maintenance.copy, maintenance.clone):
        to = tmp_path / transfer.__name__
        transfer(path, to)
        assert spans(to) == spans(path) and maintenance.verify(to) == []
        with opened(to, read_only=True) as other, opened(path, read_only=True) as memory:
            assert_same_memory(other, memory)


def document(name: str, start: int, num_tokens: int) -> DocumentRecord:
    return DocumentRecord(name, start, start, num_tokens, name, "text", num_tokens, 0.0)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_forgotten_is_in_no_index_file_and_the_rest_is(tmp_path, which):
    path = tmp_path / "memory"
    with opened(path) as memory:
        for number in range(3):
            memory.begin_document(document(f"the-{number}th", memory.num_tokens, 80))
            read(memory, TAPE, [16] * 5)
    # Two event keys of the document, as the index file holds them side by side.
    with opened(path, read_only=True) as memory:
        gone = memory.documents[which]
        inside = [i for i, (start, stop) in enumerate(event_spans(memory)) if gone.start <= start < gone.stop]
        part = memory_layers(memory)[0].ranking.index.parts()[0]
        inside = [i for i in inside if i < part.num_events][1:3]
        keys = part.keys[0, 0, inside].numpy().tobytes() if len(inside) == 2 else None
    forget(path, gone.name)
    stored = b"".join(file.read_bytes() for file in (path / "index").iterdir())
    assert keys is None or keys not in stored
    assert maintenance.verify(path) == [] and maintenance.extras(path) == [] and spans(path)
    with opened(path, read_only=True) as memory:
        with_index = index_of(memory), habits_of(memory), event_spans(memory)
    without_index(path)
    with opened(path, read_only=True) as memory:
        assert_same_bits(index_of(memory), with_index[0])
        assert_same_bits(habits_of(memory), with_index[1])
        assert event_spans(memory) == with_index[2]


def damage(path: Path, kind: str) -> Path:
    with MemoryFolder.open(path) as folder:
        (name,) = [record.name for record in folder.contents.index]
    whole = (path / name).read_bytes()
    if kind == "missing":
        (path / name).unlink()
    else:
        changed = {"cut": whole[:-1], "flipped": whole[:-1] + bytes([whole[-1] ^ 1])}[kind]
        (path / name).write_bytes(changed)
    return path / name


@pytest.mark.parametrize("kind", ["missing", "cut", "flipped"])
def test_a_damaged_index_file_is_named_in_one_line_and_compacting_makes_it_anew(tmp_path, kind):
    path = tmp_path / "memory"
    grown(path, 200)
    with opened(path, read_only=True) as memory:
        before = index_of(memory)
    name = damage(path, kind)
    assert str(name) in maintenance.verify(path)[0]
    with pytest.raises(StoreError) as caught, opened(path, read_only=True) as memory:
        index_of(memory)
    assert str(name) in str(caught.value) and "\n" not in str(caught.value)
    compact(path)
    assert maintenance.verify(path) == [] and not name.exists() and spans(path)
    with opened(path, read_only=True) as memory:
        assert_same_bits(index_of(memory), before)


def test_a_damaged_index_file_is_never_merged_into_a_new_one(tmp_path, monkeypatch):
    path = tmp_path / "memory"
    grown(path, 64)
    before = spans(path)
    monkeypatch.setattr(index_files, "LEAST_TOKENS", 10_000)
    grown(path, 64)
    monkeypatch.setattr(index_files, "LEAST_TOKENS", 32)
    damage(path, "flipped")
    with (
        MemoryFolder.open(path, writable=True) as folder,
        pytest.raises(StoreError, match="the checksum differs"),
    ):
        write_index(folder)
    assert spans(path) == before and len(before) == 1


@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_every_damage_to_a_memory_with_index_files_is_found_and_never_answered_from(tmp_path, codec):
    for seed in count(CODECS.index(codec)):
        case, path = random_case(seed, codec=codec), tmp_path / f"memory{seed}"
        expected = corruption.intact(case, path)
        if spans(path):
            break
    draw = random.Random(codec)
    for _ in range(20):
        verdict = corruption.trial(case, path, expected, draw, scratch=tmp_path, has_index=True)
        assert not verdict.problems, f"{verdict.damage}: {verdict.problems}"


def crash_case() -> Case:
    case = random_case(2, num_tokens=90, codec="exact")
    return dataclasses.replace(case, config=dataclasses.replace(case.config, recall_tokens=24))


@pytest.mark.parametrize("fault", ["ENOSPC", "die"])
def test_a_disk_that_fails_while_index_files_are_written_costs_nothing(tmp_path, fault):
    case = crash_case()
    expected, _ = crashes.measure(case, tmp_path / "undisturbed")
    assert spans(tmp_path / "undisturbed")
    steps = crashes.disk_steps(case, tmp_path / "counted")
    for position in range(len(steps))[::3]:
        path = tmp_path / f"failing-{position}"
        trial = crashes.fail(case, path, expected, position=position, fault=fault)
        assert not trial.problems, f"{trial.what}: {trial.problems}"


class TestStoredMemoryWithIndexFiles(StoredMemory.TestCase):
    """The state machine of stored memories, in which every second closing or so writes an index file."""

    settings = settings(max_examples=8, stateful_step_count=20, deadline=None)
