"""Files of tensors that are larger than RAM may be: laid out first, then filled side by side.

The header comes first in a safetensors file, so shapes must be known before the data; the data comes in any
order of tensors, as long as each grows from its beginning. This module does not know what the tensors mean.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emllm.errors import StoreError
from emllm.store import disk
from emllm.store.layout import Described, StoredTensor, make_header, parse_header
from emllm.store.record import FileRecord

#: Adds to a tensor the elements that follow; to every row of a table, ``[rows, ...]``, what follows in it.
Put = Callable[[str, Tensor], None]
Fill = Callable[[Put], None]

#: Where data begins at a multiple of this, a mapping of it is aligned for any instruction.
MAPPED_ALIGNMENT = 64


def write_filled(
    folder: Path,
    name: str,
    described: Mapping[str, Described],
    fill: Fill,
    *,
    kind: str,
    start: int,
    stop: int,
    num_events: int,
    aligned: int = MAPPED_ALIGNMENT,
) -> FileRecord:
    """Writes a file that is durable when this returns; `files.write_tensors` for what comes piece by piece.

    Args:
        described: the tensors.
        fill: is given what adds to them, and fills every one.
        aligned: the data begins at a multiple of so many bytes.

    Raises:
        StoreError: it exists, or the disk is full or fails; nothing of it remains then.
    """
    FileRecord(name, kind, start, stop, 0, num_events, b"\0\0\0\0")  # refuses an ill name before writing
    path = folder / name
    if path.parent.is_symlink() or os.path.lexists(path):
        raise StoreError(f"{path}: exists already, or its folder is a symbolic link")
    header, num_bytes = make_header(described, aligned=aligned)
    filling = _Filling(parse_header(header, num_bytes=num_bytes))

    def write(temporary: Path) -> None:
        with open(temporary, "xb") as file:
            file.write(header)
            file.flush()
            filling.run(file.fileno(), fill)

    with disk.translated("write", path):
        disk.publish(path, write)
    checksums = np.array([zlib.crc32(header), *filling.checksums()], dtype="<u4").tobytes()
    return FileRecord(name, kind, start, stop, num_bytes, num_events, checksums)


class _Filling:
    """How far every row of every tensor is, and its checksum so far."""

    def __init__(self, tensors: list[StoredTensor]) -> None:
        self._tensors = {stored.name: stored for stored in tensors}
        self._num_done = {stored.name: 0 for stored in tensors}
        self._sums = {stored.name: [0] * stored.num_checksums for stored in tensors}

    def run(self, descriptor: int, fill: Fill) -> None:
        """Let somebody fill the file."""
        fill(lambda name, tensor: self._put(descriptor, name, tensor))
        for name, stored in self._tensors.items():
            assert self._num_done[name] == stored.row_bytes or not stored.num_checksums, f"{name} is not full"

    def _put(self, descriptor: int, name: str, tensor: Tensor) -> None:
        stored, sums = self._tensors[name], self._sums[name]
        if not tensor.numel():
            return
        assert tensor.dtype == stored.dtype
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().reshape(stored.num_checksums, -1)
        done = self._num_done[name]
        assert done + data.shape[1] <= stored.row_bytes, f"{name} is too long"
        for row in range(stored.num_checksums):
            _write_all(descriptor, data[row], stored.offset + row * stored.row_bytes + done)
            sums[row] = zlib.crc32(data[row].data, sums[row])
        self._num_done[name] = done + data.shape[1]

    def checksums(self) -> list[int]:
        """Of all tensors, in the order of their offsets."""
        return [crc for stored in self._tensors.values() for crc in self._sums[stored.name]]


def _write_all(descriptor: int, data: NDArray[np.uint8], offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:].data, offset + done)
