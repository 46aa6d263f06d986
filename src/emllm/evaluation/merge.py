"""Shards of one run put together: the same results as if all had been run in one go.

This module does not know how anything was run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emllm.errors import ConfigError
from emllm.evaluation.agreement import first_difference, taking_part
from emllm.evaluation.results import (
    COSTS,
    RESULTS,
    RUN,
    Key,
    costs_of,
    encoded,
    in_order,
    key_of,
    read_lines,
    read_run,
)
from emllm.evaluation.wishes import PERPLEXITY
from emllm.store import disk


def merge(folders: Sequence[Path], into: Path) -> Path:
    """One folder with the results of all shards, in the order of one run.

    Raises:
        ConfigError: a shard is missing, given twice, unfinished, or was run with other settings.
        StoreError: the new folder cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    _check(folders, runs)
    results, costs = [], []
    for folder, run in zip(folders, runs, strict=True):
        lines = read_lines(folder / RESULTS)
        _check_finished(folder, run, lines)
        results += lines
        costs += read_lines(folder / COSTS)
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ConfigError(f"{into}: exists already; name a new folder")
    run = {
        **runs[0],
        "commands": [command for one in runs for command in one.get("commands", [])],
        **taking_part(runs),
        "shards": 1,
        "shard": 0,
    }
    ordered = in_order(results, run)
    described = (json.dumps(run, indent=1) + "\n").encode()
    _write(into, {RESULTS: _bytes(ordered), COSTS: _bytes(costs_of(ordered, costs)), RUN: described})
    return into


def _bytes(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(map(encoded, lines))


def _write(into: Path, files: Mapping[str, bytes]) -> None:
    """A folder that is whole when it has its name."""
    into = into.absolute()  # "." has no name
    building = into.with_name(f"{into.name}.merging")
    with disk.translated("write", into):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            for name, data in files.items():
                disk.publish_bytes(building / name, data)
            building.rename(into)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        disk.sync_folder(into.parent)


def _check(folders: Sequence[Path], runs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what is not one run, dealt out."""
    first = runs[0]
    seen: dict[int, Path] = {}
    for folder, run in zip(folders, runs, strict=True):
        difference = first_difference(first, run, ignoring=("shard",)) or _difference_in_plan(first, run)
        if difference is not None:
            raise ConfigError(f"{folder} does not belong to {folders[0]}: {difference}")
        if run["shard"] in seen:
            raise ConfigError(f"{seen[run['shard']]} and {folder} both are shard {run['shard']}")
        seen[run["shard"]] = folder
    missing = [str(shard) for shard in range(first["shards"]) if shard not in seen]
    if missing:
        raise ConfigError(f"shard {', '.join(missing)} of {first['shards']} is missing")


def _difference_in_plan(first: Mapping[str, Any], run: Mapping[str, Any]) -> str | None:
    """What one shard was run with and another was not."""
    for what in ("rows", "tasks"):
        if list(first[what]) != list(run[what]):
            return f"{what} are {', '.join(first[what])} and {', '.join(run[what])}"
    for name, task in first["tasks"].items():
        if task["num_samples"] != run["tasks"][name]["num_samples"]:
            return f"{name} has {task['num_samples']} and {run['tasks'][name]['num_samples']} samples"
    return None


def _check_finished(folder: Path, run: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a shard that lacks a result, or holds one twice."""
    keys = [key_of(line) for line in lines]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"{folder}: {twice.task} {twice.sample}, {twice.row} is there twice")
    there = {(line["task"], line["index"], line["row"]) for line in lines}
    missing = [
        Key(name, str(index), row)
        for name, task in run["tasks"].items()
        for index in range(run["shard"], task["num_samples"], run["shards"])
        for row, one in run["rows"].items()
        if (task["metric"] != PERPLEXITY or one["kind"] != "passages") and (name, index, row) not in there
    ]
    if missing:
        first = missing[0]
        raise ConfigError(
            f"{folder} lacks {len(missing)} results, the first is {first.task} {first.sample}, {first.row}; "
            "run it to its end first"
        )
