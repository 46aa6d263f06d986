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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from emllm.config import (
    ASKING,
    PLACEMENT,
    PRESETS,
    UNLIMITED_TOKENS,
    VARIANTS,
    MemoryConfig,
    variant_settings,
)
from emllm.errors import ConfigError


def setting_help() -> dict[str, str]:
    """What each setting is, from the docstring of `MemoryConfig`, in the order of its fields."""
    found = re.findall(
        r"^ {4}(\w+): (.+?)(?=^ {4}\w+: |\Z)", inspect.getdoc(MemoryConfig) or "", re.MULTILINE | re.DOTALL
    )
    said = {name: " ".join(text.split()).replace("`", "").rstrip(".") for name, text in found}
    return {field.name: said.get(field.name, "") for field in dataclasses.fields(MemoryConfig)}


def default_of(field: dataclasses.Field[Any]) -> str:
    """The default of a setting, or what it is chosen by."""
    if field.default is None:
        return "by what is free" if field.name in PLACEMENT else "by the model"
    return str(field.default)


@dataclass(frozen=True)
class GivenSettings:
    """What the user said about settings, and nothing that was left unsaid.

    Attributes:
        settings: single ones, by name.
        preset: the one named, or `default`.
        variant: the one named.
    """

    settings: Mapping[str, Any]
    preset: str = "default"
    variant: str | None = None

    @property
    def config(self) -> MemoryConfig:
        """The settings of a new memory.

        Raises:
            ConfigError: a name or value is wrong.
        """
        return MemoryConfig.from_settings(self.settings, preset=self.preset, variant=self.variant)

    def agreeing(self, stored: Mapping[str, Any], *, path: Path) -> MemoryConfig | None:
        """What to open a memory with that was made with `stored`; None where nothing was said that matters.

        Budgets and ways of asking may always differ; what was left unsaid is as the memory has it.

        Raises:
            ConfigError: it was made with other settings than those given, or a name is wrong.
        """
        unknown = {name: value for name, value in self.settings.items() if name not in (*stored, *PLACEMENT)}
        MemoryConfig.from_settings(unknown, preset=self.preset, variant=self.variant)
        variant = variant_settings(self.variant, self.settings) if self.variant is not None else {}
        # A memory from before there was a setting has its default.
        known = {**{field.name: field.default for field in dataclasses.fields(MemoryConfig)}, **stored}
        changed = {}
        for name, value in {**PRESETS[self.preset], **variant, **self.settings}.items():
            asked = UNLIMITED_TOKENS if (name, value) == ("recall_tokens", "all") else value
            if name in (*PLACEMENT, *ASKING):
                if name not in stored or stored[name] != value:
                    changed[name] = value
            elif known[name] != asked:
                raise ConfigError(
                    f"{path} was made with {name}={_shown(known[name])} and cannot be opened with "
                    f"{name}={_shown(asked)}"
                )
        return MemoryConfig(**{**stored, **changed}) if changed else None


def _shown(value: Any) -> str:
    return "'all'" if value == UNLIMITED_TOKENS else repr(value)


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with a flag for every setting in place of its parameter `config`, or `settings`.

    `config` gets a `MemoryConfig`; `settings`, of a command that may open an existing memory, what was given.
    """
    signature = inspect.signature(command, eval_str=True)
    wants_given = "settings" in signature.parameters
    own = [
        parameter for name, parameter in signature.parameters.items() if name not in ("config", "settings")
    ]
    flags = [_parameter(name, kind, option) for name, kind, option in _flags()]

    @functools.wraps(command)
    def with_flags(**values: Any) -> Any:
        given = settings_from({flag.name: values.pop(flag.name) for flag in flags})
        if wants_given:
            return command(settings=given, **values)
        return command(config=given.config, **values)

    with_flags.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *flags]}
    return with_flags


def settings_from(given: Mapping[str, Any]) -> GivenSettings:
    """The settings of a file, overridden by those given as flags (None: not given).

    Raises:
        ConfigError: the file cannot be read.
    """
    flags = {name: value for name, value in given.items() if value is not None}
    path = flags.pop("config_file", None)
    settings = {} if path is None else read_settings(path)
    settings.update(flags)
    preset, variant = settings.pop("preset", "default"), settings.pop("variant", None)
    return GivenSettings(settings, preset, variant)


def config_from(given: Mapping[str, Any]) -> MemoryConfig:
    """`settings_from`, as the settings of a new memory.

    Raises:
        ConfigError: the file cannot be read, or a name or value is wrong.
    """
    return settings_from(given).config


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
        text = f"{said} (default: {default_of(field)})"
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
