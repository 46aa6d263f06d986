"""Book text as a background of any length, and sentences planted in it.

The books of a folder follow one another, round and round. They are cut into pieces of a few paragraphs, and
the tokens of a piece are counted once, when the piece is first wanted: ten million tokens cost one count of
the books, whatever the number of samples. A text put together of pieces is counted as the sum of its pieces,
each with one token more for its seam, so a wanted length is met from below.

This module does not know what is planted or what is asked about it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random

from emllm.errors import SourceError
from emllm.evaluation.suites.files import text_names, text_of
from emllm.evaluation.suites.needs import SampleNeeds

_PIECE_CHARS = 1200
_ROOM_LEFT = 50
_PARAGRAPH = re.compile(r".+?(?:\n\s*\n|\Z)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|\Z)")

Count = Callable[[str], int]


@dataclass(frozen=True)
class Piece:
    """A few paragraphs with the white space after them, and their tokens, one for the seam among them."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Planted:
    """A background with sentences in it.

    Attributes:
        text: the whole.
        starts: first character of each sentence in `text`, in the order in which they were given.
        depths: share of the text before each sentence, from 0 to 1, in tokens as the pieces count them.
    """

    text: str
    starts: tuple[int, ...]
    depths: tuple[float, ...]


def book_names(needs: SampleNeeds, folder: str) -> list[str]:
    """The texts of a subfolder of the data folder, as `text_of` wants them named.

    Raises:
        SourceError: no data folder, or no text in that subfolder.
    """
    if needs.data is None:
        raise SourceError(
            f"{folder} is a folder of books: it is read from a data folder, none was given (--data DIR)"
        )
    return text_names(needs.data, folder)


class Background:
    """The books of a folder as pieces of known length; it reads and counts what is wanted, once."""

    def __init__(self, data: Path, folder: str, count_tokens: Count) -> None:
        self._needs = SampleNeeds(data, count_tokens)
        self._names = text_names(data, folder)
        self._texts: dict[int, list[str]] = {}
        self._counted: dict[tuple[int, int], Piece] = {}

    def pieces(self, start: Random | None = None) -> Iterator[Piece]:
        """Pieces without end: from the first book, or from a place that `start` draws.

        Raises:
            SourceError: a book cannot be read, or all are empty.
        """
        book = start.randrange(len(self._names)) if start else 0
        first = start.randrange(len(self._book(book)) or 1) if start else 0
        empty = 0
        while empty < len(self._names):
            texts = self._book(book)
            for idx in range(first, len(texts)):
                yield self._piece(book, idx)
            empty = 0 if texts else empty + 1
            book, first = (book + 1) % len(self._names), 0
        raise SourceError("the books of the background are empty")

    def _book(self, book: int) -> list[str]:
        if book not in self._texts:
            self._texts[book] = split_pieces(text_of(self._needs, self._names[book]))
        return self._texts[book]

    def _piece(self, book: int, idx: int) -> Piece:
        if (book, idx) not in self._counted:
            text = self._texts[book][idx]
            self._counted[book, idx] = Piece(text, self._needs.count_tokens(text) + 1)
        return self._counted[book, idx]


@lru_cache(maxsize=2)
def _background(data: Path, folder: str, count_tokens: Count) -> Background:
    return Background(data, folder, count_tokens)


def background(needs: SampleNeeds, folder: str) -> Background:
    """The background of a folder of books; the same one, with its counts, for every task of a run.

    Raises:
        SourceError: no data folder, or no text in that subfolder.
    """
    book_names(needs, folder)
    assert needs.data is not None
    return _background(needs.data, folder, needs.count_tokens)


def split_pieces(text: str) -> list[str]:
    """A text cut before paragraphs, into pieces of at least some hundred words; joined, they are the text."""
    pieces: list[str] = []
    held = ""
    for match in _PARAGRAPH.finditer(text):
        held += match.group()
        if len(held) >= _PIECE_CHARS:
            pieces.append(held)
            held = ""
    return [*pieces, held] if held.strip() else pieces


def fitting(pieces: Iterator[Piece], tokens: int, count_tokens: Count) -> list[Piece]:
    """The first pieces, of at most `tokens` tokens together; the last is cut after a sentence or a word."""
    taken: list[Piece] = []
    for piece in pieces:
        if piece.tokens > tokens:
            cut = _cut(piece.text, tokens, count_tokens)
            return [*taken, cut] if cut else taken
        taken.append(piece)
        tokens -= piece.tokens
    return taken


def _cut(text: str, tokens: int, count_tokens: Count) -> Piece | None:
    """As many whole sentences of a text as fit, or words where sentences leave much room."""
    found = _longest(text, [match.end() for match in _SENTENCE_END.finditer(text)], tokens, count_tokens)
    if tokens - (found.tokens if found else 0) <= _ROOM_LEFT:
        return found
    return _longest(text, [match.start() for match in re.finditer(r"\s", text)], tokens, count_tokens)


def _longest(text: str, ends: Sequence[int], tokens: int, count_tokens: Count) -> Piece | None:
    """The longest beginning that stops at one of `ends` and fits, by halving."""
    low, high, found = 0, len(ends), None
    while low < high:
        middle = (low + high) // 2
        counted = count_tokens(text[: ends[middle]]) + 1
        if counted <= tokens:
            found, low = Piece(text[: ends[middle]], counted), middle + 1
        else:
            high = middle
    return found


def planting_tokens(sentences: Sequence[str], count_tokens: Count) -> int:
    """Room that sentences take when they are planted: as in a row, each after a space."""
    return count_tokens(" " + " ".join(sentences)) + 1


def planted(pieces: Sequence[Piece], sentences: Sequence[str], depths: Sequence[float]) -> Planted:
    """Sentences after the ends of sentences of the background, near wanted depths.

    `depths` must not fall: the order of the sentences is the order of the text, and those that meet at one
    place follow one another.
    """
    assert list(depths) == sorted(depths)
    pieces = pieces or [Piece("", 1)]
    ends = list(accumulate(piece.tokens for piece in pieces))
    places = [_place(pieces, ends, depth * ends[-1]) for depth in depths]
    written = _Writing()
    starts = []
    last = 0
    for (piece_idx, offset), sentence in zip(places, sentences, strict=True):
        for passed in range(last, piece_idx):
            written.background(pieces[passed].text)
        last = piece_idx
        written.background(pieces[piece_idx].text, stop=offset)
        starts.append(written.sentence(sentence))
    for rest in range(last, len(pieces)):
        written.background(pieces[rest].text)
    return Planted("".join(written.parts), tuple(starts), _reached(pieces, ends, places))


class _Writing:
    """The text as far as it is written; a piece may be given several times, each time to a later place."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._length = 0
        self._piece_chars = 0

    def background(self, piece: str, *, stop: int | None = None) -> None:
        """The piece up to `stop`, from where it was left; without it, to its end."""
        self._add(piece[self._piece_chars : stop])
        self._piece_chars = 0 if stop is None else stop

    def sentence(self, sentence: str) -> int:
        """Where the sentence starts."""
        self._add(" " if self._length else "")
        start = self._length
        self._add(sentence)
        return start

    def _add(self, text: str) -> None:
        self.parts.append(text)
        self._length += len(text)


def _place(pieces: Sequence[Piece], ends: Sequence[int], wanted: float) -> tuple[int, int]:
    """The piece that holds a wanted token, and the end of a sentence near that token, in characters."""
    idx = min(bisect_right(ends, wanted), len(pieces) - 1)
    share = 1 - (ends[idx] - wanted) / pieces[idx].tokens
    return idx, _boundary(pieces[idx].text, share)


def _reached(
    pieces: Sequence[Piece], ends: Sequence[int], places: Sequence[tuple[int, int]]
) -> tuple[float, ...]:
    """The share of the tokens before each place."""
    shares = []
    for idx, offset in places:
        left = 1 - offset / (len(pieces[idx].text) or 1)
        shares.append(round((ends[idx] - left * pieces[idx].tokens) / ends[-1], 4))
    return tuple(shares)


def _boundary(text: str, share: float) -> int:
    """The end of the sentence nearest to a share of a text; the text's own end where it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return min(ends, key=lambda end: abs(end - share * len(text)), default=len(text.rstrip()))
