"""A run whose process is killed outright, again and again, ends with the results of a run that was let be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import tiny_suite

EMLLM = [sys.executable, "-c", "import sys; from emllm.cli.main import main; sys.exit(main())"]
#: Killed when so many results are there; 0: as soon as the folder is.
KILLED_AT = (0, 7)
NUM_RESULTS = 2 * 12


def command(out: Path, model: Path) -> list[object]:
    words: list[object] = ["eval", "passkey", "--rows", "default,streaming-llm", "--out", out]
    words += ["--model", model, "--lengths", 384, "--samples", NUM_RESULTS // 2]
    for name, value in tiny_suite.SMALL.items():
        words += [f"--{name.replace('_', '-')}", value]
    return words


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else -1


def keys(path: Path) -> list[list[object]]:
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return [[line[name] for name in ("task", "sample", "row")] for line in lines]


@pytest.mark.slow
def test_a_run_killed_outright_at_several_moments_has_the_results_of_one_let_be(
    run, tiny_model: Path, tmp_path: Path
) -> None:
    whole, killed, delay = tmp_path / "whole", tmp_path / "killed", Random(0)
    assert run(*command(whole, tiny_model)).code == 0
    words = list(map(str, command(killed, tiny_model)))
    for wanted in KILLED_AT:
        process = subprocess.Popen([*EMLLM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while num_lines(killed / "results.jsonl") < wanted:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.002)
        time.sleep(delay.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert wanted <= num_lines(killed / "results.jsonl") < NUM_RESULTS
    assert run(*words).code == 0
    assert num_lines(whole / "results.jsonl") == NUM_RESULTS
    assert (killed / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert keys(killed / "costs.jsonl") == keys(whole / "costs.jsonl")
    assert len(json.loads((killed / "run.json").read_text("utf-8"))["commands"]) == len(KILLED_AT) + 1
