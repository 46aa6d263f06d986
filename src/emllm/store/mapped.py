"""The tables of a file as memory, where they lie: nothing is read before somebody looks.

The mapping stays when the file is closed, or deleted by the one who wrote a better one. This module does not
know what the tables hold.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from emllm.store.files import TensorFile

#: Threads that compare one table with its checksums.
CHECKERS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
#: Bytes that are worth waking them for.
_BYTES_FOR_THREADS = 4 << 20


class MappedFile:
    """A file whose tables are seen in place.

    Raises:
        StoreError: the file is missing, of another size, or its header is not what was written.
    """

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._memory = file.map()
        self._tables = file.tables()

    @property
    def names(self) -> list[str]:
        """Names of its tables."""
        return list(self._tables)

    def table(self, name: str) -> Tensor:
        """A table, compared with its checksums as it is read now; not to be written to.

        Raises:
            StoreError: it is not what was written.
        """
        stored = self._tables[name]
        with torch.inference_mode(False):  # what is born inside it could not be used outside
            if not stored.num_bytes:
                return torch.empty(stored.shape, dtype=stored.dtype)
            num = stored.num_bytes // stored.dtype.itemsize
            flat = torch.frombuffer(self._memory, dtype=stored.dtype, count=num, offset=stored.offset)
        data = flat.view(torch.uint8).numpy().reshape(stored.num_checksums, stored.row_bytes)
        rows = np.arange(stored.num_checksums)
        if stored.num_bytes < _BYTES_FOR_THREADS or CHECKERS == 1:
            self._file.check(stored, rows, data)
        else:
            with ThreadPoolExecutor(min(CHECKERS, len(rows))) as checkers:
                list(checkers.map(lambda i: self._file.check(stored, rows[i : i + 1], data[i : i + 1]), rows))
        return flat.view(stored.shape)
