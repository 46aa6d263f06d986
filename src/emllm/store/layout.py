"""Where each tensor lies in a safetensors file: a header that is written, or read without trusting it.

A header may come from anybody: sizes, offsets and types are checked against each other and against the
size of the file before a byte of it is used. This module does not know where the bytes come from, nor
what the tensors mean, but for the rule that tensors of some names are tables of rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

#: The length of the header, before it.
LENGTH_BYTES = 8
#: The format's own limit.
MAX_HEADER_BYTES = 100_000_000
_MAX_DIMS = 8
_MAX_ELEMENTS = 1 << 48

PAGES = "pages."
#: Tensors whose names begin so are tables: each row, of the first dimension, has a checksum of its own.
INDEX_TABLES = ("index_keys.", "index_scales.")
TABLES = (PAGES, *INDEX_TABLES)

#: In the order of safetensors, which has the last ones first in a file.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}

#: Type and shape of a tensor that is to be written.
Described = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its bytes are ``[offset, offset + num_bytes)`` of the file.

    ``first_checksum`` and ``num_checksums`` say which of the file's checksums are its own.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    first_checksum: int

    @property
    def has_rows(self) -> bool:
        """Whether it is a table, each row with its own checksum."""
        return self.name.startswith(TABLES)

    @property
    def num_checksums(self) -> int:
        """One, or one per row."""
        return self.shape[0] if self.has_rows else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; the whole of what is no table."""
        return self.num_bytes // max(self.shape[0], 1) if self.has_rows else self.num_bytes


def make_header(described: Mapping[str, Described], *, aligned: int) -> tuple[bytes, int]:
    """The header of a file of these tensors, its length before it, and the size of the file.

    Tensors are ordered as safetensors orders them.

    Args:
        aligned: the data begins at a multiple of so many bytes; safetensors itself takes 8.
    """
    entries, end = {}, 0
    for name, (dtype, shape) in sorted(described.items(), key=lambda one: (-_RANKS[one[1][0]], one[0])):
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + LENGTH_BYTES) % aligned)
    header = len(text).to_bytes(LENGTH_BYTES, "little") + text
    return header, len(header) + end


def parse_header(header: bytes, *, num_bytes: int) -> list[StoredTensor]:
    """The tensors of a file in the order of their offsets.

    Args:
        header: the first bytes of the file, those of the length included.
        num_bytes: size of the file.

    Raises:
        ValueError: the header is not one, or does not fit the file; says how.
    """
    try:
        described = json.loads(header[LENGTH_BYTES:])
    except (ValueError, RecursionError):
        raise ValueError("the header is not JSON") from None
    if not isinstance(described, dict):
        raise ValueError("the header is not a table of tensors")
    described.pop("__metadata__", None)
    found = sorted((_parse_tensor(name, entry) for name, entry in described.items()), key=lambda one: one[:3])
    tensors = []
    end, first_checksum = 0, 1
    for start, stop, name, dtype, shape in found:
        if start != end:
            raise ValueError(f"{name} begins at byte {start} of the data, expected {end}")
        end = stop
        tensor = StoredTensor(name, dtype, shape, len(header) + start, stop - start, first_checksum)
        first_checksum += tensor.num_checksums
        tensors.append(tensor)
    if len(header) + end != num_bytes:
        raise ValueError(f"the tensors end at byte {len(header) + end}, the file at {num_bytes}")
    return tensors


def _parse_tensor(name: str, entry: object) -> tuple[int, int, str, torch.dtype, tuple[int, ...]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described as a tensor")
    shape, offsets = entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{name!r} has the unknown dtype {entry['dtype']!r}")
    if not _are_counts(shape) or len(shape) > _MAX_DIMS or math.prod(n or 1 for n in shape) > _MAX_ELEMENTS:
        raise ValueError(f"{name!r} has an impossible shape")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has impossible offsets")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} has {offsets[1] - offsets[0]} bytes, which is not its shape")
    if name.startswith(PAGES) and (dtype != torch.uint8 or len(shape) != 2):
        raise ValueError(f"{name!r} is not a table of bytes")
    if name.startswith(TABLES) and len(shape) < 2:
        raise ValueError(f"{name!r} is not a table")
    return offsets[0], offsets[1], name, dtype, tuple(shape)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
