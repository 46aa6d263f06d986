from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import tiny_model
from saved_models import save_tiny_model

from emllm.models import precision
from emllm.models.load import load_model
from emllm.models.outline import Located
from emllm.models.precision import auto_dtype, has_products

CPU = torch.device("cpu")
SIXTEEN_BITS = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("saved", SIXTEEN_BITS)
@pytest.mark.usefixtures("plain_processor")
def test_a_processor_that_would_emulate_computes_in_float32(saved: torch.dtype) -> None:
    config = tiny_model("llama").config
    assert not has_products(saved, CPU) and has_products(torch.float32, CPU)
    assert auto_dtype(config, saved, CPU) == torch.float32


@pytest.mark.parametrize("saved", [*SIXTEEN_BITS, torch.float32])
@pytest.mark.usefixtures("able_processor")
def test_a_processor_with_instructions_computes_as_saved(saved: torch.dtype) -> None:
    assert auto_dtype(tiny_model("llama").config, saved, CPU) == saved


@pytest.mark.parametrize("device", ["cuda", "mps", "meta"])
@pytest.mark.usefixtures("plain_processor")
def test_other_devices_compute_as_saved(device: str) -> None:
    assert has_products(torch.bfloat16, torch.device(device))


def test_a_torch_without_onednn_has_no_products_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not has_products(torch.bfloat16, CPU)


@pytest.mark.usefixtures("plain_processor")
def test_weights_that_would_take_most_of_the_memory_stay_as_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    num_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    for free, expected in ((2 * num_bytes, torch.float32), (2 * num_bytes - 2, torch.bfloat16)):
        monkeypatch.setattr(precision, "free_ram_bytes", lambda free=free: free)
        assert auto_dtype(model.config, torch.bfloat16, CPU) == expected


@pytest.mark.usefixtures("plain_processor")
def test_quantised_weights_and_what_cannot_be_built_stay_as_saved() -> None:
    config = tiny_model("llama").config
    config.quantization_config = {"quant_method": "fp8"}
    assert auto_dtype(config, torch.bfloat16, CPU) == torch.bfloat16
    assert auto_dtype(object(), torch.bfloat16, CPU) == torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
@pytest.mark.usefixtures("plain_processor")
def test_a_plan_and_loading_choose_alike_and_heed_what_is_asked_for(
    tmp_path: Path, dtype: str, expected: torch.dtype
) -> None:
    folder = save_tiny_model(tmp_path)
    assert Located(folder).outline(device="cpu", dtype=dtype).geometry.dtype == expected
    assert load_model(folder, device="cpu", dtype=dtype)[0].dtype == expected
