"""``emllm plan``: figures before reading, and mistakes in one line."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emllm.errors import ModelError

SMALL = ("--chunk-tokens", "64", "--local-tokens", "64", "--recall-tokens", "128")


@pytest.fixture()
def model(tiny_model: Path) -> tuple[str, ...]:
    return ("--model", str(tiny_model), "--device", "cpu", *SMALL)


@pytest.fixture()
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("emllm.cli.plan.opened_lm", load)


@pytest.mark.usefixtures("no_loading")
class TestFigures:
    @pytest.mark.parametrize(
        ("word", "tokens"),
        [
            ("1000000", 10**6),
            ("1_000_000", 10**6),
            ("200K", 200_000),
            ("1M", 10**6),
            ("10m", 10**7),
            ("1.5k", 1500),
            ("7", 7),
        ],
    )
    def test_a_bare_number_is_a_number_of_tokens(self, run, model, word: str, tokens: int) -> None:
        result = json.loads(run("plan", word, *model, "--json").out)
        assert result["num_tokens"] == tokens and result["documents"] == []
        assert result["num_events"] == round(tokens / 18)

    def test_json_has_the_fields_of_a_plan(self, run, model) -> None:
        from emllm.plan import Plan

        result = json.loads(run("plan", "200K", *model, "--json").out)
        assert set(result) == {
            *Plan.__dataclass_fields__,
            "fits",
            "verdict",
            "free",
            "documents",
            "model",
            "measured",
        }
        assert set(result["disk_bytes"]) == {"exact", "bf16", "fp8", "int8", "int4"}
        assert result["kv_bytes_per_token"] == 3 * 2 * 2 * 8 * 4
        assert result["measured"] is False and result["tokens_per_second"] > 0

    def test_without_a_tokenizer_tokens_are_estimated(
        self, run, model, story: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: object) -> None:
            raise ModelError("no tokenizer")

        monkeypatch.setattr("emllm.models.outline.Located.tokenizer", fail)
        ended = run("plan", story, *model, "--json")
        assert json.loads(ended.out)["num_tokens"] == round(len(story.read_bytes()) / 4)
        assert "estimated from bytes" in ended.err

    def test_the_table_says_all_and_fits_the_width(self, run, model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "100")
        ended = run("plan", "1M", *model, "--mean-event-tokens", "40")
        assert ended.code == 0 and ended.out.endswith("this will fit\n")
        for word in (
            "1,000,000 tokens",
            "25,000 events",
            "int4",
            "RAM",
            "tokens/s, estimated",
            "host_budget",
        ):
            assert word in ended.out
        assert max(map(len, ended.out.splitlines())) <= 100

    def test_what_will_not_fit_is_one_line_and_exit_code_1(
        self, run, model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("emllm.cli.plan.free_ram_bytes", lambda: 2 * 10**9)
        ended = run("plan", "1G", *model)
        assert ended.code == 1
        verdict = ended.out.splitlines()[-1]
        assert verdict.startswith("will not fit: ") and "RAM" in verdict and "tokens would fit" in verdict


def test_files_are_counted_exactly_as_they_will_be_read(
    run, tiny_model: Path, tiny_tokenizer, story: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "templated")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}Someone says: {{ m.content }} {% endfor %}Answer:"
    tokenizer.save_pretrained(folder)
    (tmp_path / "b.txt").write_text("And more. " * 30)
    words = ("--model", str(folder), *SMALL, "--json")
    sources = (story, tmp_path / "b.txt")
    planned = json.loads(run("plan", *sources, *words).out)
    asked = json.loads(run("ask", *sources, "Who?", *words, "--max-new-tokens", "2").out)
    assert planned["num_tokens"] == asked["stats"]["tokens"]
    assert planned["documents"] == ["story.txt", "b.txt"]


def test_measuring_reads_a_few_chunks_with_the_model(run, model, story: Path) -> None:
    for source in (story, "200K"):
        result = json.loads(run("plan", source, *model, "--measure", "--json").out)
        assert result["measured"] is True and result["tokens_per_second"] > 0


@pytest.mark.usefixtures("no_loading")
class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["0"], "number of tokens must be from 1 to"),
            (["999999999G"], "number of tokens must be from 1 to"),
            (["0.2"], "number of tokens must be from 1 to"),
            (["1M", "2M"], "stands alone, got 1M"),
            (["nowhere.txt"], "nowhere.txt: no such file"),
            (["10X"], "10X: no such file"),
            ([], "Missing argument"),
            (["1M", "--mean-event-tokens", "0"], "mean-event-tokens must be a number >= 1"),
            (["1M", "--mean-event-tokens", "nan"], "mean-event-tokens must be a number >= 1"),
            (["1M", "--gama", "1"], "No such option"),
            (["1M", "--device", "tpu9"], "device"),
            (["1M", "--dtype", "float7"], "dtype"),
            (["1M", "--local-tokens", "4000"], "512"),
        ],
    )
    def test_a_wrong_word_is_refused(
        self, refuses: Callable[..., str], model, words: list[str], said: str
    ) -> None:
        assert said in refuses("plan", *model, *words)

    def test_a_number_beside_a_file_is_refused(self, refuses, model, story: Path) -> None:
        assert "stands alone" in refuses("plan", story, "1M", *model)

    def test_a_model_without_rotary_positions_is_refused(self, refuses, broken_models) -> None:
        assert "has no rotary module" in refuses("plan", "10K", "--model", broken_models["gpt2"])

    def test_a_missing_model_is_refused(self, refuses) -> None:
        assert "there is no model folder" in refuses("plan", "1M", "--model", "./nowhere")

    def test_a_place_below_a_file_is_refused(self, refuses, model, story: Path) -> None:
        assert "no folder" in refuses("plan", "1M", "--into", story / "x.mem", *model)
