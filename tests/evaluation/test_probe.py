"""A layer with random weights tells a machine's speed: its operations are counted as a plan counts them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.test_plan import needs, outline

from emllm.evaluation import probe
from emllm.evaluation.probe import _Layer, layer_flops


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LAYER_SECONDS", 0.001)


def test_a_layer_counts_as_a_plan_does() -> None:
    model, need = outline(num_layers=1), needs(100_000, model=outline(num_layers=1))
    rows = need.config.chunk_tokens
    layer = _Layer(model, rows=rows, attended=need.attended_tokens + (rows + 1) // 2)
    geometry = model.geometry.layers[0]
    weights = model.hidden_size * (
        geometry.num_heads * (geometry.head_dim + geometry.value_dim)
        + geometry.num_kv_heads * (geometry.head_dim + geometry.value_dim)
        + 3 * model.inner_size
    )
    planned = need.flops_per_token - 2 * model.active_params + 2 * weights
    assert layer.flops / rows == pytest.approx(planned, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_shape_has_a_rate(dtype: torch.dtype) -> None:
    model = outline(num_layers=1)
    wide = replace(
        model, hidden_size=16_384, inner_size=65_536, geometry=replace(model.geometry, dtype=dtype)
    )
    assert layer_flops(wide, chunk_tokens=16, attended_tokens=0) > 0
    assert layer_flops(wide, chunk_tokens=3, attended_tokens=40) > 0
