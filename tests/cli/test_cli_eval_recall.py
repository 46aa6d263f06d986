"""``emllm eval recall``: what it prints and writes, and how every mistake ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = ("--chunk-tokens", "64", "--local-tokens", "64", "--recall-tokens", "128")
QUICK = ("--budgets", "64,128,256", "--every", "2")
METHODS = ("configured", "dot", "votes", "attention", "exact", "best", "recent", "random")
SENTENCE = "Once upon a time there was a little girl named Lily. She had a big red dog called Max. "


@pytest.fixture()
def model(tiny_model: Path) -> tuple[str, ...]:
    return ("--model", str(tiny_model), *SMALL)


class TestRecall:
    def test_a_table_has_a_line_a_method_and_a_column_a_budget(self, run, story: Path, model) -> None:
        ended = run("eval", "recall", story, *QUICK, *model)
        assert ended.code == 0
        by_method, by_layer = (part.split("\n") for part in ended.out.rstrip("\n").split("\n\n"))
        assert by_method[1].split() == ["budget", "in", "tokens", "64", "128", "256"]
        assert [line.split()[0] for line in by_method[2:]] == list(METHODS)
        assert [line.split()[0] for line in by_layer[1:]] == ["layer", "0", "1", "2"]
        assert "tokens in 1 text" in ended.err and "needle" not in ended.err

    def test_needles_have_a_line_each(self, run, story: Path, model) -> None:
        ended = run("eval", "recall", story, "--needles", 2, *QUICK, *model)
        assert ended.code == 0
        needles = ended.out.rstrip("\n").split("\n\n")[2].split("\n")
        assert needles[1].split()[:2] == ["text", "token"] and len(needles) == 4
        assert all(line.startswith("story.txt ") for line in needles[2:])
        assert "needle" in ended.err

    def test_json_has_exactly_the_published_keys(self, run, story: Path, model) -> None:
        found = json.loads(run("eval", "recall", story, "--needles", 1, *QUICK, *model, "--json").out)
        assert set(found) == {
            *(
                "model",
                "settings",
                "budgets",
                "every",
                "seed",
                "texts",
                "layers",
                "needles",
                "mean",
                "near_top",
            )
        }
        assert found["budgets"] == [64, 128, 256] and set(found["layers"]) == {"0", "1", "2"}
        assert set(found["layers"]["0"]["share"]) == set(METHODS)
        assert set(found["needles"][0]) == {
            *("document", "sentence", "query", "position", "num_events", "layers"),
            *("consensus", "best", "median", "num_near_top"),
        }

    def test_a_folder_of_texts_is_read_text_by_text(self, run, story: Path, model) -> None:
        (story.parent / "other.txt").write_text(SENTENCE * 25)
        found = json.loads(run("eval", "recall", story.parent, *QUICK, *model, "--json").out)
        assert [text["name"] for text in found["texts"]] == ["other.txt", "story.txt"]

    def test_files_are_written_where_a_folder_is_given(self, run, story: Path, tmp_path: Path, model) -> None:
        pytest.importorskip("matplotlib")
        out = tmp_path / "deep" / "out"
        ended = run("eval", "recall", story, "--out", out, *QUICK, *model, "--json")
        assert ended.code == 0 and "wrote" in ended.err
        assert {path.name for path in out.iterdir()} == {"recall.json", "recall.md", "recall.svg"}
        assert json.loads((out / "recall.json").read_text()) == json.loads(ended.out)
        assert (out / "recall.svg").read_bytes().startswith(b"<?xml")

    def test_the_same_command_prints_the_same_twice(self, run, story: Path, model) -> None:
        words = ("eval", "recall", story, "--needles", 1, *QUICK, *model)
        assert run(*words) == run(*words)


Refuses = Callable[..., str]


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--budgets", "1k"), "budgets must be whole numbers with commas, got '1k'"),
            (("--budgets", "64,32"), "budgets must ascend from 1 or more, got 64,32"),
            (("--every", "0"), "every must be >= 1, got 0"),
            (("--tokens", "0"), "tokens must be >= 1, got 0"),
            (("--needles", "-1"), "needles must be >= 0, got -1"),
            (("--recall-tokens", "all"), "recall_tokens must be a number > 0"),
            (("--preset", "streaming-llm"), "recall_tokens must be a number > 0"),
            (("--gamma", "nan"), "gamma must be a number"),
            (("--preset", "defalt"), "preset must be one of"),
        ],
    )
    def test_a_wrong_word_is_one_line_before_any_model_is_loaded(
        self,
        refuses: Refuses,
        story: Path,
        words: tuple[str, ...],
        said: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("emllm.cli.recall.opened_lm", lambda *a, **k: pytest.fail("a model is loaded"))
        assert said in refuses("eval", "recall", story, *words)

    def test_a_source_that_is_missing_is_named(self, refuses: Refuses, tmp_path: Path) -> None:
        assert "none.txt" in refuses("eval", "recall", tmp_path / "none.txt")
        assert "Missing argument" in refuses("eval", "recall")

    def test_a_folder_that_cannot_be_made_is_refused(self, refuses: Refuses, story: Path, model) -> None:
        said = refuses("eval", "recall", story, "--out", story / "x", *model)
        assert "cannot be made" in said

    def test_a_text_that_is_attended_to_whole_is_refused(self, refuses, tmp_path: Path, model) -> None:
        (tmp_path / "short.txt").write_text("Once upon a time.")
        assert "no events were ranked" in refuses("eval", "recall", tmp_path / "short.txt", *model)
