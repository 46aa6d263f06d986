"""The precision that a model computes in where none is named.

Weights are saved in 16 bits to be small. A processor without instructions for products in that precision
emulates them: on one with AVX2 alone, bfloat16 reads at a quarter of the speed of float32
(docs/lab-notes.md). This module does not know where a model comes from.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from emllm.machine import free_ram_bytes
from emllm.models.silence import quiet_transformers

#: What oneDNN, which computes the products of a CPU in 16 bits, is asked about each precision.
_QUESTIONS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
#: Of the free RAM, how much float32 weights may take; the rest is the memory's.
_WEIGHTS_SHARE = 0.5


def has_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `device` has instructions for matrix products in `dtype`; what is not a CPU is believed to."""
    if device.type != "cpu" or dtype not in _QUESTIONS:
        return True
    asked = getattr(torch.ops.mkldnn, _QUESTIONS[dtype], None)  # none in a build without oneDNN
    return asked is not None and bool(asked())


def auto_dtype(config: Any, saved: torch.dtype, device: torch.device) -> torch.dtype:
    """What ``dtype="auto"`` stands for: `saved`, or float32 on a CPU that would emulate it.

    `saved` stays where the float32 weights would take more than half of the free RAM, and where the weights
    are quantised.

    Args:
        config: the model's configuration.
        saved: dtype in which its weights were saved.
        device: where it will compute.
    """
    if has_products(saved, device) or getattr(config, "quantization_config", None) is not None:
        return saved
    try:
        with quiet_transformers(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=saved)
    except Exception:  # noqa: BLE001 - what cannot be built is said when it is loaded
        return saved
    num_params = sum(parameter.numel() for parameter in model.parameters())
    fits = num_params * torch.float32.itemsize <= _WEIGHTS_SHARE * free_ram_bytes()
    return torch.float32 if fits else saved
