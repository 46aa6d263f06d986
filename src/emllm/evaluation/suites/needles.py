"""Many needles of one kind in one text of a book, each asked for by a question of its own.

A text is read once and every question is a fork of that reading, so a cell (a kind at a length) of twenty
needles in a million tokens costs one reading. `needles` in ``[source]`` is the number of needles of a cell;
the run's `num_samples` is not used. A text holds one needle for every `_ROOM` tokens at most: a cell of short
texts has several, each with another passage of the books. The needles of a cell stand at depths that are
spread evenly from 0 to 100 percent, and so do those of one text.

A sentence of a book that holds a needle's subject, answer or place by chance gives way to one of noise.
This module does not know what the needles say or how an answer is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

from emllm.errors import ConfigError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites.filler import NOISE, Filler
from emllm.evaluation.suites.made import (
    EXACT_CHARS,
    Recipe,
    depth_facts,
    fitted,
    planted,
    random_of,
    sample_name,
)
from emllm.evaluation.suites.needle_kinds import KINDS, Kind, Needle
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

LENGTHS = (2048, 8192, 32768, 131_072)
MOST_NEEDLES = 1000

#: Tokens of text for each needle, at least.
_ROOM = 512

#: Below this length the last sentence may be cut, in this many parts: whole ones would leave too much room.
_SHORT_TOKENS, _PARTS = 16_384, 16

#: The tokens of longer texts are extrapolated (`measured`), so a margin keeps them below the wanted length.
_EXTRAPOLATED_TOKENS, _MARGIN = EXACT_CHARS // 5, 0.985

#: No subject, answer or place is longer, in characters.
_RARE_CHARS = 60


def samples(task: Task, needs: SampleNeeds) -> Iterator[Sample]:
    """The texts of each length that hold the needles of a task.

    Raises:
        ConfigError: no such kind, too few or too many needles, or a length without room for them.
        SourceError: the data folder has no such books.
    """
    name, num_needles = task.source.get("kind"), task.source.get("needles", 20)
    if name not in KINDS:
        raise ConfigError(f"task {task.name}: kind must be one of {', '.join(KINDS)}, got {name!r}")
    if not 1 <= num_needles <= MOST_NEEDLES:
        raise ConfigError(f"task {task.name}: needles must be 1 to {MOST_NEEDLES}, got {num_needles}")
    filler = Filler(needs, task.source["haystack"])
    for length in needs.lengths or tuple(task.source.get("lengths", LENGTHS)):
        num_texts = ceil(num_needles / most_needles(KINDS[name], length))
        first = random_of(task, needs, length).randrange(1 << 16)
        for index in range(num_texts)[: needs.limit]:
            random = random_of(task, needs, length, index)
            drawn = KINDS[name].draw(random, len(range(index, num_needles, num_texts)))
            book = _Book(filler, first + index, [rare for needle in drawn for rare in needle.rare])
            text = _Text(task, length, index, drawn, book, share=(index, num_texts))
            yield text.fitted(needs)


def most_needles(kind: Kind, length: int) -> int:
    """How many needles a text of a length holds at most."""
    return max(1, min(kind.most, length // _ROOM))


def even_depths(num_places: int, *, share: tuple[int, int]) -> list[float]:
    """Depths of one of several texts, from 0 to 1: even in each text, and even over all of them.

    Args:
        num_places: of this text.
        share: which text of how many. The first begins at 0, the last ends at 1.
    """
    idx, num_texts = share
    last = num_places * num_texts - 1
    return [(place * num_texts + idx) / last if last else 0.5 for place in range(num_places)]


class _Book:
    """Sentences of the filler from one place on, without what the needles say; each is looked at once.

    Args:
        filler: whose sentences they are.
        first: number of the text with which they begin.
        rare: what none of them may hold, nor two that follow one another.
    """

    def __init__(self, filler: Filler, first: int, rare: Sequence[str]) -> None:
        self.name = filler.name
        self._filler, self._first = filler, first
        self._rare = sorted({word.lower() for word in rare})
        self._sentences: list[str] = []

    def sentences(self, num_sentences: int) -> list[str]:
        """The first sentences."""
        num_known = len(self._sentences)
        if num_sentences > num_known:
            new = self._filler.sentences(num_sentences, first=self._first)[num_known:]
            whole = " ".join([*self._sentences[-1:], *new]).lower()
            self._add(new, [word for word in self._rare if word in whole])
        return self._sentences[:num_sentences]

    def _add(self, new: Sequence[str], held: Sequence[str]) -> None:
        for sentence in new:
            end = self._sentences[-1][-_RARE_CHARS:] if self._sentences else ""
            here = f"{end} {sentence}".lower() if held else ""
            self._sentences.append(NOISE if any(word in here for word in held) else sentence)


class _Text:
    """One text with its needles, which grows around them."""

    def __init__(
        self,
        task: Task,
        length: int,
        index: int,
        needles: Sequence[Needle],
        book: _Book,
        *,
        share: tuple[int, int],
    ) -> None:
        self._task, self._length, self._needles, self._book = task, length, needles, book
        self._name = sample_name(task, length, index)
        self._kind = str(task.source["kind"])
        # The values of one key stand apart: first one of each needle, then the next of each.
        self._sentences = [
            sentence
            for row in zip(*(needle.sentences for needle in needles), strict=True)
            for sentence in row
        ]
        self._depths = even_depths(len(self._sentences), share=share)
        self._parts = _PARTS if length < _SHORT_TOKENS else 1

    def fitted(self, needs: SampleNeeds) -> Sample:
        """The sample of the wanted length, with room for an answer."""
        tokens = self._length - self._task.answer_tokens
        if self._length > _EXTRAPOLATED_TOKENS:
            tokens = int(_MARGIN * tokens)
        return fitted(Recipe(self._make), needs.count_tokens, tokens=tokens)

    def _make(self, num_units: int) -> Sample:
        text = planted(
            self._background(num_units),
            self._sentences,
            self._depths,
            is_line=KINDS[self._kind].is_line,
        )
        before = self._task.split_prompt()[0]
        facts = {"length": self._length, "kind": self._kind, "haystack": self._book.name}
        questions = tuple(self._question(needle, text) for needle in self._needles)
        return Sample(self._name, before, text, questions, facts)

    def _background(self, num_units: int) -> list[str]:
        """Whole sentences, and of a short text a part of one more."""
        num_whole, num_parts = divmod(num_units, self._parts)
        sentences = self._book.sentences(num_whole + bool(num_parts))
        if num_parts:
            words = sentences[-1].split(" ")
            sentences[-1] = " ".join([*words[: len(words) * num_parts // self._parts], "..."])
        return sentences

    def _question(self, needle: Needle, text: str) -> Question:
        return Question(
            self._task.split_prompt(query=needle.query)[1],
            needle.answers,
            query=needle.query,
            answer_begins=needle.answer_begins,
            facts={**depth_facts(text, needle.sentences), "kind": self._kind},
        )
