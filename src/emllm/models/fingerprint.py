"""The fingerprint of a model and its tokenizer: what a stored memory holds its model against.

The keys and values of a memory mean something to the model that made them alone. Five parts are told
apart, so that what differs can be said. This module does not know memories, nor where one is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emllm.errors import ModelError
from emllm.models.rotary_modules import IdentityRotary

#: Tensors up to this size are read whole; of larger ones so many blocks, evenly spaced, the ends included.
WHOLE_BYTES, BLOCK_BYTES, NUM_BLOCKS = 1 << 20, 4 << 10, 64

#: What a configuration says about where a model came from and how it is run, not what it computes.
_VOLATILE = frozenset(
    {
        "architectures",
        "attn_implementation",
        "dtype",
        "experts_implementation",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

#: What a tokenizer keeps of its last call.
_CALL_STATE = frozenset({"truncation", "padding"})

_SAID = {
    "architecture": "the architecture differs",
    "config": "the configuration differs",
    "weights": "the weights differ",
    "tokenizer": "the tokenizer differs",
    "dtype": "the dtype differs",
}
_SHOWN_DIGITS = 12
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: nn.Module, tokenizer: Any = None) -> dict[str, str]:
    """What identifies a model and its tokenizer, the same while a memory is attached and after.

    Returns:
        `architecture`, the name of the class; `config`, `weights` and `tokenizer`, sha256 digests (`none`
        without a tokenizer); `dtype` of the weights.

    Raises:
        ModelError: weights are not in memory (on the meta device).
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return {
        "architecture": type(model).__name__,
        "config": _digest(_lasting(model.config.to_dict())),  # type: ignore[operator, union-attr]
        "weights": _weights(model),
        "tokenizer": "none" if tokenizer is None else _digest(_tokenizer_content(tokenizer)),
        "dtype": str(dtype).removeprefix("torch."),
    }


def difference(stored: Mapping[str, str], present: Mapping[str, str]) -> str | None:
    """One line that names the parts in which two fingerprints differ; None where they agree.

    In another dtype the weights have other bytes, so that only the dtype is named.

    Args:
        stored: of the model that the memory was made with.
        present: of the model at hand.
    """
    parts = [part for part in _SAID if stored.get(part) != present.get(part)]
    if "dtype" in parts and "weights" in parts:
        parts.remove("weights")
    if not parts:
        return None
    return "; ".join(
        f"{_SAID[part]}: the memory was made with {_shown(part, stored)}, this model has "
        f"{_shown(part, present)}"
        for part in parts
    )


def _shown(part: str, of: Mapping[str, str]) -> str:
    value = of.get(part, "unknown")
    return value if part in ("architecture", "dtype") else value[:_SHOWN_DIGITS]


def _digest(content: Any) -> str:
    """Of the canonical JSON of anything; what JSON lacks counts by its name."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _lasting(config: Any) -> Any:
    """A configuration without its volatile parts, at any depth; keys as JSON has them."""
    if isinstance(config, Mapping):
        return {
            str(name): _lasting(value)
            for name, value in config.items()
            if str(name) not in _VOLATILE and not str(name).startswith("_")
        }
    if isinstance(config, list | tuple):
        return [_lasting(value) for value in config]
    return config


def _weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(model, ""), key=lambda item: item[0]):
        if tensor.is_meta:
            raise ModelError(f"the weights {name} are not in memory, so the model has no fingerprint")
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(_sampled_bytes(tensor))
    return digest.hexdigest()


def _tensors(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by name; a wrapped rotary module goes by its own name.

    Tied weights come under each of their names, so that which one owns them does not count.
    """
    while isinstance(module, IdentityRotary):
        module = module.inner
    buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
    for name, tensor in {**module._parameters, **buffers}.items():
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")


def _sampled_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor, or of blocks of a large one, which alone are copied from its device."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    integers = tensor.view(_INTEGERS[tensor.element_size()])  # every dtype can be indexed and copied so
    if tensor.numel() * tensor.element_size() > WHOLE_BYTES:
        integers = _blocks(integers)
    return integers.cpu().contiguous().numpy().tobytes()


def _blocks(tensor: Tensor) -> Tensor:
    """The elements of the evenly spaced blocks, in order, whatever the strides."""
    length = BLOCK_BYTES // tensor.element_size()
    last = tensor.numel() - length
    starts = np.arange(NUM_BLOCKS, dtype=np.int64) * last // (NUM_BLOCKS - 1)
    chosen = (starts[:, None] + np.arange(length)).ravel()
    places = np.unravel_index(chosen, tuple(tensor.shape))
    return tensor[tuple(torch.from_numpy(place).to(tensor.device) for place in places)]


def _tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """Everything that decides about tokens and prompts, and nothing that a call leaves behind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        content = {
            name: part for name, part in json.loads(backend.to_str()).items() if name not in _CALL_STATE
        }
    return {"tokenizer": content, "chat_template": getattr(tokenizer, "chat_template", None)}
