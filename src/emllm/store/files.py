"""Files of tensors: written once, checked whenever they are read.

A file is a safetensors file that anybody can open; its checksums are not in it but in its `FileRecord`,
which the catalogue keeps, so that a file in the place of another is noticed too. Everything read is
compared with its checksum before it is handed on. Reading is safe from several threads.

This module does not know what a memory is, nor which tensors a file should hold.
"""

from __future__ import annotations

import mmap
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.errors import StoreError
from emllm.store import disk
from emllm.store.filling import Put, write_filled
from emllm.store.layout import LENGTH_BYTES, MAX_HEADER_BYTES, PAGES, StoredTensor, parse_header
from emllm.store.locks import Lock
from emllm.store.record import FileRecord

__all__ = ["FileRecord", "TensorFile", "write_tensors"]

_CHECKSUM = np.dtype("<u4")
#: Where the data of a file begins, as safetensors itself has it.
_ALIGNMENT = 8
#: Bytes that `TensorFile.verify` reads at once.
_VERIFY_BYTES = 16 << 20


def write_tensors(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    start: int,
    stop: int,
    num_events: int = 0,
) -> FileRecord:
    """Writes a file that is durable when this returns.

    Args:
        folder: the memory's folder.
        name: path in it, of a file that does not exist.
        tensors: on the CPU; those named ``pages.*`` are ``[rows, bytes]`` uint8.
        kind: see `FileRecord`, as the rest.
        start: first token.
        stop: one past the last.
        num_events: rows of event keys.

    Raises:
        StoreError: it exists, or the disk is full or fails; nothing of it remains then.
    """
    whole = {one: tensor.detach() for one, tensor in tensors.items()}

    def fill(put: Put) -> None:
        for one, tensor in whole.items():
            put(one, tensor)

    return write_filled(
        folder,
        name,
        {one: (tensor.dtype, tuple(tensor.shape)) for one, tensor in whole.items()},
        fill,
        kind=kind,
        start=start,
        stop=stop,
        num_events=num_events,
        aligned=_ALIGNMENT,
    )


class TensorFile:
    """A file that was written by `write_tensors`, open for reading.

    The header is read and checked at first use. `close` gives back the file descriptor, as does letting go
    of the file; a later use opens the file again.
    """

    def __init__(
        self,
        folder: Path,
        record: FileRecord,
        *,
        on_open: Callable[[TensorFile], None] | None = None,
        lock: Lock | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            folder: the memory's folder.
            record: what the catalogue says of it.
            on_open: called with this file whenever it took a descriptor.
            lock: without which the file may be deleted; not let go of before the file is.
        """
        self.record = record
        self.lock = lock
        self._folder = folder
        self._sums = np.frombuffer(record.checksums, dtype=_CHECKSUM)
        self._on_open = on_open
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._closing: Callable[[], object] | None = None
        self._num_users = 0
        self._is_closing = False
        self._tensors: dict[str, StoredTensor] = {}

    @property
    def _path(self) -> Path:
        return self._folder / self.record.name  # made when it is needed: a long memory has thousands

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the order of their offsets."""
        with self._opened():
            return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._stored(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor's elements."""
        return self._stored(name).dtype

    def read(self, name: str) -> Tensor:
        """A tensor, whole and checked."""
        stored = self._stored(name)
        with torch.inference_mode(False):  # what is born inside it could not be written outside
            tensor = torch.empty(stored.shape, dtype=stored.dtype)
        data = _bytes_of(tensor)
        with self._opened() as descriptor:
            self._read_bytes(descriptor, data, stored.offset)
        rows = np.arange(stored.num_checksums)
        self.check(stored, rows, data.reshape(len(rows), stored.row_bytes))
        if stored.dtype == torch.bool and len(data) and data.max() > 1:
            raise StoreError(f"{self._path}: {name}: a boolean is neither 0 nor 1")
        return tensor

    def map(self) -> mmap.mmap:
        """All of it as memory, unchecked; a write to that would change this process alone."""
        with self._opened() as descriptor, disk.translated("map", self._path):
            return mmap.mmap(descriptor, self.record.num_bytes, access=mmap.ACCESS_COPY)

    def tables(self) -> dict[str, StoredTensor]:
        """Where the tables in it lie."""
        with self._opened():
            return {name: stored for name, stored in self._tensors.items() if stored.has_rows}

    def read_all_but_pages(self) -> dict[str, Tensor]:
        """Every tensor that is not a table, in one read, each checked.

        A file has these first: safetensors orders by alignment and then by name.
        """
        with self._opened() as descriptor:
            wanted = [stored for stored in self._tensors.values() if not stored.has_rows]
            if not wanted:
                return {}
            first = min(stored.offset for stored in wanted)
            last = max(stored.offset + stored.num_bytes for stored in wanted)
            if any(first <= stored.offset < last for stored in self._tensors.values() if stored.has_rows):
                return {stored.name: self.read(stored.name) for stored in wanted}
            data = np.empty(last - first, dtype=np.uint8)
            self._read_bytes(descriptor, data, first)
        tensors = {}
        for stored in wanted:
            own = data[stored.offset - first : stored.offset - first + stored.num_bytes]
            if zlib.crc32(own.data) != self._sums[stored.first_checksum]:
                raise StoreError(self._complaint(stored, 0))
            with torch.inference_mode(False):
                tensors[stored.name] = torch.empty(stored.shape, dtype=stored.dtype)
            _bytes_of(tensors[stored.name])[:] = own
        return tensors

    def read_rows(
        self, name: str, rows: NDArray[np.int64], out: NDArray[np.uint8], *, ahead: bool = False
    ) -> None:
        """Reads pages, each one checked; pages that follow one another in one go.

        Args:
            name: a tensor named ``pages.*``.
            rows: which, in any order.
            out: ``[len(rows), row_bytes]``, contiguous; undefined where this raises.
            ahead: tell the system that the page after the last one may be read soon.
        """
        with self._opened() as descriptor:
            stored = self._tensors.get(name)
            if stored is None or not stored.has_rows:
                stored = self._table(name)
            if out.shape != (len(rows), stored.row_bytes) or not out.flags.c_contiguous:
                raise ValueError(
                    f"out must be contiguous bytes [{len(rows)}, {stored.row_bytes}], got {out.shape}"
                )
            # Called for thousands of pages a second, mostly for one or two at a time.
            wanted, size = rows.tolist(), stored.row_bytes
            if wanted and not 0 <= min(wanted) <= max(wanted) < stored.shape[0]:
                self._check_range(stored, rows)
            try:  # as `disk.translated`, which takes longer
                self._read_runs(descriptor, stored, wanted, out)
                if ahead and wanted and wanted[-1] + 1 < stored.shape[0] and hasattr(os, "posix_fadvise"):
                    after = stored.offset + (wanted[-1] + 1) * size
                    os.posix_fadvise(descriptor, after, size, os.POSIX_FADV_WILLNEED)
            except OSError as error:
                raise StoreError(disk.complaint("read", self._path, error)) from error
        for i, row in enumerate(wanted):
            if zlib.crc32(out[i].data) != self._sums[stored.first_checksum + row]:
                raise StoreError(self._complaint(stored, row))

    def _read_runs(
        self, descriptor: int, stored: StoredTensor, wanted: list[int], out: NDArray[np.uint8]
    ) -> None:
        """Pages as they are; those that follow one another in one go."""
        low = 0
        while low < len(wanted):
            high = low + 1
            while high < len(wanted) and wanted[high] == wanted[high - 1] + 1:
                high += 1
            offset = stored.offset + wanted[low] * stored.row_bytes
            data = out[low:high].reshape(-1)
            if os.preadv(descriptor, [data.data], offset) != len(data):
                self._read_bytes(descriptor, data, offset)
            low = high

    def verify(self) -> list[str]:
        """Everything that is wrong with the file, one line each; empty when it is as it was written."""
        problems: list[str] = []
        try:
            with self._opened() as descriptor:
                for stored in self._tensors.values():
                    problems += self._verify_tensor(descriptor, stored)
        except StoreError as error:
            problems.append(str(error))
        return problems

    def close(self) -> None:
        """Gives back the file descriptor, as soon as nobody reads through it."""
        with self._lock:
            self._is_closing = True
            self._close_if_idle()

    def _verify_tensor(self, descriptor: int, stored: StoredTensor) -> list[str]:
        problems = []
        at_once = max(1, _VERIFY_BYTES // max(1, stored.row_bytes))
        for first in range(0, stored.num_checksums, at_once):
            rows = np.arange(first, min(first + at_once, stored.num_checksums))
            data = np.empty((len(rows), stored.row_bytes), dtype=np.uint8)
            self._read_bytes(descriptor, data.reshape(-1), stored.offset + first * stored.row_bytes)
            problems += [self._complaint(stored, row) for row in self._wrong_rows(stored, rows, data)]
        return problems

    def _stored(self, name: str) -> StoredTensor:
        with self._opened():
            if name not in self._tensors:
                raise StoreError(f"{self._path}: holds no tensor {name!r}")
            return self._tensors[name]

    def _table(self, name: str) -> StoredTensor:
        stored = self._stored(name)
        if not stored.has_rows:
            raise ValueError(f"{name} is not a table of pages")
        return stored

    @staticmethod
    def _check_range(stored: StoredTensor, rows: NDArray[np.int64]) -> None:
        if rows.min() < 0 or rows.max() >= stored.shape[0]:
            raise IndexError(
                f"rows of {stored.name} are [0, {stored.shape[0]}), got {rows.min()}..{rows.max()}"
            )

    def _wrong_rows(
        self, stored: StoredTensor, rows: NDArray[np.int64], data: NDArray[np.uint8]
    ) -> list[int]:
        expected = self._sums[stored.first_checksum + rows].tolist()
        return [int(rows[i]) for i, crc in enumerate(expected) if zlib.crc32(data[i].data) != crc]

    def check(self, stored: StoredTensor, rows: NDArray[np.int64], data: NDArray[np.uint8]) -> None:
        """Compares rows, ``[len(rows), row_bytes]``, with their checksums; opens nothing.

        Raises:
            StoreError: they are not what was written.
        """
        wrong = self._wrong_rows(stored, rows, data)
        if wrong:
            raise StoreError(self._complaint(stored, wrong[0]))

    def _complaint(self, stored: StoredTensor, row: int) -> str:
        start = stored.offset + row * stored.row_bytes
        row_name = "page" if stored.name.startswith(PAGES) else "row"
        what = f"{stored.name} {row_name} {row}" if stored.has_rows else stored.name
        return f"{self._path}: {what} (bytes {start} to {start + stored.row_bytes}): the checksum differs"

    def _read_bytes(self, descriptor: int, out: NDArray[np.uint8], offset: int) -> None:
        done = 0
        with disk.translated("read", self._path):
            while done < len(out):
                count = os.preadv(descriptor, [out[done:].data], offset + done)
                if count == 0:
                    raise StoreError(f"{self._path}: ends at byte {offset + done}")
                done += count

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file descriptor, which stays open until the caller is done with it."""
        with self._lock:
            is_new = self._descriptor is None
            descriptor = self._open() if self._descriptor is None else self._descriptor
            self._num_users += 1
        try:
            if is_new and self._on_open is not None:
                self._on_open(self)
            yield descriptor
        finally:
            with self._lock:
                self._num_users -= 1
                self._close_if_idle()

    def _open(self) -> int:
        descriptor = disk.open_inside(self._folder, self.record.name)
        try:
            num_bytes = os.fstat(descriptor).st_size
            if num_bytes != self.record.num_bytes:
                raise StoreError(f"{self._path}: has {num_bytes} bytes, expected {self.record.num_bytes}")
            if not self._tensors:
                self._tensors = {stored.name: stored for stored in self._read_header(descriptor)}
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self._closing, self._is_closing = descriptor, disk.closing(self, descriptor), False
        return descriptor

    def _read_header(self, descriptor: int) -> list[StoredTensor]:
        length = np.zeros(LENGTH_BYTES, dtype=np.uint8)
        self._read_bytes(descriptor, length, 0)
        num_bytes = LENGTH_BYTES + int.from_bytes(length.tobytes(), "little")
        if num_bytes > min(MAX_HEADER_BYTES, self.record.num_bytes):
            raise StoreError(f"{self._path}: header (bytes 0 to {LENGTH_BYTES}): its length is wrong")
        header = np.empty(num_bytes, dtype=np.uint8)
        self._read_bytes(descriptor, header, 0)
        if zlib.crc32(header.data) != self._sums[0]:
            raise StoreError(f"{self._path}: header (bytes 0 to {num_bytes}): the checksum differs")
        try:
            tensors = parse_header(header.tobytes(), num_bytes=self.record.num_bytes)
        except ValueError as error:
            raise StoreError(f"{self._path}: {error}") from None
        expected = 1 + sum(stored.num_checksums for stored in tensors)
        if expected != len(self._sums):
            raise StoreError(f"{self._path}: {len(self._sums)} checksums are recorded, it needs {expected}")
        return tensors

    def _close_if_idle(self) -> None:
        if self._is_closing and self._num_users == 0 and self._closing is not None:
            self._closing()
            self._descriptor = self._closing = None


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a contiguous tensor; the same memory."""
    if tensor.numel() == 0:  # its strides may be such that no other type can be seen in it
        return np.empty(0, dtype=np.uint8)
    return tensor.reshape(-1).view(torch.uint8).numpy()
