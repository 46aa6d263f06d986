"""``emllm memory``: what is shown, checked, forgotten and copied, without a model."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from emllm.cli.sources import opened_lm
from emllm.reading import ReadProgress
from emllm.store.maintenance import describe

SMALL = ("--chunk-tokens", "64", "--local-tokens", "64", "--recall-tokens", "128")
PARTS = ("list", "show", "verify", "forget", "copy", "compact")


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of two documents, as a folder that tests copy and leave as it is."""
    from emllm.cli.main import main

    folder = tmp_path_factory.mktemp("made")
    (folder / "one.txt").write_text("Once upon a time there was a little girl named Lily. " * 25)
    (folder / "two.txt").write_text("The cat sat on the mat and looked at the moon. " * 25)
    model = ("--model", str(tiny_model), "--device", "cpu", *SMALL)
    texts = (str(folder / "one.txt"), str(folder / "two.txt"))
    assert main(["read", *texts, "--into", str(folder / "two.mem"), *model]) == 0
    return folder / "two.mem"


@pytest.fixture()
def memory(run, made: Path, tmp_path: Path) -> Path:
    assert run("memory", "copy", made, tmp_path / "two.mem").code == 0
    return tmp_path / "two.mem"


@pytest.fixture(autouse=True)
def no_loading(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("emllm.cli.forget.opened_lm", load)


@pytest.fixture()
def lm(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Calls of a model that is not there, each with the number of documents at the time."""
    calls: list[object] = []

    def opened_memory(path: Path, *, read_only: bool = False) -> closing[SimpleNamespace]:
        calls.append(("opened", read_only, len(describe(path).documents)))
        opened = closing(SimpleNamespace(close=lambda: None))
        opened.close = opened.thing.close  # type: ignore[attr-defined]
        return opened

    def prepare(memory: object) -> None:
        calls.append("prepared")

    def reread(path: Path, start: int, *, progress: Callable[[object], None]) -> None:
        calls.append(("reread", path, start, len(describe(path).documents)))
        progress(ReadProgress(1, 2, 1.0))

    @contextmanager
    def opened(*_: object, **__: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(memory=opened_memory, reread=reread, prepare=prepare)

    monkeypatch.setattr("emllm.cli.forget.opened_lm", opened)
    return calls


def as_json(ended) -> dict:
    assert ended.code == 0, ended.err
    assert ended.out.count("\n") == 1
    return json.loads(ended.out)


def data_files(path: Path) -> list[Path]:
    return sorted(path.glob("*/*.safetensors"))


class TestList:
    def test_all_memories_of_a_folder_are_listed_and_nothing_else(self, run, memory: Path, tmp_path) -> None:
        run("memory", "copy", memory, tmp_path / "again.mem")
        (tmp_path / "notes").mkdir()
        found = as_json(run("memory", "list", tmp_path, "--json"))
        assert [one["name"] for one in found] == ["again.mem", "two.mem"]
        assert found[0]["documents"] == 2 and found[0]["tokens"] == describe(memory).num_tokens
        table = run("memory", "list", tmp_path).out.splitlines()
        assert [line.split()[0] for line in table] == ["name", "again.mem", "two.mem"]

    def test_a_damaged_memory_is_listed_with_what_is_wrong(self, run, memory: Path) -> None:
        (memory / "catalogue.sqlite").write_bytes(b"no")
        ended = run("memory", "list", memory.parent)
        assert ended.code == 0 and "two.mem" in ended.out and "catalogue" in ended.out

    def test_the_present_folder_is_looked_at_by_default(self, run, memory: Path, monkeypatch) -> None:
        monkeypatch.chdir(memory.parent)
        assert "two.mem" in run("memory", "list").out
        monkeypatch.chdir(memory)
        assert as_json(run("memory", "list", "--json"))[0]["documents"] == 2

    def test_no_memory_is_said_on_stderr(self, run, tmp_path: Path) -> None:
        ended = run("memory", "list", tmp_path)
        assert (ended.code, ended.out) == (0, "") and "no memory" in ended.err


class TestShow:
    def test_json_tells_documents_spans_bytes_and_settings(self, run, memory: Path, tiny_model: Path) -> None:
        found = as_json(run("memory", "show", memory, "--json"))
        one, two = found["documents"]
        assert (one["name"], two["name"]) == ("one.txt", "two.txt")
        assert one["stop"] == two["start"] and two["stop"] == found["tokens"]
        assert found["settings"]["local_tokens"] == 64 and found["unfinished"] is None
        assert found["header"]["model"] == str(tiny_model)
        sizes = {"segment": 0, "recent": 0}
        for file in data_files(memory):
            sizes["segment" if file.parent.name == "segments" else "recent"] += file.stat().st_size
        assert {name: found["bytes"][name] for name in sizes} == sizes

    def test_a_person_sees_the_same(self, run, memory: Path) -> None:
        found = as_json(run("memory", "show", memory, "--json"))
        out = run("memory", "show", memory).out
        flat = " ".join(out.split())
        for words in ("one.txt", "two.txt", f"{found['tokens']:,} tokens", "local_tokens=64", "float32"):
            assert words in flat
        assert f"0 to {found['documents'][0]['stop']:,}" in flat


class TestVerify:
    def test_a_memory_as_it_was_written_is_ok(self, run, memory: Path) -> None:
        ended = run("memory", "verify", memory)
        assert ended.code == 0 and ended.out.startswith("ok: ") and ended.err == ""
        assert as_json(run("memory", "verify", memory, "--json"))["ok"] is True

    @pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
    def test_damage_is_named_file_by_file_and_is_exit_code_1(self, run, memory: Path, damage: str) -> None:
        damaged = data_files(memory)[:2]
        for file in damaged:
            data = bytearray(file.read_bytes())
            file.chmod(0o600)
            file.unlink()
            data[-1] ^= 1
            if damage != "missing":
                file.write_bytes(data if damage == "flipped" else data[:-100])
        ended = run("memory", "verify", memory)
        assert ended.code == 1 and len(ended.out.splitlines()) >= 2
        assert all(file.name in ended.out for file in damaged)
        as_told = run("memory", "verify", memory, "--json")
        result = json.loads(as_told.out)
        assert as_told.code == 1 and not result["ok"]
        assert result["problems"] == ended.out.splitlines()

    def test_what_belongs_to_nothing_is_remarked(self, run, memory: Path) -> None:
        stray = memory / "segments" / "000000000000-000000000001-00000000.safetensors"
        stray.write_bytes(b"")
        ended = run("memory", "verify", memory)
        assert ended.code == 0 and stray.name in ended.err


class TestForget:
    def test_what_came_later_is_named(self, run, memory: Path) -> None:
        before = as_json(run("memory", "show", memory, "--json"))
        ended = run("memory", "forget", memory, "one.txt")
        assert ended.code == 0 and ended.out.startswith("forgot one.txt: ")
        assert "cannot be taken out: two.txt" in ended.out
        after = as_json(run("memory", "show", memory, "--json"))
        assert [one["name"] for one in after["documents"]] == ["two.txt"]
        one = before["documents"][0]
        assert after["forgotten"] == [[one["start"], one["stop"]]]
        assert run("memory", "verify", memory).code == 0

    def test_of_the_last_document_nothing_is_left_in_another(self, run, memory: Path) -> None:
        result = as_json(run("memory", "forget", memory, "two.txt", "--json"))
        assert set(result) == {"memory", "document", "tokens", "events", "later", "is_reread"}
        assert result["later"] == [] and result["tokens"] > 0 and not result["is_reread"]

    def test_an_unknown_document_is_refused_by_the_names_that_there_are(self, refuses, memory: Path) -> None:
        assert "one.txt, two.txt" in refuses("memory", "forget", memory, "three.txt")

    def test_rereading_begins_where_the_document_was(self, run, memory: Path, lm: list[object]) -> None:
        start = describe(memory).documents[0].start
        ended = run("memory", "forget", memory, "one.txt", "--reread")
        assert lm == [("opened", True, 2), ("reread", memory, start, 1), ("opened", False, 1), "prepared"]
        assert ended.out.splitlines()[-1] == "read anew: two.txt"

    def test_rereading_can_be_made_up_for(self, run, memory: Path, lm: list[object]) -> None:
        start = describe(memory).documents[0].start
        said = run("memory", "forget", memory, "one.txt").out
        assert f"emllm memory forget {memory} --reread" in said and not lm
        result = as_json(run("memory", "forget", memory, "--reread", "--json"))
        assert result["later"] == ["two.txt"] and result["is_reread"] and result["document"] is None
        assert lm == [("opened", True, 1), ("reread", memory, start, 1), ("opened", False, 1), "prepared"]

    def test_after_rereading_the_document_has_no_place_any_more(
        self, run, memory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("emllm.cli.forget.opened_lm", opened_lm)
        assert run("memory", "forget", memory, "one.txt", "--reread", "--device", "cpu").code == 0
        shown = as_json(run("memory", "show", memory, "--json"))
        assert [one["name"] for one in shown["documents"]] == ["two.txt"] and shown["forgotten"] == []
        assert run("memory", "verify", memory).code == 0
        assert not list(memory.parent.glob("*.reread"))

    def test_nothing_is_loaded_where_nothing_came_later(self, run, memory: Path) -> None:
        assert run("memory", "forget", memory, "two.txt", "--reread").code == 0

    def test_an_interrupted_rereading_says_how_to_begin_again(
        self, run, memory: Path, lm: list[object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("emllm.cli.forget.reading", lambda _: nullcontext(interrupt))
        ended = run("memory", "forget", memory, "one.txt", "--reread")
        assert ended.code == 130 and f"emllm memory forget {memory} --reread begins again" in ended.err

    def test_without_a_name_there_must_be_something_to_reread(self, refuses, memory: Path) -> None:
        assert "no document to forget" in refuses("memory", "forget", memory)
        assert "nothing was forgotten" in refuses("memory", "forget", memory, "--reread")


def interrupt(_: object) -> None:
    signal.raise_signal(signal.SIGINT)


class TestCopyAndCompact:
    def test_a_copy_holds_the_same(self, run, memory: Path, tmp_path: Path) -> None:
        result = as_json(run("memory", "copy", memory, tmp_path / "copy", "--json"))
        assert result["bytes"] == describe(tmp_path / "copy").num_bytes
        shown = [as_json(run("memory", "show", path, "--json")) for path in (memory, tmp_path / "copy")]
        for one in shown:
            del one["memory"], one["bytes"]["catalogue"]
        assert shown[0] == shown[1]

    def test_compacting_deletes_what_belongs_to_nothing(self, run, memory: Path) -> None:
        stray = memory / "segments" / "000000000000-000000000001-00000000.safetensors"
        stray.write_bytes(bytes(10_000))
        result = as_json(run("memory", "compact", memory, "--json"))
        assert result["bytes"] <= result["bytes_before"] - 10_000 and not stray.exists()
        assert 0 < result["files"] <= result["files_before"]
        assert "less than before" in run("memory", "compact", memory).out
        assert run("memory", "verify", memory).code == 0


class TestMistakes:
    @pytest.mark.parametrize("part", PARTS[1:])
    def test_a_folder_without_a_memory_is_refused(self, refuses, tmp_path: Path, part: str) -> None:
        rest = {"forget": ["a.txt"], "copy": [tmp_path / "new"]}.get(part, [])
        assert "is not a memory" in refuses("memory", part, tmp_path, *rest)
        assert "no such memory" in refuses("memory", part, tmp_path / "nowhere", *rest)

    def test_a_missing_folder_has_no_list(self, refuses, tmp_path: Path) -> None:
        assert "no such folder" in refuses("memory", "list", tmp_path / "nowhere")

    def test_a_copy_does_not_go_where_something_is(self, refuses, memory: Path) -> None:
        assert "is not empty" in refuses("memory", "copy", memory, memory)
        assert "no folder" in refuses("memory", "copy", memory, memory.parent / "a" / "b")
        assert "is inside" in refuses("memory", "copy", memory, memory / "copy")

    def test_a_damaged_catalogue_is_one_line(self, refuses, memory: Path) -> None:
        (memory / "catalogue.sqlite").write_bytes(b"nothing of the kind" * 100)
        for part in ("show", "compact"):
            assert str(memory) in refuses("memory", part, memory)

    def test_an_unknown_command_is_refused(self, refuses) -> None:
        assert "burn" in refuses("memory", "burn")

    def test_the_group_alone_shows_its_help(self, run) -> None:
        ended = run("memory")
        assert ended.code == 0 and all(part in ended.out for part in PARTS)

    @pytest.mark.parametrize("part", PARTS)
    def test_every_command_takes_json_and_h(self, run, part: str) -> None:
        assert "--json" in run("memory", part, "-h").out
