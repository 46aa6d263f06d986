"""Every change that the store makes to a disk, one small function each.

`step` runs before each of them; a test replaces `hook` to fail or to die at any one of them, and then
looks at what a later process finds. Nothing else in the store opens a file for writing, syncs, renames,
unlinks or commits. `open_inside` is the one way in which files of tensors are opened for reading.

This module does not know what the files hold.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sqlite3
import stat
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from emllm.errors import StoreError

#: Called before each change with what is about to happen and to which path. For tests only.
hook: Callable[[str, Path], None] | None = None

TEMPORARY_SUFFIX = ".tmp"
#: What file systems answer that cannot sync a folder.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)


def step(what: str, path: Path) -> None:
    """Announces one change of the disk, so that a test can let it fail."""
    if hook is not None:
        hook(what, path)


def publish(path: Path, write: Callable[[Path], None]) -> None:
    """A file that is whole and durable before it has its name, and durably named when this returns.

    Args:
        path: its name; what stood there is replaced.
        write: writes the content to the path that it is given.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        step("write", temporary)
        write(temporary)
        step("fsync", temporary)
        _sync(temporary, os.O_RDONLY)
        step("rename", path)
        os.rename(temporary, path)
    except Exception:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish_bytes(path: Path, data: bytes) -> None:
    """`publish` of a few bytes."""
    publish(path, lambda temporary: _write_bytes(temporary, data))


def make_folder(path: Path) -> None:
    """A folder that is durable when this returns; one that is there already will do."""
    step("mkdir", path)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def link(path: Path, to: Path) -> None:
    """A second name for a file; durable after `sync_folder`."""
    step("link", to)
    os.link(path, to, follow_symlinks=False)


def unlink(path: Path) -> None:
    """Removes a name; that it is gone already is no error. Durable after `sync_folder`."""
    step("unlink", path)
    path.unlink(missing_ok=True)


def move_folder(path: Path, to: Path) -> None:
    """Gives a folder its place, durably; nothing may be there but an empty folder."""
    step("rename", to)
    os.rename(path, to)
    sync_folder(to.parent)


def remove_tree(path: Path) -> None:
    """Removes a folder and what is in it, as far as the system lets."""
    step("remove", path)
    shutil.rmtree(path, ignore_errors=True)


def commit(connection: sqlite3.Connection, path: Path) -> None:
    """Commits the open transaction of the database at ``path``."""
    step("commit", path)
    connection.execute("COMMIT")


def checkpoint(connection: sqlite3.Connection, path: Path) -> bool:
    """Moves the write-ahead log into the database; whether nobody stood in the way."""
    step("checkpoint", path)
    return connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    step("fsync", path)
    try:
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


@contextmanager
def translated(action: str, path: Path) -> Iterator[None]:
    """Turns what the system, SQLite or safetensors raises into one line that names action and path."""
    try:
        yield
    except (OSError, SafetensorError, sqlite3.Error, UnicodeError) as error:
        raise StoreError(complaint(action, path, error)) from error


def complaint(action: str, path: Path, error: Exception) -> str:
    """One line that names action and path."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot {action} {path}: {' '.join(said.split())}"


def open_inside(folder: Path, name: str) -> int:
    """Opens a regular file of a memory, and nothing that a link leads to."""
    path = folder / name
    safe = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        parent = os.open(path.parent, safe | os.O_DIRECTORY)
        try:
            descriptor = os.open(path.name, safe, dir_fd=parent)
        finally:
            os.close(parent)
    except OSError as error:
        said = {errno.ENOENT: "is missing", errno.ELOOP: "is a symbolic link"}.get(error.errno or 0)
        raise StoreError(f"{path}: {said or error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"{path}: is not a regular file")
    return descriptor


def closing(owner: object, descriptor: int) -> weakref.finalize[[int], object]:
    """Closes a descriptor when it is called, or when its owner is gone; once."""
    finalizer = weakref.finalize(owner, os.close, descriptor)
    finalizer.atexit = False  # the system does
    return finalizer


def _write_bytes(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
