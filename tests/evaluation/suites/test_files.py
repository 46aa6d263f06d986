"""Records and texts of a data folder or the hub, and the one line for each thing that can be wrong."""

from __future__ import annotations

import json
import lzma
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import SourceError
from emllm.evaluation.suites.files import records, require, stand_ins, text_of
from emllm.evaluation.suites.needs import SampleNeeds
from emllm.evaluation.task import Task

RECORDS = [{"_id": "a", "text": "one\u2028two { }"}, {"_id": "b", "text": "drei\nvier"}]
ZIPPED = {"hub": "o/n", "hub_file": "data.zip", "member": "data/t.jsonl"}
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def needs(data: Path | None) -> SampleNeeds:
    return SampleNeeds(data=data, count_tokens=len)


def task(**source: Any) -> Task:
    return Task("toy/t", "toy", "toy", "qa_f1", 8, "{context}", source=source)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(lzma.compress(data) if name.endswith(".xz") else data)
    return path


def hub(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any] | None) -> None:
    """The `datasets` package replaced, or (None) not installed."""
    monkeypatch.setitem(sys.modules, "datasets", load and SimpleNamespace(load_dataset=load))


class TestRecords:
    @pytest.mark.parametrize("kept", ["t.jsonl", "t.jsonl.xz", "t.json", "t.json.xz"])
    @pytest.mark.parametrize("named", ["t.jsonl", "t.jsonl.xz", "t.json"])
    def test_every_kind_of_file_gives_the_same_records(self, tmp_path, kept, named) -> None:
        written(tmp_path, f"x/{kept}", LINES if ".jsonl" in kept else json.dumps(RECORDS, indent=1))
        assert list(records(task(file=f"x/{named}"), needs(tmp_path))) == RECORDS

    @given(values=st.lists(st.dictionaries(st.text(), st.text())))
    def test_what_is_written_as_lines_is_read_back(self, tmp_path_factory, values) -> None:
        folder = tmp_path_factory.mktemp("law")
        lines = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
        try:
            written(folder, "t.jsonl", lines)
        except UnicodeEncodeError:
            return
        assert list(records(task(file="t.jsonl"), needs(folder))) == values

    def test_the_name_itself_goes_before_its_other_endings(self, tmp_path) -> None:
        written(tmp_path, "t.jsonl.xz", LINES)
        written(tmp_path, "t.jsonl", '{"_id": "own"}\n')
        assert list(records(task(file="t.jsonl"), needs(tmp_path))) == [{"_id": "own"}]

    def test_of_several_names_the_first_that_exists_is_read(self, tmp_path) -> None:
        written(tmp_path, "b.jsonl", LINES)
        wanted = task(file=["a.jsonl", "b.jsonl"])
        assert list(records(wanted, needs(tmp_path))) == RECORDS
        written(tmp_path, "a.jsonl", "\n{}\n\n")
        assert list(records(wanted, needs(tmp_path))) == [{}]

    def test_the_file_that_is_read_is_told_and_whether_it_stands_in_for_another(self, tmp_path) -> None:
        wanted = task(file=["x/a.jsonl", "x/b.jsonl.xz"])
        for kept, is_stand_in in (("x/b.jsonl", True), ("x/a.jsonl.xz", False)):
            written(tmp_path, kept, LINES)
            told: list[str] = []
            list(records(wanted, replace(needs(tmp_path), on_file=told.append)))
            assert told == [kept]
            assert stand_ins(wanted, told) == ([kept] if is_stand_in else [])

    def test_the_hub_is_read_where_there_is_no_data_folder(self, monkeypatch) -> None:
        asked = []
        hub(monkeypatch, lambda *names, **how: asked.append((names, how)) or RECORDS)
        assert list(records(task(file="t.jsonl", hub="o/n", subset="s", split="dev"), needs(None))) == RECORDS
        assert list(records(task(hub="o/n"), needs(None))) == RECORDS
        assert asked == [(("o/n", "s"), {"split": "dev"}), (("o/n", None), {"split": "test"})]

    def test_a_data_folder_keeps_the_hub_unasked(self, tmp_path, monkeypatch) -> None:
        hub(monkeypatch, None)
        written(tmp_path, "t.jsonl", LINES)
        assert list(records(task(file="t.jsonl", hub="o/n"), needs(tmp_path))) == RECORDS


def hub_files(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The hub replaced: its repositories lie in a folder."""

    def download(name: str, file: str, *, repo_type: str) -> str:
        assert repo_type == "dataset"
        if not (folder / name / file).is_file():
            raise ConnectionError("404\nnot found")
        return str(folder / name / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)


class TestHubFiles:
    def test_a_file_of_a_hub_repository_is_read_without_datasets(self, tmp_path, monkeypatch) -> None:
        hub(monkeypatch, None)
        hub_files(monkeypatch, tmp_path)
        written(tmp_path, "o/n/x/t.jsonl", LINES)
        assert list(records(task(hub="o/n", hub_file="x/t.jsonl"), needs(None))) == RECORDS

    def test_a_file_in_a_zip_of_the_hub_is_read(self, tmp_path, monkeypatch) -> None:
        hub_files(monkeypatch, tmp_path)
        (tmp_path / "o/n").mkdir(parents=True)
        with zipfile.ZipFile(tmp_path / "o/n/data.zip", "w") as archive:
            archive.writestr("data/t.jsonl", LINES)
            archive.writestr("data/bad.jsonl", "{}\n{")
        assert list(records(task(**ZIPPED), needs(None))) == RECORDS
        with pytest.raises(SourceError, match=r"^o/n/data\.zip/data/bad\.jsonl, line 2: not JSON"):
            list(records(task(**ZIPPED | {"member": "data/bad.jsonl"}), needs(None)))
        with pytest.raises(SourceError, match=r"^o/n/data\.zip/no: cannot be read"):
            list(records(task(**ZIPPED | {"member": "no"}), needs(None)))

    def test_what_the_hub_does_not_give_is_said_in_one_line(self, tmp_path, monkeypatch) -> None:
        hub_files(monkeypatch, tmp_path)
        with pytest.raises(SourceError) as caught:
            list(records(task(**ZIPPED), needs(None)))
        expected = "o/n/data.zip/data/t.jsonl: not to be had from the hub: 404 (or give --data DIR)"
        assert str(caught.value) == expected


class TestErrors:
    def one_line(self, wanted: Task, data: Path | None) -> str:
        with pytest.raises(SourceError) as caught:
            list(records(wanted, needs(data)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_wrong_data_folder_is_named(self, tmp_path) -> None:
        said = self.one_line(task(file="t.jsonl"), tmp_path / "nowhere")
        assert said == f"there is no data folder {tmp_path / 'nowhere'} (--data)"

    def test_a_missing_file_is_named_with_the_option(self, tmp_path) -> None:
        said = self.one_line(task(file=["x/t.jsonl.xz", "x/u.jsonl"]), tmp_path)
        assert "x/t.jsonl.xz or x/u.jsonl" in said and str(tmp_path) in said and "--data" in said

    @pytest.mark.parametrize(
        ("name", "text", "place"),
        [
            ("t.jsonl", '{"a": 1}\n\n{"a": \n', "line 3: not JSON"),
            ("t.jsonl.xz", '{"a": 1}\n[1]\n', "line 2: not a JSON object"),
            ("t.json", '[\n{"a": 1},\n{]\n', "line 3: not JSON"),
            ("t.json", '{"a": 1}', "line 1: not a JSON list"),
            ("t.json", '[{"a": 1}, 7]', "entry 2: not a JSON object"),
        ],
    )
    def test_what_is_malformed_is_named_by_file_and_place(self, tmp_path, name, text, place) -> None:
        path = written(tmp_path, name, text)
        assert self.one_line(task(file=name), tmp_path).startswith(f"{path}, {place}")

    def test_records_before_a_malformed_line_are_still_given(self, tmp_path) -> None:
        written(tmp_path, "t.jsonl", LINES + "{")
        found = records(task(file="t.jsonl"), needs(tmp_path))
        assert [next(found), next(found)] == RECORDS

    @pytest.mark.parametrize("damage", [b"not xz", lzma.compress(LINES.encode())[:-9]])
    def test_a_damaged_archive_is_named(self, tmp_path, damage) -> None:
        (tmp_path / "t.jsonl.xz").write_bytes(damage)
        assert self.one_line(task(file="t.jsonl.xz"), tmp_path).startswith(f"{tmp_path / 't.jsonl.xz'}: ")

    def test_a_file_that_is_not_utf8_is_named(self, tmp_path) -> None:
        (tmp_path / "t.jsonl").write_bytes(b'{"a": "\xff"}')
        assert self.one_line(task(file="t.jsonl"), tmp_path).startswith(f"{tmp_path / 't.jsonl'}: ")

    def test_without_datasets_the_extra_is_named(self, monkeypatch) -> None:
        hub(monkeypatch, None)
        assert "pip install 'emllm[eval]'" in self.one_line(task(hub="o/n"), None)

    @pytest.mark.parametrize("error", [ConnectionError, ValueError, RuntimeError])
    def test_a_hub_that_cannot_be_reached_is_said_in_one_line(self, monkeypatch, error) -> None:
        def load(*names: str, **how: str) -> None:
            raise error("no route\nto host")

        hub(monkeypatch, load)
        said = self.one_line(task(hub="o/n", subset="s"), None)
        assert said == "o/n s test: not to be had from the hub: no route (or give --data DIR)"

    def test_a_task_that_is_not_on_the_hub_asks_for_a_data_folder(self) -> None:
        assert "toy/t" in self.one_line(task(file="t.jsonl"), None)
        assert "--data" in self.one_line(task(file="t.jsonl"), None)

    def test_a_task_without_any_source_says_so(self, tmp_path) -> None:
        assert "neither a file nor a data set" in self.one_line(task(), tmp_path)

    def test_a_record_that_lacks_a_field_is_named(self) -> None:
        require(task(), {"_id": "a", "input": "", "length": 0}, "input", "length")
        with pytest.raises(SourceError, match=r"^task toy/t: record a has no answers, length$"):
            require(task(), {"_id": "a", "answers": None}, "_id", "answers", "length")


class TestText:
    @pytest.mark.parametrize("kept", ["b.txt", "b.txt.xz"])
    @pytest.mark.parametrize("named", ["b.txt", "b.txt.xz"])
    def test_a_text_is_read_compressed_or_not(self, tmp_path, kept, named) -> None:
        written(tmp_path, f"books/{kept}", "Once.\n\nÉnd")
        assert text_of(needs(tmp_path), f"books/{named}") == "Once.\n\nÉnd"

    def test_what_is_wrong_is_one_line(self, tmp_path) -> None:
        with pytest.raises(SourceError, match=r"b\.txt is read from a data folder.*--data"):
            text_of(needs(None), "b.txt")
        with pytest.raises(SourceError, match=r"no b\.txt in the data folder .*--data"):
            text_of(needs(tmp_path), "b.txt")
        (tmp_path / "b.txt.xz").write_bytes(b"plain")
        with pytest.raises(SourceError, match=r"b\.txt\.xz: cannot be read"):
            text_of(needs(tmp_path), "b.txt")
