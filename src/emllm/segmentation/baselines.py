"""Boundaries that need no model: a grid, chance, and sentences; and what every segmenter has to be told.

Flags of positions are functions of absolute positions, and sentences a state machine over characters, so none
depends on how a text is chunked. Flags are only proposals: sizes are kept, and refinement done, by
`segmenter`.

This module does not know logits or keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt64

from emllm.config import MemoryConfig

Flags = Bool[np.ndarray, " T"]
#: Flags of so many tokens from an absolute position on.
PositionFlags = Callable[[int, int], Flags]

#: What the signal of each segmenter is made of: the logits, the tokens' positions, or their text.
NEEDS: Mapping[str, str] = {
    "surprise": "logits",
    "kl": "logits",
    "fixed": "positions",
    "random": "positions",
    "sentence": "text",
}


def fixed_flags(first: int, num_tokens: int, *, start: int, every_tokens: int) -> Flags:
    """A grid from the first token after the sinks: the paper's F, and with refinement FM and FC.

    **Deviation.** In the released code the grid begins anew with each chunk.

    Args:
        first: absolute position of the first of the tokens.
        num_tokens: how many.
        start: first token after the sinks, where the first event begins.
        every_tokens: width of the grid.
    """
    distance = np.arange(first, first + num_tokens) - start
    return (distance > 0) & (distance % every_tokens == 0)


def random_flags(first: int, num_tokens: int, *, mean_tokens: float, seed: int = 0) -> Flags:
    """Independent chance at every token, one in `mean_tokens`.

    Whether a token is drawn is a hash of its absolute position and the seed (SplitMix64), so the same text
    has the same boundaries in any chunking and after any interruption.

    **Deviation.** The released code draws ten indices a chunk, and each chunk's first token.
    """
    drawn = _hash(np.arange(first, first + num_tokens, dtype=np.uint64), seed=seed)
    return (drawn >> np.uint64(11)) * 2.0**-53 < 1.0 / mean_tokens


def _fixed(config: MemoryConfig, start: int) -> PositionFlags:
    """The grid of a configuration: `max_event_tokens`, or half of it where boundaries are refined.

    A boundary that moved back lies further from the next grid point than the grid is wide. On the full grid
    each move would be followed by a forced cut, which is not refined.
    """
    every = config.max_event_tokens if config.refine == "none" else max(1, config.max_event_tokens // 2)
    return partial(fixed_flags, start=start, every_tokens=every)


def _random(config: MemoryConfig, start: int) -> PositionFlags:
    return partial(random_flags, mean_tokens=(config.min_event_tokens + config.max_event_tokens) / 2)


#: The segmenters that need positions only: from a configuration and the first token after the sinks.
POSITION_FLAGS: Mapping[str, Callable[[MemoryConfig, int], PositionFlags]] = {
    "fixed": _fixed,
    "random": _random,
}

_MARKS = frozenset(".!?…")
_WIDE_MARKS = frozenset("。！？")
_CLOSERS = frozenset("\"')]}»”’」』）")
_TITLES = frozenset({"mr", "mrs", "ms", "dr", "prof", "st", "vs", "cf", "fig", "eq", "vol", "pp"})


@dataclass(frozen=True)
class SentenceState:
    """Where the reading of a text stands between two characters.

    Attributes:
        word: the letters just read, as many as an abbreviation has; empty after anything else.
        has_ended: an end mark was read, and nothing since but closing quotes, brackets and blank space.
        is_open: what follows may begin a sentence: blank space came after the mark, or it needs none.
        has_blank: blank space came after the mark, so a quote now opens and does not close.
        newlines: line ends in the present blank space; two begin a sentence in any case, as a text does.
    """

    word: str = ""
    has_ended: bool = False
    is_open: bool = False
    has_blank: bool = False
    newlines: int = 2


class SentenceStarts:
    """Flags tokens that hold the first character of a sentence.

    The rule: a sentence ends at ``. ! ? …``, possibly followed by closing quotes or brackets, and then blank
    space; at ``。！？`` without blank space; or at an empty line. The next one begins at the next character
    that is not blank. A full stop after a single capital letter or a common title (``Mr.``) ends nothing,
    nor does a mark that is followed by a lower-case letter.

    **Deviation.** The paper takes the sentences of a spaCy model, tokenised one by one. This rule needs no
    model, follows the tokens that were read, and is causal.

    `extend` alone writes.
    """

    def __init__(self, state: SentenceState | None = None) -> None:
        self._state = state or SentenceState()

    def extend(self, pieces: Sequence[str]) -> Flags:
        """Flags of the next tokens, given the piece of text that each stands for."""
        flags = np.zeros(len(pieces), dtype=np.bool_)
        for token_idx, piece in enumerate(pieces):
            for character in piece:
                is_first, self._state = _read(self._state, character)
                flags[token_idx] |= is_first
        return flags

    def copy(self) -> SentenceStarts:
        """An independent continuation from here."""
        return SentenceStarts(self._state)

    def state(self) -> dict[str, Any]:
        """Where the reading stands, for JSON."""
        return dataclasses.asdict(self._state)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SentenceStarts:
        """The continuation of a reading whose `state` was kept."""
        return cls(SentenceState(**state))


def _read(state: SentenceState, character: str) -> tuple[bool, SentenceState]:
    """Whether this character begins a sentence, and where the reading stands after it."""
    if character.isspace():
        newlines = state.newlines + (character == "\n")
        is_open = state.is_open or state.has_ended
        return False, SentenceState(
            has_ended=state.has_ended, is_open=is_open, has_blank=state.has_ended, newlines=newlines
        )
    is_paragraph = state.newlines >= 2
    if character in _CLOSERS and state.has_ended and not state.has_blank:
        return False, dataclasses.replace(state, word="", newlines=0)
    if character in _WIDE_MARKS:
        return is_paragraph, SentenceState(has_ended=True, is_open=True, newlines=0)
    if character in _MARKS:
        has_ended = character != "." or not _is_abbreviation(state.word)
        return is_paragraph, SentenceState(has_ended=has_ended, newlines=0)
    is_first = is_paragraph or (state.is_open and not character.islower())
    word = (state.word + character)[-5:] if character.isalpha() else ""
    return is_first, SentenceState(word=word, newlines=0)


def _is_abbreviation(word: str) -> bool:
    return (len(word) == 1 and word.isupper() and word != "I") or word.lower() in _TITLES


def _hash(values: UInt64[np.ndarray, " T"], *, seed: int) -> UInt64[np.ndarray, " T"]:
    """SplitMix64 of each value, on a stream that the seed chooses; products wrap around."""
    stream = _mix(np.array([seed % 2**64], dtype=np.uint64))
    return _mix((values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + stream)


def _mix(values: UInt64[np.ndarray, " T"]) -> UInt64[np.ndarray, " T"]:
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
