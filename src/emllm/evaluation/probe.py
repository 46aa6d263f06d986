"""How fast this machine is, found out in a moment: a matrix product, or a few chunks of reading.

This module does not know what is planned with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from emllm.config import MemoryConfig
from emllm.reading import read_tokens

if TYPE_CHECKING:
    from emllm.lm import EpisodicLM

#: Chunks that are read; the first is left out of the speed, being alone in its window.
NUM_CHUNKS = 3
#: Events that a mean length needs to be worth something.
LEAST_EVENTS = 10

MATMUL_SECONDS = 0.2
_MOST_SIDE = 2048


def matmul_flops(*, rows: int, hidden: int, inner: int, dtype: torch.dtype, device: torch.device) -> float:
    """Floating point operations per second of a product as a model's layers have it, over 0.2 s."""
    sides = [max(min(side, _MOST_SIDE), 1) for side in (rows, hidden, inner)]
    x = torch.ones(sides[0], sides[1], dtype=dtype, device=device)
    weight = torch.ones(sides[1], sides[2], dtype=dtype, device=device)
    _product(x, weight)
    begun, num_products = time.perf_counter(), 0
    while time.perf_counter() - begun < MATMUL_SECONDS:
        _product(x, weight)
        num_products += 1
    return 2.0 * sides[0] * sides[1] * sides[2] * num_products / (time.perf_counter() - begun)


def _product(x: torch.Tensor, weight: torch.Tensor) -> None:
    x @ weight
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def read_speed(lm: EpisodicLM, token_ids: Sequence[int], config: MemoryConfig) -> tuple[float, float | None]:
    """Tokens per second of reading, and the mean length of the events met.

    Args:
        token_ids: of the text, or any; no more than a few chunks of them are read.

    Returns:
        The speed after the first chunk, if there are several; the mean is None where events were few.
    """
    memory = lm.memory(config=config)
    chunk = memory.config.chunk_tokens
    marks = [(0, 0.0)]
    read_tokens(
        lm.model,
        lm.cache(memory),
        token_ids[: NUM_CHUNKS * chunk],
        chunk_tokens=chunk,
        progress=lambda step: marks.append((step.num_read, step.seconds)),
    )
    (start, begun), (stop, ended) = marks[1 if len(marks) > 2 else 0], marks[-1]
    events = memory.events()
    mean = None if len(events) < LEAST_EVENTS else sum(e.stop - e.start for e in events) / len(events)
    return (stop - start) / (ended - begun), mean
