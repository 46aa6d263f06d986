"""Tables seen where they lie: the bytes that were written, or an error that names them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emllm.errors import StoreError
from emllm.store import mapped
from emllm.store.files import TensorFile, write_tensors
from emllm.store.mapped import MappedFile

NAME = "index/0-9.safetensors"


@pytest.fixture(params=[1, 1 << 30], ids=["by threads", "by none"])
def file(tmp_path: Path, request, monkeypatch) -> TensorFile:
    monkeypatch.setattr(mapped, "_BYTES_FOR_THREADS", request.param)
    monkeypatch.setattr(mapped, "CHECKERS", 3)
    (tmp_path / "index").mkdir()
    record = write_tensors(tmp_path, NAME, tables(), kind="index", start=0, stop=9, num_events=50)
    return TensorFile(tmp_path, record)


def tables() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "index_keys.0": torch.randint(-127, 128, (6, 50, 3), dtype=torch.int8, generator=generator),
        "index_keys.1": torch.rand(2, 50, 7, generator=generator).bfloat16(),
        "index_scales.0": torch.rand(3, 50, generator=generator),
        "token_ids": torch.arange(9, dtype=torch.int32),
    }


def test_tables_are_what_was_written_and_other_tensors_are_none(file):
    found = MappedFile(file)
    assert sorted(found.names) == ["index_keys.0", "index_keys.1", "index_scales.0"]
    assert all(torch.equal(found.table(name), tables()[name]) for name in found.names)


def test_a_table_stays_when_its_file_is_closed_and_deleted(file, tmp_path):
    found = MappedFile(file)
    file.close()
    (tmp_path / NAME).unlink()
    assert torch.equal(found.table("index_keys.0"), tables()["index_keys.0"])


def test_a_damaged_table_is_refused_and_the_others_are_not(file, tmp_path):
    stored = file.tables()["index_keys.0"]
    with open(tmp_path / NAME, "r+b") as raw:
        raw.seek(stored.offset + 5 * stored.row_bytes + 7)
        raw.write(b"\x80")
    found = MappedFile(file)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"index_keys\.0 row 5 \(bytes \d+ to \d+\): the checksum"):
            found.table("index_keys.0")
    assert torch.equal(found.table("index_keys.1"), tables()["index_keys.1"])


def test_a_write_to_a_table_never_reaches_the_disk(file, tmp_path):
    before = (tmp_path / NAME).read_bytes()
    MappedFile(file).table("index_keys.0").zero_()
    assert (tmp_path / NAME).read_bytes() == before


def test_a_missing_file_is_found_when_it_is_mapped(file, tmp_path):
    (tmp_path / NAME).unlink()
    with pytest.raises(StoreError, match="is missing"):
        MappedFile(file)
