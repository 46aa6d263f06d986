"""The cache that a model is given while it has a memory, and what it asks of the memory.

Transformers asks a cache how many tokens there are and gives it every layer's keys and values; ours
answers from the memories and hands the layer on to the attention function, which follows. It goes
through a `ContextVar` because ``generate()`` refuses keywords of ours. This module does not know how
a memory attends, nor how a model is attached.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from emllm.dims import ChunkKeys, Logits, Queries, TokenIds
from emllm.errors import InputError, UnsupportedModelError


@runtime_checkable
class Memory(Protocol):
    """One sequence's memory, as a model sees it: one `begin_chunk`, one `attend` a layer, one `commit`."""

    @property
    def num_tokens(self) -> int:
        """Tokens committed so far."""

    def begin_chunk(self, token_ids: TokenIds) -> None:
        """A forward pass over these tokens begins; whatever an abandoned pass has staged is dropped."""

    def attend(
        self,
        layer_idx: int,
        query: Queries,
        key: ChunkKeys,
        value: Float[Tensor, "K T Dv"],
        *,
        scaling: float,
        softcap: float | None = None,
        sink_logits: Float[Tensor, " H"] | None = None,
    ) -> Float[Tensor, "H T Dv"]:
        """What the chunk's queries, not yet rotated, attend to; stages the chunk's keys and values."""

    def commit(self, token_ids: TokenIds, logits: Logits) -> None:
        """The pass is over: its tokens are read. Row t of the logits predicts the token after t."""

    def fork(self) -> Memory:
        """A memory that begins with everything in this one and goes on apart."""


_present: ContextVar[tuple[EpisodicCache, int] | None] = ContextVar("emllm_present_layer", default=None)


def take_present(layer_idx: int) -> EpisodicCache:
    """The cache whose `update` has just been called for this layer; it can be taken once.

    Raises:
        InputError: the model was called without our cache, or not through its causal language model.
        UnsupportedModelError: the layer attends to what another layer gave the cache.
    """
    present = _present.get()
    _present.set(None)
    if present is None:
        raise InputError(
            f"layer {layer_idx} attends without a memory: an attached model needs lm.cache(memory) "
            "as past_key_values"
        )
    cache, updated_idx = present
    if updated_idx != layer_idx:
        raise UnsupportedModelError(
            f"layer {layer_idx} attends to the keys of layer {updated_idx} (shared keys)"
        )
    return cache


class EpisodicCache(Cache):  # type: ignore[misc]
    """What stands in for a key-value cache: row b of a batch belongs to ``memories[b]``.

    It holds no keys and values. Only the hooks of an attached model call `begin_chunk` and `commit` and write
    what logits the caller of the present pass wants.

    Args:
        memories: one for each row of the batch, no memory twice.
        num_layers: decoder layers of the model.
    """

    is_croppable = False
    is_compileable = False

    def __init__(self, memories: Sequence[Memory], *, num_layers: int) -> None:
        memories = list(memories)
        if not memories:
            raise InputError("a cache needs at least one memory, got none")
        if len({id(memory) for memory in memories}) < len(memories):
            raise InputError(
                f"each row needs a memory of its own: {len(memories)} rows, one memory given twice"
            )
        super().__init__(layers=[EpisodicLayer(self, layer_idx) for layer_idx in range(num_layers)])
        self.memories = memories
        self.is_in_chunk = False
        self.logits_to_keep: int | Tensor = 0

    def begin_chunk(self, token_ids: Tensor) -> None:
        """Row b of ``token_ids`` is about to be read into ``memories[b]``."""
        _present.set(None)
        for memory, row in zip(self.memories, token_ids, strict=True):
            memory.begin_chunk(row)
        self.is_in_chunk = True

    def commit(self, token_ids: Tensor, logits: Tensor) -> None:
        """Row b of ``token_ids`` has been read; ``logits`` are of the same tokens."""
        self.is_in_chunk = False
        for memory, row, row_logits in zip(self.memories, token_ids, logits, strict=True):
            memory.commit(row, row_logits)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens committed to the first memory; a pass under way does not count."""
        return self.memories[0].num_tokens

    def __deepcopy__(self, memo: dict[int, Any]) -> EpisodicCache:
        """A cache over forks: what is read through it leaves these memories as they are."""
        return EpisodicCache([memory.fork() for memory in self.memories], num_layers=len(self.layers))

    def reset(self) -> NoReturn:
        """Refused: a memory is not emptied through its cache."""
        _refuse("resetting")

    def activate_past_recording(self) -> NoReturn:
        """Refused: asked for before tokens are read that may have to be taken back."""
        _refuse("taking tokens back (assisted decoding)")

    def crop(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: what is read stays read."""
        _refuse("cropping")

    def reorder_cache(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a row cannot take over another row's memory."""
        _refuse("reordering rows (beam search)")

    def batch_repeat_interleave(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: fork the memory once for each row."""
        _refuse("repeating rows")

    def batch_select_indices(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: fork the memory once for each row."""
        _refuse("selecting rows")


class EpisodicLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of an `EpisodicCache`: passes keys and values through and says whose turn it is.

    It does not keep its cache alive: a circle would keep a memory's gigabytes until Python looks for circles.
    """

    is_sliding = False
    is_croppable = False
    is_compileable = False
    supports_early_init = False

    def __init__(self, cache: EpisodicCache, layer_idx: int) -> None:
        super().__init__()
        self._cache = weakref.ref(cache)
        self.layer_idx = layer_idx

    @property
    def cache(self) -> EpisodicCache:
        """The cache that this layer belongs to."""
        cache = self._cache()
        assert cache is not None, "a layer is asked through its cache"
        return cache

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to allocate."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The chunk's keys and values, as they came: what lies before them is the memory's affair."""
        if not self.cache.is_in_chunk:
            raise InputError(
                "a memory is read through the causal language model while it is attached, not through its "
                "base model, nor once it was given back (close, or detach)"
            )
        _present.set((self.cache, self.layer_idx))
        return key_states, value_states

    def get_seq_length(self, *args: Any) -> int:
        """Tokens committed to the first memory."""
        return self.cache.get_seq_length()

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No maximum; the name that older versions of transformers ask for."""
        return -1

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Length and offset of what a mask would cover; older versions give the tokens' positions."""
        num_queries = len(query_length) if isinstance(query_length, torch.Tensor) else query_length
        return self.get_seq_length() + num_queries, 0


def _refuse(what: str) -> NoReturn:
    raise InputError(f"{what} is not possible with a memory; fork the memory once for each row instead")
