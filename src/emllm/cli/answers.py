"""Answers as the terminal shows them: the events that carried it, what it cost.

This module does not know how an answer is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emllm.answers import Answer, Evidence, Stats
from emllm.cli.terminal import columns, counted, duration, one_line, remark, say

if TYPE_CHECKING:
    from emllm.lm import EpisodicLM
    from emllm.memory import EpisodicMemory


def show_evidence(lm: EpisodicLM, memory: EpisodicMemory, answered: Answer) -> None:
    """Print the passages that carried an answer, best first, or why there are none."""
    if not answered.evidence:
        say(_why_none(lm, memory))
        return
    num_layers = sum(layer.window_tokens is None for layer in lm.geometry.layers)
    scores = [item.score for item in answered.evidence]
    is_by_strength = scores == sorted(scores, reverse=True)
    say("Recalled, best first:" if is_by_strength else "Recalled, what fits the question best first:")
    for rank, item in enumerate(answered.evidence, start=1):
        how = "in view of every layer"
        if item.event is not None:
            how = f"strength {item.score:.1f}, in {item.layers} of {num_layers} layers"
        say(f"{rank:>3}. {_place(item, memory)}, {how}")
        say(f"     {one_line(item.text, width=columns() - 5)}")


def _why_none(lm: EpisodicLM, memory: EpisodicMemory) -> str:
    """What to say of an answer that nothing was recalled for."""
    if not lm.geometry.has_memory:
        return "No layer of this model recalls; only the last tokens were in view."
    if not memory.config.recall_tokens:
        return "Nothing is recalled with recall_tokens = 0; only the last tokens were in view."
    return "The whole text was in view; nothing had to be recalled."


def _place(item: Evidence, memory: EpisodicMemory) -> str:
    if item.document is not None:
        return item.document if item.position is None else f"{item.document} at {item.position:.1%}"
    documents = memory.documents
    return "before the documents" if documents and item.start < documents[-1].stop else "the conversation"


def remark_stats(stats: Stats, *, has_read: bool = True) -> None:
    """One line on stderr: what the answer took, and what was read for it.

    Args:
        has_read: whether something was read in this run that was not told of yet.
    """
    reading = ""
    if stats.read_tokens and has_read:
        reading = (
            f"read {counted(stats.read_tokens, 'token')}, {counted(stats.events, 'event')}, "
            f"in {duration(stats.read_seconds)} "
            f"({stats.tokens_per_second:,.0f} tokens/s); "
        )
    remark(
        f"{reading}answered {counted(stats.answer_tokens, 'token')} in {duration(stats.answer_seconds)}; "
        f"peak memory {stats.peak_rss_bytes / 1e9:.1f} GB"
    )
