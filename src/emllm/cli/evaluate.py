"""``emllm eval``: run benchmarks with several methods on one budget, merge shards, write reports.

A first word that is a suite stands for ``run`` with that suite. This module does not know how anything is
run, scored or reported (`emllm.evaluation`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from emllm.cli import options
from emllm.cli.evaluate_view import described_suites, progress_of, summary, tabulated
from emllm.cli.recall import recall
from emllm.cli.settings import GivenSettings, with_settings
from emllm.cli.sources import opened_lm
from emllm.cli.terminal import remark, say, say_json, working
from emllm.errors import ConfigError

if TYPE_CHECKING:
    from emllm.evaluation.wishes import RunWishes

Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")]


class Group(TyperGroup):
    """The group in which a suite alone means: run it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word, or `run` where that is a suite."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            from emllm.evaluation.task import suite_names

            suites = suite_names()
            if args[0] not in suites:
                raise ConfigError(
                    f"{args[0]!r} is neither a command of eval ({', '.join(self.commands)}) "
                    f"nor a suite ({', '.join(suites)})"
                )
            args = ["run", *args]
        return super().resolve_command(ctx, args)


@with_settings
def run(
    suites: Annotated[list[str], typer.Argument(metavar="SUITE...", help="Benchmarks; see emllm eval list.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where results go; what is there already is not run again. Default: eval-SUITE.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of benchmark files; left out, the model hub.", show_default=False
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="ROW,...", help="Methods to compare; see emllm eval list.", show_default=False),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PRESET[:VARIANT][,SETTING=VALUE...]",
            help="A method of your own, besides; may be repeated.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,...",
            help="Only these tasks, or groups of tasks, of the suites.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="The first N samples of each task and length.", show_default=False),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(metavar="N", help="The first N questions of each sample.", show_default=False),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Lengths in tokens, for suites that are made to any length.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Samples of each task and length, for suites that are made.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Of samples that are drawn or made.")] = 0,
    shards: Annotated[
        int, typer.Option(metavar="N", help="Deal the samples out to N runs, each with a folder of its own.")
    ] = 1,
    shard: Annotated[int, typer.Option(metavar="I", help="Which of the shards to run, from 0.")] = 0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again the samples that failed.")
    ] = False,
    model: options.Model = "default",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    *,
    settings: GivenSettings,
) -> None:
    """Run suites with several methods on the same prompts and the same budget of attended tokens.

    Every result is on disk before the next sample begins: interrupted at any time, the same command goes on.
    Settings hold for all rows; the budgets are 64 sink, 512 local and 512 recalled tokens unless given.
    """
    chosen = settings_of_all_rows(settings)
    with working("looking at the tasks"):
        from emllm.evaluation.results import dtype_of_run
        from emllm.evaluation.rows import rows_of
        from emllm.evaluation.wishes import RunWishes, chosen_tasks

        wishes = RunWishes(
            tasks=chosen_tasks(suites, None if tasks is None else words(tasks, "tasks")),
            rows=rows_of(None if rows is None else words(rows, "rows"), row or []),
            settings=chosen,
            data=data,
            limit=limit,
            questions=questions,
            lengths=() if lengths is None else numbers(lengths, "lengths"),
            num_samples=samples,
            seed=seed,
            shards=shards,
            shard=shard,
            retry_failed=retry_failed,
        )
        wishes.check()
    place = out or default_folder(suites, wishes)
    with opened_lm(model, device=device, dtype=dtype_of_run(place, dtype)) as lm:
        from emllm.evaluation.run import Run

        with progress_of(place) as on_step:
            start = Run(lm, wishes, command=sys.argv, on_step=on_step, on_remark=warn)
            folder = start.into(place)
    found = summary(place, folder.run, folder.results)
    if json:
        say_json(found)
    else:
        say(tabulated(found), end="")
    if found["failed"]:
        warn(f"{found['failed']} results failed and are not scored; --retry-failed runs them again")


def merge(
    folders: Folders,
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="A folder that does not exist yet.")],
    json: options.Json = False,
) -> None:
    """Put the shards of one run together, as if they had been run in one go."""
    with working("merging"):
        from emllm.evaluation.merge import merge as merge_folders
        from emllm.evaluation.results import RESULTS, read_lines, read_run

        merge_folders(folders, into)
        found = summary(into, read_run(into), read_lines(into / RESULTS))
    if json:
        say_json(found)
    else:
        say(tabulated(found), end="")


def report(
    folders: Folders,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", metavar="DIR", help="Where to write; default: the first folder.", show_default=False
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="ROW",
            help="The row that others are compared with; default: full, else default.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write tables, intervals and figures of runs; those of one model stand in the same tables."""
    with working("writing the report"):
        from emllm.evaluation.report import write_report

        written = write_report(folders, into or folders[0], reference=reference)
    if json:
        say_json({"written": [str(path) for path in written]})
    else:
        for path in written:
            say(str(path))


def list_(json: options.Json = False) -> None:
    """List the suites with their tasks, and the rows."""
    from emllm.evaluation.rows import DEFAULT_ROWS, ROWS
    from emllm.evaluation.task import suite_names, tasks_of
    from emllm.evaluation.task_groups import groups_of

    suites = {suite: [task.name.partition("/")[2] for task in tasks_of(suite)] for suite in suite_names()}
    groups = {name: list(tasks) for name, tasks in groups_of(suite_names()).items()}
    rows = {row.name: row.said for row in ROWS.values()}
    if json:
        say_json({"suites": suites, "groups": groups, "rows": rows, "default_rows": list(DEFAULT_ROWS)})
    else:
        say(described_suites(suites, groups, rows, DEFAULT_ROWS), end="")


#: In the order of the help.
COMMANDS: tuple[Callable[..., None], ...] = (run, merge, report, recall, list_)


def settings_of_all_rows(given: GivenSettings) -> dict[str, Any]:
    """The settings that hold for all rows.

    Raises:
        ConfigError: a preset or variant is among them, which rows have.
    """
    for name, value in (
        ("preset", given.preset if given.preset != "default" else None),
        ("variant", given.variant),
    ):
        if value is not None:
            raise ConfigError(
                f"{name}={value!r}: every row has its own; choose rows with --rows, "
                f"or add one with --row NAME={value if name == 'preset' else 'em-llm:' + value}"
            )
    return dict(given.settings)


def warn(said: str) -> None:
    """Print one line that is no result."""
    remark(f"emllm: {said}")


def words(text: str, name: str) -> list[str]:
    """Names with commas.

    Raises:
        ConfigError: there is none, or one is empty.
    """
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise ConfigError(f"{name} must be names with commas, got {text!r}")
    return found


def numbers(text: str, name: str) -> tuple[int, ...]:
    """Whole numbers with commas.

    Raises:
        ConfigError: one is something else.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{name} must be whole numbers with commas, got {text!r}") from error


def default_folder(suites: list[str], wishes: RunWishes) -> Path:
    """Where results go that were given no place: named after the suites, a folder a shard."""
    place = f"-shard-{wishes.shard}-of-{wishes.shards}" if wishes.shards > 1 else ""
    return Path(f"eval-{'+'.join(suites)}{place}")
