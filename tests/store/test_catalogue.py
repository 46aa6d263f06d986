"""The catalogue against plain lists, and against everything that a disk or a stranger can do to it."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emllm.errors import StoreError
from emllm.store import catalogue as catalogue_module
from emllm.store import disk, rows
from emllm.store.catalogue import Catalogue, Change, Contents, DocumentRecord
from emllm.store.files import FileRecord


@pytest.fixture(autouse=True)
def no_hook():
    yield
    disk.hook = None


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalogue.sqlite"


def spans(*pairs) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def segment(start: int, stop: int, num_events: int = 0) -> FileRecord:
    return FileRecord(
        f"segments/{start}-{stop}.safetensors", "segment", start, stop, 99, num_events, bytes(8)
    )


def document(name: str, start: int, stop: int) -> DocumentRecord:
    return DocumentRecord(name, start, stop, stop - start, "ab" * 32, "text", 10, 0.25)


def change(num_tokens: int, first: int = 0, **changes) -> Change:
    values = {
        "new_files": [],
        "dropped_files": [],
        "first_new_event": first,
        "new_events": spans(),
        "documents": None,
        "state": {},
    }
    return Change(num_tokens, **{**values, **changes})


def same(a: Contents, b: Contents) -> bool:
    return (
        np.array_equal(a.events, b.events)
        and a.events.dtype == b.events.dtype == np.int64
        and {**vars(a), "events": 0} == {**vars(b), "events": 0}
    )


def filled(path: Path) -> Contents:
    """A catalogue with something of everything, closed cleanly; what it says."""
    with Catalogue.create(path, {"settings": {"gamma": 1.0}}) as catalogue:
        catalogue.commit(change(8, new_files=[segment(0, 8, 2)], new_events=spans((0, 4), (4, 8))))
        new = change(
            12,
            2,
            new_files=[segment(8, 12, 1)],
            new_events=spans((8, 12)),
            documents=[document("war & peace ☃", 0, 12)],
            state={"open": 3},
        )
        catalogue.commit(new)
        return catalogue.load()


def tampered(path: Path, *statements, seal: bool = False) -> None:
    """What a stranger does with SQLite; without the seal, as after a crash, unless asked."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    for statement in statements:
        connection.execute(*statement) if isinstance(statement, tuple) else connection.execute(statement)
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    if not seal:
        (path.parent / "catalogue.crc").unlink()


def refused(path: Path) -> str:
    """The one line with which opening or loading fails, for readers and writers alike."""
    lines = []
    for writable in (False, True):
        with pytest.raises(StoreError) as caught, Catalogue.open(path, writable=writable) as catalogue:
            catalogue.load()
        lines.append(str(caught.value))
    assert "\n" not in lines[0] and str(path.parent) in lines[0]
    return lines[0]


@settings(max_examples=25)
@given(st.data())
def test_what_was_committed_is_what_is_loaded(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("catalogue") / "catalogue.sqlite"
    catalogue = Catalogue.create(path, {})
    expected = Contents.empty()
    for step in range(data.draw(st.integers(1, 6))):
        num_events = len(expected.events)
        is_replacing = data.draw(st.booleans())
        first = data.draw(st.integers(0, num_events)) if is_replacing else num_events
        num_new = data.draw(st.integers(0, 3))
        stop = expected.num_tokens + data.draw(st.integers(0, 9))
        names = [record.name for record in expected.files]
        one = change(
            stop,
            first,
            new_files=[replace(segment(expected.num_tokens, stop), name=f"segments/{step}.safetensors")],
            dropped_files=data.draw(st.lists(st.sampled_from(names), unique=True)) if names else [],
            new_events=np.arange(2 * num_new, dtype=np.int64).reshape(-1, 2),
            documents=data.draw(st.sampled_from([None, [], [document("a", 0, stop), document("b\0", 1, 2)]])),
            state={"step": step, "nan": [1e300, None]},
            events_replaced=is_replacing,
        )
        expected = expected.after(one)
        catalogue.commit(one)
        assert same(catalogue.load(), expected)
        if data.draw(st.booleans()):
            catalogue.close()
            catalogue = Catalogue.open(path, writable=True)
    catalogue.close()
    with Catalogue.open(path, writable=False) as catalogue:
        assert same(catalogue.load(), expected)


def test_the_header_keeps_free_keys_and_gets_those_that_every_memory_has(path):
    with Catalogue.create(path, {"model": {"layers": 3}}) as catalogue:
        catalogue.set_header(codec="int4")
        header = catalogue.header
    with Catalogue.open(path, writable=False) as catalogue:
        assert catalogue.header == header
        with pytest.raises(StoreError, match="reading only"):
            catalogue.set_header(codec="int8")
    assert header["model"] == {"layers": 3} and header["codec"] == "int4" and header["format_version"] == 1
    assert len(header["uuid"]) == 32 and header["created"].startswith("20")


def test_a_clean_end_leaves_two_files(path):
    filled(path)
    assert sorted(os.listdir(path.parent)) == ["catalogue.crc", "catalogue.sqlite"]


def test_looking_leaves_the_seal_and_the_first_commit_breaks_it(path):
    filled(path)
    seal = (path.parent / "catalogue.crc").read_bytes()
    for writable in (False, True):
        with Catalogue.open(path, writable=writable) as catalogue:
            catalogue.load()
        assert (path.parent / "catalogue.crc").read_bytes() == seal
    with Catalogue.open(path, writable=True) as catalogue:
        catalogue.commit(change(12, 3))
        assert not (path.parent / "catalogue.crc").exists()
    assert (path.parent / "catalogue.crc").read_bytes() != seal


def test_readers_see_whole_commits_while_a_writer_goes_on(path):
    catalogue = Catalogue.create(path, {})
    with Catalogue.open(path, writable=False) as reader:
        for i in range(3):
            catalogue.commit(change(4 * i + 4, i, new_events=spans((4 * i, 4 * i + 4))))
            contents = reader.load()
            assert contents.num_tokens == 4 * len(contents.events) == 4 * i + 4
    catalogue.close()


def test_flipping_any_of_many_bytes_of_a_sealed_catalogue_is_found(path):
    filled(path)
    whole = path.read_bytes()
    for i in random.Random(7).sample(range(len(whole)), 400):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << (i % 8))]) + whole[i + 1 :])
        assert refused(path)
    path.write_bytes(whole[:-1])
    assert refused(path)


def test_without_a_seal_a_flipped_byte_is_found_or_changes_nothing(path):
    expected = filled(path)
    (path.parent / "catalogue.crc").unlink()
    whole = path.read_bytes()
    num_found = 0
    for i in random.Random(8).sample(range(len(whole)), 400):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << (i % 8))]) + whole[i + 1 :])
        try:
            with Catalogue.open(path, writable=False) as catalogue:
                assert same(catalogue.load(), expected) or catalogue.verify()
        except StoreError:
            num_found += 1
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    assert num_found > 20


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (x)",
        "CREATE VIEW more AS SELECT * FROM files",
        "CREATE TRIGGER more AFTER INSERT ON files BEGIN DELETE FROM events; END",
        "CREATE INDEX more ON files (kind)",
        "DROP TABLE events",
        "ALTER TABLE events ADD COLUMN more",
        "UPDATE sqlite_schema SET sql = replace(sql, 'BLOB NOT NULL', 'BLOB') WHERE name = 'events'",
        "UPDATE sqlite_schema SET sql = 'nonsense' WHERE name = 'events'",
        "CREATE VIRTUAL TABLE more USING fts5(x)",
        "PRAGMA user_version = 0",
    ],
)
def test_a_schema_that_is_not_ours_is_refused(path, statement):
    filled(path)
    tampered(path, statement)
    assert refused(path)


def test_a_trigger_of_a_stranger_never_runs(path):
    filled(path)
    tampered(path, "CREATE TRIGGER more AFTER UPDATE ON entries BEGIN DELETE FROM files; END")
    refused(path)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM files").fetchone() == (2,)


@pytest.mark.parametrize("table", list(rows.TABLES))
def test_any_other_value_in_any_column_is_refused(path, table):
    filled(path)
    whole = path.read_bytes()
    seal = (path.parent / "catalogue.crc").read_bytes()
    for column in [*rows.TABLES[table], "crc"]:
        for value in (5, "x", b"\xff\xfe", 1e300, "9" * 5000, -(1 << 63)):
            path.write_bytes(whole)
            (path.parent / "catalogue.crc").write_bytes(seal)
            first = f"(SELECT min({next(iter(rows.TABLES[table]))}) FROM {table})"
            where = f"WHERE {next(iter(rows.TABLES[table]))} = {first}"
            tampered(path, (f"UPDATE OR REPLACE {table} SET {column} = ? {where}", (value,)))
            assert refused(path)


@pytest.mark.parametrize("table", list(rows.TABLES))
def test_a_row_that_vanished_is_missed(path, table):
    filled(path)
    key = next(iter(rows.TABLES[table]))
    tampered(path, f"DELETE FROM {table} WHERE {key} = (SELECT max({key}) FROM {table})")
    assert refused(path)


def forged(table: str, *columns) -> tuple:
    """A row with a checksum that fits: the work of somebody who read this code."""
    holes = ", ".join("?" * (len(columns) + 1))
    row = (*columns, rows.row_crc(table, columns))
    return (f"INSERT OR REPLACE INTO {table} VALUES ({holes})", row)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/x",
        "/etc/passwd",
        "segments/../../x.safetensors",
        "segments/x.safetensors\n",
        "recent/x",
        "",
    ],
)
def test_a_forged_file_name_that_leads_elsewhere_is_refused(path, name):
    filled(path)
    counts = json.dumps({"tokens": 12, "events": 3, "documents": 1, "files": 3})
    row = forged("files", name, "segment", 12, 12, 9, 0, bytes(8))
    tampered(path, row, forged("entries", "counts", counts))
    assert "not the name of a file" in refused(path)


@pytest.mark.parametrize(
    "row",
    [
        forged("files", "segments/0-8.safetensors", "recent", 0, 8, 9, 0, bytes(8)),
        forged("files", "segments/0-8.safetensors", "segment", 9, 8, 9, 0, bytes(8)),
        forged("files", "segments/0-8.safetensors", "segment", -1, 8, 9, 0, bytes(8)),
        forged("files", "segments/0-8.safetensors", "segment", 0, 8, 9, 0, bytes(7)),
        forged("documents", 0, "a", 0, 9, 8, "", "", 0, 0.0),
        forged("documents", 0, "a", 0, 9, 9, "", "", 0, float("inf")),
        forged("events", 2, bytes(15)),
        forged("events", 3, bytes(16)),
        forged("entries", "more", "{}"),
        forged("entries", "state", "[" * 100_000),
        forged("entries", "state", "[]"),
        forged("entries", "counts", "{}"),
        forged("entries", "counts", '{"tokens": "x", "events": 3, "documents": 1, "files": 2}'),
        forged("entries", "counts", '{"tokens": 1, "events": [], "documents": 1, "files": 2}'),
        forged("entries", "header", "{}"),
        forged("entries", "header", '{"format_version": 2}'),
    ],
)
def test_a_forged_row_that_cannot_be_is_refused(path, row):
    filled(path)
    tampered(path, row)
    assert refused(path)


def test_a_blob_larger_than_any_of_ours_is_refused_before_it_is_read(path, monkeypatch):
    filled(path)
    monkeypatch.setattr(catalogue_module, "_LARGEST_VALUE_BYTES", 1 << 20)
    tampered(path, ("UPDATE events SET spans = zeroblob(?)", (2 << 20,)))
    assert "too big" in refused(path)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_link_in_the_place_of_a_file_of_sqlite_is_refused(path, suffix, tmp_path_factory):
    filled(path)
    outside = tmp_path_factory.mktemp("outside") / "file"
    shutil.copy(path, outside)
    before = outside.read_bytes()
    Path(f"{path}{suffix}").unlink(missing_ok=True)
    Path(f"{path}{suffix}").symlink_to(outside)
    assert "not a regular file" in refused(path)
    assert outside.read_bytes() == before


def test_a_rollback_journal_is_never_played_back(path):
    filled(path)
    Path(f"{path}-journal").write_bytes(b"x" * 600)
    assert "journal" in refused(path)


def test_a_write_ahead_log_beside_a_sealed_catalogue_is_refused(path):
    filled(path)
    Path(f"{path}-wal").write_bytes(b"x" * 600)
    assert "sealed" in refused(path)


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(200)])
def test_what_is_no_database_is_refused(path, content):
    path.write_bytes(content)
    assert refused(path)
    assert path.read_bytes() == content


def test_a_missing_catalogue_is_no_memory(path):
    assert "is not a memory" in refused(path)
    assert os.listdir(path.parent) == []


def test_a_newer_version_is_refused_naming_both(path):
    filled(path)
    tampered(path, "PRAGMA user_version = 7")
    line = refused(path)
    assert "version 7" in line and "version 1" in line


def test_an_older_version_is_converted_by_its_first_writer(path, monkeypatch):
    expected = filled(path)
    monkeypatch.setattr(catalogue_module, "FORMAT_VERSION", 2)
    assert "knows no way" in refused(path)
    ran = []
    monkeypatch.setitem(catalogue_module.MIGRATIONS, 1, ran.append)
    with pytest.raises(StoreError, match="open it for writing"):
        Catalogue.open(path, writable=False)
    with Catalogue.open(path, writable=True) as catalogue:
        assert catalogue.header["format_version"] == 2
    assert len(ran) == 1
    with Catalogue.open(path, writable=False) as catalogue:
        assert same(catalogue.load(), expected)


def test_events_that_leave_a_gap_or_cover_others_unasked_are_refused(path):
    filled(path)
    with Catalogue.open(path, writable=True) as catalogue:
        before = catalogue.load()
        for first, is_replacing in ((2, False), (4, False), (4, True), (-1, True)):
            with pytest.raises(StoreError, match="must begin at 3"):
                catalogue.commit(change(12, first, events_replaced=is_replacing))
        assert same(catalogue.load(), before)


def test_a_failing_disk_is_one_line_and_the_next_commit_works(path):
    filled(path)
    catalogue = Catalogue.open(path, writable=True)
    before = catalogue.load()

    def full(what: str, where: Path) -> None:
        if what == "commit":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.hook = full
    one = change(20, 3, new_files=[segment(12, 20, 1)], new_events=spans((12, 20)))
    with pytest.raises(StoreError, match=r"^cannot write .*: No space left on device$"):
        catalogue.commit(one)
    disk.hook = None
    assert same(catalogue.load(), before)
    catalogue.commit(one)
    assert same(catalogue.load(), before.after(one))
    catalogue.close()


def test_contradictions_are_found(path):
    contents = filled(path)
    assert contents.contradictions() == []
    first, second = contents.files
    wrong = {
        "gap": {"files": [replace(first, stop=7), second]},
        "overlap": {"files": [first, replace(second, start=7)]},
        "missing at the start": {"files": [second]},
        "missing at the end": {"files": [first]},
        "too few tokens": {"num_tokens": 11},
        "too many tokens": {"num_tokens": 13},
        "named twice": {"files": [first, second, replace(second, start=12, num_events=0)]},
        "event keys": {"files": [replace(first, num_events=1), second]},
        "event after the end": {"events": spans((0, 4), (4, 8), (8, 13))},
        "events overlap": {"events": spans((0, 5), (4, 8), (8, 12))},
        "event backwards": {"events": spans((0, 4), (8, 4), (8, 12))},
        "event before the start": {"events": spans((-1, 4), (4, 8), (8, 12))},
        "document after the end": {"documents": [document("a", 0, 13)]},
        "documents overlap": {"documents": [document("a", 0, 6), document("b", 5, 9)]},
    }
    for what, fields in wrong.items():
        assert replace(contents, **fields).contradictions(), what


def test_verify_reports_contradictions(path):
    filled(path)
    with Catalogue.open(path, writable=True) as catalogue:
        assert catalogue.verify() == []
        catalogue.commit(change(13, 3))
        assert len(catalogue.verify()) == 1


def test_a_document_name_that_is_not_text_is_refused_where_it_enters():
    with pytest.raises(StoreError):
        DocumentRecord(**{**asdict(document("a", 0, 1)), "name": "\udc80"})
