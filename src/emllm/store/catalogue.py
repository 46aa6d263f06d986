"""The catalogue of a memory: the one file that changes, in which every commit is one transaction.

An SQLite database with a write-ahead log. What it says is believed only after its schema was compared
with ours word by word and each row with its checksum: it may come from a failing disk or from anybody.

This module does not know whether the files that it names exist.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from emllm.errors import StoreError
from emllm.store import disk, locks, rows, seal
from emllm.store.contents import Change, Contents, DocumentRecord, check_event_order
from emllm.store.place import WRITER_LOCK

__all__ = ["FORMAT_VERSION", "MIGRATIONS", "Catalogue", "Change", "Contents", "DocumentRecord"]

FORMAT_VERSION = 1

#: What turns a catalogue of one version into one of the next.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}

_T = TypeVar("_T")

#: No text or blob of a catalogue is longer; a hostile one may claim so.
_LARGEST_VALUE_BYTES = 256 << 20
_BUSY_SECONDS = 10.0


class Catalogue:
    """An open catalogue. Safe to use from several threads; who writes must hold the memory's lock."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, writable: bool, sealed: bool) -> None:
        """Use `create` or `open`."""
        self._path = path
        self._connection = connection
        self._is_writable = writable
        self._is_sealed = sealed
        self._is_closed = False
        self._lock = threading.Lock()
        entries = _named(path, rows.read_entries, connection)
        self._header = entries["header"]
        if self._header.get("format_version") != FORMAT_VERSION:
            raise StoreError(f"{path}: its header is of version {self._header.get('format_version')!r}")
        self._num_events = entries["counts"].get("events", -1)
        if type(self._num_events) is not int or self._num_events < 0:
            raise StoreError(f"{path}: counts {self._num_events!r} events")

    @classmethod
    def create(cls, path: Path, header: dict[str, Any], contents: Contents | None = None) -> Catalogue:
        """A new catalogue, open for writing; it exists as a whole or not at all.

        Args:
            path: where nothing is yet.
            header: free keys; `uuid` and `created` are added where missing.
            contents: what it says at first; None is a memory that has read nothing.
        """
        if os.path.lexists(path):
            raise StoreError(f"{path}: exists already")
        full = {
            "uuid": uuid.uuid4().hex,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **header,
            "format_version": FORMAT_VERSION,
        }
        with disk.translated("write", path):
            disk.publish(path, lambda temporary: _build(temporary, full, contents or Contents.empty()))
        with suppress(OSError):
            seal.write_seal(path)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> Catalogue:
        """Opens a catalogue after looking at it closely.

        Raises:
            StoreError: it is missing, damaged, of a newer version, or holds what we never wrote.
        """
        with disk.translated("open", path):
            refuse_links(path)
            is_sealed = seal.check_seal(path)
            connection = _connect(path, writable=writable)
            try:
                is_sealed = _migrate(connection, path, writable=writable) and is_sealed
                _check_schema(connection, path)
                _check_database(connection, path)
                if writable:
                    _make_durable(connection)
                return cls(path, connection, writable=writable, sealed=is_sealed)
            except BaseException:
                connection.close()
                raise

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def header(self) -> dict[str, Any]:
        """What holds for the memory as a whole; a copy."""
        return dict(self._header)

    def set_header(self, **changes: Any) -> None:
        """Changes keys of the header, in a transaction of its own; None takes one out."""
        if "format_version" in changes:
            raise ValueError("format_version is not for callers to change")
        header = self._header_with(changes)
        with self._transaction() as connection:
            rows.write_entry(connection, "header", header)
        self._header = header

    def _header_with(self, changes: dict[str, Any]) -> dict[str, Any]:
        changed = {**self._header, **changes}
        return {name: value for name, value in changed.items() if value is not None or name not in changes}

    def load(self) -> Contents:
        """Everything, of one moment.

        Raises:
            StoreError: a row is damaged or missing.
        """
        with self._lock, disk.translated("read", self._path):
            self._connection.execute("BEGIN")
            try:
                return _named(self._path, rows.read_contents, self._connection)
            finally:
                self._connection.execute("ROLLBACK")

    def commit(self, change: Change) -> None:
        """Makes a change, all of it or nothing; durable when this returns.

        Raises:
            StoreError: the disk is full or fails, or the change does not fit; nothing has changed then.
        """
        check_event_order(change, num_events=self._num_events)
        num_events = change.first_new_event + len(change.new_events)
        with self._transaction() as connection:
            for name in change.dropped_files:
                connection.execute("DELETE FROM files WHERE name = ?", (name,))
            for record in change.new_files:
                rows.write_file(connection, record)
            if change.first_new_event < self._num_events:
                rows.cut_events(connection, change.first_new_event)
            rows.write_events(connection, change.first_new_event, change.new_events)
            if change.documents is not None:
                rows.write_documents(connection, change.documents)
            rows.write_entry(connection, "state", change.state)
            rows.write_counts(connection, num_tokens=change.num_tokens, num_events=num_events)
            header = self._header_with(change.header or {})
            if change.header:
                rows.write_entry(connection, "header", header)
        self._num_events, self._header = num_events, header

    def scrub(self) -> None:
        """Rewrite the database, so that nothing that was deleted is left in it."""
        with self._lock, disk.translated("write", self._path):
            seal.break_seal(self._path)
            self._is_sealed = False
            disk.step("vacuum", self._path)
            self._connection.execute("VACUUM")
            if not disk.checkpoint(self._connection, self._path):
                raise StoreError(f"{self._path}: is being read, so that what was deleted stays in its log")

    def verify(self) -> list[str]:
        """Everything that is wrong with the catalogue itself, one line each."""
        try:
            with self._lock, disk.translated("read", self._path):
                found = self._connection.execute("PRAGMA integrity_check").fetchall()
            contents = self.load()
        except StoreError as error:
            return [str(error)]
        damage = [str(line) for (line,) in found if line != "ok"]
        return [f"{self._path}: {line}" for line in [*damage, *contents.contradictions()]]

    def close(self) -> None:
        """Ends the use; a writer leaves one sealed file behind.

        What was committed is safe without the seal, so that a full disk is no error here.
        """
        if self._is_closed:
            return
        self._is_closed = True
        is_tidy = False
        if self._is_writable and not self._is_sealed:
            with suppress(sqlite3.Error, OSError):
                is_tidy = disk.checkpoint(self._connection, self._path)
        self._connection.close()
        if is_tidy:
            with suppress(OSError):
                seal.write_seal(self._path)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if not self._is_writable:
            raise StoreError(f"{self._path}: is open for reading only")
        with self._lock, disk.translated("write", self._path):
            seal.break_seal(self._path)
            self._is_sealed = False
            with _transaction(self._connection, self._path):
                yield self._connection


def is_in_doubt(failure: StoreError) -> bool:
    """Whether a commit that failed so may stand whole in the log, where one would find it after a crash.

    A full disk cut it short, and nothing of ours fails once SQLite was told to commit; all else is in doubt.
    """
    cause = failure.__cause__
    return isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorname", "") != "SQLITE_FULL"


def _named(path: Path, read: Callable[[sqlite3.Connection], _T], connection: sqlite3.Connection) -> _T:
    """What ``read`` reads; its complaints begin with the path."""
    try:
        return read(connection)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from None


@contextmanager
def _transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        disk.commit(connection, path)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def refuse_links(path: Path) -> None:
    """Refuses a catalogue of which a part is a link, or of which SQLite would first undo something.

    A rollback journal is never ours, and a hostile one can name files elsewhere.
    """
    if not os.path.lexists(path):
        raise StoreError(f"{path.parent}: is not a memory, it has no {path.name}")
    beside = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
    for one in [*beside, seal.seal_path(path)]:
        if os.path.lexists(one) and (one.is_symlink() or not one.is_file()):
            raise StoreError(f"{one}: is not a regular file")
    if seal.has_pages(path, "-journal"):
        raise StoreError(f"{path}: has a rollback journal beside it, which this program never leaves")


def _build(path: Path, header: dict[str, Any], contents: Contents) -> None:
    connection = _connect(path, writable=True, mode="rwc")
    try:
        _make_durable(connection)
        with _transaction(connection, path):
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            for sql in rows.schema().values():
                connection.execute(sql)
            rows.write_entry(connection, "header", header)
            rows.write_contents(connection, contents)
        disk.checkpoint(connection, path)
    finally:
        connection.close()


def _connect(path: Path, *, writable: bool, mode: str = "rw") -> sqlite3.Connection:
    options = f"mode={mode}" if writable else "mode=ro"
    if not writable and not os.access(path.parent, os.W_OK):
        if seal.has_pages(path, "-wal"):
            raise StoreError(f"{path}: {_why_open(path)}")
        options += "&immutable=1"  # SQLite wants to write beside it otherwise
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?{options}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = lambda text: text.decode(errors="replace")  # its checksum differs then
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_VALUE_BYTES)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _why_open(path: Path) -> str:
    """Why there is something in the log, for who may not write and so cannot read it."""
    writers = locks.holders(path.with_name(WRITER_LOCK))
    if writers:
        numbers = ", ".join(map(str, writers))
        return f"is being written by process {numbers}; until it is closed, who may not write cannot read it"
    return "is being written, or was not closed cleanly; open it once where it can be written"


def _make_durable(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # Every commit goes on into the database: a log that is lost or damaged after a crash costs nothing then.
    connection.execute("PRAGMA wal_autocheckpoint = 1")
    connection.execute("PRAGMA secure_delete = ON")


def _check_database(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise StoreError(f"{path}: {' '.join(str(found).split())}")


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuses tables, views, triggers and indices that are not ours, and ours if they differ."""
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
    if sorted(map(repr, found)) != sorted(repr(("table", t, t, sql)) for t, sql in rows.schema().items()):
        names = ", ".join(sorted(str(row[1])[:80] for row in found))
        raise StoreError(f"{path}: its tables are not those of version {FORMAT_VERSION}: {names}")


def _migrate(connection: sqlite3.Connection, path: Path, *, writable: bool) -> bool:
    """Brings an older catalogue to our version; whether there was nothing to do."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == FORMAT_VERSION:
        return True
    known = f"{path}: is of format version {version}, this program writes version {FORMAT_VERSION}"
    if version > FORMAT_VERSION:
        raise StoreError(f"{known}; a newer emllm is needed")
    if any(step not in MIGRATIONS for step in range(version, FORMAT_VERSION)):
        raise StoreError(f"{known} and knows no way from one to the other")
    if not writable:
        raise StoreError(f"{known}; open it for writing once, which converts it")
    seal.break_seal(path)
    for step in range(version, FORMAT_VERSION):
        with _transaction(connection, path):
            MIGRATIONS[step](connection)
            header = rows.read_entries(connection)["header"]
            rows.write_entry(connection, "header", {**header, "format_version": step + 1})
            connection.execute(f"PRAGMA user_version = {step + 1}")
    return False
