"""What carried an answer: the events of a trace, with their texts and places.

This module does not know how an answer is made or shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emllm.answers import Evidence
from emllm.memory import EpisodicMemory
from emllm.recall.trace import RecallTrace


def evidence_of(
    memory: EpisodicMemory, trace: RecallTrace, limit: int, decode: Callable[[Any], str]
) -> tuple[Evidence, ...]:
    """The strongest events of a trace, at most `limit` of them, with their texts and places.

    Args:
        decode: text of token ids.
    """
    found = []
    for recalled in trace.strongest(limit):
        event = memory.event(recalled.event)
        place = memory.place(event.start)
        found.append(
            Evidence(
                event=recalled.event,
                start=event.start,
                stop=event.stop,
                document=None if place is None else place[0],
                position=None if place is None else place[1],
                text=decode(memory.token_ids(event.start, event.stop)),
                score=recalled.score,
                layers=recalled.layers,
            )
        )
    return tuple(found)
