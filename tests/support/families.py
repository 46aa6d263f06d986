"""Tiny random models of many families, all rotary and all different in how they attend.

Two to four layers, hidden size 64, every family with a vocabulary size of its own. Weights are wide
enough (0.08) that attention and positions matter to the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_THETA = 10000.0


@dataclass(frozen=True)
class Family:
    """A configuration to try: its model type in transformers and what differs from the base."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    #: Windows that the layers have, for the tests that look at them.
    windows: tuple[int | None, ...] | None = None


def _rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": _THETA, **parameters}}


def _layers(*layer_types: str) -> dict[str, Any]:
    return {
        "layer_types": [f"{kind}_attention" for kind in layer_types],
        "num_hidden_layers": len(layer_types),
    }


_LONGROPE = {
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.0 + 0.3 * i for i in range(8)],
    "original_max_position_embeddings": 256,
    "factor": 2.0,
}

FAMILIES: dict[str, Family] = {
    "llama": Family("llama"),
    "llama-llama3": Family(
        "llama",
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama-yarn": Family("llama", _rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "llama-linear": Family("llama", _rope("linear", factor=4.0)),
    "llama-dynamic": Family("llama", _rope("dynamic", factor=2.0)),
    "llama-longrope": Family("llama", _rope("longrope", **_LONGROPE)),
    "llama-biased": Family("llama", {"attention_bias": True, "head_dim": 32}),
    "mistral": Family("mistral", {"sliding_window": None}, (None,) * 3),
    "mistral-sliding": Family("mistral", {"sliding_window": 24}, (24,) * 3),
    "mixtral": Family("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "qwen2": Family("qwen2"),
    "qwen2-sliding": Family(
        "qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}, (None, 24, 24)
    ),
    "qwen3": Family("qwen3", {"head_dim": 32}),
    "qwen3_moe": Family("qwen3_moe", {**_MOE, "head_dim": 16}),
    "phi3": Family("phi3", {"sliding_window": None}),
    "phi3-sliding": Family("phi3", {"sliding_window": 24}, (24,) * 3),
    "phi3-longrope": Family(
        "phi3", {**_rope("longrope", **_LONGROPE), "original_max_position_embeddings": 256}
    ),
    "phi3-partial": Family(
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": _THETA,
                "partial_rotary_factor": 0.5,
                **_LONGROPE,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 1.5, 2.0, 2.5],
            },
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 256,
        },
    ),
    "phi": Family(
        "phi",
        {"rope_parameters": {"rope_type": "default", "rope_theta": _THETA, "partial_rotary_factor": 0.5}},
    ),
    "gemma": Family("gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": Family(
        "gemma2",
        {
            **_layers("sliding", "full", "sliding"),
            "head_dim": 16,
            "sliding_window": 24,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 1.5,
        },
        (24, None, 24),
    ),
    "gemma3": Family(
        "gemma3_text",
        {
            **_layers("sliding", "sliding", "full", "sliding"),
            "head_dim": 16,
            "sliding_window": 24,
            "query_pre_attn_scalar": 16,
        },
        (24, 24, None, 24),
    ),
    "gpt_oss": Family(
        "gpt_oss",
        {
            **_layers("sliding", "full", "sliding"),
            "head_dim": 16,
            "sliding_window": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        (24, None, 24),
    ),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo3", {**_layers("sliding", "full", "sliding"), "sliding_window": 24}, (24, None, 24)),
    "smollm3": Family("smollm3", {"num_hidden_layers": 4}),
    "granite": Family(
        "granite", {"attention_multiplier": 0.3, "logits_scaling": 2.0, "residual_multiplier": 0.5}
    ),
    "gpt_neox": Family(
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": _THETA, "partial_rotary_factor": 0.25}},
    ),
    "glm": Family("glm", {"head_dim": 16}),
    "glm4": Family("glm4", {"head_dim": 16}),
    "cohere": Family("cohere", {"logit_scale": 1.0}),
    "cohere2": Family(
        "cohere2",
        {**_layers("sliding", "sliding", "full"), "sliding_window": 24, "logit_scale": 1.0},
        (24, 24, None),
    ),
    "stablelm": Family("stablelm"),
    "starcoder2": Family("starcoder2", {"sliding_window": None}),
    "nemotron": Family("nemotron", {"head_dim": 16}),
    "helium": Family("helium", {"head_dim": 16}),
    "ernie4_5": Family("ernie4_5", {"head_dim": 16}),
    "exaone4": Family(
        "exaone4",
        {**_layers("sliding", "sliding", "sliding", "full"), "sliding_window": 24, "head_dim": 16},
        (24, 24, 24, None),
    ),
    "seed_oss": Family("seed_oss", {"head_dim": 16}),
    "deepseek_v3": Family(
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "qk_head_dim": 24,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "deepseek_v2": Family(
        "deepseek_v2",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "minicpm3": Family(
        "minicpm3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 12,
        },
    ),
    "gemma4": Family(
        "gemma4_text",
        {
            **_layers("sliding", "full", "sliding", "full"),
            "head_dim": 16,
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 400,
            "sliding_window": 24,
        },
        (24, None, 24, None),
    ),
    "qwen2_moe": Family(
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "phimoe": Family("phimoe", {"num_local_experts": 4, "sliding_window": None}),
    "persimmon": Family("persimmon"),
    "granitemoe": Family("granitemoe", {"num_local_experts": 4}),
    "jetmoe": Family("jetmoe", {"kv_channels": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "vaultgemma": Family(
        "vaultgemma",
        {**_layers("sliding", "full", "sliding"), "head_dim": 16, "sliding_window": 24},
        (24, None, 24),
    ),
    "mimo_v2_flash": Family(
        "mimo_v2_flash",
        {
            **_layers("full", "sliding", "sliding"),
            "head_dim": 16,
            "v_head_dim": 8,
            "sliding_window": 24,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
        (None, 24, 24),
    ),
    "nanochat": Family("nanochat"),
    "apertus": Family("apertus"),
    "arcee": Family("arcee"),
    "ministral3": Family(
        "ministral3",
        {
            **_rope("yarn", factor=16.0, original_max_position_embeddings=32, llama_4_scaling_beta=0.5),
            "head_dim": 16,
        },
    ),
    "granite_swa": Family(
        "granite_swa",
        {
            **_layers("full", "sliding", "sliding"),
            "sliding_window": 24,
            "layer_rope_theta": [0.0, _THETA, 500.0],
            "attention_multiplier": 0.3,
        },
        (None, 24, 24),
    ),
    "granitemoe_swa": Family(
        "granitemoe_swa",
        {**_layers("full", "sliding", "sliding"), "sliding_window": 24, "num_local_experts": 4},
        (None, 24, 24),
    ),
}


def tiny_model(name: str, *, dtype: torch.dtype = torch.float32, **settings: Any) -> PreTrainedModel:
    """A tiny random model of a family, the same at every call, in evaluation mode."""
    family = FAMILIES[name]
    vocab_size = 131 + 4 * list(FAMILIES).index(name)
    config = AutoConfig.for_model(
        family.model_type, **{**_BASE, "vocab_size": vocab_size, **family.settings, **settings}
    )
    with torch.random.fork_rng(devices=[]):  # some initialise sinks and router biases at random
        torch.manual_seed(20240712)
        model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(20240712)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.08 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(dtype)


def token_ids(model: PreTrainedModel, num_tokens: int) -> torch.Tensor:
    """A row of random tokens, without the special ones."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, model.config.vocab_size, (1, num_tokens), generator=generator)
