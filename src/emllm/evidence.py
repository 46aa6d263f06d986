"""What carried an answer: the passages of a trace, with their texts and places.

This module does not know how an answer is made or shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emllm.answers import Evidence
from emllm.memory import EpisodicMemory
from emllm.recall.trace import RecalledEvent, RecallTrace


def evidence_of(
    memory: EpisodicMemory, trace: RecallTrace, limit: int, decode: Callable[[Any], str]
) -> tuple[Evidence, ...]:
    """What was chosen of a trace, or its strongest events, at most `limit`, with their texts and places.

    Args:
        decode: text of token ids.
    """

    def passage(start: int, stop: int, recalled: RecalledEvent | None = None) -> Evidence:
        place = memory.place(start)
        return Evidence(
            event=None if recalled is None else recalled.event,
            start=start,
            stop=stop,
            document=None if place is None else place[0],
            position=None if place is None else place[1],
            text=decode(memory.kept_ids(start, stop)),
            score=0.0 if recalled is None else recalled.score,
            layers=0 if recalled is None else recalled.layers,
        )

    def event(recalled: RecalledEvent) -> Evidence:
        found = memory.event(recalled.event)
        return passage(found.start, found.stop, recalled)

    if trace.chosen is None:
        return tuple(map(event, trace.strongest(limit)))
    return tuple(
        passage(one.start, one.stop) if isinstance(one, range) else event(one) for one in trace.chosen[:limit]
    )
