"""The folder of a memory: a commit happened or it did not, whatever disk, process or stranger does."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emllm.errors import StoreError
from emllm.store import disk, files, locks, open_files, rows
from emllm.store.catalogue import Change, Contents, DocumentRecord
from emllm.store.folder import MemoryFolder
from emllm.store.maintenance import clone, copy, describe, extras, verify
from emllm.store.place import is_memory

CHUNK = 4


class Killed(BaseException):
    """Stands for the end of the process: nothing that runs after it may touch the disk."""


@pytest.fixture(autouse=True)
def no_hook():
    yield
    disk.hook = None


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    return tmp_path / "a b?.mem"


def content(start: int, stop: int, num_events: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(start)
    return {
        "pages.0": torch.randint(0, 256, (stop - start, 6), dtype=torch.uint8, generator=generator),
        "token_ids": torch.arange(start, stop, dtype=torch.int32),
        "surprise": torch.rand(stop - start, generator=generator),
        "event_keys.0": torch.rand(num_events, 1, 2, 3, generator=generator),
    }


def read_chunk(folder: MemoryFolder) -> Change:
    """What reading does: seal the recent chunk if there is one, keep the new one as recent."""
    before = folder.contents
    start, num_events = before.num_tokens, len(before.events)
    recent = [record for record in before.files if record.kind == "recent"]
    new = [
        folder.add("segment", old.start, old.stop, content(old.start, old.stop, 1), num_events=1)
        for old in recent
    ]
    new.append(folder.add("recent", start, start + CHUNK, content(start, start + CHUNK, 1), num_events=1))
    return Change(
        num_tokens=start + CHUNK,
        new_files=new,
        dropped_files=[record.name for record in recent],
        first_new_event=num_events,
        new_events=np.array([[start, start + CHUNK]]),
        documents=[DocumentRecord("book", 0, start + CHUNK, 1000, "", "text", 5, 0.5)],
        state={"chunks": num_events + 1},
    )


def filled(path: Path, num_chunks: int = 3) -> Contents:
    with MemoryFolder.create(path, {"codec": "exact"}) as folder:
        for _ in range(num_chunks):
            folder.commit(read_chunk(folder))
        return folder.contents


def same(a: Contents, b: Contents) -> bool:
    return np.array_equal(a.events, b.events) and {**vars(a), "events": 0} == {**vars(b), "events": 0}


def tree(path: Path) -> dict[str, bytes]:
    """All files; those that SQLite needs for reading come and go."""
    files = [one for one in path.rglob("*") if one.is_file() and not one.name.endswith(("-shm", "-wal"))]
    return {str(one.relative_to(path)): one.read_bytes() for one in files}


def one_line(path: Path, **how) -> str:
    with pytest.raises(StoreError) as caught:
        MemoryFolder.open(path, **how).close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_committed_is_there_again(path):
    expected = filled(path)
    assert is_memory(path) and not is_memory(path.parent)
    with MemoryFolder.open(path) as folder:
        assert same(folder.contents, expected)
        assert folder.catalogue.header["codec"] == "exact"
        for record in folder.contents.files:
            file = folder.file(record)
            for name, tensor in content(record.start, record.stop, 1).items():
                assert torch.equal(file.read(name), tensor)
    assert verify(path) == [] and extras(path) == []
    assert [record.kind for record in expected.files] == ["segment", "segment", "recent"]


def test_dropped_recent_files_are_gone_at_once(path):
    filled(path)
    assert len(list((path / "recent").iterdir())) == 1


@pytest.mark.parametrize("at", ["lock", "readers.lock", "segments", "recent"])
def test_a_link_out_of_the_memory_is_refused(path, at, tmp_path_factory):
    filled(path)
    outside = tmp_path_factory.mktemp("outside")
    target = shutil.move(path / at, outside / at) if (path / at).exists() else outside / "new"
    (path / at).symlink_to(target)
    before = tree(outside)
    for writable in (False, True):
        assert "symbolic link" in one_line(path, writable=writable)
    assert verify(path) and tree(outside) == before and not (outside / "new").exists()


def test_a_second_writer_is_refused_with_one_line_that_says_who_writes(path):
    filled(path)
    with MemoryFolder.open(path, writable=True):
        assert f"is being written by process {os.getpid()} on " in one_line(path, writable=True)
        MemoryFolder.open(path).close()
    MemoryFolder.open(path, writable=True).close()


def test_a_writer_of_another_process_counts_until_it_is_killed(path):
    filled(path)
    program = (
        "import sys, time; from emllm.store.folder import MemoryFolder;"
        "m = MemoryFolder.open(sys.argv[1], writable=True); print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        assert f"process {other.pid} on" in one_line(path, writable=True)
        other.send_signal(signal.SIGKILL)
    MemoryFolder.open(path, writable=True).close()


def test_who_may_not_write_is_told_whether_somebody_writes_or_did_not_end(path, tmp_path, monkeypatch):
    filled(path)
    with MemoryFolder.open(path, writable=True) as folder:
        folder.commit(read_chunk(folder))
        dead = Path(shutil.copytree(path, tmp_path / "dead"))
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert f"is being written by process {os.getpid()};" in one_line(path)
        assert "open it once where it can be written" in one_line(dead)


def test_readers_keep_what_they_opened_and_the_writer_says_who_they_are(path):
    filled(path)
    with MemoryFolder.open(path) as reader, MemoryFolder.open(path, writable=True) as writer:
        for _ in range(2):
            writer.commit(read_chunk(writer))
        for record in reader.contents.files:
            assert reader.file(record).verify() == []
        with pytest.raises(StoreError, match=f"being read by process {os.getpid()}"), writer.exclusive():
            pass
        reader.close()
        writer.commit(read_chunk(writer))
        assert len(list((path / "recent").iterdir())) == 1
        with writer.exclusive():
            pass


def test_dropped_segments_are_deleted_alone_or_by_the_next_writer(path):
    expected = filled(path)
    first = expected.files[0]
    with MemoryFolder.open(path, writable=True) as folder:

        def rewritten(record) -> Change:
            new = folder.add("segment", record.start, record.stop, content(record.start, record.stop, 1), 1)
            empty = np.zeros((0, 2), dtype=np.int64)
            return Change(expected.num_tokens, [new], [record.name], 3, empty, None, {})

        folder.commit(rewritten(first))
        assert (path / first.name).exists() and extras(path) == [first.name]
        with folder.exclusive():
            folder.commit(rewritten(folder.contents.files[0]))
        assert len(list((path / "segments").iterdir())) == 3
    MemoryFolder.open(path, writable=True).close()
    assert len(list((path / "segments").iterdir())) == 2 and verify(path) == []


def test_a_reader_cannot_write(path):
    filled(path)
    with MemoryFolder.open(path) as folder:
        for write in (lambda: folder.add("recent", 0, 4, content(0, 4)), folder.sweep):
            with pytest.raises(StoreError, match="not open for writing"):
                write()


def test_a_change_that_contradicts_itself_is_refused_before_it_is_written(path):
    before = filled(path)
    with MemoryFolder.open(path, writable=True) as folder:
        good = read_chunk(folder)
        for wrong in (
            replace(good, num_tokens=good.num_tokens + 1),
            replace(good, new_files=good.new_files[1:]),
            replace(good, dropped_files=[]),
            replace(good, dropped_files=["segments/0.safetensors"]),
            replace(good, new_events=good.new_events + 1),
            replace(good, first_new_event=1),
            replace(good, documents=[DocumentRecord("a", 0, 99, 99, "", "", 0, 0.0)]),
        ):
            with pytest.raises(StoreError):
                folder.commit(wrong)
            assert same(folder.contents, before) and same(folder.catalogue.load(), before)
        folder.commit(good)


def test_the_next_writer_sweeps_what_is_not_named_and_leaves_the_files_of_others(path):
    filled(path)
    for name in (
        "segments/0-1-ab.safetensors",
        "recent/7.safetensors.ab12.tmp",
        "segments/.tmpA9xYz0",
        "catalogue.sqlite.0f.tmp-wal",
    ):
        (path / name).write_bytes(b"x")
    foreign = ("segments/notes.txt", "mine", "recent/README", ".tmpA9xYz0")
    for name in foreign:
        (path / name).write_bytes(b"x")
    assert len(extras(path)) == 4 and verify(path) == []
    with MemoryFolder.open(path):
        MemoryFolder.open(path, writable=True).close()
        assert len(extras(path)) == 4
    MemoryFolder.open(path, writable=True).close()
    assert extras(path) == [] and verify(path) == []
    assert all((path / name).exists() for name in foreign)


def test_what_erases_for_good_takes_what_killed_writers_left(path):
    filled(path)
    with MemoryFolder.open(path, writable=True) as folder:
        (path / "recent" / ".tmpA9xYz0").write_bytes(b"keys of what is forgotten")
        with folder.exclusive():
            folder.sweep_for_good()
        assert os.listdir(path / "recent") == [Path(folder.contents.files[-1].name).name]


# Faults: each change of the disk fails once, and the process dies before each once.


def count_steps(work) -> int:
    seen = []
    disk.hook = lambda what, where: seen.append(what)
    work()
    disk.hook = None
    return len(seen)


def at_step(n: int, error: BaseException):
    """A hook that raises at the n-th change, and at all after it, as a full disk or a dead process does."""
    left = [n]

    def hook(what: str, where: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error

    return hook


def work_of(path: Path):
    def work() -> None:
        folder = MemoryFolder.open(path, writable=True)
        for _ in range(2):
            folder.commit(read_chunk(folder))
        folder.close()

    return work


def assert_is_a_moment_of(path: Path, moments: list[Contents]) -> None:
    """Readers and then a writer find one of the moments, nothing damaged, and nothing left over after."""
    assert verify(path) == []
    with MemoryFolder.open(path) as folder:
        found = folder.contents
    assert any(describe_moment(found) == describe_moment(moment) for moment in moments)
    with MemoryFolder.open(path, writable=True) as folder:
        assert same(folder.contents, found)
        assert extras(path) == []
        folder.commit(read_chunk(folder))
    named = {record.name for record in MemoryFolder.open(path).contents.files}
    assert {f"{one.parent.name}/{one.name}" for one in path.glob("*/*")} == named
    assert verify(path) == [] and not list(path.glob("*.tmp*"))


def describe_moment(contents: Contents) -> tuple:
    """Without the random part of the files' names."""
    described = [(one.kind, one.start, one.stop, one.checksums) for one in contents.files]
    return described, contents.events.tolist(), contents.documents, contents.state, contents.num_tokens


def moments_of(path: Path, tmp_path: Path) -> list[Contents]:
    shutil.copytree(path, tmp_path / "moments")
    with MemoryFolder.open(tmp_path / "moments", writable=True) as folder:
        moments = [folder.contents]
        for _ in range(2):
            folder.commit(read_chunk(folder))
            moments.append(folder.contents)
    return moments


def test_dying_at_any_step_leaves_the_state_before_or_after_a_commit(path, tmp_path):
    filled(path, 1)
    moments = moments_of(path, tmp_path)
    shutil.copytree(path, tmp_path / "counted")
    num_steps = count_steps(work_of(tmp_path / "counted"))
    assert num_steps > 20
    seen = set()
    for n in range(num_steps):
        dying, dead = tmp_path / f"dying-{n}", tmp_path / f"dead-{n}"
        shutil.copytree(path, dying)
        image_taken = []

        def hook(what, where, n=n, dying=dying, dead=dead, taken=image_taken, left=[n]) -> None:  # noqa: B006
            left[0] -= 1
            if left[0] < 0:
                if not taken:
                    taken.append(shutil.copytree(dying, dead))  # the disk as the dead process leaves it
                raise Killed

        disk.hook = hook
        with pytest.raises(Killed):
            work_of(dying)()
        disk.hook = None
        with MemoryFolder.open(dead) as folder:
            seen.add(folder.contents.num_tokens)
        assert_is_a_moment_of(dead, moments)
    assert seen == {moment.num_tokens for moment in moments}


def test_a_write_that_was_cut_short_by_dying_is_no_file(path, tmp_path):
    filled(path, 1)
    moments = moments_of(path, tmp_path)
    folder = MemoryFolder.open(path, writable=True)

    def torn(what: str, where: Path) -> None:
        if what == "fsync" and where.name.endswith(".tmp"):
            os.truncate(where, where.stat().st_size // 2)
            raise Killed

    disk.hook = torn
    with pytest.raises(Killed):
        read_chunk(folder)
    disk.hook = None
    assert_is_a_moment_of(Path(shutil.copytree(path, tmp_path / "dead")), moments[:1])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_step_costs_one_line_and_no_data(path, tmp_path, code):
    filled(path, 1)
    moments = moments_of(path, tmp_path)
    shutil.copytree(path, tmp_path / "counted")
    for n in range(count_steps(work_of(tmp_path / "counted"))):
        failing = Path(shutil.copytree(path, tmp_path / f"failing-{n}"))
        disk.hook = at_step(n, OSError(code, os.strerror(code)))
        folder = MemoryFolder.open(failing, writable=True)
        try:
            for _ in range(2):
                folder.commit(read_chunk(folder))
        except StoreError as error:
            assert "\n" not in str(error) and os.strerror(code) in str(error)
        told = folder.contents
        folder.close()
        disk.hook = None
        with MemoryFolder.open(failing) as reader:
            assert same(reader.contents, told)
        assert_is_a_moment_of(failing, moments)


def test_after_a_failure_the_same_writer_can_go_on(path):
    filled(path, 1)
    steps = 40
    with MemoryFolder.open(path, writable=True) as folder:
        for n in range(steps):
            disk.hook = at_step(n, OSError(errno.ENOSPC, "full"))
            before = folder.contents.num_tokens
            try:
                folder.commit(read_chunk(folder))
            except StoreError:
                assert folder.contents.num_tokens == before
            disk.hook = None
            folder.commit(read_chunk(folder))
    assert verify(path) == []


def test_a_commit_that_cannot_delete_what_it_dropped_is_a_commit(path, monkeypatch):
    filled(path, 1)

    def exhausted(*_, **__):
        raise StoreError("cannot lock: Too many open files")

    with MemoryFolder.open(path, writable=True) as folder:
        with monkeypatch.context() as patched:
            patched.setattr(locks, "alone", exhausted)
            for _ in range(2):
                folder.commit(read_chunk(folder))
        assert len(extras(path)) == 2
        folder.commit(read_chunk(folder))
        assert folder.contents.num_tokens == 4 * CHUNK and extras(path) == []
    assert verify(path) == []


def test_files_of_a_commit_that_a_crash_could_bring_back_stay_until_the_next(path):
    filled(path, 1)
    failure = StoreError("failed")
    failure.__cause__ = sqlite3.OperationalError("disk I/O error")
    with MemoryFolder.open(path, writable=True) as folder:
        added = [record.name for record in read_chunk(folder).new_files]
        folder.withdraw(added, failure)
        assert extras(path) == sorted(added)
        folder.commit(read_chunk(folder))
        assert extras(path) == []
    assert verify(path) == []


def test_creating_is_all_or_nothing_and_can_be_repeated(tmp_path):
    num_steps = count_steps(lambda: MemoryFolder.create(tmp_path / "counted", {}).close())
    for error in (OSError(errno.ENOSPC, "full"), Killed()):
        for n in range(num_steps):
            path = tmp_path / f"{type(error).__name__}-{n}"
            disk.hook = at_step(n, error)
            try:
                MemoryFolder.create(path, {}).close()
            except (StoreError, Killed) as raised:
                assert "\n" not in str(raised)
            disk.hook = None
            dead = Path(f"{path}-dead")
            if path.exists():
                shutil.copytree(path, dead)
            is_there = is_memory(dead)
            again = MemoryFolder.open(dead, writable=True) if is_there else MemoryFolder.create(dead, {})
            with again:
                again.commit(read_chunk(again))
            assert verify(dead) == [] and extras(dead) == []


def test_a_process_killed_while_it_reads_on_loses_nothing_that_it_committed(path):
    filled(path, 1)
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_folder as t\n"
        "m = t.MemoryFolder.open(sys.argv[1], writable=True)\n"
        "while True:\n"
        "    m.commit(t.read_chunk(m)); print(m.contents.num_tokens, flush=True)"
    )
    for num_commits in (1, 3, 8):
        arguments = [sys.executable, "-c", program, str(path), str(Path(__file__).parent)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as other:
            for _ in range(num_commits):
                line = other.stdout.readline()
            other.send_signal(signal.SIGKILL)
            line = other.stdout.read().splitlines()[-1:] or [line]
        with MemoryFolder.open(path) as folder:
            assert folder.contents.num_tokens - int(line[0]) in (0, CHUNK)
        assert verify(path) == []


# Damage


def test_flipping_any_byte_of_any_file_is_found(path):
    contents = filled(path)
    for record in contents.files:
        where = path / record.name
        whole = where.read_bytes()
        chosen = range(len(whole)) if record is contents.files[0] else range(0, len(whole), 7)
        for i in chosen:
            where.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            (problem,) = verify(path)[:1]
            assert record.name in problem
        where.write_bytes(whole)
    where = path / "catalogue.sqlite"
    whole = where.read_bytes()
    for i in random.Random(3).sample(range(len(whole)), 300):
        where.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << (i % 8))]) + whole[i + 1 :])
        assert verify(path) and one_line(path)
    where.write_bytes(whole)
    assert verify(path) == []


def test_missing_truncated_and_swapped_files_are_found(path):
    first, second, third = filled(path).files
    saved = tree(path)

    def restore() -> None:
        for name, data in saved.items():
            (path / name).write_bytes(data)
        assert verify(path) == []

    (path / first.name).unlink()
    assert verify(path) == [f"{path / first.name}: is missing"]
    restore()
    os.truncate(path / second.name, second.num_bytes - 1)
    assert second.name in verify(path)[0]
    restore()
    (path / first.name).write_bytes(saved[second.name])
    (path / second.name).write_bytes(saved[first.name])
    assert first.num_bytes == second.num_bytes and len(verify(path)) >= 2
    restore()
    (path / third.name).write_bytes(saved[third.name] + b"\0")
    assert len(verify(path)) == 1


def test_verify_lists_everything_that_is_wrong(path):
    first, second, _ = filled(path).files
    (path / first.name).unlink()
    with TamperedRows(path) as connection:
        connection.forge("files", {**vars(second), "start": second.start + 1})
    problems = verify(path)
    assert len(problems) == 4 and all("\n" not in problem for problem in problems)
    assert "begins at token" in problems[0] and "is missing" in problems[1] and "rows" in problems[2]
    assert "begins at token" in one_line(path)


class TamperedRows:
    """Rows with checksums that fit, written into a memory by a stranger."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> TamperedRows:
        self.connection = sqlite3.connect(self.path / "catalogue.sqlite")
        return self

    def forge(self, table: str, columns: dict) -> None:
        values = tuple(columns.values())
        row = (*values, rows.row_crc(table, values))
        holes = ", ".join("?" * len(row))
        self.connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({holes})", row)

    def __exit__(self, *_) -> None:
        self.connection.commit()
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.connection.close()
        (self.path / "catalogue.crc").unlink(missing_ok=True)


def test_a_hostile_memory_reads_and_writes_nothing_outside(path, tmp_path):
    filled(path)
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"secret")
    before = tree(tmp_path)
    for name in ("../secret.safetensors", str(secret), "segments/../../secret.safetensors"):
        hostile = Path(shutil.copytree(path, tmp_path / "hostile"))
        record = {"name": name, "kind": "segment", "start": 12, "stop": 12, "num_bytes": 6, "num_events": 0}
        with TamperedRows(hostile) as connection:
            connection.forge("files", {**record, "checksums": bytes(4)})
            counts = '{"tokens": 12, "events": 3, "documents": 1, "files": 4}'
            connection.forge("entries", {"name": "counts", "value": counts})
        for writable in (False, True):
            assert "is not the name of a file" in one_line(hostile, writable=writable)
        assert "is not the name of a file" in verify(hostile)[0]
        for work in (copy, clone):
            with pytest.raises(StoreError):
                work(hostile, tmp_path / "to")
        shutil.rmtree(hostile)
    assert tree(tmp_path) == before


def test_a_file_that_became_a_link_is_neither_verified_nor_copied(path, tmp_path):
    first = filled(path).files[0]
    shutil.move(path / first.name, tmp_path / "elsewhere")
    (path / first.name).symlink_to(tmp_path / "elsewhere")
    assert verify(path) == [f"{path / first.name}: is a symbolic link"]
    for work in (copy, clone):
        with pytest.raises(StoreError, match="symbolic link"):
            work(path, tmp_path / "to")
        assert not (tmp_path / "to").exists()


# The memory as a whole


def test_a_description_needs_only_the_catalogue(path):
    expected = filled(path)
    summary = describe(path)
    assert (summary.num_tokens, summary.num_events, summary.num_files) == (12, 3, 3)
    assert summary.documents == expected.documents and summary.header["codec"] == "exact"
    assert summary.num_bytes >= sum(record.num_bytes for record in expected.files)


@pytest.mark.parametrize("work", [copy, clone])
def test_a_copy_is_the_same_memory_and_lives_on_its_own(path, tmp_path, work):
    expected = filled(path)
    told = []
    work(path, tmp_path / "to", lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == sum(record.num_bytes for record in expected.files)
    assert verify(tmp_path / "to") == [] and extras(tmp_path / "to") == []
    with MemoryFolder.open(tmp_path / "to", writable=True) as folder:
        assert same(folder.contents, expected)
        ours, theirs = folder.catalogue.header, describe(path).header
        if work is clone:
            assert ours["parent"] == theirs["uuid"] != ours["uuid"]
            assert os.path.samefile(path / expected.files[0].name, tmp_path / "to" / expected.files[0].name)
        else:
            assert ours == theirs
        folder.commit(read_chunk(folder))
    shutil.rmtree(tmp_path / "to")
    assert verify(path) == [] and describe(path).num_tokens == expected.num_tokens


@pytest.mark.parametrize("work", [copy, clone])
def test_a_copy_that_fails_at_any_step_leaves_all_or_nothing_and_can_be_repeated(path, tmp_path, work):
    filled(path)
    num_steps = count_steps(lambda: work(path, tmp_path / "counted"))
    before = tree(path)
    for n in range(num_steps):
        to = tmp_path / f"to-{n}"
        disk.hook = at_step(n, OSError(errno.ENOSPC, "full"))
        try:
            work(path, to)
        except StoreError:
            disk.hook = None
            if not is_memory(to):  # else the last sync failed, of a copy that is complete
                assert not to.exists(), n
                work(path, to)
        disk.hook = None
        assert verify(to) == []
    assert tree(path) == before


@pytest.mark.parametrize("work", ["copy", "clone"])
def test_a_copy_that_was_killed_is_no_obstacle_and_is_gone_even_if_the_memory_was_written(path, work):
    filled(path)
    program = (
        "import os, signal, sys; from emllm.store.maintenance import clone, copy\n"
        f"{work}(sys.argv[1], sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    to = path.with_name("to")
    subprocess.run([sys.executable, "-c", program, str(path), str(to)], check=False)
    assert not to.exists() and len(os.listdir(path.parent)) == 2
    with MemoryFolder.open(path, writable=True) as folder:
        folder.commit(read_chunk(folder))
    {"copy": copy, "clone": clone}[work](path, to)
    assert verify(to) == [] and sorted(os.listdir(path.parent)) == sorted([path.name, "to"])


def test_a_copy_leaves_alone_what_another_process_copied_there_meanwhile(path, tmp_path):
    filled(path)
    to = tmp_path / "to"

    def meanwhile(done: int, total: int) -> None:
        if done == total:
            copy(path, to)

    with pytest.raises(StoreError, match="is not empty"):
        copy(path, to, meanwhile)
    assert verify(to) == [] and sorted(os.listdir(tmp_path)) == sorted([path.name, "to"])


@pytest.mark.parametrize("is_link", [False, True])
def test_an_empty_folder_is_a_place_for_a_copy(path, tmp_path, is_link):
    filled(path)
    place = tmp_path / "elsewhere" / "to"
    place.mkdir(parents=True)
    if is_link:
        (tmp_path / "link").symlink_to(place)
    copy(path, tmp_path / "link" if is_link else place)
    assert verify(place) == [] and os.listdir(place.parent) == ["to"]
    assert place.stat().st_mode & 0o777 == path.stat().st_mode & 0o777


def test_clones_share_by_copying_where_there_are_no_links(path, tmp_path, monkeypatch):
    filled(path)

    def unsupported(*_, **__):
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(os, "link", unsupported)
    clone(path, tmp_path / "to")
    assert verify(tmp_path / "to") == []


def test_nothing_is_overwritten(path, tmp_path):
    filled(path)
    before = tree(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    orphan = tmp_path / "orphan"
    filled(orphan)  # of another memory: its files have names of their own
    (orphan / "catalogue.sqlite").unlink()
    (orphan / "catalogue.crc").unlink()
    for to in (path, tmp_path / "other", orphan):
        kept = tree(to)
        for work in (copy, clone):
            with pytest.raises(StoreError, match="is not empty"):
                work(path, to)
        with pytest.raises(StoreError, match="is not empty"):
            MemoryFolder.create(to, {})
        assert tree(to) == kept
    assert tree(path) == before


def test_a_damaged_memory_is_not_copied(path, tmp_path):
    first = filled(path).files[0]
    whole = (path / first.name).read_bytes()
    (path / first.name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match="checksum"):
        copy(path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_what_is_no_memory_is_refused(tmp_path):
    assert "is not a memory" in one_line(tmp_path)
    assert "is not a memory" in one_line(tmp_path / "nothing", writable=True)
    assert verify(tmp_path) and os.listdir(tmp_path) == []


@settings(max_examples=20)
@given(order=st.lists(st.integers(0, 11), max_size=60))
def test_no_more_files_are_open_than_allowed_and_all_can_be_read(tmp_path_factory, order):
    path = tmp_path_factory.mktemp("many") / "memory"
    filled(path, 12)
    limit, open_files.MAX_OPEN_FILES = open_files.MAX_OPEN_FILES, 3
    try:
        with MemoryFolder.open(path) as folder:
            before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
            kept = [folder.file(record) for record in folder.contents.files]
            for i in order:
                assert kept[i].read("token_ids")[0] == CHUNK * i
                if before:
                    assert len(os.listdir("/proc/self/fd")) <= before + 3
    finally:
        open_files.MAX_OPEN_FILES = limit


def test_memories_share_the_descriptors_that_the_process_may_have(path, tmp_path):
    filled(path, 40)
    copy(path, tmp_path / "other")
    program = (
        "import resource, sys; from emllm.store.folder import MemoryFolder\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "memories = [MemoryFolder.open(one) for one in sys.argv[1:]]\n"
        "for memory in memories:\n"
        "    for record in memory.contents.files:\n"
        "        memory.file(record).read('token_ids')\n"
    )
    arguments = [sys.executable, "-c", program, str(path), str(tmp_path / "other")]
    assert subprocess.run(arguments, check=False, capture_output=True, text=True).stderr == ""


def test_a_file_of_a_newer_record_is_read_anew(path):
    first = filled(path).files[0]
    with MemoryFolder.open(path) as folder:
        file = folder.file(first)
        assert folder.file(first) is file and isinstance(file, files.TensorFile)
        assert folder.file(replace(first, num_events=0)) is not file


@pytest.mark.parametrize(
    ("name", "num_rows", "words"),
    [("token_ids", CHUNK + 1, "expected 4 rows"), ("event_keys", 7, "expected a multiple of 2")],
)
def test_a_whole_file_of_another_length_than_the_catalogue_says_is_found(path, name, num_rows, words):
    with MemoryFolder.create(path, {"a": 1}) as folder:
        tensors = {"pages.0": torch.zeros(1, 6, dtype=torch.uint8), name: torch.zeros(num_rows)}
        record = folder.add("segment", 0, CHUNK, tensors, num_events=2)
        folder.commit(
            Change(
                num_tokens=CHUNK,
                new_files=[record],
                dropped_files=[],
                first_new_event=0,
                new_events=np.array([[0, 2], [2, 4]]),
                documents=[],
                state={},
            )
        )
    (problem,) = verify(path)
    assert words in problem and name in problem
