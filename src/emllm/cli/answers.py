"""Answers as the terminal shows them: text as it comes, the events that carried it, what it cost.

This module does not know how an answer is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from emllm.answers import Answer, Evidence, Stats, peak_rss_bytes
from emllm.cli.terminal import columns, duration, one_line, remark, say

if TYPE_CHECKING:
    from emllm.generation import Sampling
    from emllm.lm import EpisodicLM
    from emllm.memory import EpisodicMemory


def answer(
    lm: EpisodicLM,
    memory: EpisodicMemory,
    question: str,
    *,
    sampling: Sampling,
    num_evidence: int,
    on_text: Callable[[str], bool],
) -> Answer:
    """As `EpisodicLM.answer`, told piece by piece to `on_text` until it answers False."""
    num_tokens, num_events = memory.num_tokens, memory.num_events
    begun = time.perf_counter()
    trace = memory.trace_recall()
    ids: list[int] = []
    pieces: list[str] = []
    for piece in lm._stream(memory, question, sampling, ids):
        pieces.append(piece)
        if not on_text(piece):
            break
    stats = Stats(
        tokens=num_tokens,
        events=num_events,
        read_tokens=memory.read_tokens,
        read_seconds=memory.read_seconds,
        tokens_per_second=memory.read_tokens / memory.read_seconds if memory.read_seconds else 0.0,
        answer_tokens=len(ids),
        answer_seconds=time.perf_counter() - begun,
        peak_rss_bytes=peak_rss_bytes(),
    )
    return Answer("".join(pieces).strip(), lm.evidence(memory, trace, num_evidence), stats)


def show_evidence(lm: EpisodicLM, memory: EpisodicMemory, answered: Answer) -> None:
    """Print the recalled events, strongest first, or why there are none."""
    if not answered.evidence:
        whole = memory.config.recall_tokens > 0
        say(
            "The whole text was in view; nothing had to be recalled."
            if whole
            else "Nothing is recalled with recall_tokens = 0; only the last tokens were in view."
        )
        return
    num_layers = sum(layer.window_tokens is None for layer in lm.geometry.layers)
    say("Recalled, strongest first:")
    for rank, item in enumerate(answered.evidence, start=1):
        say(f"{rank:>3}. {_place(item)}, strength {item.score:.1f}, in {item.layers} of {num_layers} layers")
        say(f"     {one_line(item.text, width=columns() - 5)}")


def _place(item: Evidence) -> str:
    where = "" if item.position is None else f" at {item.position:.1%}"
    return f"{item.document or 'before the documents'}{where}"


def remark_stats(stats: Stats, *, is_first: bool = True) -> None:
    """One line on stderr: what was read, unless it was said before, and what the answer took."""
    reading = ""
    if stats.read_tokens and is_first:
        reading = (
            f"read {stats.read_tokens:,} tokens, {stats.events:,} events, in {duration(stats.read_seconds)} "
            f"({stats.tokens_per_second:,.0f} tokens/s); "
        )
    remark(
        f"{reading}answered {stats.answer_tokens} tokens in {duration(stats.answer_seconds)}; "
        f"peak memory {stats.peak_rss_bytes / 1e9:.1f} GB"
    )
