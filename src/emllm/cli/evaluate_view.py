"""What ``emllm eval`` shows: progress while it runs, scores when it is done, what there is to run.

This module does not know how anything is run or scored.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from emllm.cli.terminal import duration, one_line, progress_bar

if TYPE_CHECKING:
    from emllm.evaluation.pace import Step


def summary(place: Path, run: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean score of each task and row over the questions of its samples that did not fail; their number."""
    scores: dict[str, dict[str, Any]] = {task: {} for task in run["tasks"]}
    found: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    failed: dict[tuple[str, str], int] = defaultdict(int)
    for line in results:
        key = (line["task"], line["row"])
        if line["failed"] is None:
            found[key].append([answer["score"] for answer in line["answers"]] or [line["score"]])
        else:
            failed[key] += 1
    for task in scores:
        for row in run["rows"]:
            if (task, row) in found or (task, row) in failed:
                own = found[task, row]
                scores[task][row] = {
                    "score": fmean(chain.from_iterable(own)) if own else None,
                    "samples": len(own),
                    "failed": failed[task, row],
                }
    return {
        "out": str(place),
        "results": len(results),
        "failed": sum(failed.values()),
        "metrics": {name: task["metric"] for name, task in run["tasks"].items()},
        "scores": scores,
    }


def tabulated(found: Mapping[str, Any]) -> str:
    """The summary as a table: a line a task, a column a row."""
    rows = list(dict.fromkeys(row for scores in found["scores"].values() for row in scores))
    head = ["", *rows]
    body = [
        [f"{task} ({metric})", *(_cell(found["scores"][task].get(row), metric) for row in rows)]
        for task, metric in found["metrics"].items()
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = []
    for first, *cells in [head, *body]:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    said = f"{found['results']} results in {found['out']}"
    if found["failed"]:
        said += f", of which {found['failed']} failed (*) and are not scored"
    return "\n".join([*lines, said, ""])


def _cell(one: Mapping[str, Any] | None, metric: str) -> str:
    """A mean in per cent, or a perplexity; marked where samples failed."""
    if one is None:
        return "-"
    mark = "*" if one["failed"] else ""
    if one["score"] is None:
        return f"-{mark}"
    shown = math.exp(one["score"]) if metric == "perplexity" else 100 * one["score"]
    return f"{shown:.1f}{mark}"


def described_suites(
    suites: Mapping[str, Sequence[str]],
    groups: Mapping[str, Sequence[str]],
    rows: Mapping[str, str],
    default_rows: Sequence[str],
) -> str:
    """What there is to run, for a person."""
    width = max(map(len, [*suites, *groups, *rows]))
    lines = ["Suites and their tasks:"]
    lines += [f"  {suite.ljust(width)}  {', '.join(tasks)}" for suite, tasks in suites.items()]
    lines += ["", "Groups of tasks, for --tasks:"] if groups else []
    lines += [
        f"  {group.ljust(width)}  {', '.join(task.partition('/')[2] for task in tasks)}"
        for group, tasks in groups.items()
    ]
    lines += ["", f"Rows (by default {','.join(default_rows)}):"]
    lines += [f"  {row.ljust(width)}  {said}" for row, said in rows.items()]
    return "\n".join([*lines, ""])


@contextmanager
def progress_of(place: Path) -> Iterator[Callable[[Step], None]]:
    """A callback that shows how far a run has come."""
    with progress_bar(one_line(str(place), width=30)) as show:
        yield lambda step: show(step.num_done, step.num_total, _state(step))


def _state(step: Step) -> str:
    said = [f"{step.num_done:,} of {step.num_total:,} results"]
    if step.num_failed:
        said.append(f"{step.num_failed:,} failed")
    if step.seconds_left is not None:
        said.append(f"{duration(step.seconds_left)} left")
    reading = step.reading
    read = "" if reading is None else f", token {reading.num_read:,} of {reading.num_total:,}"
    return f"{', '.join(said)}; {step.place}{read}"
