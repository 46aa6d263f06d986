"""EpisodicMemory: the memory of a sequence that knows its documents, its conversation and its home.

What is read and asked is one sequence of tokens (`memory.sequence`); here are the documents and questions
that it is made of, and the folder that keeps it, if one does. This module does not know models, tokenizers or
files.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from emllm.attention.geometry import ModelGeometry
from emllm.config import MemoryConfig
from emllm.dims import Logits, Surprise, TokenIds
from emllm.errors import InputError, StoreError
from emllm.machine import uninterrupted
from emllm.memory.cutting import PieceOf
from emllm.memory.events import Event
from emllm.memory.forgetting import Forgotten
from emllm.memory.sequence import SequenceMemory
from emllm.store.contents import DocumentRecord

Reader = Callable[["EpisodicMemory", Any, str | None, Any], "list[DocumentRecord]"]


class Home(Protocol):
    """Where a memory is kept for good."""

    @property
    def path(self) -> Path:
        """Of its folder."""
        ...

    def check_writable(self) -> None:
        """Refuse where nothing can be added, before anything is computed.

        Raises:
            StoreError: it is closed, or open for reading only.
        """
        ...

    def committed(self, memory: EpisodicMemory) -> None:
        """A chunk was committed."""
        ...

    def flush(self, memory: EpisodicMemory) -> None:
        """Everything committed is durable when this returns."""
        ...

    def verify(self) -> list[str]:
        """What is wrong with it."""
        ...

    def forget(self, memory: EpisodicMemory, name: str) -> Forgotten:
        """A document is gone for good when this returns."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class ClosedHome:
    """The folder of a memory that was closed: nothing is kept there any more, so nothing is read either.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_writable(self) -> NoReturn:
        """Refuse.

        Raises:
            StoreError: always.
        """
        raise StoreError(f"{self.path}: is closed; open it again")

    def committed(self, memory: EpisodicMemory) -> None:
        """Refuse, as `check_writable` does."""
        self.check_writable()

    def flush(self, memory: EpisodicMemory) -> None:
        """Refuse, as `check_writable` does."""
        self.check_writable()

    def verify(self) -> list[str]:
        """Refuse, as `check_writable` does."""
        self.check_writable()

    def forget(self, memory: EpisodicMemory, name: str) -> Forgotten:
        """Refuse, as `check_writable` does."""
        self.check_writable()

    def close(self) -> None:
        """It is."""


class EpisodicMemory(SequenceMemory):
    """The memory of one sequence of documents and questions, for one model.

    Args:
        geometry: what the memory must know of the model.
        config: settings; what is open is resolved from the geometry.
        piece_of: text of a token id, needed by the `sentence` segmenter only.
        is_stored: sealed tokens lie in files, and pass through bounded tiers.
    """

    def __init__(
        self,
        geometry: ModelGeometry,
        config: MemoryConfig | None = None,
        *,
        piece_of: PieceOf | None = None,
        is_stored: bool = False,
    ) -> None:
        super().__init__(geometry, config, piece_of=piece_of, is_stored=is_stored)
        self.documents: list[DocumentRecord] = []
        #: Where the conversation stands: `empty`, `opened`, `documents` or `answered`.
        self.dialogue = "empty"
        self._dialogue_before = "empty"
        #: Runs the model over a source; set by the `EpisodicLM` that made this memory.
        self.reader: Reader | None = None
        #: The model whose keys and values these are, as long as it lives; None: not told.
        self.model: weakref.ref[Any] | None = None
        #: Read by this process, and how long that took.
        self.read_tokens = 0
        self.read_seconds = 0.0
        self.home: Home | None = None

    def read(
        self, source: Any, *, name: str | None = None, progress: Callable[[Any], None] | None = None
    ) -> list[DocumentRecord]:
        """Read documents with the model that made this memory.

        Args:
            source: a `Path` to a file or folder, a `Document`, or the text itself as a `str`.
            name: of a text; files have their own.
            progress: called after each chunk with a `ReadProgress`.

        Returns:
            Where the documents are in the log.

        Raises:
            SourceError: the source cannot be read, or will not fit.
            InputError: this memory was not made by an `EpisodicLM`.
        """
        if self.reader is None:
            raise InputError("this memory has no model to read with; make it with lm.memory()")
        return self.reader(self, source, name, progress)

    def begin_chunk(self, token_ids: TokenIds) -> None:
        """As in any sequence; what its home cannot keep is not begun."""
        if self.home is not None:
            self.home.check_writable()
        super().begin_chunk(token_ids)

    @torch.no_grad()
    def commit(self, token_ids: TokenIds, logits: Logits) -> None:
        """As in any sequence; where this memory has a home, the chunk is on its way there afterwards.

        Ctrl-C waits until the chunk is whole.
        """
        with uninterrupted():
            super().commit(token_ids, logits)
        if self.home is not None:
            self.home.committed(self)

    def _cut(self, token_ids: TokenIds, chunk_surprise: Surprise, logits: Logits, *, first: int) -> list[int]:
        """What the chunk made final; events also end where a document begins and ends."""
        boundaries: list[int] = []
        document = self.document_being_read
        stop = first + len(token_ids)
        if document is not None and not document.stop == first < stop <= document.start + document.num_tokens:
            document = None  # these tokens are not of it
        if document is not None and document.start == first:
            boundaries += self._cutter.restart(self._key_graph)
        boundaries += super()._cut(token_ids, chunk_surprise, logits, first=first)
        if document is not None:
            self.documents[-1] = document = dataclasses.replace(document, stop=self.num_tokens)
            if document.stop == document.start + document.num_tokens:
                boundaries += self._cutter.restart(self._key_graph)
        return boundaries

    @property
    def document_being_read(self) -> DocumentRecord | None:
        """The last document, if not all of it was read yet and no question came in between."""
        if not self.documents or self.dialogue == "answered":
            return None
        last = self.documents[-1]
        return last if last.stop < last.start + last.num_tokens else None

    def begin_document(self, record: DocumentRecord) -> None:
        """From now on, what is read is this document, until all its tokens are."""
        self.check_whole()
        if self.home is not None:
            self.home.check_writable()
        self._dialogue_before = self.dialogue
        self._log.close_unit()
        self.documents.append(record)
        self.dialogue = "documents"

    def drop_document_without_tokens(self) -> None:
        """Undo `begin_document` where nothing of the document was committed."""
        document = self.document_being_read
        if document is not None and document.stop == document.start:
            self.documents.pop()
            self.dialogue = self._dialogue_before

    def events(self) -> list[Event]:
        """All events in time order; the last one is still open and may be short."""
        spans = self._events.spans(0, len(self._events)).tolist()
        if self._events.open_start < self.num_tokens:
            spans.append([self._events.open_start, self.num_tokens])
        known = self.surprise()
        return [
            Event(start, stop, mean_surprise(known[start:stop]), self._document_at(start))
            for start, stop in spans
        ]

    def event(self, event_idx: int) -> Event:
        """One closed event by its index."""
        start, stop = int(self._events.starts[event_idx]), int(self._events.stops[event_idx])
        return Event(start, stop, mean_surprise(self.surprise(start, stop)), self._document_at(start))

    def place(self, token_idx: int) -> tuple[str, float] | None:
        """The document that a token belongs to, and where in it, from 0 to 1; None between documents."""
        for document in self.documents:
            if document.start <= token_idx < document.stop:
                return document.name, (token_idx - document.start) / (document.stop - document.start)
        return None

    def texts_from(self, token: int) -> list[tuple[DocumentRecord | None, list[int]]]:
        """What was read from a token on, and not forgotten: documents, and the tokens between them."""
        edges = {token, self.num_tokens}
        edges.update(edge for one in self.documents for edge in (one.start, one.stop) if edge >= token)
        edges.update(int(edge) for edge in self.holes.reshape(-1) if edge >= token)
        texts = []
        for start, stop in pairwise(sorted(edges)):
            is_hole = any(low <= start < high for low, high in self.holes)
            document = next((one for one in self.documents if one.start <= start < one.stop), None)
            if not is_hole:
                texts.append((document, self.token_ids(start, stop).tolist()))
        return texts

    def _document_at(self, token_idx: int) -> str | None:
        place = self.place(token_idx)
        return None if place is None else place[0]

    def fork(self) -> Self:
        """A memory that begins with everything in this one; what either goes on to read stays its own."""
        child = super().fork()
        child.documents = list(self.documents)
        child.home = None
        child.dialogue, child.reader, child.model = self.dialogue, self.reader, self.model
        child._dialogue_before = self._dialogue_before
        child.read_tokens, child.read_seconds = self.read_tokens, self.read_seconds
        return child

    def become(self, other: EpisodicMemory) -> None:
        """Be another memory of the same model and settings from now on, for the same reader."""
        own = {name: getattr(self, name) for name in ("reader", "model", "read_tokens", "read_seconds")}
        self.__dict__.update(other.__dict__ | own)

    def flush(self) -> None:
        """Make what was committed durable, where this memory has a home; it happens by itself at chunks.

        Raises:
            StoreError: the disk is full or fails; nothing that was durable is lost.
        """
        if self.home is not None:
            self.check_whole()
            self.home.flush(self)

    def close(self) -> None:
        """Flush, and let go of the folder that the memory lives in; without one nothing happens.

        Nothing can be added to it afterwards. Of a memory that is not whole (`check_whole`), the folder keeps
        what was durable before.
        """
        if self.home is not None and not isinstance(self.home, ClosedHome):
            home = self.home
            try:
                if not self._is_torn:
                    home.flush(self)
            finally:
                self.home = ClosedHome(home.path)
                home.close()

    def verify(self) -> list[str]:
        """Everything that is wrong with the folder that the memory lives in, one line each; reads all of it.

        Without a folder there is nothing that could be.
        """
        if self.home is None:
            return []
        self.flush()
        return self.home.verify()

    def forget(self, name: str) -> Forgotten:
        """Forget a document for good: its keys, values, tokens, event keys and name.

        What was read after it was computed with it in view, and stays so; the answer names those documents.

        Raises:
            InputError: this memory lives in RAM alone, or holds no document of that name.
            StoreError: it is open for reading only, somebody else reads it, or the disk fails.
        """
        if self.home is None:
            raise InputError("only a memory in a folder can forget a document; this one lives in RAM")
        self.check_whole()
        return self.home.forget(self, name)

    def __enter__(self) -> EpisodicMemory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def mean_surprise(values: NDArray[np.float32]) -> float:
    """Mean of the known values, in nats; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
