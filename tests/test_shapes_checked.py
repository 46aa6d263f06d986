"""Shapes are checked in the tests: what is planted wrong is found, in every test anew."""

from __future__ import annotations

import pytest
import shapes
import torch
from jaxtyping import TypeCheckError

from emllm.attention.fused import attend_part

QUERY, VALUE = torch.zeros(4, 3, 8), torch.zeros(2, 5, 8)


@pytest.fixture(autouse=True)
def checked() -> None:
    if not hasattr(attend_part, "__wrapped__"):
        pytest.skip("shapes are not checked in this run (make test has them checked)")


@pytest.mark.parametrize("time", [1, 2])
def test_a_wrong_shape_is_found_until_there_were_many_calls(time: int) -> None:
    other_width = torch.zeros(2, 5, 6)
    with pytest.raises(TypeCheckError, match="attend_part"):
        attend_part(QUERY, other_width, VALUE, scaling=1.0)
    for _ in range(shapes.MOST_CHECKS // 2):
        attend_part(QUERY, VALUE, VALUE, scaling=1.0)
    with pytest.raises(RuntimeError):  # of torch
        attend_part(QUERY, other_width, VALUE, scaling=1.0)
