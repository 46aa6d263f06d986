"""Giving a loaded model a memory's attention, and taking it back without a trace.

Three public means: rotary modules that answer "no rotation", an attention function registered under
our own name, and two hooks around the causal language model. Layers need not turn by such an answer
(`own_rotation`). All of it belongs to one model object; `Attachment.detach` puts back what was there. This
module does not know how a memory attends.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from emllm.attention.geometry import ModelGeometry
from emllm.errors import EmllmError, InputError, ModelError, UnsupportedModelError
from emllm.models.attention import ATTENTION_NAME, register
from emllm.models.cache import EpisodicCache, Memory
from emllm.models.load import _first_line
from emllm.models.own_rotation import left_out
from emllm.models.rotary_modules import IdentityRotary, rotary_modules
from emllm.models.self_check import (
    Pass,
    ReplayMemory,
    check_attention,
    layer_count_problem,
    model_geometry,
    probe_token_ids,
    relative_difference,
    tolerance,
)
from emllm.models.silence import quiet_transformers
from emllm.models.watch import BASELINE, WATCH_NAME, watching

_ATTENTION_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_DEFAULT_TRAINED_TOKENS = 2048

#: How keywords begin that bring images, videos and sounds.
_NOT_TEXT = ("audio", "image", "input_features", "input_values", "pixel", "video")

_UNEVEN = " tokens (generate() continues rows only from memories that have read equally much)"


class Attachment:
    """A model with a memory's attention, until `detach`. Also a context manager.

    Attributes:
        model: the model, changed in place.
        geometry: what a memory must know of it.
    """

    def __init__(self, model: PreTrainedModel, geometry: ModelGeometry, undo: ExitStack) -> None:
        self.model = model
        self.geometry = geometry
        self._undo = undo
        self._is_attached = True

    def cache(self, *memories: Memory) -> EpisodicCache:
        """What to give the model as ``past_key_values``; row b of a batch is read into ``memories[b]``.

        Raises:
            InputError: the model was given back.
        """
        if not self._is_attached:
            raise InputError("the model was given back (close, or detach): attach it again to use a memory")
        return EpisodicCache(memories, num_layers=self.geometry.num_layers)

    def detach(self) -> None:
        """Puts the model back as it was, bit for bit. Doing so twice changes nothing."""
        self._undo.close()
        self._is_attached = False

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(model: nn.Module) -> Attachment:
    """Takes over the attention of a rotary causal language model, after a self-check.

    The model must be where it will compute: a later ``model.to(...)`` does not move the angles.

    Raises:
        ModelError: it is not a causal language model, or is attached already.
        UnsupportedModelError: the self-check found something that a memory cannot take over exactly.
    """
    model = _checked(model)
    with ExitStack() as undo, quiet_transformers():
        undo.enter_context(_configs_restored(model))
        with torch.no_grad(), _evaluating(model), _refusing(model):
            geometry = _take_over(model, undo)
        attachment = Attachment(model, geometry, undo.pop_all())
    return attachment


def _take_over(model: PreTrainedModel, undo: ExitStack) -> ModelGeometry:
    """Attaches, with every step's undoing pushed on ``undo``, and checks."""
    weight = model.get_input_embeddings().weight
    device = torch.device("cpu") if weight.is_meta else weight.device  # accelerate moves what comes to it
    token_ids = probe_token_ids(_text_config(model).vocab_size)[None].to(device)
    rotaries = [undo.enter_context(_wrapped(*place)) for place in rotary_modules(model)]
    _set_attention(model, BASELINE)
    stock_logits = model(token_ids, use_cache=False).logits[0]
    recorded = _recorded_pass(model, token_ids)
    for rotary in rotaries:
        rotary.is_watching = False
    if relative_difference(recorded.logits, stock_logits) > tolerance(stock_logits.dtype):
        raise UnsupportedModelError(f"{type(model).__name__} attends otherwise when its attention is watched")
    check_attention(recorded)
    register()
    _set_attention(model, ATTENTION_NAME)
    trained_tokens = _trained_tokens(model)
    hooks = _Hooks(model, trained_tokens=trained_tokens)
    undo.callback(model.register_forward_pre_hook(hooks.before, with_kwargs=True).remove)
    undo.callback(model.register_forward_hook(hooks.after, with_kwargs=True).remove)
    undo.enter_context(left_out(model))
    replay = ReplayMemory(recorded)
    model(token_ids, past_key_values=EpisodicCache([replay], num_layers=len(recorded.layers)))
    calls = [call for rotary in rotaries for call in rotary.calls]
    return model_geometry(recorded, replay, calls=calls, trained_tokens=trained_tokens)


def _recorded_pass(model: PreTrainedModel, token_ids: Tensor) -> Pass:
    """A pass of the model as it is, its attention watched."""
    with watching() as watcher:
        _set_attention(model, WATCH_NAME)
        logits = model(token_ids, use_cache=False).logits[0]
    problem = layer_count_problem(watcher.layer_idxs, _text_config(model).num_hidden_layers, model)
    if problem is not None:
        raise UnsupportedModelError(problem)
    return Pass(logits, watcher.layers)


class _Hooks:
    """What happens before and after each pass of an attached model.

    The model is told where its tokens stand in all that was read, those beyond what it was trained
    on the last of these. No rotary module heeds them; Ministral 3 makes its queries the larger the later they
    stand. **Deviation** from the stock model: past its trained length they grow no more.
    """

    def __init__(self, model: PreTrainedModel, *, trained_tokens: int) -> None:
        parameters = inspect.signature(type(model).forward).parameters
        self._names = [name for name in parameters if name != "self"]
        self._has_logits_to_keep = "logits_to_keep" in parameters
        self._has_position_ids = "position_ids" in parameters
        self._trained_tokens = trained_tokens

    def before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict]:
        kwargs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        cache, token_ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
        if not isinstance(cache, EpisodicCache):
            raise InputError(
                f"an attached model needs lm.cache(memory) as past_key_values, got {type(cache).__name__}; "
                "detach it to use it without a memory"
            )
        if token_ids is None:
            raise InputError("a memory reads input_ids, got none (inputs_embeds cannot be read)")
        if torch.is_autocast_enabled(token_ids.device.type):
            raise InputError("a memory keeps the model's own dtype: read outside torch.autocast")
        for name, value in kwargs.items():
            if value is not None and name.startswith(_NOT_TEXT):
                raise InputError(f"a memory reads text alone, got {name}")
        _check_batch(token_ids, cache=cache, attention_mask=kwargs.get("attention_mask"))
        position_ids = kwargs.get("position_ids")
        _check_positions(position_ids, cache=cache)
        if kwargs.get("return_dict") is False or kwargs.get("use_cache") is False:
            raise InputError("an attached model needs return_dict and use_cache, got False")
        kwargs.update(use_cache=True, return_dict=True)
        if self._has_position_ids:
            kwargs["position_ids"] = self._positions(token_ids, cache=cache, given=position_ids)
        if self._has_logits_to_keep:
            cache.logits_to_keep, kwargs["logits_to_keep"] = kwargs.get("logits_to_keep", 0), 0
        cache.begin_chunk(token_ids)
        return (), kwargs

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache: EpisodicCache = kwargs["past_key_values"]
        cache.commit(kwargs["input_ids"], output.logits)
        output.logits = _kept(output.logits, cache.logits_to_keep)

    def _positions(self, token_ids: Tensor, *, cache: EpisodicCache, given: Tensor | None) -> Tensor:
        """``[rows, tokens]``, with the leading dimensions of what is given, one for each of several axes."""
        num_tokens, last = token_ids.shape[1], self._trained_tokens - 1
        starts = [memory.num_tokens for memory in cache.memories]
        rows = [torch.arange(start, start + num_tokens, device=token_ids.device) for start in starts]
        positions = torch.stack(rows).clamp_(max=last)
        return positions if given is None else positions.expand(*given.shape[:-2], *positions.shape)


def _kept(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The logits that the caller asks for, in transformers' way.

    Args:
        logits_to_keep: the last n of each row (0 for all), tokens of all rows ``[n]`` or of each
            ``[rows, n]``, or a mask ``[rows, tokens]``.
    """
    if isinstance(logits_to_keep, int):
        return logits[:, -logits_to_keep:]
    if logits_to_keep.ndim == 1:
        return logits[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return logits[logits_to_keep]
    return logits.take_along_dim(logits_to_keep[..., None], dim=1)


def _check_batch(token_ids: Tensor, *, cache: EpisodicCache, attention_mask: Any) -> None:
    if token_ids.ndim != 2 or token_ids.shape[1] == 0:
        raise InputError(
            f"input_ids must have shape [rows, tokens >= 1], got {list(token_ids.shape)} (generate() wants "
            "the tokens already read in front of the new ones)"
        )
    if token_ids.shape[0] != len(cache.memories):
        raise InputError(
            f"a batch of {token_ids.shape[0]} rows needs as many memories, got {len(cache.memories)}"
        )
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        raise InputError(
            "a memory attends causally: attention_mask must be None or all ones of shape [rows, tokens]"
        )
    if not bool(attention_mask.all()):
        num_padding = (attention_mask == 0).sum(-1)
        row = int(num_padding.argmax())
        raise InputError(
            f"row {row} has {int(num_padding[row])} padding tokens; read each row without padding"
        )
    num_tokens, width = token_ids.shape[1], attention_mask.shape[1]
    for row, memory in enumerate(cache.memories):
        if width not in (num_tokens, memory.num_tokens + num_tokens):
            raise InputError(
                f"attention_mask of row {row} is {width} tokens wide: {num_tokens} are new, and its memory "
                f"has read {memory.num_tokens}{_UNEVEN}"
            )


def _check_positions(position_ids: Tensor | None, *, cache: EpisodicCache) -> None:
    if position_ids is None:
        return
    if position_ids.shape[-1] > 1 and not bool((position_ids.diff(dim=-1) == 1).all()):
        raise InputError("position_ids must count up by one: a memory decides where its tokens stand")
    num_read = [memory.num_tokens for memory in cache.memories]
    if len(set(num_read)) == 1:
        return
    starts = position_ids.flatten(0, -2)[-len(num_read) :, 0].expand(len(num_read)).tolist()
    for row, (start, expected) in enumerate(zip(starts, num_read, strict=True)):
        if start != expected:
            raise InputError(
                f"position_ids of row {row} begin at {start}, but its memory has read {expected}{_UNEVEN}"
            )


def _checked(model: nn.Module) -> PreTrainedModel:
    """The model, if nothing speaks against it that can be told without running it."""
    if isinstance(model, nn.Module) and any(map(_is_compiled, model.modules())):
        raise UnsupportedModelError(
            f"this {type(model).__name__} is compiled, and attaching changes what was compiled; "
            "call torch.compile after it"
        )
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise ModelError(f"a causal language model of transformers is needed, got {type(model).__name__}")
    if any(isinstance(module, IdentityRotary) for module in model.modules()):
        raise ModelError(f"this {type(model).__name__} is attached already; detach it first")
    config = _text_config(model)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{type(model).__name__} has an encoder; a memory needs a decoder alone")
    for layer_idx, layer_type in enumerate(getattr(config, "layer_types", None) or ()):
        if layer_type not in _ATTENTION_LAYER_TYPES:
            raise UnsupportedModelError(
                f"layer {layer_idx} is of type {layer_type!r}, neither full nor sliding attention"
            )
    if getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(
            f"{config.num_kv_shared_layers} layers attend to the keys of other layers"
        )
    return model


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was here, by the names that it leaves; its compiler is not imported."""
    forward = module.__dict__.get("forward")
    return (
        getattr(module, "_compiled_call_impl", None) is not None
        or type(module).__name__ == "OptimizedModule"
        or hasattr(forward, "_torchdynamo_orig_callable")
    )


@contextmanager
def _wrapped(parent: nn.Module, name: str, inner: nn.Module) -> Iterator[IdentityRotary]:
    """A rotary module in its wrapping."""
    rotary = IdentityRotary(inner)
    setattr(parent, name, rotary)
    try:
        yield rotary
    finally:
        if not sys.is_finalizing():  # of a model that was never detached nothing is left to put back into
            setattr(parent, name, inner)


@contextmanager
def _refusing(model: PreTrainedModel) -> Iterator[None]:
    """Whatever goes wrong while a model is tried is a reason to refuse it."""
    try:
        yield
    except UnsupportedModelError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, EmllmError) else f"{type(error).__name__}: "
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be attached: {kind}{_first_line(error)}"
        ) from error


@contextmanager
def _configs_restored(model: PreTrainedModel) -> Iterator[None]:
    """Puts back the attention that every part of the model was set to."""
    configs: dict[int, Any] = {}
    queue = [module.config for module in model.modules() if hasattr(module, "config")]
    while queue:
        config = queue.pop()
        if id(config) not in configs and hasattr(config, "_attn_implementation_internal"):
            configs[id(config)] = (config, config._attn_implementation_internal)
            queue += [
                getattr(config, name)
                for name in config.sub_configs
                if getattr(config, name, None) is not None
            ]
    try:
        yield
    finally:
        for config, implementation in configs.values():
            config._attn_implementation_internal = implementation


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module's own flag is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _set_attention(model: PreTrainedModel, implementation: str) -> None:
    model.set_attn_implementation(implementation)
    if model.config._attn_implementation != implementation:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not call the attention interface (old-style modelling)"
        )


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


def _trained_tokens(model: PreTrainedModel) -> int:
    return int(getattr(_text_config(model), "max_position_embeddings", None) or _DEFAULT_TRAINED_TOKENS)
