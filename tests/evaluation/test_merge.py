"""Shards put together are one run, and what is not one run is not put together."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_suite
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_suite import FakeAnswerer, task, wishes

import emllm.evaluation.run as module
from emllm.errors import ConfigError
from emllm.evaluation.merge import merge
from emllm.evaluation.results import COSTS, RESULTS, RUN, key_of, read_lines
from emllm.evaluation.rows import ROWS, Row
from emllm.evaluation.run import Run

ROW, OTHER = Row("mine"), ROWS["streaming-llm"]
TASKS = (task("one", source={"count": 7}), task("two", source={"count": 2, "bad": (1,)}))


@pytest.fixture(scope="module")
def lm():
    with tiny_suite.tiny_lm() as lm:
        yield lm


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        tiny_suite.install(patch)
        patch.setattr(module, "Answerer", FakeAnswerer)
        yield


def start(lm, folder, tasks=TASKS, rows=(ROW, OTHER), **changes):
    Run(lm, wishes(tasks, rows, **changes)).into(folder)
    return folder


@pytest.fixture()
def halves(lm, tmp_path):
    return [start(lm, tmp_path / str(shard), shards=2, shard=shard) for shard in range(2)]


@settings(max_examples=12)
@given(shards=st.integers(1, 8), order=st.randoms(use_true_random=False))
def test_shards_merged_in_any_order_are_the_results_of_one_go(lm, shards, order):
    with tempfile.TemporaryDirectory() as place:
        whole = start(lm, Path(place) / "whole")
        parts = [start(lm, Path(place) / str(i), shards=shards, shard=i) for i in range(shards)]
        order.shuffle(parts)
        merged = merge(parts, Path(place) / "merged")
        assert (merged / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()
        keys = [[key_of(line) for line in read_lines(one / COSTS)] for one in (merged, whole)]
        assert keys[0] == keys[1]


def test_a_merged_run_can_be_added_to(lm, halves, tmp_path):
    merged = merge(halves, tmp_path / "merged")
    run = json.loads((merged / RUN).read_text())
    assert (run["shards"], run["shard"], len(run["commands"])) == (1, 0, 2)
    start(lm, merged, rows=(ROW, OTHER, ROWS["full"]))
    whole = start(lm, tmp_path / "whole", rows=(ROW, OTHER, ROWS["full"]))
    assert (merged / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()


def refused(folders, tmp_path, said):
    into = tmp_path / "merged"
    with pytest.raises(ConfigError, match=said):
        merge(folders, into)
    assert not into.exists()


def test_overlapping_and_missing_shards_are_refused(halves, tmp_path):
    refused([*halves, halves[0]], tmp_path, "both are shard 0")
    refused(halves[:1], tmp_path, "shard 1 of 2 is missing")


def test_shards_of_different_runs_are_refused(lm, halves, tmp_path):
    for name, changes, said in (
        ("seed", {"seed": 1}, "seed was 0, is 1"),
        ("limit", {"limit": 4}, "tiny/one has 7 and 4 samples"),
        ("tasks", {"tasks": TASKS[:1]}, "tasks are tiny/one, tiny/two and tiny/one"),
        ("rows", {"rows": (ROW,)}, "rows are mine, streaming-llm and mine"),
        ("settings", {"settings": {**tiny_suite.SMALL, "gamma": 2.0}}, "row mine had gamma=1.0, has 2.0"),
    ):
        other = start(lm, tmp_path / name, **{"shards": 2, "shard": 1, **changes})
        refused([halves[0], other], tmp_path, f"{name} does not belong to .*0: {said}")


def test_shards_of_data_that_changed_are_refused_by_the_task(lm, halves, tmp_path, monkeypatch):
    def changed(task, needs):
        for one in tiny_suite.samples(task, needs):
            yield replace(one, text=one.text + "!") if one.sample_id == "s3" else one

    monkeypatch.setattr("tiny_suite_samples.samples", changed)
    other = start(lm, tmp_path / "other", shards=2, shard=1)
    refused(
        [halves[0], other], tmp_path, "does not belong to .*0: task tiny/one has another sample 3: the data"
    )


def test_an_unfinished_shard_is_refused_by_what_it_lacks(halves, tmp_path):
    path = halves[1] / RESULTS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:9])
    refused(halves, tmp_path, "1 lacks 1 results, the first is tiny/two 1, streaming-llm; run it to its end")


def test_a_result_that_is_there_twice_is_refused(halves, tmp_path):
    path = halves[0] / RESULTS
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    refused(halves, tmp_path, "tiny/one s0, mine is there twice")


def test_a_folder_without_results_is_refused(halves, tmp_path):
    (tmp_path / "empty").mkdir()
    refused([halves[0], tmp_path / "empty"], tmp_path, "empty: no results in it")
    refused([tmp_path / "nowhere"], tmp_path, "nowhere: no such folder")


def test_what_exists_is_not_written_over(halves, tmp_path):
    into = tmp_path / "there"
    shutil.copytree(halves[0], into)
    with pytest.raises(ConfigError, match="there: exists already"):
        merge(halves, into)
    assert (into / RESULTS).read_bytes() == (halves[0] / RESULTS).read_bytes()
