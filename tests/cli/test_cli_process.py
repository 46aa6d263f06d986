"""What only a process of its own shows: start-up, signals, closed pipes, and a quiet stderr."""

from __future__ import annotations

import json
import os
import shlex
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


@pytest.fixture()
def asking(tiny_model: Path) -> tuple[object, ...]:
    """Settings with which an answer has no end before a test's."""
    views = ("--chunk-tokens", 64, "--local-tokens", 64, "--recall-tokens", 128)
    return ("--model", tiny_model, "--device", "cpu", *views, "--max-new-tokens", 1_000_000)


def interrupted_after_the_first_byte(process: subprocess.Popen[bytes]) -> bytes:
    """Press Ctrl-C as soon as something is printed; what is said on stderr then."""
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)[1]


def test_ctrl_c_while_an_answer_is_written_is_one_line_and_130(asking, story: Path) -> None:
    process = start("ask", story, "Who has a dog?", *asking)
    said = interrupted_after_the_first_byte(process)
    assert (process.returncode, said) == (130, b"emllm: interrupted\n")


def test_ctrl_c_while_a_stored_memory_answers_changes_nothing_in_it(
    asking, story: Path, run, tmp_path: Path
) -> None:
    memory = tmp_path / "story.mem"
    settings = asking[: asking.index("--max-new-tokens")]
    assert run("read", story, "--into", memory, *settings).code == 0
    before = {path: path.read_bytes() for path in sorted((memory / "segments").iterdir())}
    process = start("ask", memory, "Who has a dog?", "--device", "cpu", *asking[-2:])
    said = interrupted_after_the_first_byte(process)
    assert (process.returncode, said) == (130, b"emllm: interrupted\n")
    assert {path: path.read_bytes() for path in sorted((memory / "segments").iterdir())} == before
    assert run("memory", "verify", memory).code == 0


def test_ctrl_c_while_segment_reads_prints_and_writes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "long.txt", tmp_path / "events.json"
    path.write_text("Once upon a time there was a little girl. " * 200_000)
    process = start("segment", path, "--model", tiny_model, "-o", output, "--json")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=30), process.returncode) == (b"", b"emllm: interrupted\n", 130)
    assert list(tmp_path.iterdir()) == [path]


#: Ctrl-C is pressed when half of a file is written.
WRITING_HALF = """
import pathlib, signal, sys
from emllm.cli.main import main
write = pathlib.Path.write_bytes
def write_half(path, data):
    write(path, data[: len(data) // 2])
    signal.raise_signal(signal.SIGINT)
pathlib.Path.write_bytes = write_half
sys.exit(main())
"""


def test_ctrl_c_while_segment_writes_leaves_the_file_as_it_was(tiny_model: Path, story: Path) -> None:
    output = story.with_name("events.html")
    output.write_text("older")
    argv = ["segment", story, "--model", tiny_model, "-o", output]
    ended = subprocess.run(
        [sys.executable, "-c", WRITING_HALF, *map(str, argv)], capture_output=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"emllm: interrupted\n")
    assert output.read_text() == "older"
    assert {path.name for path in story.parent.iterdir()} == {story.name, output.name}


def test_ctrl_c_ends_an_answer_of_a_chat_and_nothing_else(asking, story: Path, run, tmp_path: Path) -> None:
    talk = tmp_path / "talk.mem"
    process = start("chat", story, "--save", talk, *asking, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"Who has a dog?\n")
    process.stdin.flush()
    said = interrupted_after_the_first_byte(process)  # and Ctrl-D
    assert (process.returncode, said) == (0, b"")
    assert run("memory", "verify", talk).code == 0


def test_ctrl_c_while_a_chat_waits_is_one_line_and_130_and_its_turns_are_kept(
    asking, story: Path, run, tmp_path: Path
) -> None:
    talk = tmp_path / "talk.mem"
    process = start("chat", story, "--save", talk, *asking[:-1], 4, "--json", stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"Who has a dog?\n")
    process.stdin.flush()
    before = json.loads(process.stdout.readline())["stats"]["tokens"]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"emllm: interrupted\n")
    assert run("memory", "verify", talk).code == 0
    assert json.loads(run("memory", "show", talk, "--json").out)["tokens"] > before


def test_a_closed_pipe_is_silent(tiny_model: Path, story: Path) -> None:
    process = start("segment", story, "--model", tiny_model)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (141, b"")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_change_nothing_else(
    tiny_model: Path, story: Path, tmp_path: Path, run, closed: str
) -> None:
    memory = tmp_path / "story.mem"
    argv = [*EMLLM, "read", str(story), "--into", str(memory), "--model", str(tiny_model), "--device", "cpu"]
    ended = subprocess.run(["sh", "-c", f"{shlex.join(argv)} {closed}"], capture_output=True, check=False)
    assert ended.returncode == 0 and b"Traceback" not in ended.stderr
    assert run("memory", "verify", memory).code == 0


def test_a_pipe_by_its_device_is_written_to(tiny_model: Path, story: Path) -> None:
    process = start("segment", story, "--model", tiny_model, "--format", "txt", "-o", "/dev/stdout")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out.startswith(b"story.txt: "), err


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


def test_a_full_disk_under_the_output_is_one_line_and_2() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([*EMLLM, "eval", "list"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (2, b"emllm: output: No space left on device\n")


def test_without_any_input_a_conversation_ends_at_once(tiny_model: Path) -> None:
    command = " ".join(map(shlex.quote, [*EMLLM, "chat", "--model", str(tiny_model)]))
    ended = subprocess.run(["sh", "-c", f"{command} <&-"], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"") and b"Traceback" not in ended.stderr
