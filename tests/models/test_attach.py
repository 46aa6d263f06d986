from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES, tiny_model, token_ids
from reference_memory import ReferenceMemory
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    TextStreamer,
)
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from emllm.config import MemoryConfig
from emllm.errors import InputError, ModelError, UnsupportedModelError
from emllm.memory import EpisodicMemory
from emllm.models.attach import Attachment, attach
from emllm.models.attention import ATTENTION_NAME, check_arguments
from emllm.models.cache import EpisodicCache


def stock_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that attaching might change."""
    modules = dict(model.named_modules())
    return {
        "modules": {name: id(module) for name, module in modules.items()},
        "order": [list(module._modules) for module in modules.values()],
        "training": [module.training for module in modules.values()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_with_kwargs))
            for m in modules.values()
        ],
        "attention": [m.config._attn_implementation for m in modules.values() if hasattr(m, "config")],
        "state": list(model.state_dict()),
        "config": model.config.to_dict(),
        "attributes": [sorted(vars(module)) for module in modules.values()],
        "buffers": {name: buffer.tolist() for name, buffer in model.named_buffers()},
    }


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_model("llama")


def reference(attachment: Attachment) -> tuple[ReferenceMemory, EpisodicCache]:
    memory = ReferenceMemory(attachment.geometry)
    return memory, attachment.cache(memory)


@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "gpt_oss", "llama-dynamic", "llama-longrope", "deepseek_v3"]
)
@pytest.mark.parametrize("implementation", ["eager", None])
def test_detaching_puts_everything_back(name: str, implementation: str | None) -> None:
    model = tiny_model(name)
    if implementation is not None:
        model.set_attn_implementation(implementation)
    model.model.layers[0].train()
    ids = token_ids(model, 30)
    logits = stock_logits(model, ids)
    before = snapshot(model)
    with attach(model) as attachment, torch.no_grad():
        assert snapshot(model) != before
        model.eval()
        model(ids, past_key_values=reference(attachment)[1])
        model.model.layers[0].train()
    assert snapshot(model) == before
    assert torch.equal(stock_logits(model, ids), logits)


def test_a_dynamic_table_that_has_grown_is_left_as_it_was() -> None:
    model = tiny_model("llama-dynamic")
    stock_logits(model, token_ids(model, 600))
    before, grown = snapshot(model), model.model.rotary_emb.max_seq_len_cached
    with attach(model):
        pass
    assert snapshot(model) == before
    assert model.model.rotary_emb.max_seq_len_cached == grown > 512


@pytest.mark.parametrize("is_reference", [True, False])
@pytest.mark.parametrize("name", ["llama-dynamic", "llama-longrope", "phi3-longrope"])
def test_scalings_that_go_by_length_use_the_length_of_what_is_attended(name: str, is_reference: bool) -> None:
    model = tiny_model(name)
    for num_tokens in (600, 300, 200):
        ids = token_ids(model, num_tokens)
        expected = stock_logits(tiny_model(name), ids)
        with attach(model) as attachment, torch.no_grad():
            memory = reference(attachment)[0] if is_reference else episodic(attachment, recall_tokens="all")
            found = model(ids, past_key_values=attachment.cache(memory)).logits
        assert (found - expected).abs().max() <= 2e-4, num_tokens


def test_another_model_of_the_same_class_is_not_affected(llama: PreTrainedModel) -> None:
    other = copy.deepcopy(llama)
    ids = token_ids(other, 20)
    expected = stock_logits(other, ids)
    with attach(llama):
        assert torch.equal(stock_logits(other, ids), expected)


def test_an_error_inside_the_block_detaches(llama: PreTrainedModel) -> None:
    before = snapshot(llama)
    with pytest.raises(KeyError), attach(llama):
        raise KeyError("something of the caller's")
    assert snapshot(llama) == before


def test_detaching_twice_changes_nothing_and_attaching_again_works(llama: PreTrainedModel) -> None:
    attachment = attach(llama)
    attachment.detach()
    before = snapshot(llama)
    attachment.detach()
    assert snapshot(llama) == before
    with attach(llama):
        assert llama.config._attn_implementation == ATTENTION_NAME


def test_attaching_twice_is_an_error_and_leaves_the_first_attachment(llama: PreTrainedModel) -> None:
    with attach(llama) as attachment, torch.no_grad():
        with pytest.raises(ModelError, match="attached already"):
            attach(llama)
        llama(token_ids(llama, 5), past_key_values=reference(attachment)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_finds_the_same_geometry(name: str, dtype: torch.dtype) -> None:
    with attach(tiny_model(name)) as single, attach(tiny_model(name, dtype=dtype)) as half:
        assert half.geometry.dtype == dtype
        for found, expected in zip(half.geometry.layers, single.geometry.layers, strict=True):
            assert found.window_tokens == expected.window_tokens
            for attribute in ("convention", "rotary_dim", "first_dim"):
                assert getattr(found.rotation, attribute) == getattr(expected.rotation, attribute)


def test_geometry_says_what_the_model_was_trained_on(llama: PreTrainedModel) -> None:
    with attach(llama) as attachment:
        geometry = attachment.geometry
        assert (geometry.trained_tokens, geometry.vocab_size, geometry.num_layers) == (512, 131, 3)
        assert geometry.dtype == torch.float32
        layer = geometry.layers[0]
        assert (layer.num_heads, layer.num_kv_heads, layer.head_dim, layer.value_dim) == (4, 2, 16, 16)
        assert layer.rotation.table is geometry.layers[2].rotation.table


def test_tables_are_float32_whatever_the_models_dtype() -> None:
    with attach(tiny_model("llama", dtype=torch.bfloat16)) as half, attach(tiny_model("llama")) as single:
        tables = [attachment.geometry.layers[0].rotation.table for attachment in (half, single)]
        assert tables[0] is not None and tables[1] is not None
        assert torch.equal(tables[1].cos_sin(400)[0], tables[1].cos_sin(400)[0].float())
        # .to(bfloat16) rounds the stock module's own frequencies, so only what is small can agree
        assert tables[0].cos_sin(400)[0].dtype == torch.float32


# What an attached model refuses


@pytest.fixture()
def attached(llama: PreTrainedModel) -> Any:
    with attach(llama) as attachment, torch.no_grad():
        yield attachment


@pytest.mark.parametrize("cache", [None, DynamicCache()])
def test_a_forward_without_a_memory_is_refused(attached: Attachment, cache: Any) -> None:
    with pytest.raises(InputError, match=r"lm\.cache\(memory\)"):
        attached.model(token_ids(attached.model, 5), past_key_values=cache)


def test_generate_without_a_memory_is_refused(attached: Attachment) -> None:
    with pytest.raises(InputError, match=r"lm\.cache\(memory\)"):
        attached.model.generate(token_ids(attached.model, 5), max_new_tokens=2)


def test_the_base_model_is_refused(attached: Attachment) -> None:
    _, cache = reference(attached)
    with pytest.raises(InputError, match="causal language model"):
        attached.model.model(token_ids(attached.model, 5), past_key_values=cache)
    attached.model(token_ids(attached.model, 5), past_key_values=cache)
    with pytest.raises(InputError, match="causal language model"):
        attached.model.model(token_ids(attached.model, 5), past_key_values=cache)
    with pytest.raises(InputError, match=r"lm\.cache\(memory\)"):
        attached.model.model(token_ids(attached.model, 5))


def test_padding_is_refused_with_row_and_count(attached: Attachment) -> None:
    ids = token_ids(attached.model, 12).view(2, 6)
    memories = [ReferenceMemory(attached.geometry) for _ in range(2)]
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with pytest.raises(InputError, match="row 1 has 3 padding tokens"):
        attached.model(ids, attention_mask=mask, past_key_values=attached.cache(*memories))
    attached.model(ids, attention_mask=torch.ones_like(ids), past_key_values=attached.cache(*memories))


@pytest.mark.parametrize("num_memories", [1, 3])
def test_a_batch_of_another_size_is_refused(attached: Attachment, num_memories: int) -> None:
    memories = [ReferenceMemory(attached.geometry) for _ in range(num_memories)]
    with pytest.raises(InputError, match=f"2 rows needs as many memories, got {num_memories}"):
        attached.model(token_ids(attached.model, 12).view(2, 6), past_key_values=attached.cache(*memories))


@pytest.mark.parametrize("lengths", [(20, 10), (10, 20), (0, 20), (29, 20)])
def test_generate_does_not_skip_what_the_memory_of_one_row_alone_has_read(
    attached: Attachment, lengths: tuple[int, int]
) -> None:
    ids = token_ids(attached.model, 60).view(2, 30)
    memories = [ReferenceMemory(attached.geometry) for _ in range(2)]
    for memory, row, length in zip(memories, ids, lengths, strict=True):
        if length:
            attached.model(row[None, :length], past_key_values=attached.cache(memory))
    cache = attached.cache(*memories)
    with pytest.raises(InputError, match=rf"row 1 .*has read {lengths[1]}"):
        attached.model.generate(ids, past_key_values=cache, max_new_tokens=3)
    with pytest.raises(InputError, match=r"row .* is 30 tokens wide"):
        attached.model(ids[:, -3:], attention_mask=torch.ones_like(ids), past_key_values=cache)
    assert tuple(memory.num_tokens for memory in memories) == lengths
    for extra in ({}, {"attention_mask": torch.ones(2, 3)}):
        attached.model(ids[:, -3:], past_key_values=cache, **extra)
    assert tuple(memory.num_tokens - 6 for memory in memories) == lengths


def refusals(ids: Tensor) -> dict[str, dict[str, Any]]:
    num_tokens = ids.shape[1]
    return {
        "inputs_embeds": {"input_ids": None, "inputs_embeds": torch.zeros(1, num_tokens, 64)},
        "a mask of four dimensions": {
            "attention_mask": torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool)
        },
        "packed positions": {"position_ids": torch.tensor([[0, 1, 2, 0, 1]])},
        "no tokens": {"input_ids": ids[:, :0]},
        "tuples": {"return_dict": False},
        "no cache": {"use_cache": False},
        "images": {"pixel_values": torch.zeros(1, 3, 8, 8)},
        "sounds": {"input_features": torch.zeros(1, 80, 30)},
    }


@pytest.mark.parametrize("what", list(refusals(torch.zeros(1, 5))))
def test_what_cannot_be_read_is_refused_and_leaves_no_trace(attached: Attachment, what: str) -> None:
    memory, cache = reference(attached)
    ids = token_ids(attached.model, 5)
    with pytest.raises(InputError):
        attached.model(**{"input_ids": ids, "past_key_values": cache, **refusals(ids)[what]})
    assert memory.num_tokens == 0
    attached.model(ids, past_key_values=cache)
    assert memory.num_tokens == 5


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_generating_several_rows_from_one_memory_is_refused(
    attached: Attachment, settings: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="needs as many memories"):
        attached.model.generate(
            token_ids(attached.model, 5), past_key_values=reference(attached)[1], max_new_tokens=3, **settings
        )


@pytest.mark.parametrize("is_assisted", [True, False])
def test_assisted_decoding_is_refused_before_anything_is_read(
    attached: Attachment, is_assisted: bool
) -> None:
    memory, cache = reference(attached)
    ids = token_ids(attached.model, 20).repeat(1, 3)
    candidates = {"assistant_model": tiny_model("llama")} if is_assisted else {"prompt_lookup_num_tokens": 3}
    with pytest.raises(InputError, match="assisted decoding"):
        attached.model.generate(ids, past_key_values=cache, max_new_tokens=8, **candidates)
    assert memory.num_tokens == 0


def test_a_pass_that_fails_can_be_repeated(attached: Attachment) -> None:
    memory, cache = reference(attached)
    ids = token_ids(attached.model, 10)
    attached.model(ids[:, :4], past_key_values=cache)
    handle = attached.model.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attached.model(ids[:, 4:], past_key_values=cache)
    handle.remove()
    assert cache.get_seq_length() == memory.num_tokens == 4
    logits = attached.model(ids[:, 4:], past_key_values=cache).logits
    _, other = reference(attached)
    assert torch.allclose(logits, attached.model(ids, past_key_values=other).logits[:, 4:], atol=1e-5)


# Stock generation


def episodic(attachment: Attachment, **settings: Any) -> EpisodicMemory:
    views = {"sink_tokens": 3, "local_tokens": 20, "min_event_tokens": 4, "max_event_tokens": 8}
    return EpisodicMemory(attachment.geometry, MemoryConfig(**views, **settings))


class TokenList:
    """Stands in for a tokenizer where only decoding is asked for."""

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        return "".join(f"<{int(token_id)}>" for token_id in token_ids)


class StopAt(StoppingCriteria):
    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.num_tokens)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.5, "top_p": 0.9},
        {"do_sample": False, "repetition_penalty": 1.3},
        {"do_sample": False, "prefill_chunk_size": 7},
        {"do_sample": False, "return_dict_in_generate": True, "output_scores": True},
    ],
)
@pytest.mark.parametrize("is_reference", [True, False])
def test_generate_with_a_memory_is_generate_without(
    llama: PreTrainedModel, settings: dict[str, Any], is_reference: bool
) -> None:
    ids = token_ids(llama, 30)

    def generated(**more: Any) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            answer = llama.generate(ids, max_new_tokens=15, **settings, **more)
        return answer if isinstance(answer, Tensor) else answer.sequences

    expected = generated()
    with attach(llama) as attachment:
        memory: Any = reference(attachment)[0] if is_reference else episodic(attachment, recall_tokens="all")
        assert torch.equal(generated(past_key_values=attachment.cache(memory)), expected)
    read = memory.token_ids if is_reference else memory.token_ids().tolist()
    assert read == expected[0, :-1].tolist()


def test_streaming_and_stopping_work_while_events_are_chosen(
    llama: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = token_ids(llama, 100)
    with attach(llama) as attachment:
        memory = episodic(attachment, recall_tokens=16)
        generated = llama.generate(
            ids,
            past_key_values=attachment.cache(memory),
            max_new_tokens=50,
            do_sample=False,
            streamer=TextStreamer(TokenList(), skip_prompt=True),  # type: ignore[arg-type]
            stopping_criteria=StoppingCriteriaList([StopAt(117)]),
        )
    assert memory.is_selective
    assert generated.shape[1] == 117
    assert memory.token_ids().tolist() == generated[0, :-1].tolist()
    assert capsys.readouterr().out.strip() == TokenList().decode(generated[0, 100:])


@pytest.mark.parametrize("num_read", [1, 20, 29])
def test_generate_goes_on_from_what_was_read(llama: PreTrainedModel, num_read: int) -> None:
    ids = token_ids(llama, 30)
    expected = llama.generate(ids, max_new_tokens=10, do_sample=False)
    with attach(llama) as attachment:
        memory, cache = reference(attachment)
        with torch.no_grad():
            for chunk in ids[:, :num_read].split(8, 1):
                llama(chunk, past_key_values=cache)
        found = llama.generate(ids, past_key_values=cache, max_new_tokens=10, do_sample=False)
        assert torch.equal(found, expected)
        again = torch.cat([found, ids[:, :5]], 1)
        more = llama.generate(again, past_key_values=cache, max_new_tokens=5, do_sample=False)
    assert torch.equal(more, llama.generate(again, max_new_tokens=5, do_sample=False))
    assert memory.token_ids == more[0, :-1].tolist()


def test_a_memory_gets_logits_for_every_token(llama: PreTrainedModel) -> None:
    ids = token_ids(llama, 20)
    expected = stock_logits(llama, ids)[0]
    with attach(llama) as attachment:
        memory, cache = reference(attachment)
        llama.generate(ids, past_key_values=cache, max_new_tokens=1, do_sample=False)
    torch.testing.assert_close(torch.cat(memory.logits), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "logits_to_keep",
    [
        0,
        1,
        3,
        torch.tensor([0, 5]),
        torch.tensor([[1, 2], [3, 0]]),
        torch.arange(14).view(2, 7) % 3 == 0,
    ],
    ids=["all", "last", "three", "tokens", "tokens of rows", "mask"],
)
def test_the_caller_gets_the_logits_that_it_asks_for_and_the_memory_all(
    llama: PreTrainedModel, logits_to_keep: Any
) -> None:
    ids = token_ids(llama, 14).view(2, 7)
    rows = stock_logits(llama, ids)
    if isinstance(logits_to_keep, int):
        expected = rows[:, -logits_to_keep:]
    elif logits_to_keep.dtype == torch.bool:
        expected = rows[logits_to_keep]
    else:
        tokens = logits_to_keep.expand(2, -1)
        expected = torch.stack([row[kept] for row, kept in zip(rows, tokens, strict=True)])
    with attach(llama) as attachment, torch.no_grad():
        memories = [ReferenceMemory(attachment.geometry) for _ in range(2)]
        cache = attachment.cache(*memories)
        found = llama(ids, past_key_values=cache, logits_to_keep=logits_to_keep).logits
        assert llama(ids, past_key_values=cache).logits.shape == rows.shape
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    for memory, row in zip(memories, rows, strict=True):
        torch.testing.assert_close(memory.logits[0], row, atol=2e-4, rtol=0)


def test_rows_of_a_batch_do_not_see_each_other(llama: PreTrainedModel) -> None:
    ids = token_ids(llama, 40).view(2, 20)
    expected = stock_logits(llama, ids)
    with attach(llama) as attachment, torch.no_grad():
        cache = attachment.cache(*(ReferenceMemory(attachment.geometry) for _ in range(2)))
        found = torch.cat([llama(chunk, past_key_values=cache).logits for chunk in ids.split(7, 1)], 1)
        generated = llama.generate(torch.cat([ids, ids[:, :1]], 1), past_key_values=cache, max_new_tokens=4)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert generated.shape == (2, 25)


def test_positional_arguments_are_understood(attached: Attachment) -> None:
    ids = token_ids(attached.model, 6)
    memory, cache = reference(attached)
    attached.model(ids, torch.ones_like(ids), torch.arange(6)[None], cache)
    assert memory.num_tokens == 6


def test_queries_that_grow_with_their_position_grow_no_more_past_the_trained_length() -> None:
    """Ministral 3 multiplies its queries by 1 + 0.5 log(1 + position // 32); the lengths of rows differ."""
    model = tiny_model("ministral3", max_position_embeddings=70)
    found: list[list[list[int]]] = []
    with attach(model) as attachment, torch.no_grad():
        memories = [ReferenceMemory(attachment.geometry) for _ in range(2)]
        model(token_ids(model, 9), past_key_values=attachment.cache(memories[1]))
        layer = model.model.layers[1].self_attn
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: found.append(kwargs["position_ids"].tolist()), with_kwargs=True
        )
        cache = attachment.cache(*memories)
        for chunk in token_ids(model, 200).view(2, 100).split([63, 36, 1], 1):
            model(chunk, past_key_values=cache)
    for row, start in ((0, 0), (1, 9)):
        positions = [position for chunk in found for position in chunk[row]]
        assert positions == [min(position, 69) for position in range(start, start + 100)]


# Models that are refused

_SMALL = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
_MIXED = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": ({"n_embd": 64, "n_layer": 2, "n_head": 4}, "has no rotary module"),
    "bloom": ({"n_layer": 2, "n_head": 4}, "has no rotary module"),
    "opt": ({"ffn_dim": 96, "word_embed_proj_dim": 64}, "has no rotary module"),
    "falcon": ({}, "does not call the attention interface"),
    "gptj": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "has no rotary module"),
    "qwen3_next": (
        {
            **_MIXED,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        "layer 0 is of type 'linear_attention'",
    ),
    "lfm2": (
        {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
        "layer 0 is of type 'conv'",
    ),
    "gemma3n_text": (
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "head_dim": 16,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 131,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": [96] * 4,
        },
        "2 layers attend to the keys of other layers",
    ),
    "llama4_text": (
        {
            "num_hidden_layers": 4,
            "layer_types": ["chunked_attention", "full_attention"] * 2,
            "head_dim": 16,
            "num_local_experts": 2,
            "intermediate_size_mlp": 64,
        },
        "layer 0 is of type 'chunked_attention'",
    ),
    "diffllama": ({}, "attends twice in one pass"),
    "doge": ({}, "something else than causal attention"),
    "hunyuan_v1_dense": ({"head_dim": 16}, "in no known way: the closest, 'half'"),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_a_memory_cannot_take_over_is_refused_with_the_reason(model_type: str) -> None:
    settings, reason = REFUSED[model_type]
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**_SMALL, **settings})
    ).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.08 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=reason) as error:
        attach(model)
    assert "\n" not in str(error.value)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "phi3-longrope", "deepseek_v3"])
def test_a_model_is_attached_where_it_is_whatever_the_default_device(name: str) -> None:
    """``torch.set_default_device("cuda")`` is common; here it is the one without data."""
    model = tiny_model(name)
    with attach(model) as attachment:
        expected = attachment.geometry
    with torch.device("meta"), attach(model) as attachment:
        found = attachment.geometry
        angles = found.layers[-1].rotation.table.cos_sin(40)[0]
    assert [layer.window_tokens for layer in found.layers] == [
        layer.window_tokens for layer in expected.layers
    ]
    assert torch.equal(angles, expected.layers[-1].rotation.table.cos_sin(40)[0])


def test_reading_under_autocast_is_refused(attached: Attachment) -> None:
    memory, cache = reference(attached)
    ids = token_ids(attached.model, 5)
    with pytest.raises(InputError, match=r"outside torch\.autocast"), torch.autocast("cpu", torch.bfloat16):
        attached.model(ids, past_key_values=cache)
    assert memory.num_tokens == 0
    attached.model(ids, past_key_values=cache)


def test_an_error_while_a_model_is_tried_is_the_reason_for_refusing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    layer = model.model.layers[1].self_attn

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise IndexError("too many indices\nand three lines more")

    monkeypatch.setattr(layer, "forward", forward)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError) as caught:
        attach(model)
    assert str(caught.value) == "LlamaForCausalLM cannot be attached: IndexError: too many indices"
    assert isinstance(caught.value.__cause__, IndexError)
    assert snapshot(model) == before


def test_a_model_whose_weights_accelerate_brings_when_they_are_needed_is_attached() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model("llama")
    ids = token_ids(model, 20)
    expected = stock_logits(model, ids)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.is_meta
    with attach(model) as attachment, torch.no_grad():
        found = model(ids, past_key_values=reference(attachment)[1]).logits
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.slow
def test_a_model_that_is_compiled_already_is_refused() -> None:
    whole, forward, part = (tiny_model("llama") for _ in range(3))
    whole.compile(backend="eager")
    forward.forward = torch.compile(forward.forward, backend="eager")
    part.model.layers[1] = torch.compile(part.model.layers[1], backend="eager")
    for model in (whole, forward, part, torch.compile(tiny_model("llama"), backend="eager")):
        with pytest.raises(UnsupportedModelError, match=r"call torch\.compile after it"):
            attach(model)


def test_what_is_not_a_causal_language_model_is_refused() -> None:
    with pytest.raises(ModelError, match="got Linear"):
        attach(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="got LlamaModel"):
        attach(AutoModel.from_config(AutoConfig.for_model("llama", **_SMALL)))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"head_bias": torch.ones(4)}, "unknown argument 'head_bias'"),
        ({"is_causal": False}, "both directions"),
        ({"dropout": 0.1}, "dropout 0.1"),
    ],
)
def test_arguments_that_a_memory_would_drop_are_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], reason: str
) -> None:
    model = tiny_model("llama")
    layer = model.model.layers[1].self_attn
    stock_forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: stock_forward(*args, **arguments, **kwargs))
    if "dropout" in arguments:
        monkeypatch.undo()
        layer.attention_dropout, layer.training = 0.1, True
        with attach(model) as attachment, torch.no_grad(), pytest.raises(InputError, match=reason):
            model(token_ids(model, 4), past_key_values=reference(attachment)[1])
        return
    with pytest.raises(UnsupportedModelError, match=reason):
        attach(model)


def test_a_layer_that_turns_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    layer = model.model.layers[1].self_attn
    stock_forward = layer.forward

    def forward(*args: Any, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        return stock_forward(*args, position_embeddings=(cos * cos - sin * sin, 2 * cos * sin), **kwargs)

    monkeypatch.setattr(layer, "forward", forward)
    with pytest.raises(UnsupportedModelError, match="layer 1 turns its queries and keys in no known way"):
        attach(model)


def test_a_layer_that_brings_its_own_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    layer = model.model.layers[1].self_attn
    stock_forward = layer.forward

    def forward(hidden_states: Tensor, *args: Any, attention_mask: Tensor, **kwargs: Any) -> Any:
        num_tokens = hidden_states.shape[1]
        mask = torch.full((num_tokens, num_tokens), float("-inf")).triu(1)[None, None]
        return stock_forward(hidden_states, *args, attention_mask=mask, **kwargs)

    monkeypatch.setattr(layer, "forward", forward)
    with pytest.raises(UnsupportedModelError, match="layer 1 is given an attention mask"):
        attach(model)


def test_a_layer_that_turns_its_values_too_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    layer = model.model.layers[1].self_attn
    stock_forward = layer.forward

    def forward(hidden_states: Tensor, *args: Any, position_embeddings: Any, **kwargs: Any) -> Any:
        cos = position_embeddings[0]

        def turn(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            return output * cos.repeat(1, 1, 2)

        handle = layer.v_proj.register_forward_hook(turn)
        try:
            return stock_forward(hidden_states, *args, position_embeddings=position_embeddings, **kwargs)
        finally:
            handle.remove()

    monkeypatch.setattr(layer, "forward", forward)
    with pytest.raises(UnsupportedModelError, match="layer 1 turns its values"):
        attach(model)


def test_a_layer_that_attends_to_another_layers_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(
        EpisodicCache, "update", lambda self, k, v, layer_idx, *_: self.layers[0].update(k, v)
    )
    with pytest.raises(UnsupportedModelError, match="layer 1 attends to the keys of layer 0"):
        attach(model)


def test_a_memory_cannot_be_given_twice_or_not_at_all(attached: Attachment) -> None:
    memory = ReferenceMemory(attached.geometry)
    with pytest.raises(InputError, match="given twice"):
        attached.cache(memory, memory)
    with pytest.raises(InputError, match="at least one memory"):
        attached.cache()


@pytest.mark.parametrize(
    "operation",
    [
        lambda cache: cache.crop(-1),
        lambda cache: cache.activate_past_recording(),
        lambda cache: cache.reset(),
        lambda cache: cache.reorder_cache(torch.tensor([0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([0])),
    ],
)
def test_a_cache_refuses_what_would_change_a_memory(attached: Attachment, operation: Any) -> None:
    _, cache = reference(attached)
    with pytest.raises(InputError, match="not possible with a memory"):
        operation(cache)


@pytest.mark.parametrize("is_reference", [True, False])
def test_what_is_read_through_a_copied_cache_leaves_the_first_as_it_was(
    attached: Attachment, is_reference: bool
) -> None:
    """The prefix of many prompts is read once and its cache copied for each."""
    ids = token_ids(attached.model, 24)
    memory: Any = reference(attached)[0] if is_reference else episodic(attached, recall_tokens="all")
    cache = attached.cache(memory)
    attached.model(ids[:, :12], past_key_values=cache)
    copied = copy.deepcopy(cache)
    found = attached.model(ids[:, 12:], past_key_values=copied).logits
    assert (memory.num_tokens, copied.get_seq_length()) == (12, 24)
    torch.testing.assert_close(
        attached.model(ids[:, 12:], past_key_values=cache).logits, found, atol=1e-6, rtol=0
    )


def test_a_cache_answers_what_transformers_asks(attached: Attachment) -> None:
    _, cache = reference(attached)
    attached.model(token_ids(attached.model, 7), past_key_values=cache)
    assert len(cache) == 3
    assert (cache.get_seq_length(), cache.get_seq_length(2)) == (7, 7)
    assert cache.get_mask_sizes(4, 0) == (11, 0)
    assert cache.layers[0].get_mask_sizes(torch.arange(7, 11)) == (11, 0)
    assert cache.layers[1].get_max_cache_shape() == cache.layers[1].get_max_length() == -1
    assert not cache.is_croppable and not cache.is_compileable


def test_keys_of_another_number_than_the_tokens_are_refused() -> None:
    query, key = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 3, 8)
    with pytest.raises(UnsupportedModelError, match="layer 2 attends to 3 keys for 6 tokens"):
        check_arguments(2, query=query, key=key, attention_mask=None, dropout=0.0, keywords={})
