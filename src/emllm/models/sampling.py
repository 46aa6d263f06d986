"""Choosing the next token, by transformers' own processors.

This module does not know where logits come from.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)


def make_chooser(
    *, temperature: float, top_p: float, repetition_penalty: float, seed: int | None
) -> Callable[[Tensor, list[int]], int]:
    """A function from logits ``[1, V]`` and the ids generated so far to the next id."""
    processors = LogitsProcessorList()
    if repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature > 0:
        processors.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1:
            processors.append(TopPLogitsWarper(top_p))
    generator: torch.Generator | None = None

    def choose(logits: Tensor, generated: list[int]) -> int:
        nonlocal generator
        past = torch.tensor([generated], dtype=torch.long, device=logits.device)
        scores = processors(past, logits.float())
        if temperature == 0:
            return int(scores.argmax())
        if generator is None:
            generator = torch.Generator(logits.device)
            generator.manual_seed(seed) if seed is not None else generator.seed()
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=generator))

    return choose
