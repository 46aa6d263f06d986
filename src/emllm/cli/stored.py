"""Stored memories as commands need them: found among the words of a command, opened with their own model.

What contradicts a memory is found before its model is loaded. This module does not know what is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emllm.cli.settings import GivenSettings
from emllm.cli.sources import opened_lm
from emllm.cli.terminal import remark, working
from emllm.config import MemoryConfig
from emllm.errors import EmllmError, InputError, StoreError
from emllm.machine import free_ram_bytes

if TYPE_CHECKING:
    from emllm.lm import EpisodicLM
    from emllm.memory import EpisodicMemory
    from emllm.store.contents import Contents, DocumentRecord

DEFAULT_MODEL = "default"


@dataclass(frozen=True)
class Stored:
    """A memory in a folder, as its catalogue tells of it.

    Attributes:
        path: of its folder.
        header: what it was made with.
        contents: what it holds.
    """

    path: Path
    header: dict[str, Any]
    contents: Contents

    @classmethod
    def at(cls, path: Path) -> Stored | None:
        """The memory in a folder; None where there is none.

        Raises:
            StoreError: it is damaged.
        """
        if not path.is_dir():
            return None  # without importing the store, which is slow
        from emllm.store.folder import MemoryFolder
        from emllm.store.place import is_memory

        if not is_memory(path):
            return None
        with MemoryFolder.open(path) as folder:
            return cls(path, folder.catalogue.header, folder.contents)

    @property
    def uuid(self) -> str:
        """What tells it from all others, but for copies of it."""
        return str(self.header["uuid"])

    @property
    def unfinished(self) -> DocumentRecord | None:
        """The document whose reading was interrupted."""
        documents = self.contents.documents
        last = documents[-1] if documents else None
        return last if last is not None and last.stop < last.start + last.num_tokens else None

    @property
    def is_conversation(self) -> bool:
        """Whether questions were answered in it; it can read no more documents then."""
        return self.contents.state.get("dialogue") == "answered"

    @property
    def is_prepared(self) -> bool:
        """Whether a first question needs no more than any other (`EpisodicLM.prepare`)."""
        config = MemoryConfig(**self.header["settings"])
        recalled = self.header["settings"]["recall_tokens"]
        is_ranked = any(layer["window_tokens"] is None for layer in self.header["layers"])
        events = self.contents.events
        is_selective = is_ranked and 0 < recalled < int((events[:, 1] - events[:, 0]).sum())
        is_needed = config.recollects(is_selective=is_selective)
        return not is_needed or self.contents.state.get("usual") is not None

    def config(self, settings: GivenSettings) -> MemoryConfig | None:
        """What to open it with; see `GivenSettings.agreeing`."""
        return settings.agreeing(self.header.get("settings") or {}, path=self.path)

    def model(self, given: str | None) -> str:
        """The model that the user names, or the one that it was made with."""
        return given or str(self.header.get("model") or DEFAULT_MODEL)

    def dtype(self, given: str) -> str:
        """The dtype that the user names, or the one that it was made with."""
        layers = self.header.get("layers") or [{}]
        return str(layers[0].get("dtype", given)) if given == "auto" else given


@contextmanager
def saying_if_not_prepared() -> Iterator[None]:
    """What goes wrong is said and no more: the first answer takes longer then."""
    try:
        yield
    except EmllmError as error:
        remark(f"emllm: not prepared for questions: {error}")


def prepare(lm: EpisodicLM, memory: EpisodicMemory) -> None:
    """Prepare a memory for questions, or say why not."""
    with saying_if_not_prepared(), working("preparing for questions"):
        lm.prepare(memory)


def existing(path: Path) -> Stored:
    """The memory in a folder.

    Raises:
        StoreError: there is none, or its catalogue is damaged.
    """
    stored = Stored.at(path)
    if stored is None:
        raise no_memory(path)
    return stored


def no_memory(path: Path) -> StoreError:
    """What to say of a folder that is no memory."""
    return StoreError(f"{path}: {'is not a memory' if os.path.lexists(path) else 'no such memory'}")


def memory_among(sources: Sequence[str]) -> Stored | None:
    """The stored memory that the sources are; None where they are texts.

    Raises:
        InputError: a memory stands beside other sources.
        StoreError: the memory is damaged.
    """
    folders = [Path(source) for source in sources if source != "-" and os.path.isdir(source)]
    found = [memory for folder in folders if (memory := Stored.at(folder)) is not None]
    if not found:
        return None
    first = found[0]
    if len(found) > 1:
        raise InputError(f"{first.path} and {found[1].path} are both memories; one at a time can be asked")
    if len(sources) > 1:
        raise InputError(
            f"{first.path} is a memory, and a memory stands alone; add texts to it first with: "
            f"emllm read SOURCE... --into {first.path}"
        )
    return first


@contextmanager
def opened_memory(
    stored: Stored, settings: GivenSettings, *, model: str | None, device: str, dtype: str
) -> Iterator[tuple[EpisodicLM, EpisodicMemory]]:
    """A stored memory to ask, and its model; nothing in its folder changes.

    Raises:
        ConfigError: it was made with other settings than those given.
        StoreError: it was made with another model, or is damaged.
    """
    config = stored.config(settings)
    begun = stored.unfinished
    if begun is not None:
        remark(
            f"emllm: {stored.path}: {begun.name} was read up to token {begun.stop - begun.start:,} of "
            f"{begun.num_tokens:,}; emllm read goes on from there"
        )
    from emllm.store.ahead import read_ahead

    # A first question looks at every event: the disk works while the model is loaded.
    read_ahead(stored.path, stored.contents.index, max_bytes=free_ram_bytes() // 2)
    with opened_lm(stored.model(model), device=device, dtype=stored.dtype(dtype)) as lm:
        with working("opening the memory"):
            memory = lm.memory(stored.path, config, read_only=True)
        with memory:
            yield lm, memory


def check_new(path: Path, *, is_copy: bool = False) -> None:
    """Refuse a place where no new memory can be made.

    Args:
        is_copy: it is made beside the place, which must be empty; what an interrupted start left is no
            obstacle otherwise.

    Raises:
        InputError: the folder above is missing or cannot be written.
        StoreError: something else is there.
    """
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{path}: there is no folder {parent}")
    if not os.access(path if path.is_dir() and not is_copy else parent, os.W_OK):
        raise InputError(f"{path}: cannot be written")
    if os.path.lexists(path):
        from emllm.store.place import refuse_foreign, refuse_occupied

        refuse = refuse_occupied if is_copy else refuse_foreign
        refuse(path)
