"""Reading documents into memories with a model: each one once, and on from where it was interrupted.

This module does not know how a question is answered, nor where a memory is kept.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emllm.attention.geometry import ModelGeometry
from emllm.documents.document import Document, checked_text
from emllm.documents.load import load_all
from emllm.errors import InputError
from emllm.machine import give_back_freed_memory
from emllm.memory import EpisodicMemory
from emllm.models.chat import ChatFormat
from emllm.reading import ProgressCallback, ReadProgress, check_fits, read_tokens
from emllm.store.contents import DocumentRecord

#: What `EpisodicMemory.read` takes: a path to a file or folder, or text (a `str`), or a document.
Source = Path | str | Document

#: Characters from which tokenising takes so much RAM that it is given back before anything is read.
LONG_TEXT = 1_000_000


@dataclass(frozen=True)
class DocumentReading:
    """A model that reads documents into memories.

    Attributes:
        cache_of: the cache that runs the model through a memory.
        geometry: of the model.
        chat_format: where its template puts documents.
    """

    model: Any
    cache_of: Callable[[EpisodicMemory], Any]
    geometry: ModelGeometry
    chat_format: Callable[[], ChatFormat]

    def read(
        self, memory: EpisodicMemory, source: Source, name: str | None, progress: ProgressCallback | None
    ) -> list[DocumentRecord]:
        """Read documents into a memory; see `EpisodicMemory.read`."""
        if memory.dialogue == "answered":
            raise InputError(
                "a memory in which questions were answered cannot read documents; fork it before asking"
            )
        documents = documents_of(source, name)
        begun = memory.document_being_read
        # The rest of one that was begun comes first: nothing else can be read before.
        order = sorted(
            range(len(documents)), key=lambda i: begun is None or begun.sha256 != documents[i].sha256
        )
        stored = {}
        for i in order:
            if memory.home is None:
                check_fits(len(documents[i].text.encode()), self.geometry, name=documents[i].name)
            stored[i] = self._read_document(memory, documents[i], progress)
        return [stored[i] for i in range(len(documents))]

    def open(self, memory: EpisodicMemory) -> None:
        """Read what the chat template puts before the first words, or the rest of it, once."""
        if memory.dialogue not in ("empty", "opened"):
            return
        opening = self.chat_format().opening
        if memory.dialogue == "opened":
            opening = opening[memory.num_tokens :]
            if not opening:
                return
        memory.dialogue = "opened"  # first, so that it is written with the tokens
        chunk = memory.config.chunk_tokens
        try:
            read_tokens(self.model, self.cache_of(memory), opening, chunk_tokens=chunk)
        except BaseException:
            memory.dialogue = "opened" if memory.num_tokens else "empty"
            raise

    def _read_document(
        self, memory: EpisodicMemory, document: Document, progress: ProgressCallback | None
    ) -> DocumentRecord:
        """Read a document, or the rest of it; one that was read already is not read again.

        Raises:
            InputError: another document was begun and not finished.
        """
        begun = memory.document_being_read
        for known in memory.documents:
            if known is not begun and known.name == document.name and known.sha256 == document.sha256:
                return known
        if begun is None:
            self.open(memory)
            token_ids = self._token_ids(document, is_first=memory.dialogue == "opened")
            memory.begin_document(
                DocumentRecord(
                    name=document.name,
                    start=memory.num_tokens,
                    stop=memory.num_tokens,
                    num_tokens=len(token_ids),
                    sha256=document.sha256,
                    kind=document.kind,
                    num_bytes=document.num_bytes,
                    read_seconds=0.0,
                )
            )
        elif begun.sha256 == document.sha256:
            token_ids = self._rest(memory, begun, document)
        else:
            raise InputError(
                f"{begun.name} was read up to token {begun.stop - begun.start:,} of {begun.num_tokens:,}; "
                f"read the rest of it, or forget it, before {document.name}"
            )
        chunk = memory.config.chunk_tokens
        try:
            read_tokens(
                self.model,
                self.cache_of(memory),
                token_ids,
                chunk_tokens=chunk,
                progress=counting(memory, progress),
            )
        finally:
            memory.drop_document_without_tokens()
        memory.flush()
        return memory.documents[-1]

    def _token_ids(self, document: Document, *, is_first: bool) -> list[int]:
        token_ids = self.chat_format().document(document.text, is_first=is_first)
        if len(document.text) > LONG_TEXT:
            give_back_freed_memory()  # most of 600 bytes a token
        return token_ids

    def _rest(self, memory: EpisodicMemory, begun: DocumentRecord, document: Document) -> list[int]:
        """The ids of a document that come after those that were read.

        Whether it was the first of a chat is known from them: those before it may have been forgotten since.

        Raises:
            InputError: its text makes other ids now.
        """
        read = memory.token_ids(begun.start, begun.stop).tolist()
        is_alone = len(memory.documents) == 1
        for is_first in (is_alone, not is_alone):
            token_ids = self._token_ids(document, is_first=is_first)
            if token_ids[: len(read)] == read and len(token_ids) == begun.num_tokens:
                return token_ids[len(read) :]
        raise InputError(
            f"{document.name}: the {len(read):,} tokens that were read of it are not those of its text now; "
            "forget it, and read it anew"
        )


def documents_of(source: Source, name: str | None) -> list[Document]:
    """The documents of a file or folder, or a text as one.

    What a folder holds and is not read is warned of (`UserWarning`).

    Raises:
        InputError: it is neither, or the text is blank or not valid Unicode.
    """
    if isinstance(source, Path):
        loaded = load_all([source])
        for warning in loaded.warnings:
            warnings.warn(warning, stacklevel=4)  # where `EpisodicMemory.read` was called
        return loaded.documents
    document = source if isinstance(source, Document) else Document(name or "text", source)
    checked_text(document.text, "text to read")
    return [document]


def counting(memory: EpisodicMemory, progress: ProgressCallback | None) -> ProgressCallback:
    """A callback that adds what is read to the memory's figures, and then calls another."""
    tokens, seconds = memory.read_tokens, memory.read_seconds
    own_seconds = memory.documents[-1].read_seconds

    def count(now: ReadProgress) -> None:
        memory.read_tokens, memory.read_seconds = tokens + now.num_read, seconds + now.seconds
        memory.documents[-1] = dataclasses.replace(
            memory.documents[-1], read_seconds=own_seconds + now.seconds
        )
        if progress is not None:
            progress(now)

    return count
