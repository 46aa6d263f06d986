"""Open or create a memory that lives in a folder, for the model that it was made with.

This module does not know the model: it compares what it is told of it with what the folder's header says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emllm.attention.geometry import ModelGeometry
from emllm.config import ASKING, PLACEMENT, MemoryConfig, ResolvedConfig
from emllm.errors import ConfigError, StoreError
from emllm.memory.cutting import PieceOf
from emllm.memory.episodic import EpisodicMemory
from emllm.memory.forgetting import Forgotten
from emllm.memory.home import FolderHome
from emllm.memory.opening import load
from emllm.memory.placing import layer_shapes
from emllm.store import erasing
from emllm.store.folder import MemoryFolder
from emllm.store.maintenance import verify
from emllm.store.place import is_memory
from emllm.store.sizes import PAGE_TOKENS

#: In which part the model of a header differs from the one at hand; None where they agree.
Differs = Callable[[Mapping[str, Any]], "str | None"]


def open_memory(
    path: Path | str,
    geometry: ModelGeometry,
    config: MemoryConfig | None = None,
    *,
    identity: Mapping[str, Any],
    differs: Differs | None = None,
    piece_of: PieceOf | None = None,
    read_only: bool = False,
) -> EpisodicMemory:
    """The memory in a folder; a new one is made where there is none.

    Args:
        config: of a new memory; of one that exists it must agree, or be None. The budgets may differ.
        identity: of the model, emllm and the embedded format; kept in the header of a new memory.
        differs: what it says of the header of one that exists is why that is refused.
        read_only: several processes may open it at once; it cannot read on, but can be forked and asked.

    Raises:
        StoreError: it is damaged, somebody else writes it, or the model has other layers.
        ConfigError: it was made with other settings.
    """
    path = Path(path)
    if not is_memory(path) and read_only:
        raise StoreError(f"{path}: is not a memory")
    if not is_memory(path):
        resolved = (config or MemoryConfig()).resolve(
            trained_tokens=geometry.trained_tokens, num_layers=geometry.num_layers
        )
        folder = MemoryFolder.create(path, header_of(geometry, resolved, identity))
    else:
        folder = MemoryFolder.open(path, writable=not read_only)
    try:
        why_not = None if differs is None else differs(folder.catalogue.header)
        if why_not is not None:
            raise StoreError(f"{folder.path}: {why_not}")
        return _restored(folder, geometry, config, piece_of=piece_of, read_only=read_only)
    except BaseException:
        folder.close()
        raise


def _restored(
    folder: MemoryFolder,
    geometry: ModelGeometry,
    config: MemoryConfig | None,
    *,
    piece_of: PieceOf | None,
    read_only: bool,
) -> EpisodicMemory:
    header = folder.catalogue.header
    if header.get("layers") != _layers(geometry):
        raise StoreError(f"{folder.path}: was made with a model of other layers")
    settings = stored_settings(folder, config, geometry)
    memory = EpisodicMemory(geometry, settings, piece_of=piece_of, is_stored=True)
    home = FolderHome(folder)
    if read_only:
        load(folder, memory)
        memory.home = ReadOnlyHome(folder)
    else:
        erasing.resume(folder)
        home.settle(memory)
    return memory


class ReadOnlyHome:
    """The folder of a memory that may be asked, but not added to."""

    def __init__(self, folder: MemoryFolder) -> None:
        self._folder = folder

    @property
    def path(self) -> Path:
        """Of the folder."""
        return self._folder.path

    def check_writable(self) -> None:
        """Refuse.

        Raises:
            StoreError: always.
        """
        raise StoreError(f"{self._folder.path}: is open for reading only; fork the memory to go on from it")

    def committed(self, memory: EpisodicMemory) -> None:
        """Refuse; no chunk is begun, so none comes here."""
        self.check_writable()

    def flush(self, memory: EpisodicMemory) -> None:
        """Nothing can be new."""

    def verify(self) -> list[str]:
        """Everything that is wrong with the folder, one line each."""
        return verify(self._folder.path)

    def forget(self, memory: EpisodicMemory, name: str) -> Forgotten:
        """Refuse, as `check_writable` does."""
        raise StoreError(f"{self._folder.path}: is open for reading only")

    def close(self) -> None:
        """Let go of the folder."""
        self._folder.close()


def header_of(
    geometry: ModelGeometry, resolved: ResolvedConfig, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """What a new memory says of itself."""
    settings = dataclasses.asdict(resolved)
    return {
        **identity,
        "settings": {name: value for name, value in settings.items() if name not in PLACEMENT},
        "codec": resolved.codec,
        "page_tokens": PAGE_TOKENS,
        "layers": _layers(geometry),
    }


def _layers(geometry: ModelGeometry) -> list[dict[str, Any]]:
    return [
        {
            "num_kv_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "value_dim": shape.value_dim,
            "dtype": str(shape.dtype).removeprefix("torch."),
            "window_tokens": layer.window_tokens,
        }
        for shape, layer in zip(layer_shapes(geometry), geometry.layers, strict=True)
    ]


def stored_settings(
    folder: MemoryFolder, config: MemoryConfig | None, geometry: ModelGeometry
) -> ResolvedConfig:
    """The settings that a memory was made with, and the budgets and ways of asking of this time.

    A config that differs from the defaults in these alone says nothing else; any other has to agree.

    Raises:
        ConfigError: `config` asks for something else.
        StoreError: the header's settings are not ours.
    """
    kept: dict[str, Any] = folder.catalogue.header.get("settings") or {}
    try:
        stored = ResolvedConfig(**kept)
    except (TypeError, ConfigError) as error:
        raise StoreError(f"{folder.path}: its settings cannot be used: {error}") from None
    if config is None:
        return stored
    model = {"trained_tokens": geometry.trained_tokens, "num_layers": geometry.num_layers}
    free = {name: getattr(config, name) for name in (*PLACEMENT, *ASKING)}
    is_said = dataclasses.replace(MemoryConfig(), **free) != config
    asked = config.resolve(**model) if is_said else stored
    for name, value in kept.items():
        if name not in ASKING and getattr(asked, name) != value:
            raise ConfigError(
                f"{folder.path} was made with {name}={value!r} and cannot be opened with "
                f"{name}={getattr(asked, name)!r}"
            )
    asked = MemoryConfig(**{**kept, **free}).resolve(**model)  # its own views decide what is read again
    return dataclasses.replace(stored, **{name: getattr(asked, name) for name in free})
