"""What the commands print when all is well, with a tiny model of random weights."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., object]
SENTENCE = "Once upon a time there was a little girl named Lily. She had a big red dog called Max. "
SMALL = ("--chunk-tokens", "64", "--local-tokens", "64", "--recall-tokens", "128")
SHORT = ("--max-new-tokens", "6")


@pytest.fixture()
def model(tiny_model: Path) -> tuple[str, ...]:
    return ("--model", str(tiny_model), *SMALL)


class TestAsk:
    @pytest.mark.parametrize("way", [("--recollect", "never"), ("--rerank-events", 0)])  # events come first
    def test_the_answer_is_followed_by_the_recalled_events(self, run, story: Path, model, way) -> None:
        ended = run("ask", story, "Who has a dog?", *model, *SHORT, "--evidence", 2, *way)
        assert ended.code == 0
        answer, evidence = ended.out.split("Recalled, best first:")
        assert answer.strip()
        lines = evidence.strip().splitlines()
        assert len(lines) == 4
        assert "story.txt at" in lines[0] and "of 3 layers" in lines[0]
        assert lines[1].strip().removesuffix("…") in SENTENCE * 3
        assert "tokens/s" in ended.err and ended.err.count("\n") == 1

    def test_a_model_of_nothing_but_windows_says_that_it_recalls_nothing(
        self, run, story: Path, tiny_model: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "windows"
        shutil.copytree(tiny_model, folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 24}
        (folder / "config.json").write_text(json.dumps(config))
        ended = run("ask", story, "Who has a dog?", "--model", folder, *SMALL, *SHORT)
        assert ended.code == 0
        assert f"every layer of {folder} attends to a window of 24 tokens at most" in ended.err

    def test_json_has_exactly_the_published_keys(self, run, story: Path, model) -> None:
        ended = run("ask", story, "Who?", *model, *SHORT, "--json")
        result = json.loads(ended.out)
        assert set(result) == {"answer", "evidence", "stats"}
        assert set(result["evidence"][0]) == {
            *("event", "start", "stop", "document", "position", "text", "score", "layers")
        }
        stats = result["stats"]
        assert set(stats) == {
            *("tokens", "events", "read_tokens", "read_seconds", "tokens_per_second"),
            *("answer_tokens", "answer_seconds", "peak_rss_bytes"),
        }
        assert stats["tokens_per_second"] == pytest.approx(stats["read_tokens"] / stats["read_seconds"])
        assert 0 < stats["answer_tokens"] <= 6 and stats["events"] > 0 < stats["answer_seconds"]
        assert 0 <= stats["tokens"] - stats["read_tokens"] <= 1  # the first token, which stands before a text
        assert ended.err == ""

    def test_several_questions_share_one_reading(
        self, run, story: Path, model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import emllm.remembering

        readings = []
        read = emllm.remembering.read_tokens

        def count(*args: object, **kwargs: object) -> None:
            readings.append(len(args[2]))
            read(*args, **kwargs)

        monkeypatch.setattr("emllm.remembering.read_tokens", count)
        ended = run("ask", story, "-q", "Who?", "-q", "What?", *model, *SHORT, "--json")
        first, second = map(json.loads, ended.out.splitlines())
        assert first["stats"]["tokens"] == second["stats"]["tokens"]
        assert len([num for num in readings if num > 10]) == 1

    def test_a_question_does_not_change_the_answer_to_the_next(self, run, story: Path, model) -> None:
        ended = run("ask", story, "-q", "Who?", "-q", "What?", *model, *SHORT, "--json")
        alone = run("ask", story, "What?", *model, *SHORT, "--json")
        assert json.loads(ended.out.splitlines()[1])["answer"] == json.loads(alone.out)["answer"]

    def test_a_text_of_one_token_can_be_asked_about(self, run, tmp_path: Path, model) -> None:
        (tmp_path / "one.txt").write_text("a")
        ended = run("ask", tmp_path / "one.txt", "Who?", *model, *SHORT)
        assert ended.code == 0
        assert "whole text was in view" in ended.out

    def test_standard_input_is_a_source(self, run, model, stdin) -> None:
        stdin((SENTENCE * 20).encode())
        ended = run("ask", "-", "Who?", *model, *SHORT)
        assert ended.code == 0 and "stdin at" in ended.out

    def test_what_a_folder_cannot_give_is_remarked_and_the_rest_read(self, run, story: Path, model) -> None:
        (story.parent / "data.bin").write_bytes(b"\x00\x01")
        ended = run("ask", story.parent, "Who?", *model, *SHORT)
        assert ended.code == 0
        assert "data.bin: binary file" in ended.err

    def test_nothing_that_a_terminal_obeys_is_printed(self, run, tmp_path: Path, model) -> None:
        path = tmp_path / "evil.txt"
        path.write_text("She said \x1b[2J\x1b]0;gone\x07 and left. " * 60)
        ended = run("ask", path, "Who?", *model, *SHORT)
        assert "\x1b" not in ended.out and "\x07" not in ended.out


PROGRESS = re.compile(r"reading story\.txt: ([\d,]+) of ([\d,]+) tokens, [\d,]+ tokens/s, \d+\.\d s left")


class TestProgress:
    @pytest.mark.parametrize("words", [("ask", "Who?", *SHORT), ("segment",)])
    def test_speed_and_time_left_of_reading_go_to_stderr_and_json_stays_json(
        self, run, story: Path, model, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
    ) -> None:
        monkeypatch.setattr("emllm.cli.terminal.SECONDS_BETWEEN_LINES", 0.0)
        ended = run(words[0], story, *words[1:], *model, "--json")
        assert ended.code == 0 and json.loads(ended.out)
        found = [PROGRESS.fullmatch(line) for line in ended.err.splitlines()]
        assert len(found) > 2 and all(found)
        read = [[int(number.replace(",", "")) for number in match.groups()] for match in found if match]
        assert [num for num, _ in read] == [min(64 * i, read[0][1]) for i in range(1, len(read) + 1)]
        assert read[-1][0] == read[-1][1] and found[-1][0].endswith(" 0.0 s left")

    def test_a_short_reading_says_nothing_of_it(self, run, story: Path, model) -> None:
        assert run("segment", story, *model).err == ""

    def test_a_terminal_shows_a_bar_with_speed_and_time_left(
        self, run, story: Path, model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("TERM", "xterm")
        ended = run("ask", story, "Who?", *model, *SHORT, "--json")
        assert json.loads(ended.out)
        assert re.search(r"reading story\.txt .*? tokens, [\d,]+ tokens/s, 0\.0 s left", terminal.getvalue())


class Terminal(io.StringIO):
    """Standard error of someone who looks."""

    def isatty(self) -> bool:
        return True


class TestSegment:
    def test_the_text_in_events_is_the_text(self, run, story: Path, model) -> None:
        ended = run("segment", story, *model)
        assert ended.code == 0
        assert ended.out.startswith("story.txt: ")
        assert "[1] tokens" in ended.out

    def test_json_events_partition_the_tokens_and_the_text(self, run, story: Path, model) -> None:
        result = json.loads(run("segment", story, *model, "--json").out)
        assert set(result) == {"tokens", "events", "surprise", "settings"}
        edges = [event["start"] for event in result["events"]] + [result["tokens"]]
        assert edges[0] == 0
        assert edges[1:] == [event["stop"] for event in result["events"]]
        assert "".join(event["text"] for event in result["events"]) == story.read_text()
        assert result["settings"]["local_tokens"] == 64

    @pytest.mark.parametrize(
        ("suffix", "start"),
        [("html", b"<!doctype html>"), ("png", b"\x89PNG"), ("json", b'{"tokens"'), ("txt", b"story.txt: ")],
    )
    def test_the_suffix_decides_what_is_written(
        self, run, story: Path, tmp_path: Path, model, suffix: str, start: bytes
    ) -> None:
        if suffix == "png":
            pytest.importorskip("matplotlib")
        output = tmp_path / f"x.{suffix}"
        ended = run("segment", story, *model, "-o", output)
        assert ended.code == 0 and ended.out == "" and "wrote" in ended.err
        assert output.read_bytes().lower().startswith(start.lower())
        assert {path.name for path in tmp_path.iterdir()} == {"story.txt", output.name}

    def test_a_link_goes_on_leading_to_its_file(self, run, story: Path, tmp_path: Path, model) -> None:
        (tmp_path / "far").mkdir()
        link, file = tmp_path / "x.txt", tmp_path / "far" / "y.txt"
        file.write_text("before")
        link.symlink_to(file)
        assert run("segment", story, *model, "-o", link).code == 0
        assert link.is_symlink() and file.read_text().startswith("story.txt: ")
        assert [path.name for path in file.parent.iterdir()] == ["y.txt"]

    def test_what_is_no_file_is_written_to_and_stays(self, run, story: Path, tmp_path: Path, model) -> None:
        """A pipe here; /dev/null was replaced by a file once."""
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert run("segment", story, *model, "--format", "txt", "-o", pipe).code == 0
            assert os.read(reader, 1 << 16).startswith(b"story.txt: ")
        finally:
            os.close(reader)
        assert pipe.is_fifo()

    def test_a_text_of_one_token_is_one_event(self, run, tmp_path: Path, model) -> None:
        (tmp_path / "one.txt").write_text("a")
        result = json.loads(run("segment", tmp_path / "one.txt", *model, "--json").out)
        assert result["tokens"] == 1 and result["surprise"] == [None]

    @pytest.mark.parametrize("segmenter", ["kl", "fixed", "random", "sentence"])
    def test_every_segmenter_can_be_shown(self, run, story: Path, model, segmenter: str) -> None:
        ended = run("segment", story, *model, "--segmenter", segmenter, "--json")
        assert ended.code == 0 and len(json.loads(ended.out)["events"]) > 1


class TestChat:
    def test_each_line_of_a_pipe_is_answered_until_quit(self, run, model, stdin) -> None:
        stdin(b"Hello\n\nWho are you?\n/quit\nnever asked\n")
        ended = run("chat", *model, *SHORT, "--json")
        assert ended.code == 0
        assert len(ended.out.splitlines()) == 2

    def test_the_memory_grows_by_question_and_answer(self, run, story: Path, model, stdin) -> None:
        stdin(b"Hello\nHello\n")
        ended = run("chat", story, *model, *SHORT, "--json")
        first, second = (json.loads(line)["stats"]["tokens"] for line in ended.out.splitlines())
        assert second > first

    def test_events_shows_what_the_last_answer_recalled(self, run, story: Path, model, stdin) -> None:
        stdin(b"/events\nWho?\n/events\n/nonsense\n")
        ended = run("chat", story, *model, *SHORT)
        assert "Recalled" in ended.out
        assert "nothing was asked yet" in ended.err and "unknown command '/nonsense'" in ended.err

    def test_what_was_said_is_evidence_from_the_conversation(self, run, model, stdin) -> None:
        stdin((SENTENCE * 20).encode() + b"\nWho?\n/events\n")
        ended = run("chat", *model, *SHORT)
        _, evidence = ended.out.split("Recalled")
        assert "the conversation, strength" in evidence and "before the documents" not in evidence

    def test_events_in_json_is_the_last_answer_again(self, run, story: Path, model, stdin) -> None:
        stdin(b"Who?\n/events\n")
        first, again = run("chat", story, *model, *SHORT, "--json").out.splitlines()
        assert json.loads(first)["evidence"] and again == first

    def test_invalid_bytes_do_not_end_the_conversation(self, run, model, stdin) -> None:
        stdin(b"caf\xe9\nHello\n")
        ended = run("chat", *model, *SHORT, "--json")
        assert ended.code == 0 and len(ended.out.splitlines()) == 2


class TestDoctor:
    def test_the_report_says_what_a_token_costs(self, run, tiny_model: Path) -> None:
        report = json.loads(run("doctor", "--model", tiny_model, "--json").out)
        assert report["model"]["works"]
        assert report["model"]["kv_bytes_per_token"] == 3 * 2 * (8 + 8) * 4
        assert "float32" in report["devices"][0]["dtypes"]

    @pytest.mark.usefixtures("plain_processor")
    def test_a_processor_that_emulates_is_said(self, run, tiny_model: Path) -> None:
        shown = run("doctor", "--model", tiny_model)
        assert "(slow: bfloat16, float16)" in shown.out and shown.err == ""
        emulated = run("doctor", "--model", tiny_model, "--dtype", "bfloat16")
        assert "this processor emulates bfloat16; float32" in emulated.err

    @pytest.mark.usefixtures("able_processor")
    def test_a_processor_that_does_not_is_not_said_to(self, run, tiny_model: Path) -> None:
        ended = run("doctor", "--model", tiny_model, "--dtype", "bfloat16")
        assert "slow" not in ended.out and ended.err == ""

    def test_a_model_that_cannot_be_used_is_said_and_is_exit_code_1(
        self, run, broken_models: dict[str, Path]
    ) -> None:
        ended = run("doctor", "--model", broken_models["gpt2"])
        assert ended.code == 1 and "rotary" in ended.out
