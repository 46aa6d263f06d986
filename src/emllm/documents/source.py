"""The bytes of a file or of standard input, with every way in which they cannot be had.

Does not know what the bytes mean.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import BinaryIO

from emllm.errors import SourceError


def read_file(path: str, *, max_bytes: int) -> bytes:
    """All bytes of a file or pipe; the size is known before anything is read, except for a pipe's.

    Raises:
        SourceError: missing, a folder, a device, not permitted, larger than ``max_bytes``.
    """
    label = printable(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"{label}: a folder, not a file")
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise SourceError(f"{label}: a device, not a file")
        check_size(status.st_size, label, max_bytes=max_bytes)
        with open(path, "rb") as file:
            return _read(file, label, max_bytes=max_bytes)
    except FileNotFoundError as error:
        hint = " (a web address: download it first)" if "://" in path else ""
        raise SourceError(f"{label}: no such file or folder{hint}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{label}: cannot be read, {reason(error)}") from error


def read_stdin(stdin: BinaryIO | None, *, max_bytes: int) -> bytes:
    """All bytes of ``stdin``, or of the process's standard input.

    Raises:
        SourceError: closed, failing, or longer than ``max_bytes``.
    """
    label = "standard input"
    try:
        stream: BinaryIO = sys.stdin.buffer if stdin is None else stdin
        return _read(stream, label, max_bytes=max_bytes)
    except (OSError, AttributeError) as error:  # AttributeError: no standard input at all
        raise SourceError(f"{label}: cannot be read, {reason(error)}") from error


def check_size(num_bytes: int, label: str, *, max_bytes: int) -> None:
    """Refuses what is larger than the limit."""
    if num_bytes > max_bytes:
        raise SourceError(f"{label}: {num_bytes:,} bytes, more than the limit of {max_bytes:,}")


def reason(error: Exception) -> str:
    """An operating system's error in its own words, without number and path, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def printable(path: str) -> str:
    """A path on one line and in valid Unicode, whatever bytes and line ends it is made of."""
    return path if path and path.isprintable() else repr(path)


def _read(stream: BinaryIO, label: str, *, max_bytes: int) -> bytes:
    data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise SourceError(f"{label}: more than the limit of {max_bytes:,} bytes")
    return data
