"""Groups of tasks: asked for by one name, and the tables of the paper are what they stand for."""

from __future__ import annotations

import pytest

from emllm.errors import ConfigError
from emllm.evaluation.report.published import published
from emllm.evaluation.task import suite_names, tasks_of
from emllm.evaluation.task_groups import GROUPS, groups_of
from emllm.evaluation.wishes import chosen_tasks


def names(suites: list[str], wanted: list[str]) -> list[str]:
    return [task.name for task in chosen_tasks(suites, wanted)]


def test_a_group_is_some_of_its_suites_tasks_and_no_task_has_its_name() -> None:
    for suite, groups in GROUPS.items():
        tasks = {task.name for task in tasks_of(suite)}
        for group, members in groups_of([suite]).items():
            assert set(members) < tasks and len(set(members)) == len(members)
            assert group not in tasks
        assert groups
    assert set(GROUPS) <= set(suite_names())


def test_the_papers_groups_are_the_tasks_of_its_tables() -> None:
    tables = [table for table in published() if "Table 3" in table.source]
    printed = {task for table in tables for task in table.scores}
    assert {task for members in groups_of(list(GROUPS)).values() for task in members} == printed


def test_a_group_is_asked_for_by_its_name_with_or_without_its_suite() -> None:
    paper = groups_of(["longbench"])["longbench/paper"]
    for name in ("paper", "longbench/paper"):
        assert sorted(names(["longbench"], [name])) == sorted(paper)
    both = names(["longbench", "infinitebench"], ["paper"])
    assert len(both) == 21
    assert len(names(["longbench", "infinitebench"], ["infinitebench/paper"])) == 6
    assert set(names(["longbench"], ["paper", "passage_count"])) == {*paper, "longbench/passage_count"}


def test_a_group_of_another_suite_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tasks must be among longbench/.*longbench/paper, got 'infin"):
        chosen_tasks(["longbench"], ["infinitebench/paper"])
    with pytest.raises(ConfigError, match="got 'paper'"):
        chosen_tasks(["ruler"], ["paper"])
