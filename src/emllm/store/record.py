"""What the catalogue knows of a file of tensors: name, tokens, size and checksums.

The record may come from anybody, so its name cannot lead out of the memory's folder and its numbers are
numbers. This module does not know whether the file exists, nor what is in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from emllm.errors import StoreError

#: The folder of each kind of file.
KINDS = {"segment": "segments", "recent": "recent", "index": "index"}
_NAME = re.compile(r"(segments|recent|index)/[0-9a-z-]+\.safetensors")
#: Numbers of tokens and bytes stay below this, so that sums of two stay within 64 bits.
LARGEST = 1 << 62


@dataclass(frozen=True)
class FileRecord:
    """What the catalogue knows of a file. A record that exists is well formed.

    Attributes:
        name: path relative to the memory's folder.
        kind: `segment` or `recent`, which make the log, or `index`, of what segments hold too.
        start: first token of the log in it.
        stop: one past the last.
        num_bytes: size of the file.
        num_events: rows of event keys in it.
        checksums: crc32 as little-endian uint32: of the header, then of the tensors in the order of
            their offsets, one per tensor, but one per row of a table (`layout.TABLES`).
    """

    name: str
    kind: str
    start: int
    stop: int
    num_bytes: int
    num_events: int
    checksums: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise StoreError(f"{self.name!r} is not the name of a file of a memory")
        if self.kind not in KINDS or not self.name.startswith(f"{KINDS[self.kind]}/"):
            raise StoreError(f"{self.name}: is recorded as of kind {self.kind!r}")
        for number in (self.start, self.stop, self.num_bytes, self.num_events):
            if type(number) is not int or not 0 <= number < LARGEST:
                raise StoreError(f"{self.name}: is recorded with the number {number!r}")
        if self.stop < self.start:
            raise StoreError(f"{self.name}: is recorded with the tokens {self.start} to {self.stop}")
        if not isinstance(self.checksums, bytes) or len(self.checksums) % 4 or not self.checksums:
            raise StoreError(f"{self.name}: its recorded checksums are not whole")
