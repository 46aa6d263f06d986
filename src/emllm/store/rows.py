"""Rows of the catalogue: the tables, and values to columns and back, each row with a checksum.

A row is believed when its checksum fits, its columns have their types and the record that they make is
well formed. This module does not know about transactions, files or versions.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from emllm.errors import StoreError
from emllm.store.contents import Contents, DocumentRecord, Spans, apart
from emllm.store.record import FileRecord

#: Columns of each table and their types; `crc` comes last in each and covers table name and all the rest.
TABLES: dict[str, dict[str, type]] = {
    "entries": {"name": str, "value": str},
    "documents": {
        "idx": int,
        "name": str,
        "start": int,
        "stop": int,
        "num_tokens": int,
        "sha256": str,
        "kind": str,
        "num_bytes": int,
        "read_seconds": float,
    },
    "files": {
        "name": str,
        "kind": str,
        "start": int,
        "stop": int,
        "num_bytes": int,
        "num_events": int,
        "checksums": bytes,
    },
    "events": {"first": int, "spans": bytes},
}
_SQL_TYPES = {str: "TEXT", int: "INTEGER", float: "REAL", bytes: "BLOB"}
_SPAN = np.dtype("<i8")
_SPAN_BYTES = 2 * _SPAN.itemsize

Row = tuple[Any, ...]


def schema() -> dict[str, str]:
    """The SQL of every table; a catalogue has these and nothing else."""
    return {table: _create(table, columns) for table, columns in TABLES.items()}


def _create(table: str, columns: dict[str, type]) -> str:
    typed = [f"{name} {_SQL_TYPES[kind]} NOT NULL" for name, kind in columns.items()]
    key = next(iter(columns))
    return (
        f"CREATE TABLE {table} ({', '.join(typed)}, crc INTEGER NOT NULL, PRIMARY KEY ({key})) WITHOUT ROWID"
    )


def insert(connection: sqlite3.Connection, table: str, *columns: Any) -> None:
    """Writes a row and its checksum; a row of the same key makes way."""
    row = (*columns, row_crc(table, columns))
    holes = ", ".join("?" * len(row))
    connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({holes})", row)


def select(connection: sqlite3.Connection, table: str, rest: str = "") -> Iterator[Row]:
    """The rows in the order of their keys, without their checksums, which fit.

    Args:
        connection: to the catalogue.
        table: one of `TABLES`.
        rest: SQL that follows the order.

    Raises:
        StoreError: a row is not what was written.
    """
    columns = TABLES[table]
    key = next(iter(columns))
    names = ", ".join([*columns, "crc"])
    for *values, crc in connection.execute(f"SELECT {names} FROM {table} ORDER BY {key} {rest}"):
        shown = f"{table} {str(values[0])[:80]!r}"
        if any(type(value) is not kind for value, kind in zip(values, columns.values(), strict=True)):
            raise StoreError(f"{shown}: a column is of the wrong type")
        if crc != row_crc(table, values):
            raise StoreError(f"{shown}: the checksum differs")
        yield tuple(values)


def row_crc(table: str, columns: Sequence[Any]) -> int:
    """crc32 of a row: of the table's name and of each column's type, length and bytes."""
    crc = zlib.crc32(table.encode())
    for column in columns:
        if isinstance(column, str):
            data = column.encode()
        elif isinstance(column, int):
            data = str(column).encode()
        elif isinstance(column, float):
            data = struct.pack("<d", column)
        else:
            data = column
        crc = zlib.crc32(data, zlib.crc32(f"{type(column).__name__} {len(data)} ".encode(), crc))
    return crc


def write_entry(connection: sqlite3.Connection, name: str, value: dict[str, Any]) -> None:
    """One of the named JSON values: `header`, `state`, `counts`."""
    insert(connection, "entries", name, json.dumps(value))


def read_entries(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """The named JSON values.

    Raises:
        StoreError: one is missing or not what was written.
    """
    entries = {}
    for name, text in select(connection, "entries"):
        try:
            entries[name] = json.loads(text)
        except (ValueError, RecursionError):
            raise StoreError(f"the entry {name[:80]!r} is not JSON") from None
    are_tables = all(isinstance(value, dict) for value in entries.values())
    if entries.keys() != {"header", "state", "counts"} or not are_tables:
        raise StoreError("the entries are not header, state and counts")
    return entries


def write_contents(connection: sqlite3.Connection, contents: Contents) -> None:
    """All of them, into tables that are empty but for the header."""
    write_documents(connection, contents.documents)
    for record in contents.all_files:
        write_file(connection, record)
    write_events(connection, 0, contents.events)
    write_entry(connection, "state", contents.state)
    write_counts(connection, num_tokens=contents.num_tokens, num_events=len(contents.events))


def read_contents(connection: sqlite3.Connection) -> Contents:
    """All of them.

    Raises:
        StoreError: something is not what was written, or missing.
    """
    entries = read_entries(connection)
    documents = [DocumentRecord(*row[1:]) for row in select(connection, "documents")]
    files = [FileRecord(*row) for row in select(connection, "files")]
    events = _read_events(connection)
    counts = entries["counts"]
    expected = {"documents": len(documents), "events": len(events), "files": len(files)}
    if counts != {**expected, "tokens": counts.get("tokens")} or type(counts["tokens"]) is not int:
        raise StoreError(f"the catalogue counts {counts}, but holds {expected}")
    log, index = apart(files)
    return Contents(counts["tokens"], documents, log, events, entries["state"], index)


def write_documents(connection: sqlite3.Connection, documents: Sequence[DocumentRecord]) -> None:
    """These and no others."""
    connection.execute("DELETE FROM documents")
    for i, document in enumerate(documents):
        *columns, read_seconds = vars(document).values()
        insert(connection, "documents", i, *columns, float(read_seconds))


def write_file(connection: sqlite3.Connection, record: FileRecord) -> None:
    """One more."""
    insert(connection, "files", *vars(record).values())


def write_events(connection: sqlite3.Connection, first: int, spans: Spans) -> None:
    """Events in one row, from index ``first`` on; nothing where there are none."""
    if len(spans):
        insert(connection, "events", int(first), np.ascontiguousarray(spans, dtype=_SPAN).tobytes())


def cut_events(connection: sqlite3.Connection, first: int) -> None:
    """Removes events from index ``first`` on, also out of the middle of a row."""
    connection.execute("DELETE FROM events WHERE first >= ?", (first,))
    for start, spans in list(select(connection, "events", "DESC LIMIT 1")):
        insert(connection, "events", start, spans[: (first - start) * _SPAN_BYTES])


def write_counts(connection: sqlite3.Connection, *, num_tokens: int, num_events: int) -> None:
    """How much there is of everything, so that a row that vanished is missed."""
    counts = {"tokens": int(num_tokens), "events": int(num_events)}
    for table in ("documents", "files"):
        (counts[table],) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    write_entry(connection, "counts", counts)


def _read_events(connection: sqlite3.Connection) -> Spans:
    parts = [np.zeros((0, 2), dtype=np.int64)]
    num_events = 0
    for first, spans in select(connection, "events"):
        if first != num_events or len(spans) % _SPAN_BYTES:
            raise StoreError(f"events {first}: expected whole events from {num_events} on")
        parts.append(np.frombuffer(spans, dtype=_SPAN).astype(np.int64).reshape(-1, 2))
        num_events += len(parts[-1])
    return np.concatenate(parts)
