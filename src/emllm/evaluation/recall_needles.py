"""Facts planted in a text, and where each layer ranks them when they are asked for.

A fact is a made-up sentence (`suites.haystack`); its events are those with a token of its answer. Its
question is read on a fork and nothing is answered: the ranks alone say whether it would have been recalled.
This module does not know how events are ranked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

import numpy as np
from numpy.typing import NDArray

from emllm.analysis.segment import tokens_and_pieces
from emllm.evaluation.suites.haystack import Fact, varied_fact
from emllm.evaluation.suites.made import planted
from emllm.lm import EpisodicLM
from emllm.memory import EpisodicMemory
from emllm.memory.staging import RecallMoment
from emllm.reading import read_tokens

#: An event with fewer before it is near the top.
NEAR_TOP = 30
#: Where a sentence ends and another begins on the same line; a title ends none.
_BETWEEN = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.) ")
#: Facts drawn until one shares no words with the text or another fact.
_NUM_DRAWN = 256


@dataclass(frozen=True)
class Needle:
    """A fact in a text, and the characters ``[start, stop)`` of its answer there."""

    fact: Fact
    start: int
    stop: int


@dataclass(frozen=True)
class NeedleRanks:
    """Where the events of one needle stand among all when it is asked for; 0 is the first.

    Attributes:
        document: that it was planted in.
        sentence: what was planted.
        query: what was asked.
        position: of the answer in the document, in tokens.
        num_events: that were ranked.
        layers: rank of its best event by layer; empty where it has no event that could be recalled.
        consensus: rank in what all layers find together, less what a neutral question finds; None likewise.
    """

    document: str
    sentence: str
    query: str
    position: int
    num_events: int
    layers: dict[int, int]
    consensus: int | None

    @property
    def best(self) -> int | None:
        """Rank in the layer that ranks it highest."""
        return min(self.layers.values()) if self.layers else None

    @property
    def median(self) -> float | None:
        """Median of its ranks over layers."""
        return float(median(self.layers.values())) if self.layers else None

    @property
    def num_near_top(self) -> int:
        """Layers in which fewer than `NEAR_TOP` events stand before it."""
        return sum(rank < NEAR_TOP for rank in self.layers.values())


def with_needles(text: str, num_needles: int, *, seed: str) -> tuple[str, list[Needle]]:
    """The text with facts at even distances between its sentences, and where their answers stand.

    Args:
        seed: of the facts; the same for the same text and number.
    """
    random = Random(seed)
    facts: list[Fact] = []
    for _ in range(num_needles):
        known = " ".join([text, *(fact.sentence for fact in facts)]).lower()
        drawn = [varied_fact(random) for _ in range(_NUM_DRAWN)]
        facts.append(next((fact for fact in drawn if _is_new(fact, known)), drawn[0]))
    for number, fact in enumerate(facts, start=1):
        text = planted(_BETWEEN.split(text), [fact.sentence], [number / (num_needles + 1)])
    needles = []
    for fact in facts:
        start = text.index(fact.sentence) + fact.sentence.index(fact.answers[0])
        needles.append(Needle(fact, start, start + len(fact.answers[0])))
    return text, needles


def _is_new(fact: Fact, known: str) -> bool:
    """Whether neither the answer nor what the question names is in the text already."""
    named = re.search(r"of the (\S+ \S+)", fact.query)
    words = [*fact.answers, *([named.group(1)] if named else [])]
    return not any(word.lower() in known for word in words)


def ranks_of(
    lm: EpisodicLM, memory: EpisodicMemory, needles: Sequence[Needle], text: str
) -> list[NeedleRanks]:
    """Ask for each needle on a fork of the memory, whose last document is the text; nothing is answered."""
    document = memory.documents[-1]
    _, pieces = tokens_and_pieces(lm.tokenizer, text)
    stops = np.cumsum([len(piece) for piece in pieces])
    spans = np.array([(event.start, event.stop) for event in memory.events()]).reshape(-1, 2)
    found = []
    for needle in needles:
        first = int(np.searchsorted(stops, needle.start, side="right"))
        last = int(np.searchsorted(stops, needle.stop, side="left"))
        start, stop = document.start + first, document.start + last + 1
        events = np.flatnonzero((spans[:, 0] < stop) & (spans[:, 1] > start))
        moments, totals = _asked(lm, memory, needle.fact.query)
        num_events = len(moments[0].sizes) if moments else 0
        own = [int(event) for event in events if event < num_events]
        found.append(
            NeedleRanks(
                document=document.name,
                sentence=needle.fact.sentence,
                query=needle.fact.query,
                position=first,
                num_events=num_events,
                layers={one.layer_idx: best_rank(_all_scores(one), own) for one in moments} if own else {},
                consensus=best_rank(totals, own) if own else None,
            )
        )
    return found


def _asked(
    lm: EpisodicLM, memory: EpisodicMemory, query: str
) -> tuple[list[RecallMoment], NDArray[np.float64]]:
    """What every layer made of a question, and what all together find for it, as when it is answered."""
    fork = memory.fork()
    moments: list[RecallMoment] = []
    trace = fork.trace_recall()
    trace.take_off(lm.asking.usual(memory))
    fork.observe_recall(moments.append)
    # Without the template's tokens after it, which recall the same for every question; in one chunk, so that
    # every layer recalls once.
    ids = lm.chat_format.piece(lm.chat_format.before_question + query)
    read_tokens(lm.model, lm.cache(fork), ids, chunk_tokens=len(ids))
    return moments, trace.totals


def _all_scores(moment: RecallMoment) -> NDArray[np.float32]:
    """Scores of all events; those that were not ranked come last."""
    if moment.candidates is None:
        return moment.scores
    scores = np.full(len(moment.sizes), -np.inf, dtype=np.float32)
    scores[moment.candidates] = moment.scores
    return scores


def best_rank(scores: NDArray[np.floating], events: Sequence[int]) -> int:
    """How many events stand before the best of these; ties go to the older one."""
    best = max(events, key=lambda event: (scores[event], -event))
    before = scores > scores[best]
    ties = scores[:best] == scores[best]
    return int(before.sum() + ties.sum())
