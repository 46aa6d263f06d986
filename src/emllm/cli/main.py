"""The entry point: Ctrl-C and every foreseen end are cared for before anything is imported that takes time.

This module does not know the commands (`app`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from emllm.cli.exits import complete_streams, interruptible, run_politely
from emllm.machine import keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; answers with the exit code (`emllm.cli.exits`)."""
    if argv is None:
        complete_streams()
        keep_freed_memory()
    with interruptible():
        return run_politely(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    from typer import Exit
    from typer.main import get_command

    from emllm.cli.app import app

    # Not command.main(), which has other exit codes and prints some errors itself.
    command = get_command(app())
    try:
        with command.make_context("emllm", list(argv)) as context:
            command.invoke(context)
    except Exit as left:
        return left.exit_code
    return 0
