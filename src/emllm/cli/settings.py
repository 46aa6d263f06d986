"""Every setting of a memory as a flag, and the same names in a TOML file: made from `MemoryConfig` alone.

This module does not know what a setting does; values are checked where they enter, by `MemoryConfig`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from emllm.config import PRESETS, VARIANTS, MemoryConfig
from emllm.errors import ConfigError


def setting_help() -> dict[str, str]:
    """What each setting is, from the docstring of `MemoryConfig`, in the order of its fields."""
    found = re.findall(
        r"^ {4}(\w+): (.+?)(?=^ {4}\w+: |\Z)", inspect.getdoc(MemoryConfig) or "", re.MULTILINE | re.DOTALL
    )
    said = {name: " ".join(text.split()).replace("`", "").rstrip(".") for name, text in found}
    return {field.name: said.get(field.name, "") for field in dataclasses.fields(MemoryConfig)}


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with a flag for every setting in place of its parameter `config`."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "config"]
    flags = [_parameter(name, kind, option) for name, kind, option in _flags()]

    @functools.wraps(command)
    def with_flags(**values: Any) -> Any:
        given = {flag.name: values.pop(flag.name) for flag in flags}
        return command(config=config_from(given), **values)

    with_flags.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *flags]}
    return with_flags


def config_from(given: Mapping[str, Any]) -> MemoryConfig:
    """The settings of a file, overridden by those given as flags (None: not given).

    Raises:
        ConfigError: the file cannot be read, or a name or value is wrong.
    """
    flags = {name: value for name, value in given.items() if value is not None}
    path = flags.pop("config_file", None)
    settings = {} if path is None else read_settings(path)
    settings.update(flags)
    preset, variant = settings.pop("preset", "default"), settings.pop("variant", None)
    return MemoryConfig.from_settings(settings, preset=preset, variant=variant)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file.

    Raises:
        ConfigError: it cannot be read or is not TOML.
    """
    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read, {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    for name in ("preset", "variant"):
        if not isinstance(settings.get(name, ""), str):
            raise ConfigError(f"{path}: {name} must be a string, got {settings[name]!r}")
    return settings


def _flags() -> list[tuple[str, Any, Any]]:
    """Name, type and typer option of each flag."""
    panel: dict[str, Any] = {"rich_help_panel": "Settings", "show_default": False}
    kinds = get_type_hints(MemoryConfig)
    flags: list[tuple[str, Any, Any]] = [
        (
            "config_file",
            Path,
            typer.Option(
                "--config", metavar="FILE", help="A TOML file with settings by these names.", **panel
            ),
        ),
        ("preset", str, typer.Option(metavar="NAME", help=f"One of {', '.join(PRESETS)}.", **panel)),
        (
            "variant",
            str,
            typer.Option(metavar="NAME", help=f"The paper's, one of {', '.join(VARIANTS)}.", **panel),
        ),
    ]
    for field in dataclasses.fields(MemoryConfig):
        said = setting_help()[field.name]
        default = "by the model" if field.default is None else field.default
        text = f"{said} (default: {default})"
        kind, parser, metavar = _kind(kinds[field.name])
        flags.append(
            (
                field.name,
                kind,
                typer.Option(
                    f"--{field.name.replace('_', '-')}", help=text, metavar=metavar, parser=parser, **panel
                ),
            )
        )
    return flags


def _kind(annotation: Any) -> tuple[Any, Callable[[str], Any] | None, str]:
    """How a flag of this type is parsed and shown."""
    kinds = set(get_args(annotation) or (annotation,)) - {type(None)}
    if kinds == {int, str}:
        return str, _number_or_word, "TOKENS|all"
    (kind,) = kinds
    return kind, None, {int: "INTEGER", float: "NUMBER"}.get(kind, "NAME")


def _number_or_word(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )
