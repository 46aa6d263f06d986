"""The prefix sums against the sums that they stand for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError
from emllm.segmentation.key_graph import (
    PrefixKeys,
    adjacency,
    key_graph,
    prefix_gram,
    prefix_keys,
    prefix_sums,
)

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])


def keys_of_layers(seed: int, *, layers: int = 2, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 12, 4, generator=generator).to(dtype) for _ in range(layers)]


@given(st.integers(0, 2**31), DTYPES)
def test_the_pooled_adjacency_is_the_dot_product_of_all_keys_of_two_tokens(seed: int, dtype) -> None:
    keys = keys_of_layers(seed, dtype=dtype)
    rows = torch.cat([layer.double() for layer in keys]).permute(1, 0, 2).reshape(12, -1)
    torch.testing.assert_close(adjacency(keys)[0].double(), rows @ rows.T, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 2**31))
def test_the_graphs_of_the_heads_add_up_to_the_pooled_graph(seed: int) -> None:
    keys = keys_of_layers(seed)
    each = adjacency(keys, heads="each")
    assert each.shape == (6, 12, 12)
    torch.testing.assert_close(each.sum(0, keepdim=True), adjacency(keys), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 2**31), st.tuples(*[st.integers(0, 12)] * 4))
def test_four_look_ups_are_the_sum_over_any_rectangle(seed: int, corners: tuple[int, ...]) -> None:
    weights = adjacency(keys_of_layers(seed), heads="each").double().numpy()
    sums = prefix_sums(weights)
    top, bottom, left, right = corners
    top, bottom, left, right = min(top, bottom), max(top, bottom), min(left, right), max(left, right)
    looked_up = sums[:, bottom, right] - sums[:, top, right] - sums[:, bottom, left] + sums[:, top, left]
    np.testing.assert_allclose(looked_up, weights[:, top:bottom, left:right].sum((1, 2)), atol=1e-9)


@pytest.mark.parametrize("heads", ["all", "each"])
@given(seed=st.integers(0, 2**31), start=st.integers(0, 9), length=st.integers(2, 12), dtype=DTYPES)
def test_both_forms_of_the_graph_say_the_same_of_every_cut(heads, seed, start, length, dtype) -> None:
    keys = keys_of_layers(seed, dtype=dtype)
    stop = min(start + length, 12)
    splits = np.arange(start + 1, stop) + 50
    window = {"start": start + 50, "stop": stop + 50}
    by_keys = prefix_keys(keys, start=50, heads=heads).split_terms(splits, **window)
    by_gram = prefix_gram(keys, start=50, heads=heads).split_terms(splits, **window)
    for field in dataclasses.fields(by_keys):
        ours, others = getattr(by_keys, field.name), getattr(by_gram, field.name)
        assert ours.shape == others.shape
        np.testing.assert_allclose(ours, others, atol=1e-4, rtol=1e-5)


def test_keys_on_the_cpu_need_no_matrix_product() -> None:
    graph = key_graph(keys_of_layers(0), start=3)
    assert isinstance(graph, PrefixKeys)
    assert (graph.start, graph.stop) == (3, 15)


def test_a_graph_knows_the_tokens_that_it_covers() -> None:
    graph = prefix_gram(keys_of_layers(0), start=100)
    assert (graph.start, graph.stop) == (100, 112)
    assert graph.sums.dtype == np.float64
    assert not graph.sums[:, 0].any() and not graph.sums[:, :, 0].any()


def test_an_unknown_way_to_treat_heads_is_refused() -> None:
    for make in (adjacency, key_graph, prefix_keys):
        with pytest.raises(ConfigError, match="refine_heads must be all or each, got 'some'"):
            make(keys_of_layers(0), heads="some")


def test_heads_of_different_widths_are_kept_apart() -> None:
    generator = torch.Generator().manual_seed(3)
    keys = [torch.randn(2, 10, width, generator=generator) for width in (8, 4)]
    splits = np.arange(2, 8)
    ours = key_graph(keys, heads="each").split_terms(splits, start=1, stop=9)
    expected = prefix_gram(keys, heads="each").split_terms(splits, start=1, stop=9)
    np.testing.assert_allclose(ours.left, expected.left, atol=1e-4)
