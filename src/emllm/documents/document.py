"""A document: plain text under a name, whatever it was read from.

Does not know where documents come from (`load`) nor what becomes of them.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from emllm.errors import InputError


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


def checked_text(text: Any, what: str) -> str:
    """The text, if it is one that a tokenizer takes.

    Args:
        what: it is, for the message: ``a question``.

    Raises:
        InputError: it is no string, blank, or has a lone surrogate.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} must be a string, got {type(text).__name__}")
    if not text.strip():
        raise InputError(f"{what} must not be empty, got {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"{text[error.start]!r} at character {error.start:,}"
        raise InputError(f"{what} is not valid UTF-8: {where}") from error
    return text
