from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny_model

from emllm.memory import EpisodicMemory
from emllm.models.attach import attach
from emllm.models.own_rotation import CheckedRotation, left_out

TOKENS = torch.arange(1, 41)[None]


def logits_of(model, attachment):
    with torch.no_grad():
        memory = EpisodicMemory(attachment.geometry)
        return model(TOKENS, past_key_values=attachment.cache(memory)).logits


def rotations_of(attachment):
    layers = [m for m in attachment.model.modules() if "forward" in m.__dict__]
    return [m.forward.__func__.__globals__["apply_rotary_pos_emb"] for m in layers]


def test_an_attached_llama_leaves_out_every_rotation_of_its_own():
    with attach(tiny_model("llama")) as attachment:
        found = rotations_of(attachment)
        assert len(found) == attachment.geometry.num_layers
        assert all(rotation.turns_nothing for rotation in found)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_logits_are_those_of_the_rotation_by_nothing_to_the_bit(name):
    with attach(tiny_model(name)) as attachment:
        without = logits_of(attachment.model, attachment)
        for rotation in rotations_of(attachment):
            rotation.turns_nothing = False
        assert torch.equal(logits_of(attachment.model, attachment), without)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_detached_layers_have_their_class_forward_again(name):
    model = tiny_model(name)
    attach(model).detach()
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_another_model_of_the_class_still_turns():
    model, other = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        before = other(TOKENS).logits
        with attach(model):
            assert torch.equal(other(TOKENS).logits, before)


def test_a_rotation_that_turns_is_never_left_out():
    rotation = CheckedRotation(lambda query, key, angle: (query * angle, key * angle))
    query, key = torch.ones(2, 3), torch.ones(1, 3)
    for _ in range(3):
        turned, _ = rotation(query, key, 2.0)
        assert torch.equal(turned, query * 2)
    assert rotation.turns_nothing is False


def test_every_layer_has_code_of_its_own_to_compile():
    """torch.compile looked for the names of one layer in another: NameError '__import_builtins'."""
    model = tiny_model("llama")
    with left_out(model):
        forwards = [layer.self_attn.forward.__func__ for layer in model.model.layers]
        forwards.append(type(model.model.layers[0].self_attn).forward)
        assert len({id(forward.__code__) for forward in forwards}) == len(forwards)


def test_a_layer_that_somebody_else_has_wrapped_is_left_alone():
    model = tiny_model("llama")
    layer = model.model.layers[0].self_attn
    wrapped = layer.forward
    layer.forward = wrapped
    with left_out(model) as rotations:
        assert len(rotations) == len(model.model.layers) - 1
        assert layer.__dict__["forward"] is wrapped
    assert layer.__dict__["forward"] is wrapped
