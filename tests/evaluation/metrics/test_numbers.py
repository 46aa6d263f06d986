"""The scorer of our own questions: answers that are right, wrong, empty, and that try to pass by listing."""

from __future__ import annotations

import pytest

from emllm.evaluation.metrics import metric
from emllm.evaluation.samples import Question


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("48213", ["48213"], 1),
        (" The number is 48213.", ["48213"], 1),
        ("11, 22 and 33", ["33", "11", "22"], 1),
        ("11, 22", ["11", "22", "33"], 2 / 3),
        ("11 11 11", ["11", "22"], 1 / 2),
        ("48213 or 51277", ["48213"], 1 / 2),  # which of the two stands first?
        ("11 12 13 14 15 16 17 18 19", ["14"], 1 / 9),  # how many times?
        ("148213", ["48213"], 0),
        ("4821", ["48213"], 0),
        ("", ["48213"], 0),
        ("I do not know", ["48213"], 0),
    ],
)
def test_only_the_right_numbers_and_no_others_are_worth_1(said, right, score):
    question = Question("?", tuple(right))
    assert metric("numbers")(said, question) == pytest.approx(score)
