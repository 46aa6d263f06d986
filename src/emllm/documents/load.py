"""From what the user names to documents: files, folders and standard input.

Prints nothing: what a folder holds and cannot be read comes back as warnings, whereas sources that were
named one by one must all be readable. Does not know how a kind is read (`readers`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import BinaryIO

from emllm.documents.document import Document, Loaded
from emllm.documents.epub import expanded_bytes
from emllm.documents.kinds import kind_of
from emllm.documents.readers import READERS
from emllm.documents.source import check_size, printable, read_file, read_stdin, reason
from emllm.documents.text import may_be_text, normalise
from emllm.errors import EmllmError, MissingExtraError, SourceError
from emllm.store.place import CATALOGUE, is_bare, is_memory

#: Default limit per source: 1 GiB, about 250 million tokens of English.
MAX_BYTES = 2**30
STDIN = "-"
_BEGINNING_BYTES = 4096


def load(source: str | Path, *, stdin: BinaryIO | None = None, max_bytes: int = MAX_BYTES) -> Document:
    """One file, or standard input for ``-``, as plain text.

    Args:
        source: path of a file, or ``-``.
        stdin: what ``-`` reads; by default the process's standard input.
        max_bytes: limit on the size, checked before anything is read (for EPUB also on what it unpacks to).

    Raises:
        SourceError: missing, a folder, unreadable, too large, empty, binary, damaged or encrypted.
        MissingExtraError: HTML, PDF and EPUB need the extra ``read``.
    """
    path = str(source)
    if path == STDIN:
        name, label = "stdin", "standard input"
        data = read_stdin(stdin, max_bytes=max_bytes)
    else:
        name, label = printable(Path(path).name), printable(path)
        data = read_file(path, max_bytes=max_bytes)
    if not data:
        raise SourceError(f"{label}: empty")
    kind = kind_of(data, name)
    if kind == "epub":
        check_size(expanded_bytes(data), f"{label}, unpacked", max_bytes=max_bytes)
    text = normalise(READERS[kind](data, label))
    if not text.strip():
        raise SourceError(f"{label}: only whitespace" if kind == "text" else f"{label}: holds no text")
    return Document(name, text, kind=kind, num_bytes=len(data))


def load_all(
    sources: Iterable[str | Path], *, stdin: BinaryIO | None = None, max_bytes: int = MAX_BYTES
) -> Loaded:
    """All sources as documents with unique names; folders are read through, in sorted order.

    A document is named after its file, in a folder after its path from there; where two names agree, as
    many parent folders are added as it takes. The same file twice is read once. Hidden, binary, empty and
    otherwise unreadable entries of a folder become warnings, as do memories and what is no regular file.

    Raises:
        SourceError: a named source cannot be read or is a memory, or a folder holds nothing readable.
        MissingExtraError: a named source, or all that a folder holds, needs the extra ``read``.
    """
    sources = [sources] if isinstance(sources, str | Path) else sources
    loaded: dict[str, _Named] = {}
    warnings: list[str] = []
    for source in map(str, sources):
        if _identity(source) in loaded:
            warnings.append(f"{printable(source)}: named twice, read once")
        elif source != STDIN and source and os.path.isdir(source):
            _load_folder(source, loaded, warnings, max_bytes=max_bytes)
        else:
            document = load(source, stdin=stdin, max_bytes=max_bytes)
            loaded[_identity(source)] = _Named(document, _parts(source, document), num_parts=1)
    return Loaded(_uniquely_named(list(loaded.values())), warnings)


@dataclass(frozen=True)
class _Named:
    """A document, and its path, of which the last ``num_parts`` make the name."""

    document: Document
    parts: tuple[str, ...]
    num_parts: int

    @property
    def name(self) -> str:
        return printable(PurePath(*self.parts[-self.num_parts :]).as_posix())


def _load_folder(folder: str, loaded: dict[str, _Named], warnings: list[str], *, max_bytes: int) -> None:
    """Adds what the folder holds to ``loaded``, and what it cannot read to ``warnings``."""
    if is_memory(folder):
        raise SourceError(f"{printable(folder)}: is a memory, no folder of texts")
    if is_bare(folder):
        raise SourceError(f"{printable(folder)}: is a memory without its {CATALOGUE}, no folder of texts")
    skipped: list[str] = []
    missing_extra: MissingExtraError | None = None
    num_readable = 0
    for path in _files_below(folder, skipped):
        if _identity(path) in loaded:
            skipped.append(f"{printable(path)}: named twice, read once")
            num_readable += 1
            continue
        try:
            document = load(path, max_bytes=max_bytes)
        except EmllmError as error:
            skipped.append(f"{error} (skipped)")
            missing_extra = error if isinstance(error, MissingExtraError) else missing_extra
            continue
        num_parts = len(PurePath(os.path.relpath(path, folder)).parts)
        loaded[_identity(path)] = _Named(document, _parts(path, document), num_parts)
        num_readable += 1
    if not num_readable:
        if missing_extra is not None:
            raise missing_extra
        first = f" ({len(skipped)} skipped, first: {skipped[0]})" if skipped else ""
        raise SourceError(f"{printable(folder)}: no readable file in this folder{first}")
    warnings += skipped


def bytes_below(folder: str, *, max_bytes: int) -> int:
    """Bytes of the files of a folder that are not skipped, as far as their sizes and beginnings show."""
    sizes = {path: os.path.getsize(path) for path in _files_below(folder, []) if os.path.exists(path)}
    return sum(size for path, size in sizes.items() if size <= max_bytes and _seems_readable(path))


def _seems_readable(path: str) -> bool:
    """Whether what a file begins with speaks against no reader."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(_BEGINNING_BYTES)
    except OSError:
        return False
    return kind_of(beginning, path) != "text" or may_be_text(beginning)


def _files_below(folder: str, skipped: list[str]) -> list[str]:
    """Files that are not hidden, sorted by folder and name, but for those of memories.

    Links to folders are not followed.
    """
    paths: list[str] = []

    def note(error: OSError) -> None:
        skipped.append(f"{printable(str(error.filename))}: cannot be read, {reason(error)} (skipped)")

    for parent, folder_names, file_names in os.walk(folder, onerror=note):
        entered = []
        for name in sorted(folder_names + file_names):
            path = os.path.join(parent, name)
            is_folder = name in folder_names
            if name.startswith("."):
                skipped.append(f"{printable(path)}: hidden (skipped)")
            elif is_folder and os.path.islink(path):
                skipped.append(f"{printable(path)}: link to a folder (skipped)")
            elif is_folder and (is_memory(path) or is_bare(path)):
                skipped.append(f"{printable(path)}: a memory (skipped)")
            elif is_folder:
                entered.append(name)
            elif os.path.exists(path) and not os.path.isfile(path):
                skipped.append(f"{printable(path)}: no regular file (skipped)")
            else:
                paths.append(path)
        folder_names[:] = entered
    return sorted(paths, key=lambda path: PurePath(path).parts)


def _identity(source: str) -> str:
    return source if source == STDIN else os.path.realpath(source.replace("\0", ""))


def _parts(source: str, document: Document) -> tuple[str, ...]:
    return (document.name,) if source == STDIN else PurePath(os.path.abspath(source)).parts


def _uniquely_named(named: list[_Named]) -> list[Document]:
    """Adds parent folders until no two names agree; full paths never do."""
    while True:
        uses = Counter(item.name for item in named)
        longer = [
            replace(item, num_parts=item.num_parts + 1)
            if uses[item.name] > 1 and item.num_parts < len(item.parts)
            else item
            for item in named
        ]
        if longer == named:
            return [replace(item.document, name=item.name) for item in named]
        named = longer
