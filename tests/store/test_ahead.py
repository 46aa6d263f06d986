"""Files brought into the system's cache ahead of their use: nothing is said, nothing is waited for."""

from __future__ import annotations

import os

import pytest
import torch

from emllm.store.ahead import read_ahead
from emllm.store.files import write_tensors


@pytest.fixture
def records(tmp_path):
    (tmp_path / "index").mkdir()
    return [
        write_tensors(
            tmp_path,
            f"index/{start:012d}-{start + 9:012d}-abcdef.safetensors",
            {"token_ids": torch.zeros(600_000, dtype=torch.int32)},
            kind="index",
            start=start,
            stop=start + 9,
        )
        for start in (0, 9)
    ]


@pytest.fixture
def read_bytes(monkeypatch):
    counts = []
    readv = os.readv

    def counted(descriptor, buffers):
        counts.append(readv(descriptor, buffers))
        return counts[-1]

    monkeypatch.setattr(os, "readv", counted)
    return counts


def test_all_bytes_of_all_files_are_read(tmp_path, records, read_bytes):
    read_ahead(tmp_path, records, max_bytes=1 << 30).join()
    assert sum(read_bytes) == sum(one.num_bytes for one in records)


def test_no_more_is_read_than_may_be(tmp_path, records, read_bytes):
    read_ahead(tmp_path, records, max_bytes=1 << 20).join()
    assert sum(read_bytes) == 1 << 20


def test_what_cannot_be_read_is_left_to_who_needs_it(tmp_path, records, read_bytes):
    (tmp_path / records[0].name).unlink()
    (tmp_path / records[0].name).symlink_to(tmp_path / records[1].name)
    read_ahead(tmp_path, records, max_bytes=1 << 30).join()
    assert sum(read_bytes) == records[1].num_bytes
