"""What rows cost: speed of reading, time of an answer, memory and the budget they recalled.

Costs depend on the machine and its load, which is why they stand apart from results and are never tested for
a difference. This module does not know files or how costs are laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from emllm.evaluation.report.comparison import Comparison


@dataclass(frozen=True)
class RowCost:
    """One row over all samples that it answered; None where nothing was measured.

    Attributes:
        read_tokens_per_second: all tokens read by all seconds of reading.
        answer_seconds: mean of one answer.
        first_token_seconds: median over samples, from question to first token.
        peak_rss_bytes: highest of any sample.
        is_own_peak: whether each sample was measured by itself; else an earlier row may have set it.
        peak_device_bytes: highest of any sample, on all CUDA devices.
        recalled_tokens: budget per layer, the largest.
        read_share: tokens read as a share of the prompts' tokens.
    """

    row: str
    read_tokens_per_second: float | None
    answer_seconds: float | None
    first_token_seconds: float | None
    peak_rss_bytes: float | None
    is_own_peak: bool
    peak_device_bytes: float | None
    recalled_tokens: float | None
    read_share: float | None


def row_costs(comparison: Comparison) -> list[RowCost]:
    """The cost of every row that answered anything."""
    found = (_row_cost(comparison, row) for row in comparison.rows)
    return [cost for cost in found if cost is not None]


def _row_cost(comparison: Comparison, row: str) -> RowCost | None:
    answered = {
        (record.task, record.sample): record
        for task in comparison.tasks
        for record in comparison.records.get((task, row), ())
        if record.score is not None
    }
    if not answered:
        return None
    pairs = [
        (cost, answered[cost.task, cost.sample])
        for cost in comparison.costs.get(row, ())
        if (cost.task, cost.sample) in answered
    ]
    reading = [(c.read_seconds, r.read_tokens) for c, r in pairs if c.read_seconds]
    answering = [(c.answer_seconds, len(r.answers)) for c, r in pairs if c.answer_seconds and r.answers]
    return RowCost(
        row=row,
        read_tokens_per_second=_ratio((tokens, seconds) for seconds, tokens in reading),
        answer_seconds=_ratio(answering),
        first_token_seconds=_of(median, (cost.first_token_seconds for cost, _ in pairs)),
        peak_rss_bytes=_of(max, (cost.peak_rss_bytes for cost, _ in pairs)),
        is_own_peak=all(cost.peak_rss_since == "sample" for cost, _ in pairs),
        peak_device_bytes=_of(max, (cost.peak_device_bytes for cost, _ in pairs)),
        recalled_tokens=_of(max, (cost.recalled_tokens for cost, _ in pairs)),
        read_share=_ratio((record.read_tokens, record.tokens) for record in answered.values()),
    )


def _ratio(pairs: Iterable[tuple[float, float]]) -> float | None:
    numbers = list(pairs)
    below = sum(number for _, number in numbers)
    return sum(number for number, _ in numbers) / below if below else None


def _of(summary: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(summary(known)) if known else None
