"""All commands under one name.

A command is a function `command` in a module of this folder; its name in `COMMANDS` is all it takes to add
one. Commands import neither torch nor transformers before they run, so that help and mistakes are answered at
once. This module does not know what any command does.
"""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

COMMANDS = ("ask", "segment", "chat", "bench", "plan", "doctor")


def app() -> typer.Typer:
    """The application, with the function `command` of each of its modules."""
    commands = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    commands.callback(invoke_without_command=True)(_about)
    for name in COMMANDS:
        commands.command(name)(importlib.import_module(f"emllm.cli.{name}").command)
    return commands


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from emllm import __version__

        typer.echo(f"emllm {__version__}")
        raise typer.Exit


def _about(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Episodic memory for language models: read texts of any length, ask, and see what was recalled.

    Results go to standard output, all else to standard error. Every command takes --json and -h.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
