"""How much room the tiers of a memory get: what the settings say, or a share of what is free.

This module does not know what lies in them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emllm.config import ResolvedConfig
from emllm.machine import free_ram_bytes
from emllm.store.slabs import LayerShape
from emllm.store.tiers import Tiers

#: Budgets that nobody set: a quarter of what is free, and no more than this.
MOST_ON_CPU = 1 << 30
MOST_ON_GPU = 8 << 30
MOST_IN_HOST = 16 << 30


def budgets(shapes: Sequence[LayerShape], config: ResolvedConfig) -> tuple[int, int]:
    """Bytes of the device tier and of the host tier.

    On a CPU both are RAM, so by default there is no host tier.
    """
    on_gpu = shapes[0].device.type == "cuda"
    device, host = config.device_budget, config.host_budget
    if device is None:
        free = int(torch.cuda.mem_get_info(shapes[0].device)[0]) if on_gpu else free_ram_bytes()
        device = min(free // 4, MOST_ON_GPU if on_gpu else MOST_ON_CPU)
    if host is None:
        host = min(free_ram_bytes() // 4, MOST_IN_HOST) if on_gpu else 0
    return device, host


def tiers_for(shapes: Sequence[LayerShape], config: ResolvedConfig) -> Tiers:
    """Tiers of the configured codec and sizes."""
    device, host = budgets(shapes, config)
    return Tiers(shapes, codec=config.codec, device_budget=device, host_budget=host)
