"""Where the parts of a log lie that no layer ranks, and what stands around passages that are read again.

This module does not know how passages are found or what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from emllm.memory import EpisodicMemory


@dataclass(frozen=True)
class Frame:
    """Where the parts of a log lie that no layer ranks, and those that always stand around passages.

    Attributes:
        num_events: that can be recalled; later ones are of the question.
        text_start: what leads to the text ends there.
        text_stop: what is said about the text begins there.
        unranked: the beginning of the text, where some of it is among the sinks, with the event that follows,
            and its end, from where the last event ends that has left the local window. Every layer
            attends to sinks and local window as they are, so no recall can bring them back.
        conversation: what was said so far, before the question, from where it has not left the local window.
    """

    num_events: int
    text_start: int
    text_stop: int
    unranked: tuple[range, ...]
    conversation: range

    @classmethod
    def of(cls, memory: EpisodicMemory, *, head_stop: int, tail_start: int, question_start: int) -> Frame:
        """Of a memory that has read a question.

        Args:
            head_stop: what leads to the text ends there; at most a quarter of what the model was trained on
                counts.
            tail_start: where the conversation so far begins; what has left the local window is recalled.
            question_start: where the question begins.
        """
        text_start = min(head_stop, memory.geometry.trained_tokens // 4, question_start)
        text_stop = max(min(tail_start, question_start), text_start)
        sinks_stop = min(max(text_start, memory.config.sink_tokens), question_start)
        known = memory.recallable_spans()
        recent_start = max(int(known[-1, 1]) if len(known) else 0, sinks_stop)
        tail_start = max(min(max(tail_start, recent_start), question_start), sinks_stop)
        unranked = []
        if text_start < sinks_stop:
            stop = max(int(known[0, 1]) if len(known) else 0, sinks_stop)
            unranked.append(range(text_start, min(stop, tail_start)))
        if recent_start < tail_start:
            unranked.append(range(recent_start, tail_start))
        return cls(len(known), text_start, text_stop, tuple(unranked), range(tail_start, question_start))
