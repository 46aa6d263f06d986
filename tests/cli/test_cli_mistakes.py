"""A user's mistake is one line on stderr and exit code 2, found before anything slow begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Refuses = Callable[..., str]


@pytest.fixture()
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test: the mistake should have been found before."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("ask", "segment", "chat"):
        monkeypatch.setattr(f"emllm.cli.{name}.opened_lm", load)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.usefixtures("no_model")
class TestSources:
    @pytest.mark.parametrize(
        ("name", "data", "words"),
        [
            ("data.bin", b"\x7fELF\x02\x01\x01\x00\x00\xff", "binary file"),
            ("empty.txt", b"", "empty"),
            ("blank.txt", b" \n\t ", "only whitespace"),
            ("latin1.txt", b"caf\xe9 au lait", "byte 0xe9 at byte 3, line 1"),
        ],
    )
    @pytest.mark.parametrize("command", ["ask", "segment", "chat"])
    def test_an_unreadable_file_is_refused_by_its_name(
        self, refuses: Refuses, tmp_path: Path, command: str, name: str, data: bytes, words: str
    ) -> None:
        path = write(tmp_path, name, data)
        said = refuses(command, path, *(["Who?"] if command == "ask" else []))
        assert str(path) in said and words in said

    def test_a_missing_file_is_refused(self, refuses: Refuses) -> None:
        assert "nowhere.txt: no such file" in refuses("ask", "nowhere.txt", "Who?")
        assert "nowhere.txt: no such file" in refuses("segment", "nowhere.txt")

    def test_a_folder_without_readable_files_is_refused(self, refuses: Refuses, tmp_path: Path) -> None:
        write(tmp_path, "data.bin", b"\x00\x01")
        assert "no readable file in this folder (1 skipped" in refuses("ask", tmp_path, "Who?")

    @pytest.mark.parametrize("command", ["segment", "bench"])
    def test_a_folder_is_refused_where_one_file_is_taken(
        self, refuses: Refuses, tmp_path: Path, command: str
    ) -> None:
        write(tmp_path, "a.txt", b"words")
        assert refuses(command, tmp_path) == f"emllm: {tmp_path}: a folder; {command} takes one file"

    def test_empty_standard_input_is_refused(self, refuses: Refuses, stdin: Callable[[bytes], None]) -> None:
        stdin(b"")
        assert refuses("ask", "-", "Who?") == "emllm: standard input: empty"

    def test_a_file_larger_than_memory_is_refused_by_its_size(self, refuses: Refuses, tmp_path: Path) -> None:
        path = write(tmp_path, "sparse.txt", b"")
        with path.open("r+b") as file:
            file.truncate(2**40)
        assert "1,099,511,627,776 bytes, more than the" in refuses("ask", path, "Who?")

    def test_files_that_are_larger_than_memory_together_are_refused_by_their_sizes(
        self, refuses: Refuses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = [write(tmp_path, f"{name}.txt", b"words " * 100) for name in ("one", "two")]
        monkeypatch.setattr("emllm.cli.sources.free_ram_bytes", lambda: 6 * 1000)
        assert "2 sources: 1,200 bytes, more than the 1,000" in refuses("ask", *paths, "Who?")
        write(tmp_path, ".hidden", b"0" * 500)
        write(tmp_path, "large.bin", b"0" * 5000)  # skipped with a remark, as it was
        write(tmp_path, "image.png", b"\x89PNG\r\n\x1a\n" + b"0" * 500)
        write(tmp_path, "table", b"0\x00" * 250)
        assert f"{tmp_path}: 1,200 bytes, more than the 1,000" in refuses("ask", tmp_path, "Who?")

    def test_chat_does_not_read_its_messages_as_a_text(self, refuses: Refuses) -> None:
        assert "standard input" in refuses("chat", "-")


@pytest.mark.usefixtures("no_model")
class TestQuestions:
    def test_a_source_alone_is_no_question(self, refuses: Refuses, story: Path) -> None:
        assert "no question" in refuses("ask", story)

    def test_two_files_are_no_question(self, refuses: Refuses, story: Path) -> None:
        assert "no question" in refuses("ask", story, story)

    @pytest.mark.parametrize("question", ["", "  "])
    def test_an_empty_question_is_refused(self, refuses: Refuses, story: Path, question: str) -> None:
        assert "the question must not be empty" in refuses("ask", story, question)
        assert "the question must not be empty" in refuses("ask", story, "-q", question)

    def test_a_question_in_broken_unicode_is_refused(self, refuses: Refuses, story: Path) -> None:
        assert "not valid UTF-8" in refuses("ask", story, "Who is \udcff?")


@pytest.mark.usefixtures("no_model")
class TestSettings:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--gama", "2"], "No such option"),
            (["--gamma"], "requires an argument"),
            (["--gamma", "much"], "--gamma"),
            (["--gamma", "nan"], "gamma must be a number"),
            (["--chunk-tokens", "0"], "chunk_tokens must be an integer >= 1, got 0"),
            (["--segmenter", "magic"], "segmenter must be one of surprise"),
            (["--preset", "best"], "preset must be one of default"),
            (["--variant", "X"], "variant must be one of S"),
            (["--variant", "F", "--refine", "modularity"], "contradicts variant F"),
            (["--recall-tokens", "100"], "recall_tokens must be 0 or >= max_event_tokens = 128, got 100"),
            (["--recall-tokens", "some"], "recall_tokens must be an integer >= 0 or 'all', got 'some'"),
            (["--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
        ],
    )
    def test_a_wrong_setting_is_refused(
        self, refuses: Refuses, story: Path, flags: list[str], words: str
    ) -> None:
        assert words in refuses("segment", story, *flags)

    @pytest.mark.parametrize(
        ("toml", "words"),
        [
            ("gama = 2", "unknown setting 'gama'"),
            ("gamma = ", "not a TOML file"),
            ("gamma = 'much'", "gamma must be a number"),
            ("preset = 1", "preset must be a string"),
        ],
    )
    def test_a_wrong_settings_file_is_refused(
        self, refuses: Refuses, story: Path, tmp_path: Path, toml: str, words: str
    ) -> None:
        path = write(tmp_path, "settings.toml", toml.encode())
        assert words in refuses("segment", story, "--config", path)


@pytest.mark.usefixtures("no_model")
class TestOutput:
    def test_a_missing_output_folder_is_refused_before_reading(
        self, refuses: Refuses, story: Path, tmp_path: Path
    ) -> None:
        assert "No such file" in refuses("segment", story, "-o", tmp_path / "nowhere" / "x.html")

    def test_an_output_below_a_file_is_refused(self, refuses: Refuses, story: Path) -> None:
        assert "Not a directory" in refuses("segment", story, "-o", story / "x.html")

    def test_an_unwritable_output_folder_is_refused(self, refuses: Refuses, story: Path) -> None:
        assert "cannot be written" in refuses("segment", story, "-o", "/proc/x.html")

    def test_a_folder_as_output_is_refused(self, refuses: Refuses, story: Path, tmp_path: Path) -> None:
        (tmp_path / "x.html").mkdir()
        assert "a folder" in refuses("segment", story, "-o", tmp_path / "x.html")

    def test_the_text_itself_as_output_is_refused(
        self, refuses: Refuses, story: Path, tmp_path: Path
    ) -> None:
        text = story.read_bytes()
        (tmp_path / "link.txt").symlink_to(story)
        for output in (story, tmp_path / "link.txt"):
            assert "is the text itself" in refuses("segment", story, "-o", output)
        assert story.read_bytes() == text

    def test_an_unknown_format_is_refused(self, refuses: Refuses, story: Path, tmp_path: Path) -> None:
        assert "one of txt, json, png, html" in refuses("segment", story, "-o", tmp_path / "x.pdf")
        assert "one of txt, json, png, html" in refuses("segment", story, "--format", "pdf")
        assert "contradicts" in refuses("segment", story, "--format", "html", "--json")


class TestModels:
    def test_an_unknown_model_is_refused(self, refuses: Refuses, story: Path, tmp_path: Path) -> None:
        said = refuses("ask", story, "Who?", "--model", tmp_path / "nowhere")
        assert "there is no model folder" in said

    @pytest.mark.parametrize("name", ["gpt2", "bloom"])
    def test_a_model_without_rotary_positions_is_refused(
        self, refuses: Refuses, story: Path, broken_models: dict[str, Path], name: str
    ) -> None:
        assert "rotary" in refuses("ask", story, "Who?", "--model", broken_models[name])

    def test_a_model_that_computes_no_numbers_is_refused(
        self, refuses: Refuses, story: Path, broken_models: dict[str, Path]
    ) -> None:
        assert "finite" in refuses("segment", story, "--model", broken_models["nan"])

    def test_an_unknown_device_or_dtype_is_refused(
        self, refuses: Refuses, story: Path, tiny_model: Path
    ) -> None:
        assert "device" in refuses("ask", story, "Who?", "--model", tiny_model, "--device", "tpu9")
        assert "dtype" in refuses("ask", story, "Who?", "--model", tiny_model, "--dtype", "float7")

    def test_views_larger_than_the_model_are_refused(
        self, refuses: Refuses, story: Path, tiny_model: Path
    ) -> None:
        said = refuses("ask", story, "Who?", "--model", tiny_model, "--local-tokens", "4000")
        assert "512" in said and "got" in said

    def test_a_text_whose_memory_will_not_fit_is_refused_before_reading(
        self, refuses: Refuses, story: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("emllm.reading.free_bytes", lambda _: 1000)
        monkeypatch.setattr("emllm.reading.read_tokens", lambda *_, **__: pytest.fail("it was read"))
        for words in (["ask", story, "Who?"], ["segment", story]):
            assert "keys and values" in refuses(*words, "--model", tiny_model)


def test_running_out_of_memory_is_one_line(
    refuses: Refuses, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
        )

    monkeypatch.setattr("emllm.cli.segment.opened_lm", fail)
    assert "out of memory" in refuses("segment", story)


def test_a_bug_keeps_its_traceback(
    run: Callable[..., object], story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("emllm.cli.segment.opened_lm", fail)
    with pytest.raises(RuntimeError, match="something else"):
        run("segment", story)
