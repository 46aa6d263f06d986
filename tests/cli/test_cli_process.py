"""What only a process of its own shows: start-up, signals, closed pipes, and a quiet stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EMLLM = [sys.executable, "-c", "import sys; from emllm.cli.main import main; sys.exit(main())"]


def start(*argv: object, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*EMLLM, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("argv", [["-h"], ["ask", "-h"], ["--version"], ["ask", "nowhere.txt", "Who?"]])
def test_help_and_mistakes_need_neither_torch_nor_transformers(argv: list[str]) -> None:
    code = "import sys; from emllm.cli.main import main; main(); sys.exit('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, check=False)
    assert ended.returncode == 0


def test_ctrl_c_while_reading_is_one_line_and_130(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("Once upon a time there was a little girl. " * 200_000)
    process = start("ask", path, "Who?", "--model", tiny_model)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"emllm: interrupted\n")


@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_ctrl_c_while_starting_is_one_line_and_130(tiny_model: Path, story: Path, seconds: float) -> None:
    process = start("chat", story, "--model", tiny_model, stdin=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"emllm: interrupted\n")


def test_a_closed_pipe_is_silent(tiny_model: Path, story: Path) -> None:
    process = start("segment", story, "--model", tiny_model)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (141, b"")


def test_an_ascii_terminal_does_not_break_printing(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("Größe “quoted” 日本語 text. " * 60)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = start(
        "ask",
        path,
        "Wer?",
        "--model",
        tiny_model,
        "--chunk-tokens",
        64,
        "--max-new-tokens",
        4,
        env=environment,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert b"Recalled" in out
