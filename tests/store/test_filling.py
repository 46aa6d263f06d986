"""Files that are filled piece by piece: the same as those written in one go, or not there at all."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from emllm.errors import StoreError
from emllm.store import disk
from emllm.store.files import TensorFile, write_tensors
from emllm.store.filling import write_filled

NAME = "index/0-9.safetensors"
RECORD = {"kind": "index", "start": 0, "stop": 9, "num_events": 5}


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def no_hook():
    yield
    disk.hook = None


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "index_keys.0": torch.randint(-127, 128, (6, 5, 3), dtype=torch.int8, generator=generator),
        "index_keys.2": torch.rand(2, 5, 7, generator=generator).bfloat16(),
        "index_scales.0": torch.rand(3, 5, generator=generator),
        "token_ids": torch.arange(9, dtype=torch.int32),
        "recall_rows": torch.arange(12).view(4, 3),
        "nothing": torch.zeros(0, dtype=torch.float32),
    }


def described(content):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in content.items()}


def in_pieces(content, cuts):
    """Tables grow along their second dimension, the others along their first, all in turns."""

    def fill(put) -> None:
        edges = [0, *sorted(cuts), 9]
        for low, high in pairwise(edges):
            for name, tensor in content.items():
                put(name, tensor[:, low:high] if name.startswith("index") else tensor[low:high])

    return fill


@given(st.lists(st.integers(0, 9), max_size=4))
def test_a_file_filled_in_pieces_is_the_one_that_is_written_in_one_go(tmp_path_factory, cuts):
    folder, other = tmp_path_factory.mktemp("filled"), tmp_path_factory.mktemp("whole")
    content = tensors()
    for path in (folder, other):
        (path / "index").mkdir()
    record = write_filled(folder, NAME, described(content), in_pieces(content, cuts), **RECORD)
    whole = write_tensors(other, NAME, content, **RECORD)
    found = load_file(folder / NAME)
    assert found.keys() == content.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in content.items())
    assert record.checksums[4:] == whole.checksums[4:]  # headers may be padded
    file = TensorFile(folder, record)
    assert file.verify() == []
    assert all(torch.equal(file.read(name), tensor) for name, tensor in content.items())


def test_every_byte_of_it_is_checked(folder):
    content = tensors()
    record = write_filled(folder, NAME, described(content), in_pieces(content, [2]), **RECORD)
    whole = (folder / NAME).read_bytes()
    for i in range(len(whole)):
        (folder / NAME).write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        assert TensorFile(folder, record).verify(), f"byte {i}"


def test_a_table_s_rows_are_named_when_they_are_damaged(folder):
    content = tensors()
    record = write_filled(folder, NAME, described(content), in_pieces(content, []), **RECORD)
    stored = TensorFile(folder, record).tables()["index_keys.0"]
    with open(folder / NAME, "r+b") as file:
        file.seek(stored.offset + 4 * stored.row_bytes)
        file.write(b"\x80")
    (problem,) = TensorFile(folder, record).verify()
    assert "index_keys.0 row 4 (bytes" in problem


def test_a_full_disk_while_it_is_filled_is_one_line_and_leaves_nothing(folder):
    def fill(put) -> None:
        put("token_ids", torch.arange(3, dtype=torch.int32))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreError, match=r"^cannot write .*No space left on device$"):
        write_filled(folder, NAME, described(tensors()), fill, **RECORD)
    assert os.listdir(folder / "index") == []


def test_it_is_written_once(folder):
    content = tensors()
    write_filled(folder, NAME, described(content), in_pieces(content, []), **RECORD)
    with pytest.raises(StoreError, match="exists"):
        write_filled(folder, NAME, described(content), in_pieces(content, []), **RECORD)
