"""What a memory holds of each layer, and how much room its tiers get: as set, or a share of what is free.

This module does not know what lies in them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emllm.attention.geometry import ModelGeometry
from emllm.config import MemoryConfig, ResolvedConfig
from emllm.machine import free_ram_bytes
from emllm.store.slabs import LayerShape
from emllm.store.tiers import Tiers

#: Budgets that nobody set: a quarter of what is free, and no more than this.
MOST_ON_CPU = 1 << 30
MOST_ON_GPU = 8 << 30
MOST_IN_HOST = 16 << 30


def layer_shapes(geometry: ModelGeometry) -> list[LayerShape]:
    """What a log must know of each layer."""
    return [
        LayerShape(layer.num_kv_heads, layer.head_dim, layer.value_dim, geometry.dtype, layer.device)
        for layer in geometry.layers
    ]


def chosen(config: MemoryConfig, *, on_gpu: bool, device_free: int, ram_free: int) -> tuple[int, int]:
    """Bytes of the device tier and of the host tier: what was set, or a share of the bytes that are free.

    On a CPU both are RAM, so by default there is no host tier.
    """
    device, host = config.device_budget, config.host_budget
    if device is None:
        device = min(max(device_free, 0) // 4, MOST_ON_GPU if on_gpu else MOST_ON_CPU)
    if host is None:
        host = min(max(ram_free, 0) // 4, MOST_IN_HOST) if on_gpu else 0
    return device, host


def budgets(shapes: Sequence[LayerShape], config: ResolvedConfig) -> tuple[int, int]:
    """`chosen`, of what is free now."""
    on_gpu = shapes[0].device.type == "cuda"
    ram_free = free_ram_bytes()
    device_free = int(torch.cuda.mem_get_info(shapes[0].device)[0]) if on_gpu else ram_free
    return chosen(config, on_gpu=on_gpu, device_free=device_free, ram_free=ram_free)


def tiers_for(shapes: Sequence[LayerShape], config: ResolvedConfig) -> Tiers:
    """Tiers of the configured codec and sizes."""
    device, host = budgets(shapes, config)
    return Tiers(shapes, codec=config.codec, device_budget=device, host_budget=host)
