"""What a question yields: the answer, the events that carried it, and what it cost.

Plain records that know how to become JSON; they do not know models or memories.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Evidence:
    """A passage that carried an answer: a recalled event, or what of the text every layer sees unrecalled.

    Attributes:
        event: index of the event in time order; None of the beginning and the end of the text, which no layer
            ranks.
        start: first token in the log.
        stop: first token after it.
        document: name of the document that it is in, or None.
        position: where in the document it begins, from 0 to 1; None outside documents.
        text: what it says.
        score: standard deviations above the mean event, averaged over the layers; 0 of what is not ranked.
        layers: in how many layers it was recalled.
    """

    event: int | None
    start: int
    stop: int
    document: str | None
    position: float | None
    text: str
    score: float
    layers: int


@dataclass(frozen=True)
class Stats:
    """What reading and answering took.

    Attributes:
        tokens: in the memory, without the question.
        events: in the memory; the latest are in the local window, and not recalled yet.
        read_tokens: read by this process.
        read_seconds: spent reading them.
        tokens_per_second: of that reading.
        answer_tokens: generated.
        answer_seconds: from question to end of answer.
        peak_rss_bytes: largest resident size of this process so far.
    """

    tokens: int
    events: int
    read_tokens: int
    read_seconds: float
    tokens_per_second: float
    answer_tokens: int
    answer_seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Answer:
    """An answer with its evidence, best first: what the question fits best where it was read again with it,
    else what was recalled most strongly."""

    text: str
    evidence: tuple[Evidence, ...]
    stats: Stats

    def to_json(self) -> dict[str, Any]:
        """The form that ``emllm ask --json`` prints."""
        return {
            "answer": self.text,
            "evidence": [dataclasses.asdict(item) for item in self.evidence],
            "stats": dataclasses.asdict(self.stats),
        }


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
