"""``emllm eval``: what it prints when all is well, and how every mistake ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_suite
from tiny_suite import task

from emllm.cli.evaluate_view import summary
from emllm.evaluation.rows import ROWS
from emllm.evaluation.task_groups import GROUPS

SMALL = [
    word for name, value in tiny_suite.SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))
]
ROW = ("--rows", "full,default")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite `tiny` of two tasks instead of the real ones."""
    tiny_suite.install(monkeypatch)
    tasks = [task("one", answer_tokens=3), task("two", answer_tokens=3, source={"count": 2, "bad": (1,)})]

    def tasks_of(suite: str) -> list[object]:
        from emllm.errors import ConfigError

        if suite != "tiny":
            raise ConfigError(f"suite must be one of tiny, got {suite!r}")
        return tasks

    for module in ("emllm.evaluation.task", "emllm.evaluation.wishes"):
        monkeypatch.setattr(f"{module}.tasks_of", tasks_of)
    monkeypatch.setattr("emllm.evaluation.task.suite_names", lambda: ["tiny"])


@pytest.fixture()
def model(tiny_model: Path) -> tuple[str, ...]:
    return ("--model", str(tiny_model), *SMALL)


@pytest.fixture()
def out(tmp_path: Path) -> Path:
    return tmp_path / "results"


class TestRun:
    def test_a_table_has_a_line_a_task_and_a_column_a_row(self, run, model, out: Path) -> None:
        ended = run("eval", "run", "tiny", *ROW, "--out", out, *model)
        assert ended.code == 0
        head, one, two, said = ended.out.rstrip("\n").split("\n")
        assert head.split() == ["full", "default"]
        assert one.startswith("tiny/one (qa_f1) ") and "*" not in one
        assert two.startswith("tiny/two (qa_f1) ") and two.count("*") == 2
        assert said == f"10 results in {out}, of which 2 failed (*) and are not scored"
        assert "emllm: 2 results failed" in ended.err

    def test_a_suite_alone_is_run(self, run, model, out: Path) -> None:
        options = ("--tasks", "one", "--limit", 1, "--rows", "default", "--out", out, "--json")
        first = run("eval", "tiny", *options, *model)
        second = run("eval", "run", "tiny", *options, *model)
        assert first == second and first.code == 0

    @pytest.mark.usefixtures("plain_processor")
    def test_a_run_goes_on_in_its_own_dtype_on_another_processor(self, run, model, out: Path) -> None:
        options = ("--tasks", "one", "--rows", "default", "--out", out, *model)
        begun = run("eval", "tiny", *options, "--limit", 1, "--dtype", "bfloat16")
        on = run("eval", "tiny", *options, "--limit", 2)
        assert (begun.code, on.code) == (0, 0) and "emulates bfloat16" in on.err
        assert json.loads((out / "run.json").read_text())["dtype"] == "bfloat16"
        other = run("eval", "tiny", *options, "--limit", 2, "--dtype", "float32")
        assert other.code == 2 and "bfloat16, this model has float32" in other.err

    def test_json_has_exactly_the_published_keys(self, run, model, out: Path) -> None:
        ended = run("eval", "tiny", "--tasks", "tiny/two", *ROW, "--out", out, *model, "--json")
        found = json.loads(ended.out)
        assert set(found) == {"out", "results", "failed", "metrics", "scores"}
        assert found["failed"] == 2 and set(found["scores"]["tiny/two"]) == {"full", "default"}
        assert set(found["scores"]["tiny/two"]["full"]) == {"score", "samples", "failed"}

    def test_a_score_is_the_mean_over_questions(self) -> None:
        lines = [
            {
                "task": "a",
                "row": "full",
                "failed": None,
                "score": mean,
                "answers": [{"score": it} for it in own],
            }
            for mean, own in ((1.0, [1.0]), (0.5, [0.0, 0.5, 0.5, 1.0]))
        ]
        run = {"tasks": {"a": {"metric": "qa_f1"}}, "rows": {"full": {}}}
        found = summary(Path("x"), run, lines)["scores"]["a"]["full"]
        assert found == {"score": 0.6, "samples": 2, "failed": 0}

    def test_a_free_row_stands_beside_the_others(self, run, model, out: Path) -> None:
        ended = run(
            "eval",
            "tiny",
            "--rows",
            "full",
            "--row",
            "wide=default,recall_tokens=96",
            "--limit",
            1,
            "--out",
            out,
            *model,
            "--json",
        )
        assert ended.code == 0
        about = json.loads((out / "run.json").read_text())
        assert about["rows"]["wide"]["settings"]["recall_tokens"] == 96
        assert about["commands"] and about["limit"] == 1

    def test_shards_merge_to_the_results_of_one_go(self, run, model, out: Path, tmp_path: Path) -> None:
        run("eval", "tiny", *ROW, "--out", out, *model)
        folders = [tmp_path / f"shard{i}" for i in range(2)]
        for i, folder in enumerate(folders):
            assert run("eval", "tiny", *ROW, "--shards", 2, "--shard", i, "--out", folder, *model).code == 0
        ended = run("eval", "merge", *folders, "--into", tmp_path / "merged", "--json")
        assert ended.code == 0 and json.loads(ended.out)["results"] == 10
        merged = tmp_path / "merged" / "results.jsonl"
        assert merged.read_bytes() == (out / "results.jsonl").read_bytes()

    def test_results_go_to_a_folder_of_the_suites_name_by_default(
        self, run, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        options = ("--rows", "default", "--limit", 1)
        run("eval", "tiny", *options, *model)
        run("eval", "tiny", *options, "--shards", 2, "--shard", 1, "--tasks", "two", "--limit", 2, *model)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["eval-tiny", "eval-tiny-shard-1-of-2"]


class TestOthers:
    def test_the_list_names_suites_tasks_and_rows(self, run) -> None:
        shown = run("eval", "list").out
        assert "tiny" in shown and "one, two" in shown
        assert all(f"  {name} " in shown and row.said in shown for name, row in ROWS.items())
        found = json.loads(run("eval", "list", "--json").out)
        assert found["groups"] == {} and "Groups" not in shown
        assert found["suites"] == {"tiny": ["one", "two"]} and set(found["rows"]) == set(ROWS)

    def test_the_list_names_groups_of_tasks(self, run, monkeypatch) -> None:
        monkeypatch.setitem(GROUPS, "tiny", {"late": ("two",)})
        assert "Groups of tasks, for --tasks:\n  tiny/late " in run("eval", "list").out
        assert json.loads(run("eval", "list", "--json").out)["groups"] == {"tiny/late": ["tiny/two"]}

    def test_a_report_says_what_was_written(self, run, tmp_path: Path, monkeypatch) -> None:
        given = []

        def write_report(folders: list[Path], into: Path, *, reference: str | None) -> list[Path]:
            given.append((folders, into, reference))
            return [into / "report.md"]

        monkeypatch.setattr("emllm.evaluation.report.write_report", write_report)
        assert run("eval", "report", "a", "b").out == "a/report.md\n"
        assert json.loads(
            run("eval", "report", "a", "--into", "c", "--reference", "em-llm", "--json").out
        ) == {"written": ["c/report.md"]}
        assert given == [([Path("a"), Path("b")], Path("a"), None), ([Path("a")], Path("c"), "em-llm")]

    def test_without_a_command_the_help_is_shown(self, run) -> None:
        shown = run("eval").out
        assert all(word in shown for word in ("run", "merge", "report", "list"))


Refuses = Callable[..., str]


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("run", "tniy"), "suite must be one of tiny, got 'tniy'"),
            (
                ("tniy",),
                "'tniy' is neither a command of eval (run, merge, report, recall, list) nor a suite (tiny)",
            ),
            (("tiny", "tniy"), "suite must be one of tiny, got 'tniy'"),
            (("tiny", "tiny"), "a suite is named twice"),
            (("tiny", "--rows", "fulll"), "rows must be among full"),
            (("tiny", "--rows", "full,,em-llm"), "rows must be names with commas"),
            (("tiny", "--rows", "full,full"), "named twice"),
            (("tiny", "--tasks", "three"), "tasks must be among tiny/one, tiny/two, got 'three'"),
            (("tiny", "--row", "mine"), "a row must be name=preset"),
            (("tiny", "--row", "mine=default,gama=2"), "unknown setting 'gama'"),
            (("tiny", "--lengths", "4k"), "lengths must be whole numbers"),
            (("tiny", "--limit", "0"), "limit must be >= 1"),
            (("tiny", "--shards", "2", "--shard", "2"), "shard must be < shards = 2"),
            (("tiny", "--data", "/nowhere/data"), "/nowhere/data: no such data folder"),
            (("tiny", "--data", __file__), "a file, not a data folder"),
            (("tiny", "--preset", "em-llm"), "preset='em-llm': every row has its own"),
            (("tiny", "--variant", "SM"), "variant='SM': every row has its own"),
            (("tiny", "--rows", "em-llm", "--segmenter", "fixed"), "contradicts row em-llm"),
            (("tiny", "--recall-tokens", "all"), "recall_tokens must be an integer"),
            (("tiny", "--config", "/nowhere.toml"), "cannot be read"),
            (("run",), "Missing argument"),
            (("merge", "/nowhere", "--into", "x"), "/nowhere: no such folder"),
            (("merge", "/nowhere"), "Missing option"),
        ],
    )
    def test_a_wrong_word_is_one_line_before_any_model_is_loaded(
        self, refuses: Refuses, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("emllm.cli.evaluate.opened_lm", lambda *a, **k: pytest.fail("a model is loaded"))
        assert said in refuses("eval", *words)

    @pytest.mark.parametrize("damaged", ["[]", '{"format": 1}', '{"format": 1, "model": "x", "rows": []}'])
    def test_a_damaged_description_is_one_line(self, refuses, tmp_path: Path, damaged: str) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text(damaged)
        said = refuses("eval", "merge", tmp_path / "run", "--into", tmp_path / "whole")
        assert f"{tmp_path / 'run' / 'run.json'}: not the description of a run" in said

    def test_a_budget_larger_than_the_model_names_the_row(self, refuses, tiny_model: Path, out: Path) -> None:
        said = refuses("eval", "tiny", "--rows", "default", "--model", tiny_model, "--out", out)
        assert "row default: sink_tokens + local_tokens" in said and not out.exists()

    def test_results_of_other_settings_are_refused(self, run, refuses, model, out: Path) -> None:
        options = ("eval", "tiny", "--rows", "default", "--limit", 1, "--out", out, *model)
        run(*options)
        assert "row default had gamma=1.0, has 2.0" in refuses(*options, "--gamma", "2.0")

    def test_a_malformed_line_of_the_data_is_named(
        self, refuses, model, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from emllm.errors import SourceError

        def broken(task: object, needs: object) -> object:
            raise SourceError("data/one.jsonl, line 7: not JSON")

        monkeypatch.setattr("tiny_suite_samples.samples", broken)
        said = refuses("eval", "tiny", "--rows", "default", "--out", out, *model)
        assert "data/one.jsonl, line 7" in said and not out.exists()

    def test_a_folder_that_cannot_be_made_is_refused(self, refuses, model, story: Path) -> None:
        assert "cannot make" in refuses("eval", "tiny", "--rows", "default", "--out", story / "x", *model)
