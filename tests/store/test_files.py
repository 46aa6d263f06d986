"""Files of tensors: what is written comes back bit for bit, and nothing changed passes unnoticed."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save

from emllm.errors import StoreError
from emllm.store import disk
from emllm.store.files import FileRecord, TensorFile, write_tensors
from emllm.store.layout import DTYPES, parse_header
from emllm.store.place import leftovers

NAME = "segments/0-1.safetensors"


class Killed(BaseException):
    """Stands for the end of the process."""


def tensors(seed: int = 0, num_pages: int = 6, page_bytes: int = 24) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pages.0": torch.randint(0, 256, (num_pages, page_bytes), dtype=torch.uint8, generator=generator),
        "pages.1": torch.randint(0, 256, (num_pages, 7), dtype=torch.uint8, generator=generator),
        "token_ids": torch.arange(5, dtype=torch.int32),
        "surprise": torch.rand(5, generator=generator),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "nothing": torch.zeros(0, 4),
    }


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    (tmp_path / "segments").mkdir()
    (tmp_path / "recent").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def no_hook():
    yield
    disk.hook = None


def written(folder: Path, content=None, name: str = NAME) -> FileRecord:
    return write_tensors(folder, name, content or tensors(), kind="segment", start=0, stop=5, num_events=0)


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    as_bytes = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


@given(st.data())
def test_every_tensor_comes_back_bit_for_bit(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("files")
    (folder / "segments").mkdir()
    content = {}
    for i in range(data.draw(st.integers(1, 5))):
        dtype = data.draw(st.sampled_from(list(DTYPES.values())))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        size = int(np.prod(shape)) * dtype.itemsize
        raw = torch.tensor(list(data.draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
        raw = raw % 2 if dtype == torch.bool else raw
        content[f"x.{i}"] = raw.view(dtype).reshape(shape) if size else torch.zeros(shape, dtype=dtype)
    record = written(folder, content)
    assert (folder / NAME).read_bytes() == save(content)
    file = TensorFile(folder, record)
    assert sorted(file.names) == sorted(content)
    for name, tensor in content.items():
        assert is_same(file.read(name), tensor)
        assert (file.shape(name), file.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
    assert file.verify() == []
    file.close()


def test_any_tool_that_knows_safetensors_reads_a_file(folder):
    written(folder)
    found = load_file(folder / NAME)
    assert found.keys() == tensors().keys()
    assert all(is_same(found[name], tensor) for name, tensor in tensors().items())
    with safe_open(folder / NAME, "pt") as file:
        assert torch.equal(file.get_slice("pages.0")[2:4], tensors()["pages.0"][2:4])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_a_file_is_for_the_umask_to_say(folder, umask, mode):
    before = os.umask(umask)
    try:
        written(folder)
    finally:
        os.umask(before)
    assert (folder / NAME).stat().st_mode & 0o777 == mode


@given(rows=st.lists(st.integers(0, 19), max_size=40))
def test_rows_in_any_order_are_the_rows_of_the_table(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("files")
    (folder / "segments").mkdir()
    table = torch.randint(0, 256, (20, 33), dtype=torch.uint8)
    file = TensorFile(folder, written(folder, {"pages.3": table}))
    out = np.zeros((len(rows), 33), dtype=np.uint8)
    idx = np.array(rows, dtype=np.int64)
    file.read_rows("pages.3", idx, out, ahead=True)
    file.read_rows("pages.3", idx, out)
    assert np.array_equal(out, table.numpy()[idx])
    file.close()


def test_views_of_one_buffer_are_written_as_if_they_were_apart(folder):
    slab = torch.arange(40, dtype=torch.float32).reshape(4, 10)
    content = {"a": slab[:, 2:5], "b": slab.t(), "c": slab[1:3]}
    file = TensorFile(folder, written(folder, content))
    assert all(is_same(file.read(name), tensor) for name, tensor in content.items())


def test_flipping_any_byte_is_found(folder):
    record = written(folder)
    path = folder / NAME
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        file = TensorFile(folder, record)
        assert file.verify(), f"byte {i}"
        with pytest.raises(StoreError):
            for name in file.names:
                file.read(name)
        file.close()


def test_a_damaged_page_is_refused_and_its_neighbours_are_not(folder):
    record = written(folder)
    path = folder / NAME
    with TensorFileOffset(path, "pages.0") as (raw, offset):
        raw[offset + 3 * 24 + 5] ^= 1
    file = TensorFile(folder, record)
    out = np.empty((2, 24), dtype=np.uint8)
    file.read_rows("pages.0", np.array([2, 4]), out)
    with pytest.raises(StoreError, match=r"pages\.0 page 3 \(bytes \d+ to \d+\): the checksum differs$"):
        file.read_rows("pages.0", np.array([2, 3]), out)
    assert len(file.verify()) == 1


class TensorFileOffset:
    """The bytes of a file, to be changed, and where a tensor begins in them."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __enter__(self):
        self.raw = bytearray(self.path.read_bytes())
        header = bytes(self.raw[: 8 + struct.unpack("<Q", self.raw[:8])[0]])
        found = {one.name: one for one in parse_header(header, num_bytes=len(self.raw))}
        return self.raw, found[self.name].offset

    def __exit__(self, *_):
        self.path.write_bytes(self.raw)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_a_truncated_file_is_found(folder, kept):
    record = written(folder)
    os.truncate(folder / NAME, kept if kept >= 0 else record.num_bytes - 1)
    (problem,) = TensorFile(folder, record).verify()
    assert "expected" in problem and "\n" not in problem


def test_a_longer_file_is_found(folder):
    record = written(folder)
    with open(folder / NAME, "ab") as file:
        file.write(b"x")
    assert TensorFile(folder, record).verify()


def test_a_missing_file_is_found(folder):
    record = written(folder)
    (folder / NAME).unlink()
    assert TensorFile(folder, record).verify() == [f"{folder / NAME}: is missing"]


def test_two_files_of_one_shape_that_changed_places_are_found(folder):
    one = written(folder, tensors(0))
    two = written(folder, tensors(1), "segments/1-2.safetensors")
    assert one.num_bytes == two.num_bytes
    os.rename(folder / one.name, folder / "x")
    os.rename(folder / two.name, folder / one.name)
    os.rename(folder / "x", folder / two.name)
    assert TensorFile(folder, one).verify() and TensorFile(folder, two).verify()


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "segments/../../x.safetensors",
        "segments/a/b.safetensors",
        "segments/.safetensors",
        "segments/A.safetensors",
        "segments/a.safetensors\n",
        "segments/a\0.safetensors",
        "recent/a.safetensors",
        "",
        7,
        None,
    ],
)
def test_a_name_that_leads_elsewhere_is_never_a_record(folder, name):
    with pytest.raises(StoreError):
        FileRecord(name, "segment", 0, 1, 10, 0, b"\0\0\0\0")
    with pytest.raises(StoreError):
        write_tensors(folder, name, tensors(), kind="segment", start=0, stop=1)
    assert sorted(path.name for path in folder.rglob("*")) == ["recent", "segments"]


@pytest.mark.parametrize("field", ["start", "stop", "num_bytes", "num_events"])
@pytest.mark.parametrize("value", [-1, 1 << 62, 1.0, "1", None, True])
def test_numbers_of_a_record_are_counts(field, value):
    numbers = {"start": 0, "stop": 1, "num_bytes": 10, "num_events": 0, field: value}
    with pytest.raises(StoreError):
        FileRecord(NAME, "segment", **numbers, checksums=b"\0\0\0\0")


def test_a_symbolic_link_is_refused_wherever_it_stands(folder, tmp_path_factory):
    record = written(folder)
    outside = tmp_path_factory.mktemp("outside")
    shutil.copy(folder / NAME, outside / "secret")
    (folder / NAME).unlink()
    (folder / NAME).symlink_to(outside / "secret")
    assert TensorFile(folder, record).verify() == [f"{folder / NAME}: is a symbolic link"]
    (folder / NAME).unlink()
    shutil.move(outside / "secret", outside / "0-1.safetensors")
    (folder / "segments").rmdir()
    (folder / "segments").symlink_to(outside)
    assert TensorFile(folder, record).verify()
    with pytest.raises(StoreError):
        written(folder, name="segments/2-3.safetensors")
    assert sorted(os.listdir(outside)) == ["0-1.safetensors"]


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(folder):
    record = written(folder)
    (folder / NAME).unlink()
    os.mkfifo(folder / NAME)
    assert TensorFile(folder, record).verify() == [f"{folder / NAME}: is not a regular file"]


def header(described: str) -> bytes:
    return struct.pack("<Q", len(described)) + described.encode()


@pytest.mark.parametrize(
    "described",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"a": 3}',
        '{"a": {"dtype": "U8", "shape": [4]}}',
        '{"a": {"dtype": "U9", "shape": [4], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": ["U8"], "shape": [4], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "U8", "shape": [-4], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "U8", "shape": [5], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "U8", "shape": [4.0], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}',
        '{"a": {"dtype": "U8", "shape": [3], "data_offsets": [1, 4]}}',
        '{"a": {"dtype": "U8", "shape": [0, 9223372036854775807, 3], "data_offsets": [0, 0]}}',
        '{"pages.0": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}',
        '{"pages.0": {"dtype": "I8", "shape": [2, 2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},'
        ' "b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}',
    ],
)
def test_a_hostile_header_is_refused(described):
    with pytest.raises(ValueError):
        parse_header(header(described), num_bytes=len(header(described)) + 4)


@given(st.binary(max_size=60))
def test_no_header_breaks_the_reader(noise):
    with pytest.raises(ValueError):
        parse_header(header("")[:8] + noise, num_bytes=1000)


def test_checksums_of_another_number_than_needed_are_refused(folder):
    record = written(folder)
    for checksums in (record.checksums[:-4], record.checksums + b"\0\0\0\0"):
        numbers = (record.name, record.kind, 0, 5, record.num_bytes, 0)
        (problem,) = TensorFile(folder, FileRecord(*numbers, checksums)).verify()
        assert "checksums are recorded" in problem


def test_a_boolean_that_is_neither_is_refused(folder):
    record = written(folder, {"b": torch.tensor([2], dtype=torch.uint8).view(torch.bool)})
    with pytest.raises(StoreError, match="boolean"):
        TensorFile(folder, record).read("b")


def test_a_bad_sector_is_one_line_that_names_the_file(folder, monkeypatch):
    file = TensorFile(folder, written(folder))
    _ = file.names

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    for read in (
        lambda: file.read_rows("pages.0", np.array([0]), np.empty((1, 24), dtype=np.uint8)),
        lambda: file.read("surprise"),
    ):
        with pytest.raises(StoreError, match=f"^cannot read {folder / NAME}: Input/output error$"):
            read()


def test_a_file_is_written_once(folder):
    written(folder)
    with pytest.raises(StoreError, match="exists"):
        written(folder)


def test_rows_outside_the_table_are_the_callers_mistake(folder):
    file = TensorFile(folder, written(folder))
    out = np.empty((1, 24), dtype=np.uint8)
    for row in (-1, 6):
        with pytest.raises(IndexError):
            file.read_rows("pages.0", np.array([row]), out)
    with pytest.raises(ValueError):
        file.read_rows("pages.0", np.array([0]), np.empty((1, 25), dtype=np.uint8))
    with pytest.raises(ValueError):
        file.read_rows("token_ids", np.array([0]), out)
    with pytest.raises(StoreError):
        file.read("no such tensor")


def test_threads_read_while_the_file_is_closed_under_them(folder):
    content = {"pages.0": torch.randint(0, 256, (50, 600), dtype=torch.uint8)}
    file = TensorFile(folder, written(folder, content))
    failures = []

    def read(seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            for _ in range(200):
                rows = generator.integers(0, 50, 9)
                out = np.empty((9, 600), dtype=np.uint8)
                file.read_rows("pages.0", rows, out)
                assert np.array_equal(out, content["pages.0"].numpy()[rows])
                file.close()
        except Exception as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_full_disk_is_one_line_and_leaves_nothing(folder):
    for at in ("write", "fsync", "rename"):

        def full(what: str, path: Path, at: str = at) -> None:
            if what == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        disk.hook = full
        with pytest.raises(StoreError, match=r"^cannot write .*No space left on device$"):
            written(folder)
        assert os.listdir(folder / "segments") == []


def test_a_name_stands_only_for_a_whole_file(folder):
    for at in ("write", "fsync", "rename"):

        def die(what: str, path: Path, at: str = at) -> None:
            if what == at:
                raise Killed

        disk.hook = die
        with pytest.raises(Killed):
            written(folder)
        assert not (folder / NAME).exists()


def test_a_writer_that_is_killed_in_the_midst_leaves_only_what_the_next_one_sweeps(folder):
    program = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from emllm.store.files import write_tensors\n"
        "def die(descriptor):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = die\n"
        "content = {'pages.0': torch.zeros(9, 9, dtype=torch.uint8)}\n"
        f"write_tensors(Path(sys.argv[1]), {NAME!r}, content, kind='segment', start=0, stop=5)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    (left,) = os.listdir(folder / "segments")
    assert leftovers(folder) == [f"segments/{left}"]
