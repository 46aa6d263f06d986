"""``emllm memory``: list, show, verify, copy, compact stored memories, and forget documents.

Only rereading needs a model. This module does not know how anything is stored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from emllm.cli import options
from emllm.cli.forget import forget
from emllm.cli.memory_view import described, description, listing, tabulated
from emllm.cli.plan import size
from emllm.cli.stored import check_new, existing, no_memory
from emllm.cli.terminal import counted, remark, say, say_json, working
from emllm.errors import InputError

Mem = Annotated[Path, typer.Argument(metavar="MEM", help="A memory: the folder that it lives in.")]


def list_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look.")] = Path(),
    json: options.Json = False,
) -> None:
    """List the memories that are directly in a folder, or that are the folder itself."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    with working("looking"):
        found = listing(folder)
    if json:
        say_json(found)
    elif not found:
        remark(f"no memory in {folder}")
    else:
        say(tabulated(found), end="")


def show(mem: Mem, json: options.Json = False) -> None:
    """Show what a memory holds: its documents, their places, its size, model and settings."""
    found = description(existing(mem))
    if json:
        say_json(found)
    else:
        say(described(found), end="")


def verify(mem: Mem, json: options.Json = False) -> None:
    """Read every byte of a memory and hold it against its checksums; exit code 1 if anything is wrong."""
    from emllm.store.maintenance import extras, verify
    from emllm.store.place import is_memory

    if not is_memory(mem):
        raise no_memory(mem)
    with bytes_done(f"verifying {mem.name}") as progress:
        problems = verify(mem, progress)
    unnamed = [] if problems else extras(mem)
    if json:
        say_json({"memory": str(mem), "ok": not problems, "problems": problems, "leftovers": unnamed})
    else:
        for problem in problems:
            say(problem)
        if not problems:
            say(f"ok: {_whole(mem)}")
        for name in unnamed:
            remark(f"{mem / name}: belongs to nothing; the next command that writes deletes it")
    if problems:
        raise typer.Exit(1)


def copy(
    mem: Mem,
    to: Annotated[Path, typer.Argument(metavar="TO", help="A folder that does not exist yet.")],
    json: options.Json = False,
) -> None:
    """Copy a memory; every byte is checked on the way."""
    from emllm.store.maintenance import copy, describe

    existing(mem)
    check_new(to, is_copy=True)
    with bytes_done(f"copying {mem.name}") as progress:
        copy(mem, to, progress)
    num_bytes = describe(to).num_bytes
    if json:
        say_json({"memory": str(mem), "to": str(to), "bytes": num_bytes})
    else:
        say(f"copied {mem} to {to}, {size(num_bytes)}")


def compact(mem: Mem, json: options.Json = False) -> None:
    """Merge the small files of a memory, and give back the disk space that it does not need."""
    existing(mem)
    from emllm.memory.compacting import compact

    with working("compacting"):
        done = compact(mem)
    if json:
        say_json(
            {
                "memory": str(mem),
                "bytes_before": done.bytes_before,
                "bytes": done.bytes_after,
                "files_before": done.files_before,
                "files": done.files_after,
            }
        )
    else:
        less = size(max(done.bytes_before - done.bytes_after, 0))
        say(f"{mem}: {size(done.bytes_after)}, {less} less than before")
        if done.files_after < done.files_before:
            say(f"{counted(done.files_before, 'file')} became {done.files_after:,}")


#: In the order of the help.
COMMANDS: tuple[Callable[..., None], ...] = (list_, show, verify, forget, copy, compact)


def _whole(path: Path) -> str:
    from emllm.store.maintenance import describe

    summary = describe(path)
    return (
        f"{counted(summary.num_files, 'file')}, {summary.num_tokens:,} tokens, {size(summary.num_bytes)}, "
        f"every byte as it was written"
    )


@contextmanager
def bytes_done(what: str) -> Iterator[Callable[[int, int], Any] | None]:
    """A callback that shows bytes done of bytes in all: a bar, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
