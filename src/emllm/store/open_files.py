"""The data files of a memory that are open for reading, a bounded number of them at once.

This module does not know which files belong to the memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from emllm.store.files import TensorFile
from emllm.store.record import FileRecord

#: Data files that hold a descriptor at once.
MAX_OPEN_FILES = 512


class OpenFiles:
    """Hands out data files; the one that was used least lately gives its descriptor back first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, TensorFile] = {}
        self._open: OrderedDict[str, TensorFile] = OrderedDict()
        self._lock = threading.Lock()

    def file(self, record: FileRecord) -> TensorFile:
        """A data file; it is opened when it is first read."""
        with self._lock:
            file = self._files.get(record.name)
            if file is None or file.record != record:
                file = self._files[record.name] = TensorFile(self._path, record, on_open=self._note_open)
            if record.name in self._open:
                self._open.move_to_end(record.name)
            return file

    def forget(self, name: str) -> None:
        """Close a file that the memory drops."""
        with self._lock:
            self._open.pop(name, None)
            file = self._files.pop(name, None)
        if file is not None:
            file.close()

    def close(self) -> None:
        """Close them all."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._open.clear()

    def _note_open(self, file: TensorFile) -> None:
        """Take the descriptor from the file that was used least lately, when there are too many."""
        with self._lock:
            self._open[file.record.name] = file
            self._open.move_to_end(file.record.name)
            excess = len(self._open) - MAX_OPEN_FILES
            closing = [self._open.popitem(last=False)[1] for _ in range(excess)]
        for one in closing:
            one.close()
