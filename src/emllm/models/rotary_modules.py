"""The rotary modules of a model: found, made to answer "no rotation", and asked for their angles.

While a model is attached, each of its rotary modules is wrapped by one that answers cos = 1 and
sin = 0, so that queries and keys arrive unrotated. The angles come from a copy of the wrapped module,
in float32. This module does not know how cos and sin are applied: `self_check` finds that out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emllm.attention.rotary import RotaryTable
from emllm.errors import UnsupportedModelError

_NUM_ANSWERS = 8


@dataclass(frozen=True)
class RotaryCall:
    """One way in which a model asks a rotary module: the module and what it is given besides positions.

    Gemma 3 asks one module twice a pass, with another layer type and another answer each time.
    """

    inner: nn.Module
    args: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]

    def answer(self, x: Tensor, position_ids: Tensor) -> Any:
        """What a fresh copy of the module answers, so that the model's own is left as it was."""
        with torch.inference_mode(False), torch.no_grad():
            module = _copy(self.inner)  # in here, for a module may write to its buffers
            if _rope_type(self) == "dynamic":
                module(x, position_ids[..., :1] * 0, *self.args, **dict(self.keywords))
            return module(x, position_ids, *self.args, **dict(self.keywords))


class IdentityRotary(nn.Module):
    """Stands in for a rotary module: answers as it would while watching, then "no rotation".

    Some modules keep what they computed for the last text; all answers come from copies, so that the
    module itself stays as it was.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.is_watching = True
        self.calls: list[RotaryCall] = []
        self._answers: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """What a model asks of its rotary module besides angles, as Granite SWA does its configuration."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor, position_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Cos and sin (or complex angles) in the shape, type and place of the model's own."""
        if not isinstance(position_ids, Tensor):
            raise UnsupportedModelError(f"{type(self.inner).__name__} is not asked by positions")
        call = RotaryCall(self.inner, args, tuple(sorted(kwargs.items())))
        if self.is_watching:
            if call not in self.calls:
                self.calls.append(call)
            return call.answer(x, position_ids)
        key = (position_ids.shape, x.dtype, x.device, call.args, call.keywords)
        if key not in self._answers:
            while len(self._answers) >= _NUM_ANSWERS:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = _identity(call.answer(x.detach()[:1], torch.zeros_like(position_ids)))
        return self._answers[key]


def rotary_modules(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every rotary module of the text model, with its parent and its name there.

    Raises:
        UnsupportedModelError: there is none.
    """
    get_decoder: Callable[[], nn.Module] | None = getattr(model, "get_decoder", None)
    found = _rotary_children(get_decoder()) if get_decoder is not None else []
    found = found or _rotary_children(model)
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no rotary module (its positions are of another kind)"
        )
    return found


def rotary_table(call: RotaryCall, *, device: torch.device) -> RotaryTable:
    """The angles that a call stands for, as float32 ``[positions, rotary_dim / 2]`` on ``device``."""
    buffers = list(call.inner.buffers())
    home = buffers[0].device if buffers else device
    origin = torch.zeros(1, dtype=torch.float32, device=home)

    def source(num_positions: int) -> tuple[Tensor, Tensor]:
        position_ids = torch.arange(num_positions, device=home)[None]
        cos, sin = _one_per_pair(call.answer(origin, position_ids), num_positions)
        return cos.to(device), sin.to(device)

    return RotaryTable(source, lengths_alike=_lengths_alike(call))


def _rotary_children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if "Rotary" in type(child).__name__
    ]


def _identity(answer: Any) -> Any:
    if isinstance(answer, Tensor) and answer.is_complex():
        return torch.ones_like(answer)
    if isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, Tensor) for part in answer):
        return torch.ones_like(answer[0]), torch.zeros_like(answer[1])
    raise UnsupportedModelError(
        f"a rotary module answers with {type(answer).__name__}, neither cos and sin nor angles"
    )


def _one_per_pair(answer: Any, num_positions: int) -> tuple[Tensor, Tensor]:
    """One cos and sin for each pair of features, where modules give them once, in halves or in neighbours."""
    cos, sin = (answer.real, answer.imag) if isinstance(answer, Tensor) else answer
    cos = cos.reshape(-1, num_positions, cos.shape[-1])[0]
    sin = sin.reshape(-1, num_positions, sin.shape[-1])[0]
    num_features = cos.shape[-1]
    for first, second in (
        (slice(0, num_features // 2), slice(num_features // 2, None)),
        (slice(0, None, 2), slice(1, None, 2)),
    ):
        if num_features % 2 == 0 and all(torch.equal(part[:, first], part[:, second]) for part in (cos, sin)):
            return cos[:, first], sin[:, first]
    return cos, sin


def _rope_type(call: RotaryCall) -> str:
    rope_type = getattr(call.inner, "rope_type", "default")
    return str(rope_type.get(_layer_type(call), "default") if isinstance(rope_type, dict) else rope_type)


def _layer_type(call: RotaryCall) -> Any:
    return call.args[0] if call.args else dict(call.keywords).get("layer_type")


def _lengths_alike(call: RotaryCall) -> Callable[[int], range] | None:
    """Which text lengths share a table, where the scaling goes by the length of the text."""
    rope_type = _rope_type(call)
    if "dynamic" not in rope_type and rope_type != "longrope":
        return None
    limit = getattr(call.inner, "original_max_seq_len", 0)
    if rope_type == "longrope":
        parameters = call.inner.config.rope_parameters  # type: ignore[union-attr]
        parameters = parameters.get(_layer_type(call), parameters)  # type: ignore[union-attr, operator]
        limit = parameters["original_max_position_embeddings"]

    def lengths_alike(num_positions: int) -> range:
        if num_positions <= limit:
            return range(1, limit + 1)
        return (
            range(limit + 1, 1 << 62) if rope_type == "longrope" else range(num_positions, num_positions + 1)
        )

    return lengths_alike


def _copy(module: nn.Module) -> nn.Module:
    """A copy with buffers of its own and without what others may have put around its ``forward``."""
    copied = copy.copy(module)
    buffers = {
        name: None if buffer is None else buffer.detach().clone() for name, buffer in module._buffers.items()
    }
    copied.__dict__["_buffers"] = buffers
    copied.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    copied.__dict__.pop("forward", None)
    return copied
