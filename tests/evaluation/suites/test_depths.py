"""Depths: one for evidence at one place, all of them for evidence at several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.evaluation.suites.depths import ONE_PLACE, placed

PERCENT = st.floats(0, 100)


@given(depths=st.lists(PERCENT, max_size=8))
def test_a_question_has_a_depth_where_all_its_evidence_stands_at_one_place(depths: list[float]) -> None:
    found = placed(depths)
    assert ("depth" in found) == (bool(depths) and max(depths) - min(depths) <= ONE_PLACE)
    if "depth" in found:
        assert min(depths) - 0.05 <= found["depth"] <= max(depths) + 0.05
    assert found.get("depths", []) == ([round(depth, 1) for depth in depths] if len(depths) > 1 else [])


def test_two_turns_that_follow_one_another_are_one_place() -> None:
    assert placed([40.0, 40.5]) == {"depths": [40.0, 40.5], "depth": pytest.approx(40.2, abs=0.06)}
    assert placed([12.34]) == {"depth": 12.3}
    assert placed([10.0, 90.0]) == {"depths": [10.0, 90.0]}
    assert placed([]) == {}
