"""Scores that papers printed, to stand beside ours where the model is the same one.

They are copied, not measured: other prompts, scorers and samples may lie behind them, and no interval can be
given. The numbers are in published.toml; what is known of each is in docs/published-numbers.md.
This module does not know how they are shown.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files


@dataclass(frozen=True)
class Published:
    """One table of a paper for one model.

    Attributes:
        model: as the paper names it.
        names: the last part of the names that the model goes by, in lower case.
        source: paper and table.
        budget: what the paper says of lengths and settings.
        prompts: which were used, as far as paper and released code say.
        scorers: likewise.
        rows: the methods, as the paper names them.
        scores: of a task, each method's score times 100.
        num_tasks: of a suite, how many tasks of it the paper's table has.
    """

    model: str
    names: tuple[str, ...]
    source: str
    budget: str
    prompts: str
    scorers: str
    rows: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]
    num_tasks: Mapping[str, int]


def published() -> list[Published]:
    """Every table that published.toml holds."""
    text = files("emllm.evaluation.report").joinpath("published.toml").read_text("utf-8")
    return [
        Published(
            model=entry["model"],
            names=tuple(entry["names"]),
            source=entry["source"],
            budget=entry["budget"],
            prompts=entry["prompts"],
            scorers=entry["scorers"],
            rows=tuple(entry["rows"]),
            scores={task: tuple(map(float, scores)) for task, scores in entry["scores"].items()},
            num_tasks=Counter(task.partition("/")[0] for task in entry["scores"]),
        )
        for entry in tomllib.loads(text)["published"]
    ]


def published_for(model: str, tasks: Iterable[str]) -> list[Published]:
    """The tables of a model, each with only those of the tasks that it has; without any it is left out."""
    name = model.rstrip("/").replace("\\", "/").rpartition("/")[2].lower()
    found = []
    for table in published():
        scores = {task: table.scores[_key(task)] for task in tasks if _key(task) in table.scores}
        if name in table.names and scores:
            found.append(replace(table, scores=scores))
    return found


def _key(task: str) -> str:
    return task.lower()
