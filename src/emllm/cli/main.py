"""The entry point: Ctrl-C and every foreseen end are cared for before anything is imported that takes time.

This module does not know the commands (`app`).
"""

from __future__ import annotations

from collections.abc import Sequence

from emllm.cli.exits import interruptible, run_politely


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; answers with the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    with interruptible():
        return run_politely(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    from emllm.cli.app import app

    outcome = app()(args=argv, prog_name="emllm", standalone_mode=False)
    return outcome if isinstance(outcome, int) else 0
