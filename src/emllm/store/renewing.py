"""A memory that becomes what was made of a copy of it, in one transaction.

The copy stands beside the memory and shares its files. When it is complete, its new files are linked into the
memory's folder and the catalogue names them instead of the old ones: killed at any instant, the memory is
the old one or the new one. This module does not know what is done to the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emllm.errors import StoreError
from emllm.store import disk, erasing, locks
from emllm.store.contents import Change, Contents
from emllm.store.folder import MemoryFolder
from emllm.store.maintenance import clone, link_file
from emllm.store.record import KINDS
from emllm.store.workplace import workplace


@contextmanager
def renewed(path: Path) -> Iterator[Path]:
    """A copy to work on, closed when the block ends; the memory is then what it is, unless the block raised.

    Raises:
        StoreError: the memory is damaged, in use, or was written meanwhile, or the disk is full.
    """
    with workplace(path) as building:
        clone(path, building)
        with MemoryFolder.open(building) as folder:
            begun = folder.contents
        yield building
        _adopt(path, building, begun)


def _adopt(path: Path, building: Path, begun: Contents) -> None:
    with (
        MemoryFolder.open(building) as made,
        MemoryFolder.open(path, writable=True) as folder,
        folder.exclusive(seconds=locks.WAIT_SECONDS),
    ):
        old, new = folder.contents, made.contents
        if old.files != begun.files or old.documents != begun.documents:
            raise StoreError(f"{path}: was written meanwhile; nothing in it was changed")
        had = {record.name for record in old.all_files}
        has = {record.name for record in new.all_files}
        fresh = [record for record in new.all_files if record.name not in had]
        with disk.translated("write", path):
            for record in fresh:
                link_file(made, record, path)
            for kind in KINDS.values():
                disk.sync_folder(path / kind)
        change = Change(
            num_tokens=new.num_tokens,
            new_files=fresh,
            dropped_files=sorted(had - has),
            first_new_event=0,
            new_events=new.events,
            documents=new.documents,
            state=new.state,
            events_replaced=True,
        )
        erasing.erase(folder, change, {})
