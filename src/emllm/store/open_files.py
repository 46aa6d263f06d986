"""The data files of a memory that are open for reading; a bounded number of them in the process at once.

This module does not know which files belong to the memory.
"""

from __future__ import annotations

import resource
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

from emllm.store.files import TensorFile
from emllm.store.locks import Lock
from emllm.store.record import FileRecord

#: Data files that hold a descriptor at once, of all memories, where the process may open four times as many.
MAX_OPEN_FILES = 512


class OpenFiles:
    """Hands out data files; the one that was used least lately gives its descriptor back first."""

    def __init__(self, path: Path, lock: Lock | None) -> None:
        """Files of the folder at ``path``, which somebody may delete who has ``lock``."""
        self._path = path
        self._held = lock
        self._files: dict[str, TensorFile] = {}
        self._lock = threading.Lock()

    def file(self, record: FileRecord) -> TensorFile:
        """A data file; it is opened when it is first read."""
        with self._lock:
            file = self._files.get(record.name)
            if file is None or file.record != record:
                file = TensorFile(self._path, record, on_open=_OPEN.note_open, lock=self._held)
                self._files[record.name] = file
        _OPEN.note_use(file)
        return file

    def forget(self, name: str) -> None:
        """Close a file that the memory drops."""
        with self._lock:
            file = self._files.pop(name, None)
        if file is not None:
            _OPEN.close(file)

    def close(self) -> None:
        """Close them all."""
        for file in self._files.values():
            _OPEN.close(file)
        self._files.clear()


class _Descriptors:
    """The files of this process that hold a descriptor, the one that was used least lately first."""

    def __init__(self) -> None:
        self._files: OrderedDict[weakref.ref[TensorFile], None] = OrderedDict()
        self._lock = threading.Lock()

    def note_open(self, file: TensorFile) -> None:
        """Take the descriptor from the file that was used least lately, when there are too many."""
        with self._lock:
            self._files[weakref.ref(file)] = None
            self._files.move_to_end(weakref.ref(file))
            excess = len(self._files) - _max_open_files()
            closing = [self._files.popitem(last=False)[0]() for _ in range(excess)]
        for one in closing:
            if one is not None:
                one.close()

    def note_use(self, file: TensorFile) -> None:
        """It was used last."""
        with self._lock:
            if weakref.ref(file) in self._files:
                self._files.move_to_end(weakref.ref(file))

    def close(self, file: TensorFile) -> None:
        """Close a file."""
        with self._lock:
            self._files.pop(weakref.ref(file), None)
        file.close()


_OPEN = _Descriptors()


def _max_open_files() -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN_FILES if allowed == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, allowed // 4)
