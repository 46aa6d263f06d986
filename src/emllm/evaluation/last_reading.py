"""The text that was read last, for rows that read it alike and only ask in other ways.

Reading is nearly all that an evaluation costs. Rows that differ in nothing but how a question is answered
(`config.ASKING`) share one reading where they stand side by side. This module does not know how a text is
read, nor what is asked.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from emllm.config import ASKING, ResolvedConfig
from emllm.memory import EpisodicMemory

_Key = tuple[tuple[tuple[str, Any], ...], tuple[int, ...]]


class LastReading:
    """At most one memory, with the seconds that reading it took. Nothing is written into it."""

    def __init__(self) -> None:
        self._key: _Key | None = None
        self._memory: EpisodicMemory | None = None
        self._seconds = 0.0

    def of(
        self, config: ResolvedConfig, token_ids: Sequence[int], read: Callable[[], EpisodicMemory]
    ) -> tuple[EpisodicMemory, float]:
        """The memory of a text read with these settings, and the seconds; the one before is let go first."""
        key = _reading_alone(config), tuple(token_ids)
        if self._key != key or self._memory is None:
            self._key = self._memory = None
            begun = time.perf_counter()
            memory = read()
            self._key, self._memory, self._seconds = key, memory, time.perf_counter() - begun
        return self._memory, self._seconds


def asked_with(memory: EpisodicMemory, config: ResolvedConfig) -> EpisodicMemory:
    """A fork that answers as these settings say."""
    fork = memory.fork()
    fork.config = dataclasses.replace(fork.config, **{name: getattr(config, name) for name in ASKING})
    return fork


def _reading_alone(config: ResolvedConfig) -> tuple[tuple[str, Any], ...]:
    """The settings that a reading depends on."""
    names = (field.name for field in dataclasses.fields(config))
    return tuple((name, getattr(config, name)) for name in names if name not in ASKING)
