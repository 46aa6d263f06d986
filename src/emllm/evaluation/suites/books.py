"""Whole books and long parts of them, read for their perplexity: nothing is asked.

After PG-19 (Rae et al. 2019), or any books of the data folder, one part of a book a sample. ``[source]`` says
which: `lengths` in tokens (0: all of a book; a run's own lengths go before), and `starts`, the shares of a
book at which parts begin. A book that is too short for a length has no sample of it.

This module does not know how surprise is measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import PurePosixPath

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.samples import Sample
from emllm.evaluation.suites.background import Piece, book_names, fitting, split_pieces
from emllm.evaluation.suites.files import records, text_of
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

LENGTHS = (16384, 65536)
_ENOUGH = 0.95


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """The parts of every book, book by book, until there are `limit` of each length.

    Raises:
        SourceError: the books are not there, or a record of the hub is no book.
        ConfigError: a length below 0 or a start outside [0, 1).
    """
    lengths = needs.lengths or tuple(task.source.get("lengths", LENGTHS))
    starts = tuple(task.source.get("starts", (0.0,)))
    for start in starts:
        if not 0 <= start < 1:
            raise ConfigError(f"starts of {task.name} must be in [0, 1), got {start}")
    for length in lengths:
        if length < 0:
            raise ConfigError(f"lengths of {task.name} must be >= 0, got {length}")
    found, limit = dict.fromkeys(lengths, 0), inf if needs.limit is None else needs.limit
    for title, text in _books(task, needs):
        whole = _Book(text, needs)
        for length in lengths:
            for start in starts if length else (0.0,):
                if found[length] < limit:
                    for part in _part(title, whole, length=length, start=start):
                        found[length] += 1
                        yield part
        if min(found.values()) >= limit:
            return
    if not any(found.values()):
        raise SourceError(f"task {task.name}: no book has {min(lengths):,} tokens")


class _Book:
    """A book in pieces that are counted once, when they are first wanted."""

    def __init__(self, text: str, needs: SampleNeeds) -> None:
        self.texts = split_pieces(text)
        self.count_tokens = needs.count_tokens
        self._counted: dict[int, Piece] = {}

    def pieces(self, first: int) -> Iterator[Piece]:
        for idx in range(first, len(self.texts)):
            if idx not in self._counted:
                self._counted[idx] = Piece(self.texts[idx], self.count_tokens(self.texts[idx]) + 1)
            yield self._counted[idx]


def _part(title: str, book: _Book, *, length: int, start: float) -> Iterator[Sample]:
    """The part as a sample; none where the book ends before it."""
    pieces = book.pieces(int(start * len(book.texts)))
    part = fitting(pieces, length, book.count_tokens) if length else list(pieces)
    tokens = sum(piece.tokens for piece in part)
    if not part or tokens < _ENOUGH * length:
        return
    sample_id = f"{title}-{length or 'whole'}" + (f"-{start}" if start else "")
    facts = {"length": length or tokens - len(part), "title": title, "start": start}
    yield Sample(sample_id, "", "".join(piece.text for piece in part).rstrip(), (), facts)


def _books(task: Task, needs: SampleNeeds) -> Iterator[tuple[str, str]]:
    """Titles and texts, from the data folder or the hub."""
    if needs.data is not None:
        for name in book_names(needs, task.source["folder"]):
            yield PurePosixPath(name).stem, text_of(needs, name)
        return
    for number, record in enumerate(records(task, needs)):
        if "text" not in record:
            raise SourceError(f"record {number} of {task.name} has no text")
        yield str(record.get("short_book_title", f"book-{number}")), record["text"]
