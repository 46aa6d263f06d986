"""Rows of a table: the methods that answer the same questions on the same budget.

A row of kind `memory` reads the whole text into an episodic memory; `full` is the model's own attention over
the whole prompt, or over what fits; `passages` reads what a search found. Every memory attends to as many
tokens as every other: sinks, local context and recalled events together, and a row that recalls nothing has
its budget as local context. This module does not know models, texts or how a row answers.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from emllm.config import PLACEMENT, PRESETS, UNLIMITED_TOKENS, VARIANTS, MemoryConfig, ResolvedConfig
from emllm.errors import ConfigError

#: Tokens per layer that every row may attend to, unless the user says otherwise for all of them.
BUDGETS: Mapping[str, int] = {"sink_tokens": 64, "local_tokens": 512, "recall_tokens": 512}
KINDS = ("memory", "full", "passages")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]*")


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: in tables and files.
        kind: `memory`, `full` or `passages`.
        preset: settings to begin with.
        variant: the paper's name of what is changed in them.
        settings: what is changed besides.
        said: what the row is, for a person.
    """

    name: str
    kind: str = "memory"
    preset: str = "default"
    variant: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""

    def config(self, shared: Mapping[str, Any]) -> MemoryConfig:
        """The settings of this row's memory; of kind `full` and `passages`, of full attention.

        Args:
            shared: settings that the user gave for all rows.

        Raises:
            ConfigError: a name or value is wrong, or contradicts what the row is.
        """
        budgets = budgets_of(shared)
        if self.kind != "memory":
            chunk = {name: shared[name] for name in ("chunk_tokens",) if name in shared}
            return MemoryConfig.from_settings(chunk, preset="full")
        variant = VARIANTS.get(self.variant or "", {})
        own = {**PRESETS.get(self.preset, {}), **variant, **self.settings}
        others = {name: value for name, value in shared.items() if name not in BUDGETS}
        for name, value in others.items():
            if name in own and name != "chunk_tokens" and own[name] != value:
                raise ConfigError(
                    f"{name}={value!r} for all rows contradicts row {self.name}, which has "
                    f"{name}={own[name]!r}"
                )
        if own.get("recall_tokens") == 0:
            budgets["local_tokens"] += budgets["recall_tokens"]
            budgets["recall_tokens"] = 0
        settings = {**budgets, **others, **self.settings}
        try:
            return MemoryConfig.from_settings(settings, preset=self.preset, variant=self.variant)
        except ConfigError as error:
            raise ConfigError(f"row {self.name}: {error}") from error

    def resolved(self, shared: Mapping[str, Any], *, trained_tokens: int, num_layers: int) -> ResolvedConfig:
        """`config` for one model.

        Raises:
            ConfigError: also where the budget exceeds what the model was trained on.
        """
        config = self.config(shared)
        try:
            return config.resolve(trained_tokens=trained_tokens, num_layers=num_layers)
        except ConfigError as error:
            raise ConfigError(f"row {self.name}: {error}") from error

    def described(self, shared: Mapping[str, Any], *, trained_tokens: int, num_layers: int) -> dict[str, Any]:
        """What a run writes down of this row: its kind and all that its answers depend on."""
        config = self.resolved(shared, trained_tokens=trained_tokens, num_layers=num_layers)
        if self.kind == "memory":
            settings = {name: value for name, value in asdict(config).items() if name not in PLACEMENT}
            if settings["recall_tokens"] == UNLIMITED_TOKENS:
                settings["recall_tokens"] = "all"
            return {"kind": self.kind, "settings": settings}
        settings = {
            "window_tokens": trained_tokens,
            "chunk_tokens": config.chunk_tokens,
            "longer_prompts": "the middle of the text is cut out; of a text without questions, the end",
        }
        if self.kind == "passages":
            settings.update(self.search_settings(shared), passage_tokens=attended_tokens(shared))
        return {"kind": self.kind, "settings": settings}

    def search_settings(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """What a row of passages searches with: its own settings, and those of all rows that cut events.

        Raises:
            ConfigError: a setting is unknown.
        """
        from emllm.evaluation.rag import PASSAGE_SETTINGS  # late: loads torch

        cutting = {name: value for name, value in shared.items() if name not in (*BUDGETS, *PLACEMENT)}
        known = {field.name for field in fields(MemoryConfig)} - set(BUDGETS) | set(PASSAGE_SETTINGS)
        for name in self.settings:
            if name not in known:
                raise ConfigError(
                    f"row {self.name}: unknown setting {name!r}; it has {', '.join(sorted(known))}"
                )
        return {**PASSAGE_SETTINGS, **cutting, **self.settings}


def budgets_of(shared: Mapping[str, Any]) -> dict[str, int]:
    """Sink, local and recall tokens of all rows.

    Raises:
        ConfigError: one is not a number; `full` is the row that attends to everything.
    """
    budgets = {name: shared.get(name, tokens) for name, tokens in BUDGETS.items()}
    for name, tokens in budgets.items():
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
            raise ConfigError(f"{name} must be an integer >= 0 in an evaluation, got {tokens!r}")
    return budgets


def attended_tokens(shared: Mapping[str, Any]) -> int:
    """Tokens that every row may attend to per layer: the width that passages may fill."""
    return sum(budgets_of(shared).values())


def _variant_rows() -> list[Row]:
    return [
        Row(f"em-llm:{name}", "memory", "em-llm", name, said=f"the paper's variant {name}")
        for name in VARIANTS
    ]


#: Rows by name, in the order of tables.
ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row("full", "full", "full", said="the model's own attention over the prompt, or what fits of it"),
        Row("streaming-llm", "memory", "streaming-llm", said="sinks and a local window, nothing recalled"),
        Row("inf-llm", "memory", "inf-llm", said="blocks of 128 tokens, recalled by InfLLM's rules"),
        Row("em-llm", "memory", "em-llm", said="the paper's method, EM-LLM SM+C"),
        *_variant_rows(),
        Row("default", "memory", said="this package's default"),
        Row("exact", "memory", settings={"scorer": "exact"}, said="the default, every token ranked exactly"),
        Row("rag", "passages", said="passages found by a search, read with full attention"),
        Row(
            "rag-events",
            "passages",
            settings={"passages": "events"},
            said="the same with events",
        ),
    )
}

DEFAULT_ROWS = ("full", "streaming-llm", "inf-llm", "em-llm", "default", "rag")


def rows_of(names: Sequence[str] | None, free: Sequence[str] = ()) -> list[Row]:
    """The rows of these names, then the free ones that are not among them.

    Args:
        names: of known or free rows; None: those of `DEFAULT_ROWS`.
        free: rows of the user's own, as ``name=preset,setting=value``.

    Raises:
        ConfigError: a name is unknown or given twice.
    """
    own = {row.name: row for row in map(parse_row, free)}
    if len(own) < len(free):
        raise ConfigError("two rows of --row have the same name")
    known = {**ROWS, **own}
    wanted = list(DEFAULT_ROWS if names is None else names)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"rows must be among {', '.join(known)}, got {name!r}")
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"a row is named twice in {','.join(wanted)}")
    if not wanted:
        raise ConfigError("an evaluation needs at least one row")
    return [known[name] for name in [*wanted, *(name for name in own if name not in wanted)]]


def parse_row(text: str) -> Row:
    """A free row: ``name=preset[:variant][,setting=value ...]``, values as in TOML; or `rag` as preset.

    Raises:
        ConfigError: it is not of this form, or the name is taken; values are checked by `Row.config`.
    """
    name, equals, rest = text.partition("=")
    preset, *pairs = rest.split(",")
    name = name.strip()
    if not equals or not preset.strip() or not _NAME.fullmatch(name):
        raise ConfigError(f"a row must be name=preset,setting=value,..., got {text!r}")
    if name in ROWS:
        raise ConfigError(f"row {name} exists already; give yours another name")
    settings: dict[str, Any] = {}
    for pair in pairs:
        setting, equals, value = pair.partition("=")
        if not equals or not setting.strip():
            raise ConfigError(f"row {name}: a setting must be setting=value, got {pair!r}")
        if setting.strip() in settings:
            raise ConfigError(f"row {name}: {setting.strip()} is set twice")
        settings[setting.strip()] = _value(value.strip())
    preset, said = preset.strip(), f"of your own: {rest}"
    if preset in ROWS and ROWS[preset].kind == "passages":
        return replace(ROWS[preset], name=name, settings={**ROWS[preset].settings, **settings}, said=said)
    preset, _, variant = preset.partition(":")
    kind = "full" if preset == "full" else "memory"
    if kind == "full" and (settings or variant):
        said_too = ", ".join([*([variant] if variant else []), *settings])
        raise ConfigError(f"row {name}: full attention has no variants or settings, got {said_too}")
    return Row(name, kind, preset, variant or None, settings, said=said)


def _value(text: str) -> Any:
    """A TOML value, or a word without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
