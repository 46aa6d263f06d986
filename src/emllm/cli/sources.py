"""Documents and models as commands need them: mistakes are found before anything slow begins.

This module does not know what is done with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from emllm.cli.terminal import reading, remark, working
from emllm.errors import InputError, SourceError
from emllm.machine import free_ram_bytes

if TYPE_CHECKING:
    from emllm.documents.document import Document
    from emllm.lm import EpisodicLM
    from emllm.memory import EpisodicMemory

#: Bytes of RAM that a byte of a source may take while it becomes text.
RAM_PER_BYTE = 6


def load_documents(sources: Sequence[str]) -> list[Document]:
    """The documents; what a folder holds and cannot be read is remarked on stderr.

    Raises:
        SourceError: a source cannot be read, or together they are larger than RAM allows, by their sizes.
    """
    from emllm.documents.load import MAX_BYTES, load_all

    most = free_ram_bytes() // RAM_PER_BYTE
    max_bytes = min(MAX_BYTES, most)
    size = sum(_size_of(source, max_bytes) for source in sources)
    if size > most:
        name = sources[0] if len(sources) == 1 else f"{len(sources)} sources"
        raise SourceError(
            f"{name}: {size:,} bytes, more than the {most:,} that the free RAM can hold as text"
        )
    loaded = load_all(sources, max_bytes=max_bytes)
    for warning in loaded.warnings:
        remark(f"emllm: {warning}")
    return loaded.documents


def load_one(source: str, *, command: str) -> Document:
    """The document of a file or of standard input, for a command that takes one.

    Raises:
        InputError: it is a folder.
        SourceError: it cannot be read.
    """
    if os.path.isdir(source):
        raise InputError(f"{source}: a folder; {command} takes one file")
    (document,) = load_documents([source])
    return document


def _size_of(source: str, max_bytes: int) -> int:
    """Bytes of a file, or of what is read of a folder."""
    from emllm.documents.load import bytes_below

    if os.path.isdir(source):
        return bytes_below(source, max_bytes=max_bytes)
    return os.path.getsize(source) if os.path.isfile(source) else 0


@contextmanager
def opened_lm(model: str, *, device: str, dtype: str) -> Iterator[EpisodicLM]:
    """The model, loaded, with its memory's attention; given back at the end."""
    with working("loading the model"):
        from emllm.lm import EpisodicLM
        from emllm.models.precision import has_products

        lm = EpisodicLM.from_pretrained(model, device=device, dtype=dtype)
    if not lm.geometry.has_memory:
        widest = max(layer.window_tokens or 0 for layer in lm.geometry.layers)
        remark(
            f"emllm: every layer of {model} attends to a window of {widest:,} tokens at most: "
            "nothing from further back is recalled"
        )
    if not has_products(lm.geometry.dtype, lm.geometry.layers[0].device):
        named = str(lm.geometry.dtype).removeprefix("torch.")
        remark(f"emllm: this processor emulates {named}; float32 would be several times as fast")
    with lm:
        yield lm


def read_documents(lm: EpisodicLM, memory: EpisodicMemory, documents: Sequence[Document]) -> None:
    """Read all documents into the memory, with progress on stderr.

    Raises:
        SourceError: together they will not fit.
    """
    from emllm.reading import check_fits

    num_bytes = sum(len(document.text.encode()) for document in documents)
    name = documents[0].name if len(documents) == 1 else f"{len(documents)} documents"
    check_fits(num_bytes, lm.geometry, name=name)
    for number, document in enumerate(documents, start=1):
        place = f" ({number}/{len(documents)})" if len(documents) > 1 else ""
        with reading(f"{document.name}{place}") as progress:
            memory.read(document, progress=progress)
