"""Files that will be needed soon are brought into the system's cache while something else goes on.

This module does not know what is in them, nor when they are used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from emllm.errors import StoreError
from emllm.store import disk
from emllm.store.record import FileRecord

_BLOCK_BYTES = 1 << 20


def read_ahead(folder: Path, records: Sequence[FileRecord], *, max_bytes: int) -> threading.Thread:
    """Read files in a thread that nobody has to wait for; what cannot be read is left to who needs it.

    Args:
        folder: the memory's folder.
        records: of the files, the most urgent first.
        max_bytes: that are read in all.
    """
    thread = threading.Thread(
        target=_read, args=(folder, records, max_bytes), name="emllm-read-ahead", daemon=True
    )
    thread.start()
    return thread


def _read(folder: Path, records: Sequence[FileRecord], max_bytes: int) -> None:
    block = memoryview(bytearray(_BLOCK_BYTES))
    for record in records:
        if max_bytes <= 0:
            return
        with suppress(StoreError, OSError):
            descriptor = disk.open_inside(folder, record.name)
            try:
                while count := os.readv(descriptor, [block[: max(max_bytes, 0)]]):
                    max_bytes -= count
            finally:
                os.close(descriptor)
