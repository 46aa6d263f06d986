"""A fingerprint tells models apart and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import FAMILIES, tiny_model, token_ids
from saved_models import word_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from emllm.errors import ModelError
from emllm.models.attach import attach
from emllm.models.fingerprint import BLOCK_BYTES, NUM_BLOCKS, WHOLE_BYTES, difference, fingerprint

PARTS = {"architecture", "config", "weights", "tokenizer", "dtype"}


def tiny_tokenizer(num_words: int = 40, **settings: str) -> PreTrainedTokenizerFast:
    return word_tokenizer(num_words, pad_token="w1", **settings)


class Table(nn.Module):
    """A model of one tensor."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.config = tiny_model("llama").config


@pytest.mark.parametrize(
    "name", ["llama", "llama-dynamic", "phi3-longrope", "gemma3", "gpt_neox", "qwen3_moe"]
)
def test_the_fingerprint_is_the_same_while_attached_and_after(name: str) -> None:
    model = tiny_model(name)
    before = fingerprint(model, None)
    with attach(model):
        assert fingerprint(model, None) == before
    model(token_ids(model, 9))
    assert fingerprint(model, None) == before
    assert set(before) == PARTS and before["architecture"] == type(model).__name__


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_saved_model_has_the_fingerprint_of_the_one_it_was_saved_from(name: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_model(name), tiny_tokenizer(chat_template="{{ messages }}")
    before = fingerprint(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    loaded.config.use_cache = not loaded.config.use_cache
    after = fingerprint(loaded, PreTrainedTokenizerFast.from_pretrained(tmp_path))
    assert difference(before, after) is None and before == after


def test_a_buffer_of_a_wrapped_rotary_module_keeps_its_name() -> None:
    model = tiny_model("llama")
    bare = fingerprint(model)
    model.model.rotary_emb.register_buffer("kept", torch.ones(3))
    before = fingerprint(model)
    assert before["weights"] != bare["weights"]
    with attach(model):
        assert fingerprint(model) == before


def test_each_part_tells_what_it_is_of() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    before = fingerprint(model, tokenizer)
    changed = {
        "tokenizer": fingerprint(model, tiny_tokenizer(41)),
        "config": fingerprint(_with_config(model, rms_norm_eps=1e-3), tokenizer),
        "weights": fingerprint(_with_weight(model), tokenizer),
    }
    for part, after in changed.items():
        assert {name for name in PARTS if before[name] != after[name]} == {part}
        said = difference(before, after)
        assert said is not None and part[:6] in said and "\n" not in said
        assert before[part][:12] in said and after[part][:12] in said
    assert fingerprint(model, tiny_tokenizer(chat_template="{{ x }}"))["tokenizer"] != before["tokenizer"]
    assert fingerprint(model, None)["tokenizer"] == "none"


def test_using_a_tokenizer_does_not_change_it() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    before = fingerprint(model, tokenizer)
    tokenizer(["w1 w2 w3", "w2"], padding=True, truncation=True, max_length=2)
    assert fingerprint(model, tokenizer) == before


def test_another_dtype_is_said_with_both_names_and_hides_the_weights() -> None:
    before, after = (fingerprint(tiny_model("llama", dtype=d)) for d in (torch.float32, torch.bfloat16))
    assert difference(before, after) == (
        "the dtype differs: the memory was made with float32, this model has bfloat16"
    )


def test_another_family_is_said_by_its_class() -> None:
    said = difference(fingerprint(tiny_model("llama")), fingerprint(tiny_model("qwen3")))
    assert said is not None and "LlamaForCausalLM" in said and "Qwen3ForCausalLM" in said


def test_a_stored_fingerprint_without_a_part_differs_in_it() -> None:
    present = fingerprint(tiny_model("llama"))
    stored = {name: value for name, value in present.items() if name != "config"}
    said = difference(stored, present)
    assert said is not None and "configuration differs" in said and "unknown" in said


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64]
)
def test_every_byte_of_a_small_tensor_counts(dtype: torch.dtype) -> None:
    plain = torch.zeros(5, 7).to(dtype)
    changed = torch.zeros(5, 7)
    changed[4, 6] = 1
    assert weights_of(plain) != weights_of(changed.to(dtype))


def test_of_a_large_tensor_blocks_from_end_to_end_count_and_strides_do_not() -> None:
    numel = WHOLE_BYTES // 4 + 4096
    plain = torch.arange(numel, dtype=torch.float32).reshape(-1, 64)
    length = BLOCK_BYTES // 4
    seen = [i * (numel - length) // (NUM_BLOCKS - 1) for i in range(NUM_BLOCKS)]
    for idx in (0, numel - 1, seen[1], seen[40] + length - 1):
        changed = plain.clone()
        changed.view(-1)[idx] += 1
        assert weights_of(changed) != weights_of(plain)
    unseen = plain.clone()
    unseen.view(-1)[seen[1] - 1] += 1
    assert weights_of(unseen) == weights_of(plain)
    assert weights_of(plain.t().contiguous().t()) == weights_of(plain)


def test_weights_that_are_not_in_memory_are_refused() -> None:
    with pytest.raises(ModelError, match="weight"):
        fingerprint(Table(torch.zeros(3, device="meta")))


def weights_of(tensor: torch.Tensor) -> str:
    return fingerprint(Table(tensor))["weights"]


def _with_config(model: nn.Module, **changes: float) -> nn.Module:
    changed = copy.deepcopy(model)
    for name, value in changes.items():
        setattr(changed.config, name, value)
    return changed


def _with_weight(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.lm_head.weight[3, 3] += 1
    return changed
