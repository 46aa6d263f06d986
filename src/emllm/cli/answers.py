"""Answers as the terminal shows them: the events that carried it, what it cost.

This module does not know how an answer is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emllm.answers import Answer, Evidence, Stats
from emllm.cli.terminal import columns, duration, one_line, remark, say

if TYPE_CHECKING:
    from emllm.lm import EpisodicLM
    from emllm.memory import EpisodicMemory


def show_evidence(lm: EpisodicLM, memory: EpisodicMemory, answered: Answer) -> None:
    """Print the passages that carried an answer, best first, or why there are none."""
    if not answered.evidence:
        whole = memory.config.recall_tokens > 0
        say(
            "The whole text was in view; nothing had to be recalled."
            if whole
            else "Nothing is recalled with recall_tokens = 0; only the last tokens were in view."
        )
        return
    num_layers = sum(layer.window_tokens is None for layer in lm.geometry.layers)
    say("Recalled, best first:")
    for rank, item in enumerate(answered.evidence, start=1):
        how = f"strength {item.score:.1f}, in {item.layers} of {num_layers} layers"
        say(f"{rank:>3}. {_place(item)}, {how if item.event is not None else 'in view of every layer'}")
        say(f"     {one_line(item.text, width=columns() - 5)}")


def _place(item: Evidence) -> str:
    where = "" if item.position is None else f" at {item.position:.1%}"
    return f"{item.document or 'before the documents'}{where}"


def remark_stats(stats: Stats, *, has_read: bool = True) -> None:
    """One line on stderr: what the answer took, and what was read for it.

    Args:
        has_read: whether something was read in this run that was not told of yet.
    """
    reading = ""
    if stats.read_tokens and has_read:
        reading = (
            f"read {stats.read_tokens:,} tokens, {stats.events:,} events, in {duration(stats.read_seconds)} "
            f"({stats.tokens_per_second:,.0f} tokens/s); "
        )
    remark(
        f"{reading}answered {stats.answer_tokens} tokens in {duration(stats.answer_seconds)}; "
        f"peak memory {stats.peak_rss_bytes / 1e9:.1f} GB"
    )
