"""What goes to the terminal: results on stdout, the rest on stderr, nothing that a terminal would obey.

This module does not know models or memories.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emllm.reading import ProgressCallback, ReadProgress

#: Seconds between two lines of progress where stderr is no terminal; columns where stdout is none.
SECONDS_BETWEEN_LINES, PLAIN_COLUMNS = 10.0, 100

#: What a terminal would obey becomes visible; tab and newline stay.
_INERT = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def say(text: str = "", *, end: str = "\n") -> None:
    """Print a result, at once."""
    encoding = sys.stdout.encoding or "utf-8"
    inert = text.translate(_INERT).encode(encoding, "replace").decode(encoding)
    print(inert, end=end, flush=True)  # noqa: T201


def remark(text: str) -> None:
    """Print on stderr, on one line, what is no result."""
    encoding = sys.stderr.encoding or "utf-8"
    line = " ".join(text.translate(_INERT).split())
    print(line.encode(encoding, "replace").decode(encoding), file=sys.stderr, flush=True)  # noqa: T201


def say_json(value: Any) -> None:
    """Print one JSON value on one line."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not is_unicode, allow_nan=False), flush=True)  # noqa: T201


def columns() -> int:
    """Width to print in."""
    return shutil.get_terminal_size((PLAIN_COLUMNS, 24)).columns


def one_line(text: str, *, width: int) -> str:
    """The text on one line of at most `width` columns, cut at the end."""
    from rich.cells import cell_len, set_cell_size

    line = " ".join(text.translate(_INERT).split())
    return line if cell_len(line) <= width else set_cell_size(line, max(width - 1, 0)).rstrip() + "…"


def counted(num: int, what: str) -> str:
    """A number with its noun."""
    return f"{num:,} {what}" if num == 1 else f"{num:,} {what}s"


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return (
        f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02} h"
    )


@contextmanager
def working(what: str) -> Iterator[None]:
    """Shows that something takes time, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what, spinner="dots"):
        yield


@contextmanager
def reading(name: str) -> Iterator[ProgressCallback]:
    """A callback that shows how far reading has come."""
    with progress_bar(f"reading {one_line(name, width=30)}", said=f"reading {name}: ") as show:
        yield lambda progress: show(progress.num_read, progress.num_total, _state(progress))


@contextmanager
def progress_bar(what: str, *, said: str = "") -> Iterator[Callable[[int, int, str], None]]:
    """A callback of done, total and words: a bar on a terminal, else a line now and then.

    Args:
        what: stands before the bar.
        said: stands before the words of a line.
    """
    if not sys.stderr.isatty():
        yield _line_now_and_then(said)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, state="")
        yield lambda done, total, state: bar.update(task, total=total, completed=done, state=state)


def _line_now_and_then(said: str) -> Callable[[int, int, str], None]:
    last = time.monotonic()

    def show(done: int, total: int, state: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            remark(f"{said}{state}")

    return show


def _state(progress: ReadProgress) -> str:
    return (
        f"{progress.num_read:,} of {progress.num_total:,} tokens, "
        f"{progress.tokens_per_second:,.0f} tokens/s, {duration(progress.seconds_left)} left"
    )
