"""Tasks stand in the order in which a person counts."""

from __future__ import annotations

import pytest

from emllm.evaluation.task import suite_names, tasks_of


def test_numbered_tasks_stand_in_the_order_of_their_numbers() -> None:
    assert [task.name for task in tasks_of("babilong")] == [f"babilong/qa{n}" for n in range(1, 21)]


@pytest.mark.parametrize("suite", suite_names())
def test_every_task_of_a_suite_is_there_once(suite: str) -> None:
    names = [task.name for task in tasks_of(suite)]
    assert names and len(set(names)) == len(names)
    assert all(name.startswith(f"{suite}/") for name in names)
