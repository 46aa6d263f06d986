"""The exactness law, family by family: a memory that holds everything gives the stock model's logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from families import FAMILIES, tiny_model, token_ids
from reference_memory import ReferenceMemory
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from emllm.attention.context import turned
from emllm.attention.geometry import ModelGeometry
from emllm.config import MemoryConfig
from emllm.memory import EpisodicMemory
from emllm.models.attach import Attachment, attach
from emllm.models.cache import Memory
from emllm.models.outline import outline_of

TOLERANCE = 2e-4
NUM_TOKENS = 90  # nearly four times the sliding windows
CHUNKINGS = ([90], [1, 2, 3, 84], [33, 17, 1, 39], [16] * 5 + [10], [40] + [1] * 50)
MEMORIES: dict[str, Callable[[ModelGeometry], Memory]] = {
    "reference": ReferenceMemory,
    "episodic": lambda geometry: EpisodicMemory(
        geometry, MemoryConfig.preset("full", sink_tokens=3, local_tokens=20)
    ),
}


@dataclass
class Case:
    """A tiny model with what it computes when nothing is attached."""

    model: PreTrainedModel
    ids: Tensor
    logits: Tensor
    generated: Tensor


_cases: dict[str, Case] = {}


def _case(name: str) -> Case:
    if name not in _cases:
        model = tiny_model(name)
        ids = token_ids(model, NUM_TOKENS)
        with torch.no_grad():
            logits = model(ids).logits[0]
        _cases[name] = Case(
            model, ids, logits, model.generate(ids[:, :40], max_new_tokens=12, do_sample=False)
        )
    return _cases[name]


@pytest.fixture(params=list(FAMILIES))
def case(request: pytest.FixtureRequest) -> Case:
    return _case(request.param)


@pytest.fixture()
def attachment(case: Case) -> Iterator[Attachment]:
    with attach(case.model) as attachment, torch.no_grad():
        yield attachment


@pytest.mark.parametrize("kind", MEMORIES)
def test_a_memory_that_holds_everything_gives_the_stock_logits(
    case: Case, attachment: Attachment, kind: str
) -> None:
    for chunks in CHUNKINGS:
        cache = attachment.cache(MEMORIES[kind](attachment.geometry))
        parts = [case.model(chunk, past_key_values=cache).logits[0] for chunk in case.ids.split(chunks, 1)]
        assert cache.get_seq_length() == NUM_TOKENS
        assert (torch.cat(parts) - case.logits).abs().max() <= TOLERANCE, chunks


@pytest.mark.parametrize("kind", MEMORIES)
def test_greedy_generation_is_the_stock_models(case: Case, attachment: Attachment, kind: str) -> None:
    cache = attachment.cache(MEMORIES[kind](attachment.geometry))
    found = case.model.generate(case.ids[:, :40], max_new_tokens=12, do_sample=False, past_key_values=cache)
    assert torch.equal(found, case.generated)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tiny_model_is_the_same_at_every_call(name: str) -> None:
    torch.manual_seed(1)
    one = tiny_model(name).state_dict()
    torch.manual_seed(2)
    other = tiny_model(name).state_dict()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "phi3-longrope", "gemma2", "gpt_oss", "cohere2", "deepseek_v3"])
def test_in_half_precision_a_memory_is_as_near_to_the_exact_logits_as_the_stock_model(
    name: str, dtype: torch.dtype
) -> None:
    exact = _case(name)
    model = copy.deepcopy(exact.model).to(dtype)
    with torch.no_grad():
        stock = model(exact.ids).logits[0]
        with attach(model) as attachment:
            cache = attachment.cache(MEMORIES["episodic"](attachment.geometry))
            parts = [model(chunk, past_key_values=cache).logits[0] for chunk in exact.ids.split(33, 1)]
    found = torch.cat(parts)
    assert found.dtype == stock.dtype
    # Of three tokens in four: one that rounding sends to another expert errs many times as much.
    error, of_stock = (
        (one.float() - exact.logits).abs().mean(dim=-1).quantile(0.75) for one in (found, stock)
    )
    assert error <= 1.5 * of_stock


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.windows])
def test_sliding_layers_have_the_window_of_the_configuration(name: str) -> None:
    with attach(_case(name).model) as attachment:
        assert tuple(layer.window_tokens for layer in attachment.geometry.layers) == FAMILIES[name].windows


@pytest.mark.parametrize(("window_tokens", "found"), [(512, None), (2048, None), (511, 511)])
def test_a_window_as_wide_as_what_the_model_was_trained_on_is_none(
    window_tokens: int, found: int | None
) -> None:
    """Phi-3-mini-128k names 262,144 tokens of 131,072; without memory it would recall nothing."""
    model = tiny_model("phi3-sliding", sliding_window=window_tokens)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).eval()
    outline = outline_of(empty, device=torch.device("cpu"), dtype=torch.float32)
    with attach(model) as attachment:
        assert attachment.geometry.trained_tokens == 512
        for geometry in (attachment.geometry, outline.geometry):
            assert [layer.window_tokens for layer in geometry.layers] == [found] * 3
            assert geometry.has_memory == (found is None)


def test_rotation_and_windows_matter_to_these_models() -> None:
    """The control: with the rotation or the window left out, the law above fails."""
    for name in FAMILIES:
        case = _case(name)
        with attach(case.model) as attachment, torch.no_grad():
            for forgotten in ("rotation", "window_tokens"):
                if forgotten == "window_tokens" and not FAMILIES[name].windows:
                    continue
                geometry = without(attachment.geometry, forgotten)
                if geometry == attachment.geometry:
                    continue
                logits = case.model(
                    case.ids, past_key_values=attachment.cache(ReferenceMemory(geometry))
                ).logits[0]
                assert (logits - case.logits).abs().max() > 50 * TOLERANCE, (name, forgotten)


def without(geometry: ModelGeometry, forgotten: str) -> ModelGeometry:
    """The geometry with no layer turning, or none windowed."""
    import dataclasses

    from emllm.attention.rotary import NO_ROTATION

    change = {"rotation": NO_ROTATION} if forgotten == "rotation" else {"window_tokens": None}
    layers = tuple(dataclasses.replace(layer, **change) for layer in geometry.layers)
    return dataclasses.replace(geometry, layers=layers)


@pytest.mark.parametrize("family", ["llama", "llama-yarn", "phi3-longrope", "phi3-partial"])
def test_queries_meet_raw_keys_as_they_would_meet_turned_ones(family, generator):
    """Some scalings stretch queries and keys alike; the keys that are ranked were never stretched."""
    with attach(tiny_model(family)) as attachment:
        layer = attachment.geometry.layers[0]
        query, key = (torch.randn(1, 5, layer.head_dim, generator=generator) for _ in range(2))
        asking = turned(query, 7, layer.rotation, length=20, is_alike=True, meets_raw_keys=True)
        plain = turned(query, 7, layer.rotation, length=20, is_alike=True)
        keys = turned(key, 0, layer.rotation, length=20, is_alike=True)
    torch.testing.assert_close(asking @ key.mT, plain @ keys.mT)
    assert torch.equal(asking, plain) == (family == "llama")
