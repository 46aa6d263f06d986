"""``emllm bench``: what it prints and what it refuses, with a tiny model; never how fast anything is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = ("--chunk-tokens", "256", "--sink-tokens", "64", "--local-tokens", "64", "--recall-tokens", "128")
LENGTHS = ("--lengths", "2048,2560")


@pytest.fixture()
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("Lily had a big red dog called Max, and one day it ran away. " * 1500)
    return path


@pytest.fixture()
def bench(
    run: Callable[..., object], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., object]:
    monkeypatch.setattr("emllm.evaluation.speed.TURN_TOKENS", 1024)
    monkeypatch.setattr("emllm.evaluation.speed.DECODE_TURN_TOKENS", 2)
    return lambda *argv: run("bench", *argv, "--model", tiny_model, *SMALL)


def test_a_line_for_every_length_stands_beside_the_stock_model(bench, book: Path) -> None:
    ended = bench(book, *LENGTHS)
    assert ended.code == 0
    head, names, *rows = ended.out.splitlines()
    assert "256 tokens attended" in head and "KV bytes per token" in head
    assert names.split()[:4] == ["read", "tokens/s", "last", "1/8"]
    assert [row.split()[0] for row in rows[:2]] == ["2,048", "2,560"]
    assert rows[2].startswith("2,560 against 2,048 tokens, as ratios to stock: ")
    assert rows[3].startswith("refinement takes") and rows[4].startswith("peak RSS")


def test_json_has_the_ratios_and_what_they_are_of(bench, book: Path) -> None:
    result = json.loads(bench(book, *LENGTHS, "--json").out)
    assert result["width_tokens"] == result["settings"]["sink_tokens"] + 64 + 128
    for speed, num_tokens in zip(result["reading"], (2048, 2560), strict=True):
        assert speed["num_tokens"] == num_tokens
        assert speed["ratio"] == pytest.approx(
            speed["tokens_per_second"] / speed["baseline_tokens_per_second"]
        )
    assert [one["num_tokens_read"] for one in result["decoding"]] == [2048, 2560]
    assert result["refinement_cost"] is not None and result["peak_rss_bytes"] > 0


@pytest.mark.parametrize("lengths", ["2560,2048", "1000", "many", "2048,2048", ""])
def test_lengths_that_do_not_ascend_are_refused(refuses, book: Path, lengths: str) -> None:
    assert "lengths must" in refuses("bench", book, "--lengths", lengths)


def test_a_text_that_is_too_short_is_refused(refuses, book: Path, tiny_model: Path) -> None:
    short = book.with_name("short.txt")
    short.write_text("Lily had a dog.")
    assert "tokens; lengths must not exceed that" in refuses("bench", short, "--model", tiny_model, *LENGTHS)


def test_a_memory_that_attends_to_everything_has_no_window_to_be_held_against(refuses, book: Path) -> None:
    assert "recall_tokens=all" in refuses("bench", book, "--preset", "full")
