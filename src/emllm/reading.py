"""Reading: a text of any length, chunk by chunk, into a memory.

The loops that run a model over texts. They may be interrupted between any two operations: what was
committed stays, the chunk that was under way leaves no trace. This module does not know files, templates or
how a memory works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emllm.attention.geometry import ModelGeometry
from emllm.errors import InputError, SourceError
from emllm.machine import free_ram_bytes

#: Bytes of text that a token stands for, about, in English and a common tokenizer.
BYTES_PER_TOKEN = 4.0


@dataclass(frozen=True)
class ReadProgress:
    """How far reading has come.

    Attributes:
        num_read: tokens read in this call.
        num_total: tokens to read in this call.
        seconds: since the start of this call.
    """

    num_read: int
    num_total: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Mean speed so far."""
        return self.num_read / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Time that the rest will take at the mean speed so far."""
        rest = self.num_total - self.num_read
        return rest / self.tokens_per_second if self.num_read else float("inf")


ProgressCallback = Callable[[ReadProgress], None]


@torch.no_grad()
def read_tokens(
    model: Any,
    cache: Any,
    token_ids: Sequence[int],
    *,
    chunk_tokens: int,
    progress: ProgressCallback | None = None,
) -> None:
    """Run the model over the tokens, `chunk_tokens` at a time, with the memory's cache.

    Raises:
        InputError: an id is not in the model's vocabulary.
        ModelError: the model computes logits that are not finite.
    """
    ids = torch.as_tensor(token_ids, dtype=torch.long)
    vocab_size = model.get_input_embeddings().num_embeddings
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise InputError(f"token ids must be in [0, {vocab_size}), got {int(ids.min())} to {int(ids.max())}")
    begun = time.perf_counter()
    for start in range(0, len(ids), chunk_tokens):
        chunk = ids[None, start : start + chunk_tokens].to(model.device)
        model(input_ids=chunk, past_key_values=cache, use_cache=True)
        if progress is not None:
            done = min(start + chunk_tokens, len(ids))
            progress(ReadProgress(done, len(ids), time.perf_counter() - begun))


@torch.no_grad()
def read_together(model: Any, cache: Any, texts: Sequence[Sequence[int]], *, chunk_tokens: int) -> None:
    """Run the model over several texts at once, one for each memory of the cache.

    The memories are good for what they noted of the texts alone: all become as long as the longest, for the
    last id of a shorter one is repeated, which none of its own tokens attends to.

    Args:
        texts: ids in the model's vocabulary, at least one each.
    """
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts], dtype=torch.long)
    for start in range(0, longest, chunk_tokens):
        chunk = ids[:, start : start + chunk_tokens].to(model.device)
        model(input_ids=chunk, past_key_values=cache, use_cache=True)


def check_fits(num_bytes: int, geometry: ModelGeometry, *, name: str) -> None:
    """Refuse a text whose keys and values will not fit, before it is read.

    Args:
        num_bytes: size of the text in UTF-8.

    Raises:
        SourceError: naming the estimate and what is free.
    """
    num_tokens = int(num_bytes / BYTES_PER_TOKEN)
    needed = num_tokens * geometry.kv_bytes_per_token + 2 * num_bytes
    free = free_bytes(geometry)
    if needed > free:
        raise SourceError(
            f"{name}: {num_bytes:,} bytes are about {num_tokens:,} tokens and need {needed / 1e9:.1f} GB "
            f"of memory for keys and values; {free / 1e9:.1f} GB are free"
        )


def free_bytes(geometry: ModelGeometry) -> int:
    """Bytes that are free where the log lives: on the device of the first layer."""
    device = geometry.layers[0].device
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_ram_bytes()
