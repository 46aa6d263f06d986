"""Text, Markdown and source code: kept as they are, apart from byte order mark and line ends.

Does not guess encodings: without a byte order mark and without a declaration it is UTF-8 or an error.
"""

from __future__ import annotations

import codecs

from emllm.documents.kinds import looks_like
from emllm.errors import SourceError

# UTF-32 first: its little-endian mark begins with UTF-16's.
_ENCODING_OF_MARK = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

# The HTML standard reads Latin-1 and ASCII as Windows-1252, and a declared UTF-16 as UTF-8, because
# the declaration could not have been read otherwise.
_ENCODING_OF_LABEL = {"iso8859-1": "cp1252", "ascii": "cp1252"}


def read_text(data: bytes, label: str) -> str:
    """The text itself; ``label`` names the source in errors.

    Raises:
        SourceError: bytes that are no text, or not in UTF-8.
    """
    return decode(data, label)


def decode(data: bytes, label: str, *, declared: str | None = None) -> str:
    """Bytes as text: the byte order mark decides, then what the source declares, then UTF-8.

    Raises:
        SourceError: an invalid byte (with its offset, from 0, and its line, from 1), or a NUL.
    """
    mark = next((mark for mark in _ENCODING_OF_MARK if data.startswith(mark)), b"")
    encoding = _ENCODING_OF_MARK[mark] if mark else _known_encoding(declared)
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        what = looks_like(data)
        if not mark and (what is not None or b"\x00" in data[:1024]):
            raise _binary(label, what) from error
        line = body[: error.start].decode(encoding, errors="ignore").count("\n") + 1
        offset = error.start + len(mark)
        problem = f"invalid byte 0x{data[offset]:02x} at byte {offset}, line {line}"
        raise SourceError(f"{label}: not {encoding.upper()} text: {problem}") from error
    if "\x00" in text:
        raise _binary(label, looks_like(data))
    return text


def may_be_text(beginning: bytes) -> bool:
    """Whether a file that begins so can be text: it has a byte order mark, or is UTF-8 without NUL so far."""
    if beginning.startswith(tuple(_ENCODING_OF_MARK)):
        return True
    try:
        return "\x00" not in codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return False


def normalise(text: str) -> str:
    """Text as a `Document` promises it: ``\\n`` at line ends, no NUL, surrogate pairs joined.

    Extracted text can hold NULs and halves of surrogate pairs; a lone half becomes U+FFFD.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _known_encoding(declared: str | None) -> str:
    try:
        name = codecs.lookup(declared or "utf-8").name
        "".encode(name)
    except (LookupError, UnicodeError, ValueError):
        return "utf-8"  # unknown, or a transform such as rot13
    if name.startswith(("utf-16", "utf-32")):
        return "utf-8"
    return _ENCODING_OF_LABEL.get(name, name)


def _binary(label: str, what: str | None) -> SourceError:
    if what is None:
        return SourceError(f"{label}: binary file, not text (UTF-16 needs a byte order mark)")
    return SourceError(f"{label}: binary file, looks like: {what}")
