"""``emllm read``: memories that stay, grow and survive interruption; asking and chatting with them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from emllm import EpisodicLM
from emllm.cli.settings import GivenSettings, settings_from
from emllm.cli.stored import Stored
from emllm.config import PLACEMENT, PRESETS, VARIANTS
from emllm.errors import ConfigError, StoreError
from emllm.store.maintenance import describe

EMLLM = [sys.executable, "-c", "import sys; from emllm.cli.main import main; sys.exit(main())"]
SENTENCE = "Once upon a time there was a little girl named Lily. She had a big red dog called Max. "
SMALL = ("--chunk-tokens", "64", "--local-tokens", "64", "--recall-tokens", "128")
SHORT = ("--max-new-tokens", "6")


@pytest.fixture()
def model(tiny_model: Path) -> tuple[str, ...]:
    return ("--model", str(tiny_model), "--device", "cpu", *SMALL)


@pytest.fixture()
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.txt"
    path.write_text("The cat sat on the mat and looked at the moon for a long time. " * 12)
    return path


@pytest.fixture()
def memory(run, story: Path, model, tmp_path: Path) -> Path:
    path = tmp_path / "story.mem"
    assert run("read", story, "--into", path, *model).code == 0
    return path


@pytest.fixture()
def no_reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test, once the memories that it needs are made."""
    for name in ("memory", "interrupted"):
        if name in request.fixturenames:
            request.getfixturevalue(name)

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("ask", "read", "chat", "stored"):
        monkeypatch.setattr(f"emllm.cli.{name}.opened_lm", load)


def answers(ended) -> list[dict]:
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(path)): one.read_bytes()
        for one in path.rglob("*")
        if one.is_file() and "lock" not in one.name
    }


class TestReading:
    def test_the_rest_of_a_document_needs_the_disk_of_the_rest(
        self, run, story: Path, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import emllm.remembering

        read_tokens = emllm.remembering.read_tokens

        def half(model, cache, token_ids, **kwargs):
            is_text = len(token_ids) > 8
            read_tokens(model, cache, token_ids[: len(token_ids) // 2] if is_text else token_ids, **kwargs)
            if is_text:
                raise KeyboardInterrupt

        story.write_text(story.read_text() * 8)
        into = tmp_path / "new"
        with monkeypatch.context() as patch:
            patch.setattr(emllm.remembering, "read_tokens", half)
            assert run("read", story, "--into", into, *model).code == 130
        wished = []
        monkeypatch.setattr("emllm.needs.Needs.disk_bytes", lambda needs, codec: wished.append(needs) or 0)
        assert run("read", story, "--into", into, *model).code == 0
        assert run("read", story, "--into", tmp_path / "whole", *model).code == 0
        rest, whole = (needs.work.num_tokens for needs in wished)
        assert 0.4 < rest / whole < 0.6

    def test_the_summary_says_what_the_memory_holds(
        self, run, story: Path, other: Path, model, tmp_path
    ) -> None:
        path = tmp_path / "new.mem"
        ended = run("read", story, other, "--into", path, *model, "--json")
        (result,) = answers(ended)
        assert set(result) == {
            *("memory", "model", "tokens", "events", "bytes", "documents"),
            *("read_tokens", "read_seconds", "tokens_per_second"),
        }
        assert [one["name"] for one in result["documents"]] == ["story.txt", "other.txt"]
        assert all(one["is_whole"] and one["is_new"] for one in result["documents"])
        assert result["tokens"] == result["read_tokens"] == result["documents"][-1]["stop"]
        assert result["bytes"] == sum(one.stat().st_size for one in path.rglob("*") if one.is_file())

    def test_a_person_gets_one_line_and_the_speed_on_stderr(self, run, story: Path, model, tmp_path) -> None:
        ended = run("read", story, "--into", tmp_path / "new.mem", *model)
        assert ended.out.count("\n") == 1 and "1 document, " in ended.out
        assert "tokens/s" in ended.err and ended.err.count("\n") == 1

    @pytest.mark.usefixtures("no_reading")
    def test_what_was_read_is_not_read_again(self, run, memory: Path, story: Path) -> None:
        before = contents(memory)
        ended = run("read", story, "--into", memory)
        assert ended.code == 0 and "1 of 1 documents had been read before" in ended.err
        assert contents(memory) == before

    @pytest.mark.parametrize("recollect", ["auto", "always"])
    def test_a_long_memory_is_prepared_for_questions_once(
        self, run, model, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recollect: str
    ) -> None:
        path = tmp_path / "m"
        other.write_text(other.read_text() * 3)

        def fail(self: object, memory: object) -> None:
            raise StoreError("no room")

        with monkeypatch.context() as failing:
            failing.setattr("emllm.lm.EpisodicLM.prepare", fail)
            ended = run("read", other, "--into", path, *model, "--recollect", recollect)
        assert ended.code == 0 and "not prepared for questions: no room" in ended.err
        assert not Stored.at(path).is_prepared
        with monkeypatch.context() as failing:  # what was read is there, whatever becomes of the rest
            failing.setattr("emllm.cli.read.opened_lm", lambda *_, **__: fail(None, None))
            ended = run("read", other, "--into", path)
        assert ended.code == 0 and "not prepared for questions: no room" in ended.err
        assert run("read", other, "--into", path, "--device", "cpu").code == 0  # the same command goes on
        assert Stored.at(path).is_prepared
        monkeypatch.setattr("emllm.cli.read.opened_lm", None)
        assert run("read", other, "--into", path).code == 0

    @pytest.mark.parametrize("settings", [("--recall-tokens", "0"), ("--recollect", "never")])
    def test_what_needs_no_preparation_has_it(
        self, run, model, other: Path, tmp_path: Path, settings
    ) -> None:
        other.write_text(other.read_text() * 3)
        assert run("read", other, "--into", tmp_path / "m", *model, *settings).code == 0
        assert Stored.at(tmp_path / "m").is_prepared

    def test_a_memory_is_extended_by_the_model_and_settings_that_it_was_made_with(
        self, run, memory: Path, story: Path, other: Path
    ) -> None:
        (result,) = answers(run("read", story, other, "--into", memory, "--device", "cpu", "--json"))
        assert [(one["name"], one["is_new"]) for one in result["documents"]] == [
            ("story.txt", False),
            ("other.txt", True),
        ]
        assert result["read_tokens"] == result["documents"][1]["tokens"]

    def test_another_text_of_a_known_name_is_remarked(self, run, memory: Path, story: Path) -> None:
        story.write_text("Quite another story. " * 30)
        ended = run("read", story, "--into", memory, "--device", "cpu")
        assert ended.code == 0 and "holds another text of this name" in ended.err
        assert "2 documents" in ended.out
        ended = run("read", story, "--into", memory, "--device", "cpu", "--json")
        assert [one["is_new"] for one in json.loads(ended.out)["documents"]] == [False, False]
        story.write_text("A third story. " * 30)
        ended = run("read", story, "--into", memory, "--device", "cpu", "--json")
        assert [one["is_new"] for one in json.loads(ended.out)["documents"]] == [False, False, True]

    def test_a_known_text_of_another_name_is_remarked(self, run, memory: Path, story: Path) -> None:
        ended = run("read", story.rename(story.with_name("tale.txt")), "--into", memory, "--device", "cpu")
        assert "tale.txt: " in ended.err and "holds this text as story.txt" in ended.err

    def test_standard_input_is_a_source(self, run, model, stdin, tmp_path: Path) -> None:
        stdin(SENTENCE.encode() * 5)
        (result,) = answers(run("read", "-", "--into", tmp_path / "m", *model, "--json"))
        assert result["documents"][0]["name"] == "stdin"


class TestInterruption:
    @pytest.fixture()
    def interrupted(self, run, story: Path, other: Path, model, tmp_path, monkeypatch) -> Path:
        """A memory whose reading of the second document was interrupted in its second chunk."""
        path = tmp_path / "cut.mem"

        @contextmanager
        def pressing(name: str) -> Iterator[Callable[[object], None]]:
            chunks: list[object] = []

            def show(progress: object) -> None:
                chunks.append(progress)
                if name.startswith("other") and len(chunks) == 2:
                    signal.raise_signal(signal.SIGINT)

            yield show

        with monkeypatch.context() as patch:
            patch.setattr("emllm.cli.read.reading", pressing)
            ended = run("read", story, other, "--into", path, *model)
        assert ended.code == 130 and ended.out == ""
        (line,) = ended.err.splitlines()
        num_tokens = json.loads(run("memory", "show", path, "--json").out)["tokens"]
        assert line == (
            f"emllm: interrupted; {num_tokens:,} tokens are safe in {path}, "
            "and the same command goes on from there"
        )
        return path

    def test_the_same_command_goes_on_and_ends_as_if_it_had_not_been_interrupted(
        self, run, interrupted: Path, story: Path, other: Path, model, tmp_path: Path
    ) -> None:
        begun = json.loads(run("memory", "show", interrupted, "--json").out)
        assert begun["unfinished"] == "other.txt"
        (resumed,) = answers(run("read", story, other, "--into", interrupted, *model, "--json"))
        (whole,) = answers(run("read", story, other, "--into", tmp_path / "whole.mem", *model, "--json"))
        assert resumed["read_tokens"] == whole["tokens"] - begun["tokens"] > 0
        for name in ("tokens", "events"):
            assert resumed[name] == whole[name]
        ask = ("Who?", "--device", "cpu", *SHORT, "--json")
        (one,), (two,) = (answers(run("ask", path, *ask)) for path in (interrupted, tmp_path / "whole.mem"))
        assert (one["answer"], one["evidence"]) == (two["answer"], two["evidence"])

    @pytest.mark.usefixtures("no_reading")
    def test_another_text_is_refused_before_the_rest_was_read(
        self, refuses, interrupted: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "third.txt").write_text("Something else.")
        assert "read the rest of it" in refuses("read", tmp_path / "third.txt", "--into", interrupted)

    def test_the_part_that_was_read_can_be_asked(self, run, interrupted: Path) -> None:
        longer_than_the_rest = "Who was it? " * 100
        ended = run("ask", interrupted, longer_than_the_rest, "--device", "cpu", *SHORT)
        assert ended.code == 0, ended.err
        assert "other.txt was read up to token 128 of" in ended.err

    @pytest.mark.usefixtures("no_reading")
    def test_a_conversation_cannot_be_saved_from_a_part(self, refuses, interrupted: Path, tmp_path) -> None:
        assert "in part only" in refuses("chat", interrupted, "--save", tmp_path / "talk")

    def test_a_process_of_its_own_says_what_is_safe(self, tiny_model: Path, tmp_path: Path, run) -> None:
        text, path = tmp_path / "long.txt", tmp_path / "long.mem"
        text.write_text(SENTENCE * 20_000)
        argv = ("read", text, "--into", path, "--model", tiny_model, "--device", "cpu")
        process = subprocess.Popen(
            [*EMLLM, *map(str, argv)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        until = time.monotonic() + 120
        while not list((path / "segments").glob("*.safetensors")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        lines = [line for line in err.splitlines() if not line.startswith(b"reading ")]
        assert len(lines) == 1 and b"tokens are safe in" in lines[0]
        assert run("memory", "verify", path).code == 0


class TestMistakes:
    pytestmark = pytest.mark.usefixtures("no_reading")

    def test_settings_that_contradict_the_memory_are_refused(
        self, refuses, memory: Path, other: Path
    ) -> None:
        for words in (["read", other, "--into", memory], ["ask", memory, "Who?"], ["chat", memory]):
            said = refuses(*words, "--gamma", "3")
            assert "was made with gamma=1.0 and cannot be opened with gamma=3.0" in said
            assert "recall_tokens=128" in refuses(*words, "--recall-tokens", "all")

    def test_a_memory_is_not_read_into_another(self, refuses, memory: Path, tmp_path: Path) -> None:
        assert "is a memory" in refuses("read", memory, "--into", tmp_path / "new")

    def test_a_memory_beside_texts_is_refused_with_the_remedy(
        self, refuses, memory: Path, story: Path
    ) -> None:
        said = refuses("ask", memory, story, "Who?")
        assert f"emllm read SOURCE... --into {memory}" in said
        assert "stands alone" in refuses("chat", story, memory)

    def test_two_memories_are_refused(self, refuses, run, memory: Path, tmp_path: Path) -> None:
        run("memory", "copy", memory, tmp_path / "two")
        assert "both memories" in refuses("ask", memory, tmp_path / "two", "Who?")

    @pytest.mark.parametrize(("place", "words"), [("story.txt", "Not a directory"), ("a/b", "no folder")])
    def test_a_place_where_no_memory_can_be_is_refused(
        self, refuses, story: Path, place: str, words: str
    ) -> None:
        assert words in refuses("read", story, "--into", story.parent / place)

    def test_a_folder_with_other_things_is_refused(self, refuses, story: Path) -> None:
        assert "is not empty" in refuses("read", story, "--into", story.parent)

    def test_a_disk_too_small_is_refused(
        self, refuses, story: Path, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("emllm.cli.read.shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
        said = refuses("read", story, "--into", tmp_path / "new", *model)
        assert "of disk with codec exact; 10.0 kB are free there" in said
        assert not (tmp_path / "new").exists()

    def test_a_damaged_catalogue_is_one_line(self, refuses, memory: Path) -> None:
        (memory / "catalogue.sqlite").write_bytes(b"nothing of the kind" * 100)
        assert str(memory) in refuses("ask", memory, "Who?")

    @pytest.mark.parametrize("texts", [True, False])
    def test_documents_that_were_to_be_talked_about_say_how(
        self, refuses, memory: Path, story: Path, texts: bool
    ) -> None:
        """`chat TEXT --save MEM`, left before the first question, and the same command again."""
        said = refuses("chat", *([story] if texts else []), "--save", memory)
        assert said.endswith(f"keep it so with: emllm chat {memory} --save NEW")


class TestAsking:
    def test_a_stored_memory_answers_as_the_text_does_and_stays_as_it_is(
        self, run, memory: Path, story: Path, model
    ) -> None:
        before = contents(memory)
        wishes = ("-q", "Who?", "-q", "What?", *SHORT, "--json")
        stored = answers(run("ask", memory, *wishes, "--device", "cpu"))
        read = answers(run("ask", story, *wishes, *model))
        for one, two in zip(stored, read, strict=True):
            assert (one["answer"], one["evidence"]) == (two["answer"], two["evidence"])
        assert contents(memory) == before

    def test_nothing_is_said_of_reading(self, run, memory: Path) -> None:
        ended = run("ask", memory, "Who?", "--device", "cpu", *SHORT)
        assert ended.code == 0 and ended.err.startswith("answered ")

    def test_another_model_is_refused_by_what_differs(
        self, refuses, memory: Path, tiny_model: Path, tmp_path
    ) -> None:
        other = shutil.copytree(tiny_model, tmp_path / "model")
        changed = AutoModelForCausalLM.from_pretrained(other)
        with torch.no_grad():
            changed.lm_head.weight.add_(1.0)
        changed.save_pretrained(other)
        assert "the weights differ" in refuses("ask", memory, "Who?", "--model", other, "--device", "cpu")

    def test_budgets_may_differ(self, run, memory: Path) -> None:
        wishes = ("Who?", "--device", "cpu", *SHORT, "--json")
        (plain,) = answers(run("ask", memory, *wishes))
        (small,) = answers(run("ask", memory, *wishes, "--device-budget", "0"))
        assert plain["answer"] == small["answer"]


class TestChatting:
    def test_a_conversation_leaves_the_memory_as_it_was(self, run, memory: Path, stdin) -> None:
        before = contents(memory)
        stdin(b"Who?\nWhat?\n")
        first, second = answers(run("chat", memory, "--device", "cpu", *SHORT, "--json"))
        assert second["stats"]["tokens"] > first["stats"]["tokens"]
        assert contents(memory) == before

    @pytest.mark.parametrize("begins_with", ["memory", "text", "nothing"])
    def test_a_saved_conversation_goes_on(
        self, run, memory: Path, story: Path, model, stdin, tmp_path: Path, begins_with: str
    ) -> None:
        new = tmp_path / "talk"
        what = {"memory": (memory, "--device", "cpu"), "text": (story, *model), "nothing": model}[begins_with]
        before = contents(memory)
        stdin(b"Who?\n")
        (first,) = answers(run("chat", *what, "--save", new, *SHORT, "--json"))
        stdin(b"What?\n")
        again = what[:1] if begins_with == "memory" else ()
        (second,) = answers(run("chat", *again, "--save", new, "--device", "cpu", *SHORT, "--json"))
        stdin(b"Who?\nWhat?\n")
        at_once = answers(run("chat", *what, *SHORT, "--json"))
        assert [first["answer"], second["answer"]] == [one["answer"] for one in at_once]
        assert second["stats"]["tokens"] == at_once[1]["stats"]["tokens"]
        assert contents(memory) == before

    def test_every_turn_is_safe_as_soon_as_it_is_answered(self, run, model, tmp_path, monkeypatch) -> None:
        new, safe = tmp_path / "talk", []

        def messages() -> Iterator[str]:
            for message in ("Who?", "What?"):
                yield message
                safe.append(describe(new).num_tokens)

        monkeypatch.setattr("emllm.cli.chat.messages", messages)
        second = answers(run("chat", *model, "--save", new, *SHORT, "--json"))[1]
        assert second["stats"]["tokens"] == safe[0] > 0
        assert describe(new).num_tokens == safe[1] > safe[0]

    def test_between_turns_that_are_typed_the_next_answer_is_prepared(
        self, run, memory: Path, stdin, monkeypatch
    ) -> None:
        said: list[str] = []

        def messages() -> Iterator[str]:
            for message in ("Who?", "What?"):
                said.append(message)
                yield message

        stdin(b"Who?\nWhat?\n")
        at_once = answers(run("chat", memory, "--device", "cpu", *SHORT, "--json"))
        prepare = EpisodicLM.prepare
        monkeypatch.setattr(EpisodicLM, "prepare", lambda *to: said.append("prepared") or prepare(*to))
        monkeypatch.setattr("emllm.cli.chat.messages", messages)
        monkeypatch.setattr("emllm.cli.chat.is_typed", lambda: True)
        typed = answers(run("chat", memory, "--device", "cpu", *SHORT, "--json"))
        assert said == ["prepared", "Who?", "prepared", "What?", "prepared"]
        assert [one["answer"] for one in typed] == [one["answer"] for one in at_once]

    @pytest.mark.parametrize("wrong", [KeyboardInterrupt(), StoreError("the disk is full")])
    def test_a_conversation_goes_on_where_the_next_answer_cannot_be_prepared(
        self, run, memory: Path, monkeypatch, wrong: BaseException
    ) -> None:
        def fails(*to: object) -> None:
            raise wrong

        monkeypatch.setattr(EpisodicLM, "prepare", fails)
        monkeypatch.setattr("emllm.cli.chat.messages", lambda: iter(["Who?", "What?"]))
        monkeypatch.setattr("emllm.cli.chat.is_typed", lambda: True)
        ended = run("chat", memory, "--device", "cpu", *SHORT, "--json")
        assert len(answers(ended)) == 2
        assert ("not prepared for questions: the disk is full" in ended.err) == isinstance(wrong, StoreError)

    def test_only_a_conversation_is_gone_on_with(
        self, run, refuses, memory: Path, story: Path, model, stdin, tmp_path: Path
    ) -> None:
        assert "no conversation" in refuses("chat", "--save", memory)
        stdin(b"Who?\n")
        run("chat", *model, "--save", tmp_path / "talk", *SHORT)
        assert "without texts" in refuses("chat", story, "--save", tmp_path / "talk")
        assert "no conversation that began with" in refuses("chat", memory, "--save", tmp_path / "talk")
        assert "cannot read documents any more" in refuses("read", story, "--into", tmp_path / "talk")


STORED = {"gamma": 2.0, "recall_tokens": 128, "local_tokens": 64, "codec": "int8"}


@given(st.dictionaries(st.sampled_from(sorted(PLACEMENT)), st.integers(0, 1 << 40)))
def test_budgets_never_contradict_and_leave_the_rest_as_it_was(budgets: dict[str, int]) -> None:
    config = GivenSettings(budgets).agreeing(STORED, path=Path("m"))
    if not budgets:
        assert config is None
    else:
        assert config is not None
        assert all(getattr(config, name) == value for name, value in {**STORED, **budgets}.items())


@given(st.fixed_dictionaries({}, optional={name: st.just(value) for name, value in STORED.items()}))
def test_repeating_some_of_the_settings_is_no_contradiction(settings: dict[str, object]) -> None:
    assert GivenSettings(settings).agreeing(STORED, path=Path("m")) is None


@given(st.sampled_from(sorted(PRESETS)), st.none() | st.sampled_from(sorted(VARIANTS)))
def test_a_memory_made_with_a_preset_opens_with_it(preset: str, variant: str | None) -> None:
    made = GivenSettings({}, preset, variant)
    resolved = made.config.resolve(trained_tokens=1 << 20, num_layers=8)
    stored = {name: value for name, value in vars(resolved).items() if name not in PLACEMENT}
    assert made.agreeing(stored, path=Path("m")) is None


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"gamma": 1.0}, "gamma=2.0 and cannot be opened with gamma=1.0"),
        ({"recall_tokens": "all"}, "recall_tokens=128 and cannot be opened with recall_tokens='all'"),
        ({"preset": "inf-llm"}, "cannot be opened with"),
        ({"segmenter": "kl"}, "made with segmenter='surprise'"),
        ({"variant": "Z"}, "variant must be one of"),
        ({"variant": "S+C", "contiguity": 0.1}, "contiguity=0.1 contradicts variant S.C"),
        ({"gama": 1.0}, "unknown setting 'gama'"),
    ],
)
def test_what_contradicts_is_named(given_settings: dict[str, object], words: str) -> None:
    stored = {**STORED, "event_key": "spread"}
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        settings_from(given_settings).agreeing(stored, path=Path("m"))
