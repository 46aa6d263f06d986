"""A task of a benchmark: a small declarative file, where samples come from and how they are scored.

One TOML file a task, ``tasks/<suite>/<name>.toml``::

    suite = "longbench"
    samples = "longbench"        # which function of emllm.evaluation.suites makes the samples
    metric = "qa_f1"             # which function of emllm.evaluation.metrics scores an answer
    answer_tokens = 32           # length of an answer at most
    stops = ["\\n"]               # an answer ends before the first of these (optional)
    is_chat = true               # inside the model's chat template; false: the bare prompt (optional)
    prompt = \"\"\"Answer ... {context} ... {input} ...\"\"\"

    [source]                     # whatever the samples function needs: file names, hub names, parameters
    file = "longbench/longbench_v1_dev.jsonl.xz"

The part of `prompt` before ``{context}`` is read before the text, the part after it is asked. This module
does not know how samples are made, answered or scored.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from emllm.errors import ConfigError

_NEEDED = {"suite", "samples", "metric", "answer_tokens", "prompt"}
_KNOWN = _NEEDED | {"stops", "is_chat", "source", "category"}


@dataclass(frozen=True)
class Task:
    """One task, as its file says.

    Attributes:
        name: ``suite/task``.
        suite: the benchmark it belongs to.
        samples: name of the function that makes its samples.
        metric: name of the function that scores an answer.
        answer_tokens: length of an answer at most.
        prompt: the official prompt; fields in braces are filled from a sample.
        stops: an answer ends before the first of these.
        is_chat: whether the prompt stands inside the model's chat template.
        category: group of a table.
        source: parameters of the samples function.
    """

    name: str
    suite: str
    samples: str
    metric: str
    answer_tokens: int
    prompt: str
    stops: tuple[str, ...] = ()
    is_chat: bool = True
    category: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    def split_prompt(self, **fields: str) -> tuple[str, str]:
        """The filled prompt before and after the text; braces in what is filled in stay as they are."""
        before, _, after = self.prompt.partition("{context}")
        return _filled(before, fields), _filled(after, fields)


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """Replace ``{name}`` in one pass, so that no filled-in text is searched again."""
    pieces = []
    rest = template
    while rest:
        head, brace, tail = rest.partition("{")
        pieces.append(head)
        name, closed, after = tail.partition("}")
        if brace and closed and name in fields:
            pieces.append(fields[name])
            rest = after
        else:
            pieces.append(brace)
            rest = tail
    return "".join(pieces)


def parse_task(name: str, text: str) -> Task:
    """A task from the text of its file.

    Raises:
        ConfigError: not TOML, or a key is missing or unknown.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"task {name}: {error}") from error
    missing, unknown = sorted(_NEEDED - set(values)), sorted(set(values) - _KNOWN)
    if missing or unknown:
        wrong = f"missing {', '.join(missing)}" if missing else f"unknown {', '.join(unknown)}"
        raise ConfigError(f"task {name}: {wrong}")
    values["stops"] = tuple(values.get("stops", ()))
    return Task(name=name, **values)


def suite_names() -> list[str]:
    """The suites that have task files."""
    folder = files("emllm.evaluation") / "tasks"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def tasks_of(suite: str) -> list[Task]:
    """All tasks of a suite, by name, qa2 before qa10.

    Raises:
        ConfigError: there is no such suite.
    """
    if suite not in suite_names():
        raise ConfigError(f"suite must be one of {', '.join(suite_names())}, got {suite!r}")
    folder = files("emllm.evaluation") / "tasks" / suite
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return [
        parse_task(f"{suite}/{entry.name.removesuffix('.toml')}", entry.read_text("utf-8"))
        for entry in sorted(found, key=lambda entry: _in_natural_order(entry.name))
    ]


def _in_natural_order(name: str) -> list[tuple[int, str]]:
    """Sorts numbers by their size: qa2 before qa10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]
