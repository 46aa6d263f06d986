"""Finds out, by running it once, whether and how a memory can take over a model's attention.

A few random tokens go through the model twice. First as it is, with its own attention watched: every
layer's queries, keys, values and output are recorded. Then as attached, with rotary modules that do
not turn and a memory that answers what was recorded, so that every layer sees exactly the hidden
states it saw before. Layer by layer, the convention that turns the second queries and keys into the
first ones is the layer's rotation; where there is none, the model is refused with the reason. It
takes the place of a list of supported models. This module does not know how a model is attached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emllm.attention.geometry import LayerGeometry, ModelGeometry, with_real_windows
from emllm.attention.rotary import NO_ROTATION, RotaryTable, Rotation, rotate
from emllm.dims import ChunkKeys, Logits, Queries, TokenIds
from emllm.errors import UnsupportedModelError
from emllm.models.rotary_modules import RotaryCall, rotary_table

NUM_TOKENS = 16

#: Largest relative difference that rounding explains, by dtype of the keys.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass
class LayerRecord:
    """What went into and came out of one layer's attention, without the batch dimension."""

    query: Queries
    key: ChunkKeys
    value: Float[Tensor, "K T Dv"]
    output: Float[Tensor, "H T Dv"]
    arguments: dict[str, Any] = field(default_factory=dict)
    window_tokens: int | None = None


@dataclass
class Pass:
    """One forward pass: its logits and its layers, in the order of their ``layer_idx``."""

    logits: Logits
    layers: dict[int, LayerRecord]


class ReplayMemory:
    """Answers each layer with the output recorded for it, and keeps the queries and keys it is given."""

    num_tokens = 0

    def __init__(self, recorded: Pass) -> None:
        self.recorded = recorded
        self.layers: dict[int, LayerRecord] = {}
        self.arguments: dict[int, dict[str, Any]] = {}
        self.logits: Tensor | None = None

    def begin_chunk(self, token_ids: TokenIds) -> None:
        """Nothing to do: there is one chunk."""

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, **arguments: Any
    ) -> Float[Tensor, "H T Dv"]:
        """The recorded output."""
        if layer_idx not in self.recorded.layers:
            raise UnsupportedModelError(f"layer {layer_idx} attends only while it has a cache")
        output = self.recorded.layers[layer_idx].output
        self.layers[layer_idx] = LayerRecord(query, key, value, output, arguments)
        return output

    def commit(self, token_ids: TokenIds, logits: Logits) -> None:
        """Keeps the logits."""
        self.logits = logits

    def fork(self) -> ReplayMemory:
        """Another replay of the same pass."""
        return ReplayMemory(self.recorded)


def probe_token_ids(vocab_size: int) -> TokenIds:
    """A few distinct tokens, the same ones at every call."""
    generator = torch.Generator("cpu").manual_seed(20240712)
    return torch.randperm(vocab_size, generator=generator, device="cpu")[:NUM_TOKENS]


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    expected = expected.float()
    return float((found.float() - expected).norm() / expected.norm().clamp_min(1e-12))


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference that rounding explains."""
    return _TOLERANCE.get(dtype, _TOLERANCE[torch.bfloat16])


def causal_attention(record: LayerRecord) -> Float[Tensor, "H T Dv"]:
    """Plain attention of a recorded layer, as a memory with nothing in it would compute it."""
    num_heads, num_tokens, head_dim = record.query.shape
    num_groups = num_heads // record.key.shape[0]
    key = record.key.float().repeat_interleave(num_groups, 0)
    scaling = record.arguments.get("scaling")
    logits = torch.einsum("HTD,HSD->HTS", record.query.float(), key)
    logits = logits * (head_dim**-0.5 if scaling is None else scaling)
    softcap = record.arguments.get("softcap")
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    token_idxs = torch.arange(num_tokens, device=logits.device)
    distance = token_idxs[:, None] - token_idxs
    window_tokens = num_tokens if record.window_tokens is None else record.window_tokens
    is_hidden = (distance < 0) | (distance >= window_tokens)
    logits = logits.masked_fill(is_hidden, float("-inf"))
    sink_logits = record.arguments.get("s_aux")
    if sink_logits is not None:
        sinks = sink_logits.float().reshape(num_heads, 1, 1).expand(-1, num_tokens, 1)
        logits = torch.cat((logits, sinks), dim=-1)
    weights = logits.softmax(-1)[..., :num_tokens]
    return torch.einsum("HTS,HSD->HTD", weights, record.value.float().repeat_interleave(num_groups, 0))


def find_rotation(
    layer_idx: int, turned: LayerRecord, plain: LayerRecord, *, tables: Sequence[RotaryTable]
) -> Rotation:
    """The rotation that makes ``turned`` of ``plain``, both queries and keys.

    Raises:
        UnsupportedModelError: none does, with the closest one named.
    """
    best, difference = NO_ROTATION, _difference(NO_ROTATION, turned, plain)
    for rotation in _candidates(plain.query.shape[-1], tables):
        candidate_difference = _difference(rotation, turned, plain)
        if candidate_difference < difference:
            best, difference = rotation, candidate_difference
    if difference > tolerance(plain.key.dtype):
        raise UnsupportedModelError(
            f"layer {layer_idx} turns its queries and keys in no known way: "
            f"the closest, {best.convention!r}, differs by {difference:.2g} "
            f"(limit {tolerance(plain.key.dtype):.2g})"
        )
    return best


def _candidates(head_dim: int, tables: Sequence[RotaryTable]) -> list[Rotation]:
    candidates = []
    for table in tables:
        rotary_dim = 2 * table.cos_sin(1)[0].shape[-1]
        if rotary_dim > head_dim:
            continue
        for first_dim in sorted({0, head_dim - rotary_dim}):
            for convention in ("half", "pairs", "half_negated"):
                candidates.append(Rotation(convention, rotary_dim, first_dim, table))
    return candidates


def _difference(rotation: Rotation, turned: LayerRecord, plain: LayerRecord) -> float:
    num_tokens = plain.query.shape[-2]
    if rotation.table is None:
        pairs = ((plain.query, turned.query), (plain.key, turned.key))
    else:
        cos, sin = (part.to(plain.key.device) for part in rotation.table.cos_sin(num_tokens))
        pairs = (
            (rotate(plain.query, cos, sin, rotation), turned.query),
            (rotate(plain.key, cos, sin, rotation), turned.key),
        )
    return max(relative_difference(found, expected) for found, expected in pairs)


def check_attention(recorded: Pass) -> None:
    """Every layer attends causally within its window, and to nothing else.

    Raises:
        UnsupportedModelError: a layer computes something else.
    """
    for layer_idx, record in recorded.layers.items():
        difference = relative_difference(causal_attention(record), record.output)
        if difference > tolerance(record.key.dtype):
            raise UnsupportedModelError(
                f"layer {layer_idx} computes something else than causal attention: "
                f"differs by {difference:.2g} (limit {tolerance(record.key.dtype):.2g})"
            )


def model_geometry(
    recorded: Pass, replayed: ReplayMemory, *, calls: Sequence[RotaryCall], trained_tokens: int
) -> ModelGeometry:
    """What the two passes say about the model.

    Raises:
        UnsupportedModelError: they differ in more than a rotation.
    """
    tables: dict[torch.device, list[RotaryTable]] = {}
    layers = []
    for layer_idx, turned in sorted(recorded.layers.items()):
        plain = replayed.layers.get(layer_idx)
        if plain is None:
            raise UnsupportedModelError(f"layer {layer_idx} does not attend when it has a cache")
        device = plain.key.device
        if device not in tables:
            tables[device] = [rotary_table(call, device=device) for call in calls]
        if relative_difference(plain.value, turned.value) > tolerance(plain.value.dtype):
            raise UnsupportedModelError(f"layer {layer_idx} turns its values by position, too")
        rotation = find_rotation(layer_idx, turned, plain, tables=tables[device])
        layers.append(_layer_geometry(plain, rotation=rotation, window_tokens=turned.window_tokens))
    assert replayed.logits is not None
    if relative_difference(replayed.logits, recorded.logits) > tolerance(layers_dtype(recorded)):
        raise UnsupportedModelError("the model's logits depend on more than its layers' attention")
    return ModelGeometry(
        layers=with_real_windows(layers, trained_tokens),
        trained_tokens=trained_tokens,
        vocab_size=recorded.logits.shape[-1],
        dtype=layers_dtype(recorded),
    )


def layers_dtype(recorded: Pass) -> torch.dtype:
    """Dtype of the keys."""
    return recorded.layers[0].key.dtype


def _layer_geometry(record: LayerRecord, *, rotation: Rotation, window_tokens: int | None) -> LayerGeometry:
    return LayerGeometry(
        num_heads=record.query.shape[0],
        num_kv_heads=record.key.shape[0],
        head_dim=record.key.shape[-1],
        value_dim=record.value.shape[-1],
        rotation=rotation,
        window_tokens=window_tokens,
        device=record.key.device,
    )


def layer_count_problem(layer_idxs: Sequence[int], num_layers: int, module: nn.Module) -> str | None:
    """Why the layers that attended, in order, are not each layer once; None where they are."""
    if not layer_idxs:
        return f"{type(module).__name__} never calls the attention interface (old-style modelling code)"
    if len(set(layer_idxs)) < len(layer_idxs):
        return f"a layer attends twice in one pass: {list(layer_idxs)}"
    missing = sorted(set(range(num_layers)) - set(layer_idxs))
    if missing:
        return f"layer {missing[0]} of {num_layers} does not attend (recurrent, convolutional or linear)"
    if sorted(layer_idxs) != list(range(num_layers)):
        return f"attention layers are numbered {list(layer_idxs)}, the model has {num_layers}"
    return None
