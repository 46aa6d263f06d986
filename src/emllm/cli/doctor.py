"""``emllm doctor``: what this machine and this installation can do, found out by trying.

This module does not know how a memory works; it asks the model's geometry what a token costs.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from typing import TYPE_CHECKING, Any

import typer

from emllm.cli import options
from emllm.cli.sources import opened_lm
from emllm.cli.terminal import say, say_json, working
from emllm.errors import EmllmError
from emllm.machine import free_ram_bytes

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
SELF_TEST = "Once upon a time there was a little girl who lived in a village near the forest."


def command(
    model: options.Model = "default",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Show versions, devices, free memory, extras, and whether the model loads, reads and fits.

    The exit code is 1 if the model cannot be used here.
    """
    with working("looking around"):
        report: dict[str, Any] = {
            "versions": versions(),
            "extras": extras(),
            "threads": threads(),
            "devices": devices(),
            "bytes": free_bytes(),
        }
    report["model"] = try_model(model, device=device, dtype=dtype)
    if json:
        say_json(report)
    else:
        for line in lines(report):
            say(line)
    if not report["model"]["works"]:
        raise typer.Exit(1)


def versions() -> dict[str, str | None]:
    """Of Python and of what matters here; None where something is missing."""
    names = ("emllm", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def extras() -> dict[str, list[str]]:
    """The packages that each extra of this package still lacks."""
    found: dict[str, list[str]] = {}
    for requirement in metadata.requires("emllm") or []:
        match = re.match(r"""([\w.-]+).*extra == ["'](\w+)["']""", requirement)
        if match and match[2] != "dev":
            found.setdefault(match[2], []).extend([match[1]] if _version(match[1]) is None else [])
    return found


def threads() -> dict[str, int]:
    """Processor cores that this process may use, and threads that torch uses."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cores": cores, "torch": torch.get_num_threads()}


def devices() -> list[dict[str, Any]]:
    """Every device of torch: the precisions in which it attends, and those that it emulates."""
    import torch

    from emllm.models.precision import has_products

    places = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        places += [torch.device(accelerator.type, i) for i in range(torch.accelerator.device_count())]
    return [
        {
            "name": str(place),
            "is": _device_name(place),
            "dtypes": [name for name in DTYPES if _attends(place, name)],
            "emulated": [name for name in DTYPES if not has_products(getattr(torch, name), place)],
        }
        for place in places
    ]


def free_bytes() -> dict[str, int]:
    """Free RAM, free disk where models are kept, and free memory of each CUDA device."""
    import torch

    from emllm.models.load import cache_folder

    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    free = {"ram": free_ram_bytes(), "disk": shutil.disk_usage(folder).free}
    for i in range(torch.cuda.device_count()):
        free[f"cuda:{i}"] = int(torch.cuda.mem_get_info(i)[0])
    return free


def try_model(name: str, *, device: str, dtype: str) -> dict[str, Any]:
    """Loads the model, checks that a memory can take it over, and reads a sentence."""
    from emllm.config import UNLIMITED_TOKENS
    from emllm.reading import free_bytes as free_for_log

    try:
        with opened_lm(name, device=device, dtype=dtype) as lm:
            free = free_for_log(lm.geometry)
            memory = lm.memory()
            memory.read(SELF_TEST)
            views = {
                key: getattr(memory.config, key) for key in ("sink_tokens", "local_tokens", "recall_tokens")
            }
            assert views["recall_tokens"] < UNLIMITED_TOKENS
            return {
                "name": name,
                "works": True,
                "device": str(lm.geometry.layers[0].device),
                "dtype": str(lm.geometry.dtype).removeprefix("torch."),
                "layers": lm.geometry.num_layers,
                "trained_tokens": lm.geometry.trained_tokens,
                "kv_bytes_per_token": lm.geometry.kv_bytes_per_token,
                "tokens_that_fit": free // lm.geometry.kv_bytes_per_token,
                **views,
            }
    except EmllmError as error:
        return {"name": name, "works": False, "problem": str(error)}


def lines(report: dict[str, Any]) -> list[str]:
    """The report for a person."""
    shown = [f"{name:<14}{version or 'missing'}" for name, version in report["versions"].items()]
    shown.append(f"{'threads':<14}{report['threads']['torch']} of torch, {report['threads']['cores']} cores")
    for place in report["devices"]:
        slow = f" (slow: {', '.join(place['emulated'])})" if place["emulated"] else ""
        shown.append(f"{place['name']:<14}{place['is']}: {', '.join(place['dtypes'])}{slow}")
    for name, free in report["bytes"].items():
        shown.append(f"{'free ' + name:<14}{free / 1e9:,.1f} GB")
    for name, missing in report["extras"].items():
        how = f"missing {', '.join(missing)}: pip install 'emllm[{name}]'" if missing else "installed"
        shown.append(f"{'extra ' + name:<14}{how}")
    return shown + _model_lines(report["model"])


def _model_lines(model: dict[str, Any]) -> list[str]:
    if not model["works"]:
        return [f"{'model':<14}{model['name']}: {model['problem']}"]
    return [
        f"{'model':<14}{model['name']}: reads and remembers; {model['layers']} layers, {model['dtype']} on "
        f"{model['device']}, trained on {model['trained_tokens']:,} positions",
        f"{'views':<14}{model['sink_tokens']} sink, {model['local_tokens']} local and "
        f"{model['recall_tokens']} recalled tokens per layer by default",
        f"{'memory':<14}{model['kv_bytes_per_token']:,} bytes per token read; "
        f"{model['tokens_that_fit']:,} tokens fit in what is free",
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device_name(place: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine()


def _attends(place: torch.device, dtype: str) -> bool:
    """Whether attention in this precision gives finite numbers on this device."""
    import torch

    try:
        x = torch.ones(1, 2, 4, 64, device=place, dtype=getattr(torch, dtype))
        return bool(torch.nn.functional.scaled_dot_product_attention(x, x, x).isfinite().all())
    except (RuntimeError, NotImplementedError):
        return False
