"""A model's measures without its weights: the shapes of its layers and how many weights a token meets.

Only the configuration and the tokenizer are fetched. The model is built on the meta device, where tensors
have shapes and no data, and runs once over a few tokens with its attention watched, so that even an
uncommon family's keys and values are measured, not guessed. This module does not know what is planned.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from emllm.attention.geometry import LayerGeometry, ModelGeometry, with_real_windows
from emllm.attention.rotary import NO_ROTATION
from emllm.errors import ModelError
from emllm.models.attach import _text_config, _trained_tokens
from emllm.models.load import (
    DEFAULT_MODEL,
    _default_folder,
    _default_gguf,
    _device,
    _dtype,
    _is_hub_reachable,
    _reason,
    _Source,
    _source,
)
from emllm.models.precision import auto_dtype
from emllm.models.rotary_modules import rotary_modules
from emllm.models.self_check import NUM_TOKENS
from emllm.models.silence import quiet_transformers
from emllm.models.watch import WATCH_NAME, watching

_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Outline:
    """What planning needs of a model.

    Attributes:
        geometry: shapes of the layers, without their rotations.
        num_params: weights, those shared between parts counted once.
        active_params: weights that a token is multiplied with: without a table of input embeddings that
            serves for nothing else, and of experts only as many as a token is sent to.
        hidden_size: width of the residual stream.
        inner_size: width of the widest projection inside a layer.
    """

    geometry: ModelGeometry
    num_params: int
    active_params: int
    hidden_size: int
    inner_size: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights: ``num_params * dtype.itemsize``."""
        return self.num_params * self.geometry.dtype.itemsize


class Located:
    """A model that is found but not loaded: its name resolved, its files reachable.

    Raises:
        ModelError: there is no such model.
        MissingExtraError: a GGUF file, but no reader for it.
    """

    def __init__(self, name: str | Path = DEFAULT_MODEL) -> None:
        self._source = _default_source() if str(name) == DEFAULT_MODEL else _source(str(name))
        self._where: dict[str, Any] = {}
        if self._source.is_on_hub:
            self._where["local_files_only"] = not _is_hub_reachable(self._source.name)
        if self._source.gguf_file is not None:
            self._where["gguf_file"] = self._source.gguf_file

    def outline(self, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> Outline:
        """The measures that the model will have when it is loaded so.

        Raises:
            ModelError: the configuration cannot be had, or is not of a causal language model with rotary
            positions.
            ConfigError: an unknown dtype or device.
        """
        place, precision = _device(device), _dtype(dtype)
        config = self._fetch(AutoConfig, "configuration")
        if not isinstance(precision, torch.dtype):
            packed = torch.bfloat16 if self._source.gguf_file is not None else None
            saved = packed or getattr(config, "dtype", None) or torch.float32
            precision = auto_dtype(config, saved, place)
        with quiet_transformers():
            try:
                with torch.device("meta"):
                    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
            except Exception as error:
                raise ModelError(f"cannot outline {self._source.name}: {_reason(error, {})}") from error
            return outline_of(model, device=place, dtype=precision)

    def tokenizer(self) -> Any:
        """The tokenizer alone.

        Raises:
            ModelError: there is none, or it cannot be had.
        """
        return self._fetch(AutoTokenizer, "tokenizer")

    def _fetch(self, kind: Any, what: str) -> Any:
        with quiet_transformers(), redirect_stderr(io.StringIO()):
            try:
                return kind.from_pretrained(self._source.location, **self._where)
            except Exception as error:
                message = f"{self._source.name} has no usable {what}: {_reason(error, self._where)}"
                raise ModelError(message) from error


def outline_of(model: PreTrainedModel, *, device: torch.device, dtype: torch.dtype) -> Outline:
    """The measures of a model on the meta device, as if it were on `device` in `dtype`.

    Raises:
        UnsupportedModelError: it has no rotary positions.
    """
    rotary_modules(model)
    config = _text_config(model)
    try:
        layers = _watched_layers(model, device)
    except Exception:  # noqa: BLE001 - code that looks at data cannot run without; the configuration has to do
        layers = _configured_layers(config, device)
    trained_tokens = _trained_tokens(model)
    layers = with_real_windows(layers, trained_tokens)
    return Outline(
        geometry=ModelGeometry(layers, trained_tokens, int(config.vocab_size), dtype),
        num_params=sum(parameter.numel() for parameter in model.parameters()),
        active_params=_active_params(model),
        hidden_size=int(config.hidden_size),
        inner_size=max(
            int(getattr(config, name, None) or 0) for name in ("intermediate_size", "ffn_dim", "hidden_size")
        ),
    )


def _default_source() -> _Source:
    """The embedded model: unpacked, if it is already, or the file in its wheel."""
    path, version = _default_gguf()
    folder = _default_folder(version)
    if folder.is_dir():
        return _Source("the default model", str(folder))
    return _Source("the default model", str(path.parent), path.name)


def _watched_layers(model: PreTrainedModel, device: torch.device) -> Sequence[LayerGeometry]:
    """From what the layers' attention is given."""
    token_ids = torch.zeros(1, NUM_TOKENS, dtype=torch.long, device="meta")
    with watching() as watcher, torch.no_grad():
        model.set_attn_implementation(WATCH_NAME)
        model(token_ids, past_key_values=DynamicCache(), use_cache=True)
    assert sorted(watcher.layers) == list(range(_text_config(model).num_hidden_layers))
    return [
        LayerGeometry(
            num_heads=record.query.shape[0],
            num_kv_heads=record.key.shape[0],
            head_dim=record.key.shape[-1],
            value_dim=record.value.shape[-1],
            rotation=NO_ROTATION,
            window_tokens=record.window_tokens,
            device=device,
        )
        for _, record in sorted(watcher.layers.items())
    ]


def _configured_layers(config: Any, device: torch.device) -> Sequence[LayerGeometry]:
    """From what the configuration says."""
    num_heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * int(config.num_hidden_layers)
    return [
        LayerGeometry(
            num_heads=num_heads,
            num_kv_heads=int(getattr(config, "num_key_value_heads", None) or num_heads),
            head_dim=head_dim,
            value_dim=int(getattr(config, "v_head_dim", None) or head_dim),
            rotation=NO_ROTATION,
            window_tokens=getattr(config, "sliding_window", None) if kind == "sliding_attention" else None,
            device=device,
        )
        for kind in kinds
    ]


def _active_params(model: PreTrainedModel) -> int:
    config = _text_config(model)
    num_experts = next((int(v) for v in (getattr(config, n, None) for n in _NUM_EXPERTS) if v), 1)
    used = int(getattr(config, "num_experts_per_tok", None) or num_experts)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    active = 0
    for name, parameter in model.named_parameters():
        is_expert = ".experts." in name and "shared" not in name
        active += parameter.numel() * used // num_experts if is_expert else parameter.numel()
    is_tied = outputs is not None and outputs.weight is inputs.weight
    return active if is_tied else active - inputs.weight.numel()
