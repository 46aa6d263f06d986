"""How far a model that reads through a memory is from its stock forward pass, where the budget covers all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tests.support.families import token_ids
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from emllm.attention.geometry import ModelGeometry
from emllm.config import MemoryConfig
from emllm.memory import EpisodicMemory
from emllm.models.attach import attach


@dataclass(frozen=True)
class Exactness:
    """Against one stock pass over 90 tokens.

    Attributes:
        geometry: of the model.
        difference: largest of any logit, read in chunks through a memory.
        in_chunks: the same of the stock model.
        is_same_text: whether 12 greedy tokens after a prompt of 40 are the same.
    """

    geometry: ModelGeometry
    difference: float
    in_chunks: float
    is_same_text: bool


@torch.no_grad()
def logits_in_chunks(model: PreTrainedModel, ids: Tensor, chunks: Sequence[int], cache: Cache) -> Tensor:
    """Logits ``[T, V]`` of one row of tokens that the model reads in chunks into a cache."""
    pieces = ids.split(list(chunks), dim=1)
    return torch.cat([model(piece, past_key_values=cache).logits[0] for piece in pieces])


@torch.no_grad()
def exactness_of(model: PreTrainedModel) -> Exactness:
    """Compare, where the model is."""
    ids = token_ids(model, 90).to(model.device)
    chunks = (33, 17, 1, 39)
    stock = model(ids).logits[0]
    text = model.generate(ids[:, :40], max_new_tokens=12, do_sample=False)
    chunked = logits_in_chunks(model, ids, chunks, DynamicCache(config=model.config))
    with attach(model) as attachment:
        config = MemoryConfig.preset("full", sink_tokens=3, local_tokens=20)
        ours = attachment.cache(EpisodicMemory(attachment.geometry, config))
        logits = logits_in_chunks(model, ids, chunks, ours)
        ours = attachment.cache(EpisodicMemory(attachment.geometry, config))
        again = model.generate(ids[:, :40], past_key_values=ours, max_new_tokens=12, do_sample=False)
    difference, in_chunks = ((one - stock).abs().max().item() for one in (logits, chunked))
    return Exactness(attachment.geometry, difference, in_chunks, torch.equal(text, again))
