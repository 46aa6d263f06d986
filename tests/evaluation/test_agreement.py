"""A run that goes on with other code says so in one line, and is not refused; it names all its machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_suite
from tiny_suite import FakeAnswerer, task, wishes

import emllm.evaluation.run as run_module
import emllm.evaluation.surroundings as surroundings
from emllm.evaluation.merge import merge
from emllm.evaluation.results import RUN
from emllm.evaluation.rows import Row
from emllm.evaluation.run import Run

TASKS, ROWS = (task("one"),), (Row("mine"),)


@pytest.fixture(scope="module")
def lm():
    with tiny_suite.tiny_lm() as lm:
        yield lm


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_suite.install(monkeypatch)
    monkeypatch.setattr(run_module, "Answerer", FakeAnswerer)


@pytest.fixture()
def start(lm, monkeypatch: pytest.MonkeyPatch):
    """Starts a run with some state of the code; answers with what it remarked."""

    def run(folder: Path, code: str, **changes) -> list[str]:
        monkeypatch.setattr(surroundings, "code_digest", lambda: code)
        remarks: list[str] = []
        Run(lm, wishes(TASKS, ROWS, **changes), on_remark=remarks.append).into(folder)
        return remarks

    return run


def codes(folder: Path) -> list[str]:
    return json.loads((folder / RUN).read_text())["code"]


def test_the_state_of_the_code_is_written_down(start, tmp_path: Path) -> None:
    assert start(tmp_path, "aaaa") == [] and codes(tmp_path) == ["aaaa"]


def test_going_on_with_the_same_code_remarks_nothing(start, tmp_path: Path) -> None:
    start(tmp_path, "aaaa", limit=1)
    assert start(tmp_path, "aaaa", limit=2) == [] and codes(tmp_path) == ["aaaa"]


def test_going_on_with_other_code_is_one_line_and_is_not_refused(start, tmp_path: Path) -> None:
    start(tmp_path, "aaaa", limit=1)
    (said,) = start(tmp_path, "bbbb", limit=2)
    assert said.startswith(f"{tmp_path}: begun with other code of emllm (digest aaaa; now bbbb)")
    assert "\n" not in said and codes(tmp_path) == ["aaaa", "bbbb"]
    assert start(tmp_path, "bbbb", limit=3) == []


def test_where_nothing_is_left_to_run_nothing_is_remarked(start, tmp_path: Path) -> None:
    start(tmp_path, "aaaa")
    assert start(tmp_path, "bbbb") == []


def test_a_folder_that_does_not_tell_its_code_can_be_gone_on_with(start, tmp_path: Path) -> None:
    start(tmp_path, "aaaa", limit=1)
    about = json.loads((tmp_path / RUN).read_text())
    del about["code"]
    (tmp_path / RUN).write_text(json.dumps(about))
    (said,) = start(tmp_path, "bbbb")
    assert "digest unknown; now bbbb" in said and codes(tmp_path) == ["unknown", "bbbb"]


def test_merged_shards_name_the_code_of_each(start, tmp_path: Path) -> None:
    for shard, code in enumerate(("aaaa", "bbbb")):
        start(tmp_path / code, code, shards=2, shard=shard)
    assert codes(merge([tmp_path / "aaaa", tmp_path / "bbbb"], tmp_path / "whole")) == ["aaaa", "bbbb"]


@pytest.fixture()
def machine(monkeypatch: pytest.MonkeyPatch):
    """Makes what follows happen on another machine."""

    def of(name: str, threads: int) -> None:
        monkeypatch.setattr(surroundings, "hardware", lambda device: name)
        monkeypatch.setattr(surroundings.torch, "get_num_threads", lambda: threads)

    return of


def machines(folder: Path) -> tuple[list[str], list[int]]:
    about = json.loads((folder / RUN).read_text())
    return about["hardware"], about["threads"]


def test_going_on_elsewhere_names_both_machines(start, machine, tmp_path: Path) -> None:
    for limit, name, threads in ((1, "one", 1), (2, "two", 8), (3, "one", 1)):
        machine(name, threads)
        start(tmp_path, "aaaa", limit=limit)
    assert machines(tmp_path) == (["one", "two"], [1, 8])


def test_merged_shards_name_the_machines_of_all(start, machine, tmp_path: Path) -> None:
    for shard, name in enumerate(("one", "two", "one")):
        machine(name, 4)
        start(tmp_path / str(shard), "aaaa", shards=3, shard=shard)
    assert machines(merge([tmp_path / str(i) for i in range(3)], tmp_path / "whole")) == (["one", "two"], [4])


def test_older_folders_name_one_machine_or_none(start, machine, tmp_path: Path) -> None:
    for folder, older in (("one", {"hardware": "old", "threads": 2}), ("none", {})):
        machine("new", 8)
        start(tmp_path / folder, "aaaa", limit=1)
        about = json.loads((tmp_path / folder / RUN).read_text())
        del about["hardware"], about["threads"]
        (tmp_path / folder / RUN).write_text(json.dumps(about | older))
        start(tmp_path / folder, "aaaa")
    assert machines(tmp_path / "one") == (["old", "new"], [2, 8])
    assert machines(tmp_path / "none") == (["new"], [8])
