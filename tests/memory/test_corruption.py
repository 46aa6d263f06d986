"""Damaged files of a memory are named by `verify` and by whoever asks; no answer is ever wrong.

The same in large numbers: `python scripts/torture.py corrupt`.
"""

from __future__ import annotations

import random

import pytest
from tests.support import corruption
from tests.support.torture import CODECS, random_case

NUM_DAMAGES = 15


@pytest.mark.parametrize("codec", CODECS)
def test_every_damage_to_a_closed_memory_is_found_and_never_answered_from(tmp_path, codec):
    case = random_case(CODECS.index(codec), codec=codec, recall_all=True)
    expected = corruption.intact(case, tmp_path / "memory")
    draw = random.Random(codec)
    for _ in range(NUM_DAMAGES):
        verdict = corruption.trial(case, tmp_path / "memory", expected, draw, scratch=tmp_path)
        assert not verdict.problems, f"{verdict.damage}: {verdict.problems}"


def test_damage_to_what_a_crash_left_never_makes_a_wrong_answer(tmp_path):
    case = random_case(7, recall_all=True)
    expected = corruption.intact(case, tmp_path / "memory", was_closed=False)
    draw = random.Random(7)
    for _ in range(2 * NUM_DAMAGES):
        verdict = corruption.trial(
            case, tmp_path / "memory", expected, draw, scratch=tmp_path, was_closed=False
        )
        assert not verdict.problems, f"{verdict.damage}: {verdict.problems}"
