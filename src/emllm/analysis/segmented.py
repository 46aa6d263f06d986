"""A text that a language model has read, with its surprise and the events it was cut into.

This is the one record that everything shown to a person is made of: plain text, picture, web page and JSON.
The module does not know models, segmenters, files or how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from emllm.errors import InputError

#: Digits kept in JSON: a millionth of a nat, less than float32 logits carry.
JSON_DIGITS = 6


@dataclass(frozen=True)
class TextEvent:
    """One event: the tokens ``[start, stop)`` of a text and how surprising they were.

    `event_idx` counts from 0 in reading order. Surprise is in nats, over the tokens whose surprise is known;
    NaN where none is.
    """

    event_idx: int
    start: int
    stop: int
    text: str
    mean_surprise: float
    max_surprise: float

    @property
    def num_tokens(self) -> int:
        """Length of the event in tokens."""
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class SegmentedText:
    """A document as the model's tokens, the surprise of each and the first tokens of its events.

    Attributes:
        document: name of the text, for titles.
        model: name of the model that read it.
        pieces: text of each token; joined they are the document. A token may have no text of its own (a
            character of several tokens belongs to one of them).
        surprise: nats of each token; NaN where unknown, as for the first token.
        threshold: nats above which a token begins an event; NaN where there is none.
        boundaries: indices of the first token of each event, ascending, the first one 0.
        settings: what the segmentation was made with, JSON values only.

    Raises:
        InputError: lengths that differ (checked here, so the annotations say ``_T``), boundaries that do not
            ascend from 0, infinite surprise, no token.
    """

    document: str
    model: str
    pieces: Sequence[str]
    surprise: Float[np.ndarray, " _T"]
    threshold: Float[np.ndarray, " _T"]
    boundaries: Sequence[int]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_tokens(len(self.pieces), self.surprise, threshold=self.threshold)
        _check_boundaries(self.boundaries, len(self.pieces))

    @property
    def num_tokens(self) -> int:
        """Length of the text in tokens."""
        return len(self.pieces)

    @cached_property
    def text(self) -> str:
        """The whole document."""
        return "".join(self.pieces)

    @cached_property
    def events(self) -> tuple[TextEvent, ...]:
        """The events in reading order; their spans partition the tokens, their texts the document."""
        stops = [*self.boundaries[1:], self.num_tokens]
        return tuple(
            TextEvent(
                event_idx,
                int(start),
                int(stop),
                "".join(self.pieces[start:stop]),
                *mean_and_max(self.surprise[start:stop]),
            )
            for event_idx, (start, stop) in enumerate(zip(self.boundaries, stops, strict=True))
        )

    def most_surprising(self, number: int) -> tuple[TextEvent, ...]:
        """The events of the highest mean surprise, the highest first; fewer where surprise is unknown."""
        known = [event for event in self.events if event.mean_surprise == event.mean_surprise]
        return tuple(sorted(known, key=lambda event: -event.mean_surprise)[:number])

    def opening(self, event_idx: int, *, max_chars: int) -> str:
        """The first words of an event on one line; a word that it begins inside of is marked by ``…``."""
        event = self.events[event_idx]
        line = " ".join(event.text.split())
        before = self.events[event_idx - 1].text[-1:] if event_idx else ""
        if before.isalnum() and event.text[:1].isalnum():
            line = f"…{line}"
        return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"

    def to_json(self) -> dict[str, Any]:
        """JSON values of the text: ``tokens``, ``events``, ``surprise`` and ``settings``; unknown is None.

        An event's ``surprise`` is its mean, in nats.
        """
        return {
            "tokens": self.num_tokens,
            "events": [
                {
                    "start": event.start,
                    "stop": event.stop,
                    "text": event.text,
                    "surprise": _number(event.mean_surprise),
                }
                for event in self.events
            ],
            "surprise": [_number(nats) for nats in self.surprise.tolist()],
            "settings": dict(self.settings),
        }


def mean_and_max(surprise: Float[np.ndarray, " T"]) -> tuple[float, float]:
    """Mean and maximum of the known values, in nats; NaN where none is known."""
    known = surprise[~np.isnan(surprise)].astype(np.float64)
    return (float(known.mean()), float(known.max())) if known.size else (float("nan"), float("nan"))


def _number(nats: float) -> float | None:
    return None if nats != nats else round(nats, JSON_DIGITS)


def _check_tokens(
    num_tokens: int, surprise: Float[np.ndarray, " _T"], *, threshold: Float[np.ndarray, " _T"]
) -> None:
    if num_tokens == 0:
        raise InputError("a segmented text needs at least 1 token, got 0")
    for name, values in (("surprise", surprise), ("threshold", threshold)):
        if values.shape != (num_tokens,):
            raise InputError(f"{name} must have shape ({num_tokens},) like the tokens, got {values.shape}")
    if (num_infinite := int(np.isinf(surprise).sum())) > 0:
        raise InputError(f"surprise must be finite or NaN, got {num_infinite} infinite values")


def _check_boundaries(boundaries: Sequence[int], num_tokens: int) -> None:
    if len(boundaries) == 0 or boundaries[0] != 0:
        raise InputError(f"the first boundary must be token 0, got {list(boundaries[:1])}")
    for boundary, following in zip(boundaries, [*boundaries[1:], num_tokens], strict=True):
        if following <= boundary:
            raise InputError(
                f"boundaries must ascend and stay below {num_tokens}, got {boundary} before {following}"
            )
