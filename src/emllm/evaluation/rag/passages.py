"""Passages: spans of a text that tile it, of so many words or of the model's events.

The fixed ones are those of the paper's RAG (300 words), the events those of its RAG-S. A word is what stands
between spaces; a Chinese or Japanese character counts as one, and so does every 100 characters of a run
without spaces. This module does not know models, questions or budgets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from emllm.errors import ConfigError

#: Words of a fixed passage (EM-LLM, appendix A.1, after Li et al., 2024).
PASSAGE_WORDS = 300
#: Words that events are joined to: an event of a few tokens means little alone.
EVENT_WORDS = 50

_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\s{_CHARACTERS}]{{1,100}}")


@dataclass(frozen=True)
class Passage:
    """Characters ``[start, stop)`` of a text."""

    start: int
    stop: int
    text: str

    def first_words(self, num_words: int) -> Passage:
        """The beginning of the passage; of no words, or of more than it has, nothing."""
        stops = [word.end() for word in _WORD.finditer(self.text)]
        end = stops[num_words - 1] if 0 < num_words <= len(stops) else 0
        return Passage(self.start, self.start + end, self.text[:end])

    def stripped(self) -> Passage:
        """The passage without the spaces around it."""
        start = self.start + len(self.text) - len(self.text.lstrip())
        text = self.text.strip()
        return Passage(start, start + len(text), text)

    @property
    def num_words(self) -> int:
        """Length in words."""
        return num_words(self.text)


def num_words(text: str) -> int:
    """Length of a text in words."""
    return sum(1 for _ in _WORD.finditer(text))


def fixed_passages(text: str, *, words: int = PASSAGE_WORDS) -> list[Passage]:
    """Passages of so many words, the last one of what is left; together they are the text.

    Raises:
        ConfigError: less than one word.
    """
    if words < 1:
        raise ConfigError(f"passage_words must be >= 1, got {words}")
    starts = [word.start() for word in _WORD.finditer(text)]
    return _spans(text, starts[words::words])


def event_passages(events: Sequence[str], *, least_words: int = EVENT_WORDS) -> list[Passage]:
    """The events' texts, neighbours joined until there are so many words; what is left joins the last one.

    Args:
        events: texts of the events in order, which together are the text.
    """
    text = "".join(events)
    cuts: list[int] = []
    start = 0
    for stop in accumulate(len(event) for event in events):
        if num_words(text[start:stop]) >= least_words:
            cuts.append(start := stop)
    return _spans(text, cuts[:-1])  # what comes after the last cut is too short, or nothing


def _spans(text: str, cuts: Sequence[int]) -> list[Passage]:
    """The text cut at ascending places within it; one without words has no passage."""
    if not text.strip():
        return []
    edges = [0, *cuts, len(text)]
    return [Passage(start, stop, text[start:stop]) for start, stop in pairwise(edges)]
