"""With what a run was made: versions, model, machine. This module does not know what is run."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from emllm.analysis.segment import shown_name
from emllm.evaluation.prompts import dateless
from emllm.evaluation.results import FORMAT
from emllm.lm import EpisodicLM


def surroundings(lm: EpisodicLM) -> dict[str, Any]:
    """The part of ``run.json`` that tells of the model and the machine."""
    device = lm.geometry.layers[0].device
    chat = dateless(lm.chat_format)
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            **{name: version(name) for name in ("emllm", "torch", "transformers")},
            "python": platform.python_version(),
        },
        "code": [code_digest()],
        "model": lm.name,
        "model_title": shown_name(lm.name),
        "fingerprint": lm.fingerprint,
        "chat": [chat.opening_text, chat.before_answer],
        "dtype": str(lm.geometry.dtype).removeprefix("torch."),
        "device": str(device),
        "threads": [torch.get_num_threads()],
        "hardware": [hardware(device)],
    }


def code_digest(folder: Path | None = None) -> str:
    """What tells one state of a package's files from another, of one version or not: 16 digits.

    Args:
        folder: of the package; None: this one's. Compiled and hidden files do not count.
    """
    place = Path(str(files("emllm"))) if folder is None else folder
    digest = hashlib.sha256()
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place)
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in name.parts):
            digest.update(f"{name.as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def hardware(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} processors"
