"""`scripts/harness_agreement.py`: equal answers are counted as equal, and no others."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from families import tiny_model
from tiny_suite import WORDS, install, story, task, tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.models.huggingface import HFLM

from emllm import EpisodicLM
from emllm.evaluation.rows import Row

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "harness_agreement.py"
NARROW = {"sink_tokens": 2, "local_tokens": 8, "chunk_tokens": 8, "surprise_window_tokens": 16}
ANY_LENGTH = range(1, 500)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("harness_agreement", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of a tiny random model whose ids of beginning and end are the tokenizer's."""
    where, words = tmp_path_factory.mktemp("model"), tokenizer()
    model = tiny_model("llama", vocab_size=len(words))
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": None}
    model.config.update(ends)
    model.generation_config.update(**ends)
    model.save_pretrained(where)
    words.save_pretrained(where)
    return str(where)


@pytest.fixture(scope="module")
def both(folder):
    stock = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=1)
    with EpisodicLM.from_pretrained(folder, dtype="float32", device="cpu") as lm:
        yield lm, stock


@pytest.fixture(autouse=True)
def _tiny_suite(monkeypatch):
    install(monkeypatch)


def asked_of(script, lm, one, num_samples=3):
    return script.shortest(lm, one, None, num_samples=num_samples, tokens=ANY_LENGTH)


@pytest.mark.parametrize("is_chat", [True, False])
def test_full_attention_says_what_the_harness_says(script, both, is_chat):
    one = task(is_chat=is_chat, answer_tokens=12)
    answered = script.compared(*both, one, asked_of(script, both[0], one))
    assert len(answered) == 3 and all(each.ours for each in answered)
    for each in answered:
        assert each.ours == each.theirs and each.asked.token_ids == each.their_ids
    line = script.report(*both, one, answered)
    assert "\n" not in line and "| 3 | 3 |" in line


def test_a_stop_ends_both_predictions(script, both):
    one = task(answer_tokens=12)
    asked = asked_of(script, both[0], one)
    whole = script.compared(*both, one, asked)[0].theirs
    stop = whole[len(whole) // 2]
    for each in script.compared(*both, replace(one, stops=(stop,)), asked):
        assert each.ours == each.theirs and stop not in each.ours.lstrip()


def test_a_row_that_sees_less_is_not_said_to_agree(script, both):
    one, narrow = task(answer_tokens=12), Row("narrow", preset="streaming-llm", settings=NARROW)
    answered = script.compared(*both, one, asked_of(script, both[0], one), row=narrow)
    assert any(each.ours != each.theirs for each in answered)
    shown = script.report(*both, one, answered)
    assert "| 3 | 3 |" not in shown
    assert "tokens: ours" in shown and "logits of the harness" in shown and "no tie" in shown


def test_a_text_that_ends_within_a_word_has_the_ids_of_one_text(script, both, monkeypatch):
    one, lm = task(answer_tokens=12), both[0]
    first = asked_of(script, lm, one, num_samples=1)[0]
    question = replace(first.question, text="ed ball?")
    sample = replace(first.sample, text=first.sample.text + " r", questions=(question,))
    monkeypatch.setattr(script, "samples_function", lambda name: lambda task, needs: iter([sample]))
    (answered,) = script.compared(*both, one, asked_of(script, lm, one))
    assert answered.asked.token_ids == answered.their_ids and answered.ours == answered.theirs


def test_the_shortest_prompts_are_taken(script, both):
    one = task()
    lengths = [len(each.token_ids) for each in asked_of(script, both[0], one, num_samples=9)]
    assert len(lengths) == 3 and lengths == sorted(lengths)
    fewer = script.shortest(both[0], one, None, num_samples=9, tokens=range(1, max(lengths)))
    assert [len(each.token_ids) for each in fewer] == [n for n in lengths if n < max(lengths)]


def test_likelihoods_are_the_harnesss_unless_less_is_seen(script, both):
    docs = script.planted_choices([story(1, 80), story(2, 90)], 3)
    for doc in docs:
        assert [choice for choice in doc["choices"] if choice in doc["prompt"]] == [
            doc["choices"][doc["answer"]]
        ]
    for here, there in script.likelihoods(*both, docs):
        assert here == pytest.approx(there, abs=1e-3)
    narrow = script.likelihoods(*both, docs, preset="streaming-llm", **NARROW)
    assert max(abs(a - b) for here, there in narrow for a, b in zip(here, there, strict=True)) > 0.05


def test_the_command_line_prints_a_line_a_task(script, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "longbench").mkdir()
    records = [
        {"_id": f"s{i}", "context": story(i, 40 + i), "input": "Type:", "answers": ["red"], "length": 40}
        for i in range(3)
    ]
    lines = "".join(json.dumps({**one, "all_classes": WORDS[:3]}) + "\n" for one in records)
    (tmp_path / "longbench" / "trec.jsonl").write_text(lines, "utf-8")
    arguments = ["--tasks", "longbench/trec", "--samples", "2", "--tokens", "1", "400", "--facts", "1"]
    monkeypatch.setattr(
        sys, "argv", ["it", str(tmp_path), *arguments, "--model", folder, "--dtype", "float32"]
    )
    script.main()
    printed = capsys.readouterr().out
    assert "| longbench/trec | 2 |" in printed and "| 2 | 2 |" in printed
    assert "log-likelihoods of 4 choices" in printed and "the same choice in 1 of 1" in printed
