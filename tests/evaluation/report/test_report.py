"""Reports of planted results: known means, marks, failures, shards, models, and a page that is inert."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError, StoreError
from emllm.evaluation.report import write_report
from emllm.evaluation.report.comparison import comparisons
from emllm.evaluation.report.layout import Cell, Chapter, Section, Table
from emllm.evaluation.report.page import render_page
from emllm.evaluation.report.published import published, published_for
from emllm.evaluation.report.records import read_run
from emllm.evaluation.task_groups import groups_of

ROWS = ("full", "default", "em-llm")
Scores = dict[tuple[str, str], list[float | None]]


def line(task: str, index: int, row: str, score: float | None, **changed: Any) -> dict[str, Any]:
    answers = [{"prediction": f"answer {index}", "score": score, "answer_tokens": 3, "facts": {}}]
    return {
        "task": task,
        "index": index,
        "sample": f"{task}-{index}",
        "row": row,
        "tokens": 5000,
        "read_tokens": 5000,
        "facts": {},
        "score": score,
        "answers": [] if score is None or task.startswith("books") else answers,
        "failed": None if score is not None else "OutOfMemoryError: 24 GB asked",
    } | changed


def run_folder(folder: Path, lines: list[dict[str, Any]], **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tasks = dict.fromkeys(it["task"] for it in lines)
    about = {
        "format": 1,
        "commands": [["emllm", "eval", "run"]],
        "model": "some/model",
        "fingerprint": {"layers": 3},
        "dtype": "float32",
        "seed": 0,
        "shards": 1,
        "shard": 0,
        "hardware": "2 cores",
        "rows": {row: {"kind": row, "settings": {}} for row in ROWS},
        "tasks": {
            task: {
                "metric": "perplexity" if task.startswith("books") else "qa_f1",
                "suite": task.partition("/")[0],
                "category": "",
                "answer_tokens": 32,
            }
            for task in tasks
        },
    } | changed
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "results.jsonl").write_text("".join(json.dumps(it) + "\n" for it in lines))
    costs = [
        {name: it[name] for name in ("task", "sample", "row")} | {"read_seconds": 2.0, "peak_rss_bytes": 1e9}
        for it in lines
    ]
    (folder / "costs.jsonl").write_text("".join(json.dumps(it) + "\n" for it in costs))
    return folder


def planted(scores: Scores) -> list[dict[str, Any]]:
    return [line(task, i, row, it) for (task, row), many in scores.items() for i, it in enumerate(many)]


@pytest.fixture()
def report(tmp_path: Path) -> Callable[..., dict[tuple[str, str], dict[str, str]]]:
    """Numbers of report.csv, by task and row; report.md and report.html stay in tmp_path / "out"."""

    def write(
        lines: list[dict[str, Any]], reference: str | None = None
    ) -> dict[tuple[str, str], dict[str, str]]:
        write_report([run_folder(tmp_path / "run", lines)], tmp_path / "out", reference=reference)
        with (tmp_path / "out" / "report.csv").open() as file:
            return {(it["task"], it["row"]): it for it in csv.DictReader(file)}

    return write


def test_means_are_the_planted_ones_and_lie_in_their_intervals(report) -> None:
    numbers = report(planted({("a/one", "full"): [0.25, 0.75] * 20, ("a/one", "default"): [0.1] * 40}))
    full = numbers["a/one", "full"]
    assert float(full["mean"]) == 50.0
    assert float(full["low"]) < 50.0 < float(full["high"])
    assert (full["num_samples"], full["num_questions"]) == ("40", "40")
    assert float(numbers["a/one", "default"]["mean"]) == 10.0


def test_a_row_that_is_better_on_every_sample_is_marked(report, tmp_path: Path) -> None:
    base = np.linspace(0.1, 0.8, 20).tolist()
    better = [score + 0.1 for score in base]
    mixed = [score + 0.1 * (-1) ** i for i, score in enumerate(base)]
    numbers = report(
        planted({("a/one", "full"): base, ("a/one", "default"): better, ("a/one", "em-llm"): mixed})
    )
    assert numbers["a/one", "default"]["verdict"] == "better"
    assert numbers["a/one", "default"]["reference"] == "full"
    assert math.isclose(float(numbers["a/one", "default"]["difference"]), 10.0)
    assert numbers["a/one", "em-llm"]["verdict"] == ""
    assert "+10.0 ▲" in (tmp_path / "out" / "report.md").read_text()
    assert 'aria-label="better"' in (tmp_path / "out" / "report.html").read_text()


def test_five_pairs_are_never_marked(report) -> None:
    numbers = report(planted({("a/one", "full"): [0.0] * 5, ("a/one", "default"): [1.0] * 5}))
    assert numbers["a/one", "default"]["verdict"] == ""


def test_one_sample_alone_has_no_interval_and_an_average_with_it_is_never_marked(
    report, tmp_path: Path
) -> None:
    # Drawn again, a single sample is always itself: seven of them would look like a certainty.
    tasks = [f"a/{number}" for number in range(7)]
    scores = {(task, row): [it] for task in tasks for row, it in (("full", 0.2), ("default", 0.9))}
    numbers = report(planted(scores))
    for row, difference in (("full", ""), ("default", "70.0000")):
        found = numbers["a/3", row]
        assert (found["low"], found["high"], found["difference_low"], found["verdict"]) == ("",) * 4
        assert found["difference"] == difference
    written = (tmp_path / "out" / "report.md").read_text()
    assert "| a | 20.0 | 90.0 | 7 |" in written and "| a | +70.0 | 7 |" in written
    assert "0 of 8 differences marked; 0 could be" in written


def asked(row: str, scores: list[float], *, index: int = 0, **changed: Any) -> dict[str, Any]:
    """A sample with several questions."""
    answers = [{"prediction": "x", "score": it, "answer_tokens": 1, "facts": {}} for it in scores]
    return line("a/one", index, row, sum(scores) / len(scores), answers=answers, **changed)


def test_a_score_and_a_difference_are_means_over_questions_and_not_over_texts(report, tmp_path: Path) -> None:
    # The mean over texts is 75 for the first row and 50 for the second.
    texts = {"full": ([1.0], [0.0, 0.5, 0.5, 1.0]), "default": ([0.0], [1.0] * 4)}
    numbers = report(
        [
            asked(row, scores, index=i, tokens=2 ** (12 + i))
            for row, both in texts.items()
            for i, scores in enumerate(both)
        ]
    )
    assert numbers["a/one", "full"]["mean"] == "60.0000"
    assert numbers["a/one", "default"]["mean"] == "80.0000"
    assert numbers["a/one", "default"]["difference"] == "20.0000"
    assert numbers["a/one", "default"]["num_pairs"] == "2"
    assert numbers["a/one", "default"]["num_questions"] == "5"
    written = (tmp_path / "out" / "report.md").read_text()
    assert "means over all questions" in written and "| default | 0.0 (of 1) | 100.0 (of 4) |" in written


def test_an_interval_draws_texts_with_all_their_questions(report) -> None:
    texts = np.random.default_rng(3).random((2, 12)).round(3).tolist()
    once = report(
        [asked(row, [it], index=i) for row, own in zip(ROWS, texts, strict=False) for i, it in enumerate(own)]
    )
    often = report(
        [
            asked(row, [it] * 9, index=i)
            for row, own in zip(ROWS, texts, strict=False)
            for i, it in enumerate(own)
        ]
    )
    for name in ("mean", "low", "high", "difference", "difference_low", "difference_high", "num_pairs"):
        assert once["a/one", "default"][name] == often["a/one", "default"][name]


def test_questions_about_one_text_alone_are_drawn_and_the_report_says_so(report, tmp_path: Path) -> None:
    some = [asked("full", [0.0, 1.0] * 10), asked("default", [1.0] * 20)]
    numbers = report(some)
    assert float(numbers["a/one", "full"]["low"]) < 50.0 < float(numbers["a/one", "full"]["high"])
    assert numbers["a/one", "full"]["num_samples"] == "1"
    assert numbers["a/one", "default"]["verdict"] == "better"
    assert "say nothing of other texts: a/one." in (tmp_path / "out" / "report.md").read_text()
    failed = [some[0], line("a/one", 0, "default", None, answers=[])]
    assert report(failed)["a/one", "default"]["difference"] == ""
    two = [*some, line("a/one", 1, "full", 0.5), line("a/one", 1, "default", 0.5)]
    assert report(two)["a/one", "default"]["verdict"] == ""
    assert "other texts" not in (tmp_path / "out" / "report.md").read_text()


def test_an_average_of_tasks_with_several_samples_is_marked(report, tmp_path: Path) -> None:
    scores = {
        (task, row): [it, it + 0.1]
        for task in ("a/one", "a/two", "a/three")
        for row, it in (("full", 0.2), ("default", 0.7))
    }
    report(planted(scores))
    assert "| a | +50.0 ▲ (+50.0 to +50.0) | 6 |" in (tmp_path / "out" / "report.md").read_text()


def test_a_folder_without_results_is_one_line(tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "none", "no such folder"), (tmp_path, "no results in it")):
        with pytest.raises(StoreError, match=f"^{folder}: {said}$"):
            write_report([folder], tmp_path / "out")


def test_a_run_that_is_not_finished_says_how_many_results_are_there(tmp_path: Path) -> None:
    about = {"metric": "qa_f1", "suite": "a", "category": "", "answer_tokens": 3, "num_samples": 5}
    folder = run_folder(tmp_path / "run", planted({("a/one", "full"): [0.5, 0.6]}), tasks={"a/one": about})
    remark = "run: 2 of 15 results of its tasks and rows are there."
    assert read_run(folder).remarks == (remark,)
    shard = run_folder(folder, planted({("a/one", "full"): [0.5]}), tasks={"a/one": about}, shards=2, shard=1)
    assert read_run(shard).remarks == ("run: 1 of 6 results of its tasks and rows are there.",)
    (folder / "results.jsonl").unlink()
    write_report([folder], tmp_path / "out")
    written = (tmp_path / "out" / "report.md").read_text()
    assert "results.jsonl is missing: no results are there yet." in written and "0 of 6 results" in written


def test_a_model_is_called_by_its_title(tmp_path: Path) -> None:
    lines = planted({("a/one", "full"): [0.5]})
    write_report([run_folder(tmp_path / "run", lines, model_title="Some Model")], tmp_path / "out")
    assert "## Some Model\n" in (tmp_path / "out" / "report.md").read_text()


def test_what_only_the_page_shows_is_not_announced_elsewhere(report, tmp_path: Path) -> None:
    report(planted({("a/one", "full"): [0.5, 0.6]}))
    assert "on which rows differ most" in (tmp_path / "out" / "report.html").read_text()
    assert "on which rows differ most" not in (tmp_path / "out" / "report.md").read_text()


def test_failures_are_counted_and_never_scored(report, tmp_path: Path) -> None:
    numbers = report(
        planted({("a/one", "full"): [1.0] * 8 + [None] * 2, ("a/one", "default"): [1.0] * 8 + [0.0] * 2})
    )
    assert (numbers["a/one", "full"]["num_failed"], numbers["a/one", "full"]["num_samples"]) == ("2", "8")
    assert float(numbers["a/one", "full"]["mean"]) == 100.0
    assert float(numbers["a/one", "default"]["mean"]) == 80.0
    difference = numbers["a/one", "default"]
    assert (difference["num_pairs"], float(difference["difference"])) == ("8", 0.0)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "2 failed" in text
    assert "8 samples of 10 answered by every row" in text
    assert "OutOfMemoryError: 24 GB asked" in text


def test_an_average_over_fewer_samples_than_there_are_says_so(report, tmp_path: Path) -> None:
    planted_scores = {(task, "full"): [1.0] * 3 + [None] * 7 for task in ("a/one", "a/two")}
    planted_scores |= {(task, "default"): [1.0] * 3 + [0.0] * 7 for task in ("a/one", "a/two")}
    report(planted(planted_scores))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "On fewer samples than there are rest full (6 of 20): to be judged by their differences" in text


def test_a_row_that_fails_everywhere_still_stands_in_the_report(report) -> None:
    numbers = report(planted({("a/one", "full"): [None] * 3, ("a/one", "default"): [0.5] * 3}))
    assert numbers["a/one", "full"]["mean"] == ""
    assert numbers["a/one", "default"]["verdict"] == ""


def test_perplexity_is_exp_of_nats_lower_is_better_and_in_no_average(report, tmp_path: Path) -> None:
    nats = [math.log(10.0)] * 10
    numbers = report(
        planted(
            {
                ("books/x", "full"): nats,
                ("books/x", "default"): [it - 0.5 for it in nats],
                ("books/y", "full"): nats,
                ("books/y", "default"): nats,
            }
        )
    )
    assert math.isclose(float(numbers["books/x", "full"]["mean"]), 10.0)
    assert numbers["books/x", "default"]["verdict"] == "better"
    assert math.isclose(float(numbers["books/x", "default"]["difference"]), -0.5)
    assert "### Averages" not in (tmp_path / "out" / "report.md").read_text()


def test_perplexities_of_texts_that_were_not_read_alike_are_not_compared(report) -> None:
    cut = [line("books/x", i, "full", 2.0, read_tokens=3000) for i in range(10)]
    numbers = report(cut + planted({("books/x", "default"): [1.0] * 10, ("books/x", "em-llm"): [1.0] * 10}))
    assert numbers["books/x", "default"]["mean"] != ""
    assert numbers["books/x", "default"]["difference"] == numbers["books/x", "default"]["verdict"] == ""


def test_an_average_leaves_out_a_task_that_a_row_has_no_score_for(report, tmp_path: Path) -> None:
    scores: Scores = {(f"a/{task}", row): [0.5] * 6 for task in "xyz" for row in ("full", "default")}
    scores["a/z", "full"] = [None] * 6
    report(planted(scores))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "a: without a/z" in text
    assert re.search(r"\| a \| 50\.0 .* \| 2 \|", text)


def test_merged_shards_give_the_report_of_one_run(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = planted({(task, row): generator.random(12).tolist() for task in ("a/x", "a/y") for row in ROWS})
    whole = run_folder(tmp_path / "whole", lines)
    shards = [
        run_folder(tmp_path / f"shard{i}", [it for it in lines if it["index"] % 2 == i], shards=2, shard=i)
        for i in (0, 1)
    ]
    texts = []
    for folders in ([whole], shards[::-1]):
        write_report(folders, tmp_path / "out")
        markdown = (tmp_path / "out" / "report.md").read_text().partition("### How it was run")[0]
        texts.append((markdown, (tmp_path / "out" / "report.csv").read_text()))
    assert texts[0] == texts[1]
    write_report(shards[:1], tmp_path / "out")
    assert "Of 2 shards these are missing: 1" in (tmp_path / "out" / "report.md").read_text()


def test_two_models_never_share_a_table(tmp_path: Path) -> None:
    lines = planted({("a/one", "full"): [0.5] * 6})
    folders = [run_folder(tmp_path / name, lines, model=name) for name in ("tall", "short")]
    write_report(folders, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["tall", "short"]
    assert text.count("6 samples of 6 answered by every row") == 2


def test_results_of_two_states_of_the_code_are_said_to_be(tmp_path: Path) -> None:
    lines = planted({("a/one", "full"): [0.5]})
    for codes, is_said in ((["aaaa"], False), (["aaaa", "bbbb"], True)):
        write_report([run_folder(tmp_path / "run", lines, code=codes)], tmp_path / "out")
        written = (tmp_path / "out" / "report.md").read_text()
        assert ("The code changed while this was run (aaaa, bbbb)" in written) is is_said
        assert f"| code | {', '.join(codes)} |" in written


def test_lengths_that_were_run_apart_stand_in_one_report(tmp_path: Path) -> None:
    folders = []
    for length, num_samples in ((4096, 3), (8192, 2)):
        lines = [
            line("a/one", i, "full", 1 / length, sample=f"a/one-{length}-{i}", facts={"length": length})
            for i in range(num_samples)
        ]
        about = json.loads((run_folder(tmp_path / str(length), lines) / "run.json").read_text())
        tasks = {name: {**task, "num_samples": num_samples} for name, task in about["tasks"].items()}
        folders.append(run_folder(tmp_path / str(length), lines, tasks=tasks))
    write_report(folders, tmp_path / "out")
    written = (tmp_path / "out" / "report.md").read_text()
    assert "1 task, 5 samples" in written


def test_folders_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    lines = planted({("a/one", "full"): [0.5] * 6})
    one = run_folder(tmp_path / "one", lines)
    with pytest.raises(StoreError, match=r"a/one-0 / full is in more than one folder: .*one, .*two"):
        write_report([one, run_folder(tmp_path / "two", lines)], tmp_path / "out")
    other = {row: {"kind": row, "settings": {"gamma": 2}} for row in ROWS}
    with pytest.raises(StoreError, match=r"row 'full' is not the same in .*one and .*two"):
        write_report([one, run_folder(tmp_path / "two", lines, rows=other)], tmp_path / "out")
    asked = json.loads((one / "run.json").read_text())["tasks"]
    asked = {name: {**task, "questions": 3} for name, task in asked.items()}
    with pytest.raises(StoreError, match=r"task 'a/one' is not the same in .*one and .*two"):
        write_report([one, run_folder(tmp_path / "two", lines, tasks=asked)], tmp_path / "out")
    with pytest.raises(StoreError, match=r"a/one-2 is another text in .*two than in .*one: they"):
        of_other_data = ["00", "11", "33", "33", "44", "55"]
        folders = [
            run_folder(
                tmp_path / name,
                [it for it in planted({("a/one", row): [0.5] * 6}) if it["row"] == row],
                tasks={"a/one": {**asked["a/one"], "questions": None, "samples": " ".join(digests)}},
            )
            for name, row, digests in (
                ("one", "full", ["00", "11", "22", "33", "44", "55"]),
                ("two", "default", of_other_data),
            )
        ]
        write_report(folders, tmp_path / "out")
    with pytest.raises(StoreError, match=r"task 'a/one' is not the same .*: it was scored with rouge"):
        folders = [
            run_folder(
                tmp_path / name,
                planted({("a/one", row): [0.5] * 6}),
                tasks={"a/one": {**asked["a/one"], "questions": None, "libraries": {"rouge": version}}},
            )
            for name, row, version in (("one", "full", "2"), ("two", "default", "1"))
        ]
        write_report(folders, tmp_path / "out")
    run_folder(tmp_path / "one", lines)
    with pytest.raises(ConfigError, match="reference must be one of full, default, em-llm, got 'x'"):
        write_report([one], tmp_path / "out", reference="x")
    with pytest.raises(ConfigError, match="at least one run folder"):
        write_report([], tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": 1.5}, "score must be a number from 0 to 1, got 1.5"),
        ({"score": float("nan")}, "score must be a number from 0 to 1, got nan"),
        ({"score": None}, "score must be a number from 0 to 1, got None"),
        ({"failed": "x"}, "a failed sample has no score, got 0.5"),
        ({"row": "other"}, "'other' is not among the rows of run.json"),
        ({"tokens": "many"}, "tokens must be a number >= 0, got 'many'"),
        ({"tokens": math.inf}, "tokens must be a number >= 0, got inf"),
        ({"index": 0, "sample": "a/one-0"}, "a/one / a/one-0 / full is there twice"),
    ],
)
def test_a_malformed_line_is_refused_with_file_and_line(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    folder = run_folder(tmp_path / "run", [line("a/one", 0, "full", 0.5), line("a/one", 1, "full", 0.5)])
    first, second = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text(f"{first}\n{json.dumps(json.loads(second) | changed)}\n")
    with pytest.raises(StoreError, match=re.escape(f"results.jsonl, line 2: {message}")):
        read_run(folder)


@given(st.data())
def test_an_incomplete_last_line_is_left_out_and_said(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lines = [line("a/one", i, "full", 0.5, facts={"é": "ü"}) for i in range(2)]
    folder = run_folder(tmp_path_factory.mktemp("run"), lines)
    text = json.dumps(lines[1], ensure_ascii=False).encode()
    cut = data.draw(st.integers(1, len(text) - 1))
    (folder / "results.jsonl").write_bytes(json.dumps(lines[0]).encode() + b"\n" + text[:cut])
    run = read_run(folder)
    assert len(run.records) == 1
    assert run.remarks == ("The last line of results.jsonl was incomplete and is left out: the run goes on.",)
    (folder / "results.jsonl").write_bytes(text[:cut] + b"\n" + text + b"\n")
    with pytest.raises(StoreError, match="line 1: not JSON"):
        read_run(folder)


class Page(HTMLParser):
    """Elements of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_inert_whatever_was_answered(report, tmp_path: Path) -> None:
    hostile = "</td><script>alert(1)</script><img src=https://x.y/z onerror=alert(1)> @@TITLE@@ \ud800 a|b"
    lines = [
        line("a/one", i, row, 0.5, tokens=2 ** (12 + i), facts={"depth": i / 2})
        for row in ROWS
        for i in range(3)
    ]
    for it in lines:
        it["answers"][0]["prediction"] = hostile
    lines[0] |= {"score": None, "answers": [], "failed": hostile}
    report(lines)
    page = (tmp_path / "out" / "report.html").read_text()
    parsed = Page(page)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "svg"}
    assert "alert(1)&lt;/script&gt;" in page
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            if name in attributes:
                assert re.match(r"#c\d|data:", attributes[name] or ""), (tag, attributes)
    images = [attributes for tag, attributes in parsed.elements if tag == "img"]
    assert images
    assert all(attributes["alt"] for attributes in images)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = [
        attributes["aria-labelledby"] for _, attributes in parsed.elements if "aria-labelledby" in attributes
    ]
    assert set(labels) <= set(ids)
    assert "a\\|b" in (tmp_path / "out" / "report.md").read_text(errors="replace")


@given(st.sampled_from(["<b>x</b>", "a & b; <i>", "'\"><script>"]))
def test_no_part_of_a_page_keeps_markup(text: str) -> None:
    table = Table(text, (f"{text} ({text})", text), ((Cell(text), Cell(text, detail=text, verdict="worse")),))
    folded = replace(table, is_folded=True)
    page = render_page([Chapter(text, (Section(text, (text, table, folded)),))])
    assert {tag for tag, _ in Page(page).elements} & {"b", "i", "script"} == set()


def test_a_curve_by_depth_is_of_questions_with_one_place_and_says_how_many_have_none(
    report, tmp_path: Path
) -> None:
    facts = [{"depth": 12.0}, {"depth": 88.0}, {"depths": [3.0, 91.0]}, {}]
    answers = [
        {"prediction": "x", "score": score, "answer_tokens": 1, "facts": it}
        for score, it in zip((1.0, 0.5, 0.0, 0.0), facts, strict=True)
    ]
    report([line("a/one", i, "full", 0.375, answers=answers) for i in range(2)])
    written = (tmp_path / "out" / "report.md").read_text()
    assert "| row | 12 % | 88 % |" in written and "| full | 100.0 (of 2) | 50.0 (of 2) |" in written
    assert "a: score by depth: without 4 questions whose evidence stands at several places" in written


@pytest.mark.parametrize(
    ("task", "lengths"),
    [("niah/niah", "| 4K | 16K |"), ("longbench/qasper", "| 4K–8K | 16K–32K |")],
)
def test_a_length_is_in_tokens_whatever_a_suite_counts(
    report, tmp_path: Path, task: str, lengths: str
) -> None:
    # LongBench counts words, or characters of Chinese.
    asked_for = [(4096, 4101), (16384, 16401)]
    report(
        [line(task, i, "full", 0.5, facts={"length": it[0]}, tokens=it[1]) for i, it in enumerate(asked_for)]
    )
    assert f"| row {lengths}" in (tmp_path / "out" / "report.md").read_text()


def test_a_depth_below_one_percent_stays_one(report, tmp_path: Path) -> None:
    report([line("a/one", i, "full", 0.5, facts={"depth": i / 2}) for i in range(3)])
    assert "| row | 0 % | 0.5 % | 1 % |" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("since", ["sample", "process"])
def test_peaks_of_memory_say_what_they_are_of_and_devices_have_theirs(tmp_path: Path, since: str) -> None:
    folder = run_folder(tmp_path / "run", planted({("a/one", row): [0.5, 0.6] for row in ROWS}))
    costs = [json.loads(it) for it in (folder / "costs.jsonl").read_text().splitlines()]
    for device_bytes in (None, 3e9):
        for it in costs:
            it |= {
                "peak_rss_since": since,
                "peak_device_bytes": device_bytes if it["row"] == "full" else None,
            }
        (folder / "costs.jsonl").write_text("".join(json.dumps(it) + "\n" for it in costs))
        write_report([folder], tmp_path / "out")
        written = (tmp_path / "out" / "report.md").read_text()
        assert ("which an earlier row may have set" in written) == (since == "process")
        assert ("peak RAM, GB | peak device memory, GB |" in written) == (device_bytes is not None)
        assert ("| full | 100% | – | 2,500 | – | – | 1.0 | 3.0 |" in written) == (device_bytes is not None)


def test_pictures_hold_no_reference_to_elsewhere(report, tmp_path: Path) -> None:
    report([line("a/one", i, "full", 0.5, tokens=2 ** (12 + i)) for i in range(3)])
    page = (tmp_path / "out" / "report.html").read_text()
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == 2
    for picture in pictures:
        svg = base64.b64decode(picture).decode()
        links = re.findall(r'href="([^"]*)"', svg)
        assert all(link.startswith("#") for link in links)
        assert "<script" not in svg


def test_the_same_runs_give_the_same_report_byte_for_byte(report, tmp_path: Path) -> None:
    lines = [line("a/one", i, row, i / 8, tokens=2 ** (9 + i)) for row in ROWS for i in range(8)]
    texts = []
    for _ in range(2):
        report(lines)
        texts.append([path.read_bytes() for path in sorted((tmp_path / "out").iterdir())])
    assert texts[0] == texts[1]


def test_published_rows_are_shown_for_the_same_model_only(tmp_path: Path) -> None:
    lines = planted({("longbench/trec", "full"): [0.5] * 6})
    for name, is_shown in (("org/Mistral-7B-Instruct-v0.2", True), ("org/Mistral-7B-v0.1", False)):
        write_report([run_folder(tmp_path / name, lines, model=name)], tmp_path / "out")
        text = (tmp_path / "out" / "report.md").read_text()
        assert ("Copied from the papers named" in text) == is_shown
        assert ("| trec | " in text, "| longbench/trec | 50.0 | 69 | 71 | 70 |" in text) == (True, is_shown)


def test_published_rows_say_their_prompts_scorers_and_budget_and_have_the_papers_mean(tmp_path: Path) -> None:
    model = "org/Mistral-7B-Instruct-v0.2"
    paper = groups_of(["longbench"])["longbench/paper"]
    for tasks, mean in ((paper, "of the paper's 15 tasks"), (paper[:2], "of these 2")):
        lines = planted({(task, row): [0.5] * 2 for task in tasks for row in ("full", "default")})
        write_report([run_folder(tmp_path / "run", lines, model=model)], tmp_path / "out")
        text = (tmp_path / "out" / "report.md").read_text().partition("### Published numbers")[2]
        assert "4K local + 2K recalled. Prompts: LongBench's own, nothing of a text cut" in text
        assert "Scorers: those of the released code" in text and "docs/published-numbers.md" in text
        assert f"| longbench, mean ({mean}) | 50.0 | 50.0 | " in text
    assert re.search(r"\| longbench, mean .*\| 25\.7. \| 25\.42 \| 25\.2. \| 25\.13 \| 25\.5. \|", text)


def test_a_row_without_a_score_has_no_mean_beside_the_published_one(tmp_path: Path) -> None:
    scores: Scores = {(f"longbench/{task}", "full"): [0.5] * 2 for task in ("trec", "lcc")}
    scores |= {("longbench/trec", "default"): [0.5] * 2, ("longbench/lcc", "default"): [None] * 2}
    folder = run_folder(tmp_path / "run", planted(scores), model="org/Mistral-7B-Instruct-v0.2")
    write_report([folder], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| longbench, mean (of these 2) | 50.0 | – | " in text


def test_a_run_of_more_tasks_than_the_papers_has_their_average_too(report, tmp_path: Path) -> None:
    paper = groups_of(["longbench"])["longbench/paper"]
    scores: Scores = {(task, "full"): [0.4] * 2 for task in paper}
    report(planted(scores))
    assert "paper: 15 tasks" not in (tmp_path / "out" / "report.md").read_text()
    report(planted(scores | {("longbench/passage_count", "full"): [0.0] * 2}))
    text = (tmp_path / "out" / "report.md").read_text()
    assert re.search(
        r"\| longbench \(paper: 15 tasks\) \| 40\.0 .*\| 15 \|\n\| longbench \| 37\.5 .*\| 16 \|", text
    )


def test_published_tables_are_whole_and_give_the_printed_averages() -> None:
    for table in published():
        assert all(len(scores) == len(table.rows) for scores in table.scores.values()), table.source
        assert all(0 <= score <= 100 for scores in table.scores.values() for score in scores)
    printed = {"mistral-7b-instruct-v0.2": 43.71, "phi-3.5-mini-instruct": 34.67}
    for name, average in printed.items():
        tasks = [task for table in published() for task in table.scores if task.startswith("longbench/")]
        (table, *_) = published_for(f"x/{name.upper()}", dict.fromkeys(tasks))
        assert len(table.scores) == 15
        assert math.isclose(np.mean([scores[-1] for scores in table.scores.values()]), average, abs_tol=0.011)


def test_the_files_that_a_task_was_read_from_are_named(tmp_path: Path) -> None:
    lines = planted({("a/one", "full"): [0.5], ("b/two", "full"): [0.5]})
    tasks = {
        "a/one": {"metric": "qa_f1", "files": ["a/val.jsonl", "a/more.jsonl"]},
        "b/two": {"metric": "qa_f1"},
    }
    write_report([run_folder(tmp_path / "run", lines, tasks=tasks)], tmp_path / "out")
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| a/one | qa_f1 | – | – | a/val.jsonl, a/more.jsonl |" in markdown
    assert "| b/two | qa_f1 | – | – | – |" in markdown


def test_the_costs_are_credited_to_all_machines(tmp_path: Path) -> None:
    folders = [
        run_folder(
            tmp_path / "one",
            planted({("a/one", "full"): [0.5]}),
            hardware=["X, 2 cores", "Y"],
            threads=[1, 8],
        ),
        run_folder(tmp_path / "two", planted({("a/one", "default"): [0.5]}), hardware="Z", threads=4),
    ]
    write_report(folders, tmp_path / "out")
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "Measured while the samples were answered, on: X, 2 cores; Y; Z." in markdown
    assert "| hardware | X, 2 cores; Y | Z |" in markdown and "| threads | 1; 8 | 4 |" in markdown


def test_runs_on_other_devices_or_with_other_versions_are_named(tmp_path: Path) -> None:
    def remarks(**changed: Any) -> list[str]:
        known = {"device": "cuda:0", "versions": {"torch": "2.9", "transformers": "5.0"}}
        folders = [
            run_folder(tmp_path / name, planted({("a/one", row): [0.5]}), **about)
            for name, row, about in (
                ("one", "full", known),
                ("two", "default", known | {"device": "cuda:1"}),
                ("three", "em-llm", changed),
            )
        ]
        (found,) = comparisons([read_run(folder) for folder in folders])
        return [remark for remark in found.remarks if "not made alike" in remark]

    assert remarks() == [] == remarks(device="cuda", versions={"torch": "2.9"})
    (said,) = remarks(device="cpu", versions={"torch": "2.8", "transformers": "5.0"})
    assert said == (
        "These runs were not made alike: device cuda in one, two and cpu in three; torch 2.9 in one, two and "
        "2.8 in three. Results may differ for that reason."
    )
    write_report([tmp_path / name for name in ("one", "two", "three")], tmp_path / "out")
    assert said in (tmp_path / "out" / "report.md").read_text()


def test_groups_of_samples_have_their_own_means_and_numbers(report, tmp_path: Path) -> None:
    name, none = "longbench-e/qasper", line("plain/one", 0, "full", 1.0, facts={"length": 4000})
    buckets = ("0-4k", "8k+", "0-4k", "8k+", "8k+")
    lines = [none] + [
        line(name, i, row, score, facts={"bucket": bucket, "length": 4000})
        for row, scores in (("full", (1.0, 0.0, 0.5, 0.25, None)), ("default", (0.0, 1.0, 0.0, 1.0, 1.0)))
        for i, (bucket, score) in enumerate(zip(buckets, scores, strict=True))
    ]
    numbers = report(lines)
    full, default = numbers[name, "full"], numbers[name, "default"]
    assert (full["bucket 0-4k"], full["bucket 0-4k num_samples"]) == ("75.0000", "2")
    assert (full["bucket 8k+"], full["bucket 8k+ num_samples"]) == ("12.5000", "2")
    assert (default["bucket 8k+"], default["bucket 8k+ num_samples"]) == ("100.0000", "3")
    assert not any("4-8k" in column for column in full)
    assert numbers["plain/one", "full"]["bucket 0-4k"] == ""
    markdown = (tmp_path / "out" / "report.md").read_text()
    section = markdown.partition("### By group of samples")[2].partition("###")[0]
    assert "| task and row | 0-4k | 4-8k | 8k+ |" in section
    assert "| longbench-e/qasper (full) | 75.0 (of 2) | – | 12.5 (of 2) |" in section
    assert "plain/one" not in section and "By difficulty" not in section
    assert "By group of samples" in (tmp_path / "out" / "report.html").read_text()


def test_difficulty_and_length_are_two_tables(report, tmp_path: Path) -> None:
    facts = [{"difficulty": "easy", "length": "short"}, {"difficulty": "hard", "length": "long"}]
    report([line("longbench-v2/zero-shot", i, "full", float(i), facts=it) for i, it in enumerate(facts)])
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| longbench-v2/zero-shot (full) | 0.0 (of 1) | 100.0 (of 1) |" in markdown
    assert "| longbench-v2/zero-shot (full) | 0.0 (of 1) | – | 100.0 (of 1) |" in markdown


def test_without_groups_there_is_neither_section_nor_column(report, tmp_path: Path) -> None:
    numbers = report([line("a/one", 0, "full", 1.0, facts={"length": 4000})])
    assert not any(" " in column for column in numbers["a/one", "full"])
    assert "By group" not in (tmp_path / "out" / "report.md").read_text()
