"""The text that was read last, for rows that read it alike and only ask in other ways, and for other tasks.

Reading is nearly all that an evaluation costs. Rows that differ in nothing but how a question is answered
(`config.ASKING`) share one reading where they stand side by side, and so do samples with one text. A text
that does not fit into RAM is read into a folder, which stays when the run is interrupted, until another such
text is read or the run is done. This module does not know how a text is read, nor what is asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emllm.config import ASKING, ResolvedConfig
from emllm.memory import EpisodicMemory

#: Reads a text, into this folder should RAM not suffice; also the seconds, None if part was read before.
Read = Callable[[Path | None], tuple[EpisodicMemory, float | None]]


class LastReading:
    """At most one memory, with the seconds that reading it took. Nothing is written into it.

    Args:
        place: a folder that is all its own, for texts that do not fit into RAM; None: there is none.
        on_let_go: told when a memory has been let go and something else is about to be read.
    """

    def __init__(self, place: Path | None = None, on_let_go: Callable[[], None] | None = None) -> None:
        self.place = place
        self._on_let_go = on_let_go
        self._key: str | None = None
        self._memory: EpisodicMemory | None = None
        self._seconds: float | None = None

    def of(
        self, config: ResolvedConfig, token_ids: Sequence[int], read: Read
    ) -> tuple[EpisodicMemory, float | None]:
        """The memory of a text read with these settings, and the seconds; the one before is let go first."""
        key = _key_of(config, token_ids)
        if self._key != key or self._memory is None:
            self.let_go()
            self._memory, self._seconds = read(None if self.place is None else self.place / key)
            self._key = key
        return self._memory, self._seconds

    def let_go(self) -> None:
        """Let go of the memory, if there is one, because something else is read."""
        if self._memory is not None:
            self.close()
            if self._on_let_go is not None:
                self._on_let_go()

    def close(self) -> None:
        """Let go of the memory; its folder stays for whoever asks for the same text."""
        memory, self._memory, self._key = self._memory, None, None
        if memory is not None:
            memory.close()

    def discard(self) -> None:
        """Let go of the memory, and of every folder."""
        self.close()
        if self.place is not None and self.place.exists():
            shutil.rmtree(self.place)


def asked_with(memory: EpisodicMemory, config: ResolvedConfig) -> EpisodicMemory:
    """A fork that answers as these settings say."""
    fork = memory.fork()
    fork.config = dataclasses.replace(fork.config, **{name: getattr(config, name) for name in ASKING})
    return fork


def _key_of(config: ResolvedConfig, token_ids: Sequence[int]) -> str:
    """A name for a text read with these settings, whatever else is asked of it."""
    digest = hashlib.sha256(repr(_reading_alone(config)).encode())
    digest.update(np.asarray(token_ids, dtype=np.int64).tobytes())
    return digest.hexdigest()[:32]


def _reading_alone(config: ResolvedConfig) -> tuple[tuple[str, Any], ...]:
    """The settings that a reading depends on."""
    names = (field.name for field in dataclasses.fields(config))
    return tuple((name, getattr(config, name)) for name in names if name not in ASKING)
