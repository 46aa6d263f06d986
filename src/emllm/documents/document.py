"""A document: plain text under a name, whatever it was read from.

Does not know where documents come from (`load`) nor what becomes of them.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Document:
    """Plain text under a name.

    The text is never blank, holds no NUL and no lone surrogate, and its lines end in ``\\n``.

    Attributes:
        name: what the user calls it: the file's name, its path inside the folder, or ``stdin``.
        text: the content.
        kind: a key of `emllm.documents.readers.READERS`.
        num_bytes: size of the source, before decoding.
    """

    name: str
    text: str
    kind: str = "text"
    num_bytes: int = 0

    @functools.cached_property
    def sha256(self) -> str:
        """Of the text: what a memory knows it by."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Loaded(NamedTuple):
    """Documents with unique names, and one line for each thing that was passed over."""

    documents: list[Document]
    warnings: list[str]
