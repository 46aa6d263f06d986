from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, tiny_model
from torch import Tensor, nn

from emllm.errors import UnsupportedModelError
from emllm.models.rotary_modules import IdentityRotary, RotaryCall, rotary_modules, rotary_table
from emllm.models.watch import window_of_mask


def inner_rotary(name: str) -> nn.Module:
    places = list(rotary_modules(tiny_model(name)))
    assert len(places) == 1
    return places[0][2]


def only_call(name: str, **keywords: Any) -> RotaryCall:
    return RotaryCall(inner_rotary(name), (), tuple(keywords.items()))


def parts(answer: Any) -> tuple[Tensor, Tensor]:
    return (answer.real, answer.imag) if isinstance(answer, Tensor) else answer


@pytest.mark.parametrize(
    "name", ["llama", "cohere", "gpt_oss", "deepseek_v2", "llama-yarn", "llama-longrope"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identity_has_the_shape_and_dtype_of_the_models_own(name: str, dtype: torch.dtype) -> None:
    inner = inner_rotary(name)
    rotary = IdentityRotary(inner)
    x = torch.zeros(1, 5, 64, dtype=dtype)
    position_ids = torch.arange(5)[None] + 3
    own = parts(rotary(x, position_ids))
    rotary.is_watching = False
    for found, expected, constant in zip(parts(rotary(x, position_ids)), own, (1.0, 0.0), strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert bool((found == constant).all())
    assert rotary(x, position_ids) is rotary(x, position_ids=position_ids)


@pytest.mark.parametrize("name", ["llama", "cohere", "gpt_oss", "deepseek_v2"])
def test_a_table_has_one_angle_for_each_pair_and_starts_unturned(name: str) -> None:
    call = only_call(name)
    table = rotary_table(call, device=torch.device("cpu"))
    cos, sin = table.cos_sin(50)
    own = parts(call.inner(torch.zeros(1), torch.arange(50)[None]))
    num_pairs = {"llama": 8, "cohere": 8, "gpt_oss": 8, "deepseek_v2": 4}[name]
    assert cos.shape == sin.shape == (50, num_pairs)
    magnitude = (cos**2 + sin**2).sqrt()
    torch.testing.assert_close(magnitude, magnitude[0, 0].expand_as(magnitude))
    assert bool((sin[0] == 0).all())
    for column in range(num_pairs):
        assert any(torch.equal(cos[:, column], own[0][0, :, other]) for other in range(own[0].shape[-1]))
    # gpt_oss stretches its slowest angles until float32 cannot tell them apart
    assert len({tuple(column) for column in cos.T.tolist()}) >= num_pairs - 1


@pytest.mark.parametrize("name", ["llama", "llama-dynamic", "llama-longrope", "phi3-longrope"])
def test_a_table_asked_for_in_inference_mode_is_the_same(name: str) -> None:
    """Some scalings write their frequencies anew when a text grows long."""
    call = only_call(name)
    expected = rotary_table(call, device=torch.device("cpu")).cos_sin(600)
    with torch.inference_mode():
        found = rotary_table(call, device=torch.device("cpu")).cos_sin(600)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_module_that_is_asked_for_each_layer_type_has_a_table_for_each() -> None:
    inner = inner_rotary("gemma3")
    full, sliding = (
        rotary_table(RotaryCall(inner, (kind,), ()), device=torch.device("cpu")).cos_sin(40)[0]
        for kind in ("full_attention", "sliding_attention")
    )
    assert not torch.equal(full, sliding)


def test_what_is_not_asked_by_positions_is_refused() -> None:
    rotary = IdentityRotary(inner_rotary("llama"))
    with pytest.raises(UnsupportedModelError, match="LlamaRotaryEmbedding is not asked by positions"):
        rotary(torch.zeros(1, 5, 64), seq_len=5)


def test_an_answer_of_another_kind_is_refused() -> None:
    class Strange(nn.Module):
        def forward(self, x: Tensor, position_ids: Tensor) -> list[Tensor]:
            return [x]

    rotary = IdentityRotary(Strange())
    rotary.is_watching = False
    with pytest.raises(UnsupportedModelError, match="answers with list"):
        rotary(torch.zeros(1, 5, 64), torch.arange(5)[None])


def test_every_family_has_rotary_modules() -> None:
    for name in FAMILIES:
        assert list(rotary_modules(tiny_model(name))), name


@pytest.mark.parametrize("window_tokens", [1, 2, 24, 4096, 131072])
def test_a_windows_width_is_read_off_its_mask(window_tokens: int) -> None:
    def mask(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - window_tokens)

    assert window_of_mask(mask) == window_tokens


def test_a_causal_mask_has_no_window() -> None:
    assert window_of_mask(lambda row, head, query, key: key <= query) is None


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (lambda row, head, query, key: query - key > -9, "not causal"),
        (
            lambda row, head, query, key: (key <= query) & (query // 1000 == key // 1000),
            "not a sliding window",
        ),
    ],
)
def test_masks_that_are_no_window_are_refused(mask: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        window_of_mask(mask)
