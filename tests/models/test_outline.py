"""An outline, made without weights, says what the loaded model says."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM

from emllm.errors import ConfigError, ModelError
from emllm.models.attach import attach
from emllm.models.outline import Located, outline_of

CPU = torch.device("cpu")

#: Its code looks at data, and its configuration does not say that each expert has keys of its own.
GUESSED = "jetmoe"


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {GUESSED}))
def test_the_outline_of_a_family_is_the_geometry_of_the_loaded_model(name: str) -> None:
    model = tiny_model(name)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=torch.bfloat16).eval()
    outline = outline_of(empty, device=CPU, dtype=torch.float32)
    assert outline.num_params == sum(p.numel() for p in model.parameters())
    assert outline.weight_bytes == 4 * outline.num_params
    assert 0 < outline.active_params <= outline.num_params
    with attach(model) as attachment:
        real = attachment.geometry
    found = outline.geometry
    assert (found.trained_tokens, found.vocab_size) == (real.trained_tokens, real.vocab_size)
    assert found.kv_bytes_per_token == real.kv_bytes_per_token
    for measured, loaded in zip(found.layers, real.layers, strict=True):
        for part in ("num_heads", "num_kv_heads", "head_dim", "value_dim", "window_tokens", "device"):
            assert getattr(measured, part) == getattr(loaded, part), part


@pytest.mark.usefixtures("able_processor")
def test_a_saved_model_is_outlined_in_its_dtype_or_the_one_asked_for(tmp_path: Path) -> None:
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    located = Located(tmp_path)
    assert located.outline(device="cpu").geometry.dtype == torch.bfloat16
    assert located.outline(device="cpu", dtype="float32").geometry.dtype == torch.float32
    with pytest.raises(ConfigError, match="dtype"):
        located.outline(dtype="float7")
    with pytest.raises(ModelError, match="tokenizer"):
        located.tokenizer()


def test_a_large_model_is_outlined_without_its_memory(tmp_path: Path) -> None:
    config = copy.deepcopy(tiny_model("llama").config)
    config.update({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128})
    config.update({"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256})
    config.save_pretrained(tmp_path)
    outline = Located(tmp_path).outline(device="cpu", dtype="bfloat16")
    assert outline.num_params == 8_030_261_248
    assert outline.active_params == outline.num_params - 128_256 * 4096
    assert outline.geometry.kv_bytes_per_token == 131_072


def test_experts_count_as_often_as_a_token_is_sent_to_one() -> None:
    model = tiny_model("qwen3_moe")
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    outline = outline_of(model.to("meta"), device=CPU, dtype=torch.float32)
    inputs = model.get_input_embeddings().weight.numel()
    assert outline.active_params == outline.num_params - inputs - experts // 2


def test_a_missing_model_is_refused() -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        Located("./nowhere")
