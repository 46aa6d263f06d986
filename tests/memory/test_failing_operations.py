"""What is done to a whole memory on a failing disk, or by a process that dies, is done wholly or not at all.

The same in large numbers: `python scripts/torture.py faults` and `... crash`.
"""

from __future__ import annotations

import dataclasses
import random
from itertools import pairwise

import pytest
from tests.support import crashes, operations
from tests.support.torture import Case, Step, random_case

#: One in so many changes of the disk fails in each way, each time another one.
SHARE = 23


def short_case(name: str) -> Case:
    """Three documents in several units each, of which some are sealed; small files, where they are merged."""
    case = random_case(3, num_tokens=60, codec="exact" if name == "compact" else "int8")
    ends = [0, 9, 10, 21, 30, 38, 39, 40, 52, 60]
    steps = tuple(Step(start, stop, stop % 3 == 0) for start, stop in pairwise(ends))
    return operations.documented(dataclasses.replace(case, steps=steps))


@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_an_operation_on_a_failing_disk_is_done_wholly_or_not_at_all_and_can_be_done_again(tmp_path, name):
    case, operation = short_case(name), operations.OPERATIONS[name]
    undisturbed = operations.known(case, operation, tmp_path / "start", tmp_path / "place")
    assert len(undisturbed.steps) > 15
    for number, fault in enumerate(crashes.FAULTS):
        for position in range(4 * number, len(undisturbed.steps), SHARE):
            trial = operations.fail(case, operation, undisturbed, tmp_path / "place", position, fault)
            assert not trial.problems, f"{trial.what} ({undisturbed.steps[position]}): {trial.problems}"


@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_an_operation_that_is_killed_is_done_wholly_or_not_at_all_and_can_be_done_again(tmp_path, name):
    case, operation = short_case(name), operations.OPERATIONS[name]
    undisturbed = operations.known(case, operation, tmp_path / "start", tmp_path / "place")
    draw = random.Random(0)
    for _ in range(2):
        trial = operations.kill(case, operation, undisturbed, tmp_path / "place", draw)
        assert not trial.problems, trial.problems
