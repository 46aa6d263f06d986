"""The prefix sums against the sums that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError
from emllm.segmentation.key_graph import adjacency, prefix_gram, prefix_sums


def keys_of_layers(seed: int, *, layers: int = 2, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 12, 4, generator=generator).to(dtype) for _ in range(layers)]


@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
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


def test_a_graph_knows_the_tokens_that_it_covers() -> None:
    graph = prefix_gram(keys_of_layers(0), start=100)
    assert (graph.start, graph.stop) == (100, 112)
    assert graph.sums.dtype == np.float64
    assert not graph.sums[:, 0].any() and not graph.sums[:, :, 0].any()


def test_an_unknown_way_to_treat_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="refine_heads must be all or each, got 'some'"):
        adjacency(keys_of_layers(0), heads="some")
