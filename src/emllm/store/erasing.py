"""Erasing for good: a commit after which nothing that it takes out is left on the disk.

The transaction that takes something out leaves a note in the header, which goes when the files are deleted
and the catalogue is rewritten. Interrupted in between, the memory is whole without what was taken out, and
the next writer goes on. This module does not know what is erased, nor why.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from emllm.errors import StoreError
from emllm.store.contents import Change
from emllm.store.folder import MemoryFolder

#: The note's key in the header.
ERASING = "erasing"


def erase(folder: MemoryFolder, change: Change, note: dict[str, Any]) -> None:
    """Make a change, and leave nothing of what it drops.

    Args:
        folder: under `MemoryFolder.exclusive`.
        note: says what is erased, without holding any of it.

    Raises:
        StoreError: the disk fails; nothing has changed then, or `note` says what is still to be erased.
    """
    folder.commit(replace(change, header={ERASING: note}))
    finish(folder)


def note(folder: MemoryFolder) -> dict[str, Any] | None:
    """What was taken out and may not be gone from the disk; None where there is nothing."""
    found = folder.catalogue.header.get(ERASING)
    return found if isinstance(found, dict) else None


def finish(folder: MemoryFolder) -> None:
    """Go on where an erasure was interrupted, if one was; under `MemoryFolder.exclusive`.

    Raises:
        StoreError: the disk fails; the next call tries again.
    """
    if ERASING in folder.catalogue.header:
        folder.sweep_for_good()
        folder.catalogue.scrub()
        folder.catalogue.set_header(**{ERASING: None})


def resume(folder: MemoryFolder) -> None:
    """`finish`, unless somebody reads or the disk fails: then a later writer does it."""
    if ERASING in folder.catalogue.header:
        with suppress(StoreError), folder.exclusive():
            finish(folder)
