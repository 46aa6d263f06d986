"""What a user wants to have run, checked before anything slow begins.

This module does not know how anything is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emllm.errors import ConfigError, SourceError
from emllm.evaluation.metrics import metric
from emllm.evaluation.rows import Row
from emllm.evaluation.suites import samples_function
from emllm.evaluation.task import Task, tasks_of
from emllm.evaluation.task_groups import groups_of

#: The metric that is no function of an answer: mean surprise of the text.
PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class RunWishes:
    """What is to be run.

    Attributes:
        tasks: in the order of the results.
        rows: likewise.
        settings: of all rows, as the user gave them.
        data: folder of benchmark files; None: from the hub.
        limit: samples of each task at most, and of each of its lengths.
        questions: of each sample at most, the first ones.
        lengths: in tokens, of suites that are made to any length.
        num_samples: of each task and length, of suites that are made.
        seed: of samples that are drawn or made.
        shards: into how many runs the samples are dealt out.
        shard: which of them this is, from 0.
        retry_failed: run again what failed.
    """

    tasks: Sequence[Task]
    rows: Sequence[Row]
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Path | None = None
    limit: int | None = None
    questions: int | None = None
    lengths: tuple[int, ...] = ()
    num_samples: int = 20
    seed: int = 0
    shards: int = 1
    shard: int = 0
    retry_failed: bool = False

    def check(self) -> None:
        """Find mistakes before a model is loaded.

        Raises:
            ConfigError: a number is out of range, or a row, a metric or a suite's samples are unknown.
            SourceError: there is no such data folder.
        """
        for name, low in (("limit", 1), ("questions", 1), ("num_samples", 1), ("shards", 1), ("shard", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} must be >= {low}, got {value}")
        if self.shard >= self.shards:
            raise ConfigError(f"shard must be < shards = {self.shards}, got {self.shard}")
        if any(length < 1 for length in self.lengths):
            raise ConfigError(f"lengths must be >= 1, got {min(self.lengths)}")
        if not self.tasks:
            raise ConfigError("an evaluation needs at least one task")
        if self.data is not None and not self.data.is_dir():
            why = "a file, not a data folder" if self.data.exists() else "no such data folder"
            raise SourceError(f"{self.data}: {why}")
        for row in self.rows:
            row.config(self.settings)
        for task in self.tasks:
            samples_function(task.samples)
            if task.metric != PERPLEXITY:
                metric(task.metric)

    def rows_of(self, task: Task) -> list[Row]:
        """The rows that a task is run with: a search for passages needs a question."""
        return [row for row in self.rows if task.metric != PERPLEXITY or row.kind != "passages"]


def chosen_tasks(suites: Sequence[str], names: Sequence[str] | None = None) -> list[Task]:
    """The tasks of the suites, in order, or those of these names.

    Args:
        names: as ``hotpotqa`` or ``longbench/hotpotqa``, or groups, as ``paper`` or ``longbench/paper``
            (`task_groups`); None: all.

    Raises:
        ConfigError: a suite or a task is unknown, or a suite is named twice.
    """
    if len(set(suites)) < len(suites):
        raise ConfigError(f"a suite is named twice in {' '.join(suites)}")
    tasks = [task for suite in suites for task in tasks_of(suite)]
    if names is None:
        return tasks
    groups = groups_of(suites)
    known = {task.name: (task.name,) for task in tasks} | groups
    wanted: set[str] = set()
    for name in names:
        found = [members for full, members in known.items() if name in (full, full.partition("/")[2])]
        if not found:
            raise ConfigError(f"tasks must be among {', '.join(known)}, got {name!r}")
        wanted.update(task for members in found for task in members)
    return [task for task in tasks if task.name in wanted]
