"""Generation: token after token through a memory, and the pieces of text they make.

The loop is our own because a prompt is read in chunks that measure surprise, and because a memory of
millions of tokens must not be copied into every step, as ``model.generate()`` does with its ids; choosing
a token is left to transformers' processors. This module does not know questions or evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emllm.errors import ConfigError

#: Below, logits divided by a temperature may overflow; seeds are of 64 bits.
LEAST_TEMPERATURE, SEEDS = 1e-6, 2**64


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: length of an answer at most.
        temperature: 0 is greedy; else 1e-6 at least.
        top_p: smallest set of tokens with that probability.
        repetition_penalty: divides the logits of tokens that were generated already.
        seed: of the random choice, from 0 to 2^64 - 1; None draws a new one.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be >= 0, got {self.temperature}")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise ConfigError(f"temperature must be 0 or >= {LEAST_TEMPERATURE}, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty must be > 0, got {self.repetition_penalty}")
        if self.seed is not None and not 0 <= self.seed < SEEDS:
            raise ConfigError(f"seed must be from 0 to {SEEDS - 1}, got {self.seed}")


Chooser = Callable[[Tensor, list[int]], int]


@torch.no_grad()
def generate_tokens(
    model: Any,
    cache: Any,
    prompt_ids: Sequence[int],
    *,
    choose: Chooser,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    chunk_tokens: int,
    before: Sequence[int] = (),
) -> Iterator[int]:
    """Read the prompt into the memory, then generate; yields ids until one of `stop_ids`.

    Args:
        before: ids at the end of the prompt that were generated already; they count when a token is chosen.

    Every id that is yielded is in the memory when the next one is asked for, but the last: when the
    generator ends, the memory holds the prompt and all yielded ids.
    """
    logits = None
    for start in range(0, len(prompt_ids), chunk_tokens):
        logits = _step(model, cache, prompt_ids[start : start + chunk_tokens])
    assert logits is not None, "a prompt has at least one token"
    generated = list(before)
    for _ in range(max_new_tokens):
        token = choose(logits, generated)
        if token in stop_ids:
            return
        generated.append(token)
        yield token
        logits = _step(model, cache, [token])


def _step(model: Any, cache: Any, ids: Sequence[int]) -> Tensor:
    tensor = torch.tensor([list(ids)], dtype=torch.long, device=model.device)
    return model(input_ids=tensor, past_key_values=cache, use_cache=True).logits[:, -1]


def text_pieces(token_ids: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Text as it becomes certain: a character of several tokens is held back until it is whole."""
    seen: list[int] = []
    shown = ""
    for token in token_ids:
        seen.append(token)
        text = decode(seen)
        if text.endswith("\ufffd"):
            continue
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    rest = decode(seen)[len(shown) :]
    if rest:
        yield rest
