"""Memories in folders, with a real, tiny model: reading, resuming, asking, forgetting, reading anew."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tiny_model, token_ids
from tests.support.driven_memory import memory_layers
from tests.support.stories import SHORT, SMALL, STORY

from emllm import Document, EpisodicLM, EpisodicMemory, MemoryConfig
from emllm.errors import ConfigError, InputError, StoreError
from emllm.memory.home import FolderHome
from emllm.memory.indexing import index_events
from emllm.reading import read_tokens
from emllm.store.contents import DocumentRecord
from emllm.store.log import PageMap
from emllm.store.maintenance import clone, copy, verify
from emllm.store.residency import Residency

OTHER = "Tom had a red car. He went to the big shop with his mom. It was a very sunny day. " * 12


def spans(memory):
    return [(event.start, event.stop) for event in memory.events()]


class StopReadingError(Exception):
    pass


def stopping_after(num_tokens):
    """A progress callback that ends reading."""

    def progress(now):
        if now.num_read >= num_tokens:
            raise StopReadingError

    return progress


def answer(lm, memory, question="Who loved to play?"):
    found = lm.ask(memory, question, sampling=SHORT)
    return found.text, found.evidence


def state(lm, memory):
    """Events, tokens, surprise to the bit, and an answer."""
    return spans(memory), memory.token_ids().tolist(), memory.surprise().tobytes(), answer(lm, memory)


def test_a_memory_in_a_folder_answers_as_one_in_ram_before_and_after_it_is_reopened(lm, tmp_path):
    in_ram = lm.memory(config=SMALL)
    in_ram.read(STORY, name="story")
    expected = answer(lm, in_ram)
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(STORY, name="story")
        assert answer(lm, memory) == expected
    with lm.memory(tmp_path / "mem") as memory:
        assert answer(lm, memory) == expected
        assert [one.name for one in memory.documents] == ["story"]
    copy(tmp_path / "mem", tmp_path / "copied")
    clone(tmp_path / "mem", tmp_path / "cloned")
    for name in ("copied", "cloned"):
        with lm.memory(tmp_path / name, read_only=True) as memory:
            assert answer(lm, memory) == expected


def test_only_what_this_process_read_counts_as_read(lm, tmp_path):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(STORY, name="story")
        read = lm.ask(memory, "Who?", sampling=SHORT).stats
        memory.read(OTHER, name="other")
        memory.forget("other")
        assert lm.ask(memory, "Who?", sampling=SHORT).stats.read_tokens > read.read_tokens
    with lm.memory(tmp_path / "mem", read_only=True) as memory:
        opened = lm.ask(memory, "Who?", sampling=SHORT).stats
    assert read.read_tokens > 0 and read.tokens_per_second > 0
    assert (opened.read_tokens, opened.read_seconds, opened.tokens_per_second) == (0, 0, 0)


def test_reading_goes_on_where_it_was_interrupted_and_ends_the_same(lm, tmp_path):
    with lm.memory(tmp_path / "whole", SMALL) as whole:
        whole.read(STORY, name="story")
        whole.read(OTHER, name="other")
        expected = state(lm, whole)
    for num in (32, 64, 96):
        memory = lm.memory(tmp_path / "parts", None if num > 32 else SMALL)
        with pytest.raises(StopReadingError), memory:
            memory.read(STORY, name="story", progress=stopping_after(num))
    with lm.memory(tmp_path / "parts") as memory:
        assert memory.document_being_read is not None
        with pytest.raises(InputError, match="read the rest of it"):
            memory.read(OTHER, name="other")
        memory.read(STORY, name="story")
        memory.read(OTHER, name="other")
        memory.read(OTHER, name="other")
        assert state(lm, memory) == expected


def test_a_thousand_questions_leave_the_bytes_of_a_memory_as_they_were(lm, tmp_path):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(STORY, name="story")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mem").rglob("*.s*") if path.is_file()}
    with lm.memory(tmp_path / "mem", read_only=True) as memory:
        for number in range(20):
            answer(lm, memory, f"Who was number {number}?")
    after = {path.name: path.read_bytes() for path in (tmp_path / "mem").rglob("*.s*") if path.is_file()}
    assert {name: data for name, data in after.items() if not name.endswith(("-shm", "-wal"))} == before


def test_a_memory_that_is_open_for_reading_only_reads_nothing(lm, tmp_path):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(STORY, name="story")
    with (
        lm.memory(tmp_path / "mem", read_only=True) as memory,
        pytest.raises(StoreError, match="reading only"),
    ):
        memory.read(OTHER, name="other")


def test_a_memory_that_is_open_for_reading_only_is_not_changed_by_a_refusal(lm, tmp_path):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(STORY, name="story")
        expected = answer(lm, memory)
    with lm.memory(tmp_path / "mem", read_only=True) as memory:
        before = memory.num_tokens, list(memory.documents), memory.dialogue
        for use in (lambda: memory.read(OTHER, name="other"), lambda: lm.answer(memory, "Who?")):
            with pytest.raises(StoreError, match="reading only"):
                use()
            assert (memory.num_tokens, memory.documents, memory.dialogue) == before
        assert answer(lm, memory) == expected


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_question_that_fails_before_it_was_asked_is_no_turn_of_a_conversation(
    lm, tmp_path, monkeypatch, is_stored
):
    path = tmp_path / "mem" if is_stored else None
    with lm.memory(path, SMALL) as memory:
        memory.read(STORY, name="story")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(EpisodicMemory, "begin_chunk", _interrupted)
            lm.answer(memory, "Who loved to play?", sampling=SHORT)
        assert memory.dialogue == "documents"
    with lm.memory(path, None if is_stored else SMALL) as memory:
        memory.read(OTHER, name="other")
        assert memory.documents[-1].name == "other"


def _interrupted(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize("is_stored", [False, True])
def test_what_stands_before_the_first_words_is_read_on_where_it_was_interrupted(
    lm, tmp_path, monkeypatch, is_stored
):
    opening = tuple(range(3, 3 + 2 * SMALL.chunk_tokens + 5))
    monkeypatch.setattr(lm, "_chat", dataclasses.replace(lm.chat_format, opening=opening))
    memory = lm.memory(tmp_path / "mem" if is_stored else None, SMALL)
    begin_chunk = EpisodicMemory.begin_chunk

    def once(self, token_ids):
        monkeypatch.setattr(EpisodicMemory, "begin_chunk", _interrupted)
        return begin_chunk(self, token_ids)

    monkeypatch.setattr(EpisodicMemory, "begin_chunk", once)
    with pytest.raises(KeyboardInterrupt):
        memory.read(STORY, name="story")
    monkeypatch.setattr(EpisodicMemory, "begin_chunk", begin_chunk)
    assert memory.num_tokens == SMALL.chunk_tokens
    if is_stored:
        memory.close()
        memory = lm.memory(tmp_path / "mem")
    memory.read(STORY, name="story")
    assert memory.documents[0].start == len(opening)
    assert memory.token_ids(0, len(opening)).tolist() == list(opening)
    memory.close()


def test_a_question_that_fails_changes_nothing_of_what_reading_on_recalls(lm, tmp_path):
    for name, questions in (("undisturbed", []), ("asked", ["  "])):
        with lm.memory(tmp_path / name, SMALL) as memory:
            memory.read(STORY, name="story")
            for question in questions:
                with pytest.raises(InputError, match="must not be empty"):
                    lm.answer(memory, question, sampling=SHORT)
            memory.read(OTHER, name="other")
    with lm.memory(tmp_path / "undisturbed") as undisturbed, lm.memory(tmp_path / "asked") as asked:
        habits = [[layer._habit._num_recalls for layer in memory_layers(one)] for one in (asked, undisturbed)]
        assert habits[0] == habits[1] and all(habits[1])
        assert state(lm, asked) == state(lm, undisturbed)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_memory_that_was_closed_reads_nothing_more(lm, tmp_path, read_only):
    lm.memory(tmp_path / "mem", SMALL).close()
    memory = lm.memory(tmp_path / "mem", read_only=read_only)
    memory.close()
    memory.close()
    refused = (
        lambda: memory.read(STORY),
        lambda: lm.answer(memory, "Who?", sampling=SHORT),
        memory.flush,
        memory.verify,
        lambda: memory.forget("story"),
    )
    for use in refused:
        with pytest.raises(StoreError, match="is closed; open it again"):
            use()
    assert memory.num_tokens == 0


def test_a_commit_that_fails_half_way_is_not_written_and_can_be_done_again(lm, tmp_path, monkeypatch):
    with lm.memory(tmp_path / "whole", SMALL) as whole:
        whole.read(STORY, name="story")
        expected = state(lm, whole)
    calls = 0

    def fails(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("no room")
        return index_events(*args, **kwargs)

    memory = lm.memory(tmp_path / "mem", SMALL)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError), memory:
        patch.setattr("emllm.memory.sequence.index_events", fails)
        memory.read(STORY, name="story")
    with lm.memory(tmp_path / "mem") as memory:
        assert 0 < memory.num_tokens < len(expected[1]) and not memory.verify()
        memory.read(STORY, name="story")
        assert state(lm, memory) == expected


def test_a_folder_of_texts_is_read_on_by_the_same_call(lm, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, text in (("a", STORY), ("b", OTHER)):
        (texts / f"{name}.txt").write_text(text)
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(texts / "a.txt")
        with pytest.raises(StopReadingError):
            memory.read(texts, progress=stopping_after(64))
        (texts / "0.txt").write_text("A new one that sorts before all others.")
        records = memory.read(texts)
        assert [one.name for one in records] == ["0.txt", "a.txt", "b.txt"]
        assert [one.name for one in memory.documents] == ["a.txt", "b.txt", "0.txt"]
        assert all(one.stop - one.start == one.num_tokens for one in memory.documents)


def test_what_was_begun_is_read_on_when_all_before_it_was_forgotten(lm, tmp_path):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(STORY, name="story")
        with pytest.raises(StopReadingError):
            memory.read(OTHER, name="other", progress=stopping_after(64))
        num_tokens = memory.documents[-1].num_tokens
        memory.forget("story")
        memory.read(OTHER, name="other")
        (record,) = memory.documents
        assert record.stop - record.start == record.num_tokens == num_tokens
        memory.read(STORY, name="story")


def test_what_was_begun_stays_begun_when_it_is_computed_anew(lm, tmp_path):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        (story,) = memory.read(STORY, name="story")
        with pytest.raises(StopReadingError):
            memory.read(OTHER, name="other", progress=stopping_after(64))
        memory.forget("story")
    lm.reread(tmp_path / "mem", story.start)
    with lm.memory(tmp_path / "mem") as memory:
        assert memory.document_being_read is not None
        memory.read(OTHER, name="other")
        (record,) = memory.documents
        assert record.stop - record.start == record.num_tokens > 64


def test_a_memory_is_computed_anew_from_within_its_folder(lm, tmp_path, monkeypatch):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        (story,) = memory.read(STORY, name="story")
        memory.read(OTHER, name="other")
        memory.forget("story")
    monkeypatch.chdir(tmp_path / "mem")
    (record,) = lm.reread(".", story.start)
    assert record.name == "other" and not verify(tmp_path / "mem")


@pytest.mark.parametrize("token", [-1, 1, 10**9])
def test_nothing_is_computed_anew_from_within_a_document_or_beyond_the_end(lm, tmp_path, token):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(STORY, name="story")
        memory.read(OTHER, name="other")
        start = memory.documents[1].start
        before = state(lm, memory)
    with pytest.raises(InputError, match="no document begins at token"):
        lm.reread(tmp_path / "mem", token if token != 1 else start + SMALL.chunk_tokens)
    with lm.memory(tmp_path / "mem") as memory:
        assert state(lm, memory) == before


def test_a_conversation_stays_one_when_it_is_computed_anew(lm, tmp_path):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        (story,) = memory.read(STORY, name="story")
        memory.read(OTHER, name="other")
        lm.answer(memory, "Who had a car?", sampling=SHORT)
        memory.forget("story")
    lm.reread(tmp_path / "mem", story.start)
    with lm.memory(tmp_path / "mem") as memory:
        assert memory.dialogue == "answered"
        with pytest.raises(InputError, match="questions were answered"):
            memory.read(STORY, name="story")


def test_recalls_of_an_interrupted_commit_are_written_too(lm, tmp_path, monkeypatch):
    """Ctrl-C waits for the chunk, and comes before the folder is told of it; then the process ends."""
    with lm.memory(tmp_path / "whole", SMALL) as whole:
        whole.read(STORY, name="story")
    committed, calls = FolderHome.committed, 0

    def interrupted(self, memory):
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        committed(self, memory)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FolderHome, "committed", interrupted)
        with lm.memory(tmp_path / "mem", SMALL) as memory:
            memory.read(STORY, name="story")
    with lm.memory(tmp_path / "mem") as memory:
        memory.read(STORY, name="story")
    with lm.memory(tmp_path / "whole") as whole, lm.memory(tmp_path / "mem") as memory:
        for ours, theirs in zip(memory_layers(memory), memory_layers(whole), strict=True):
            assert ours._habit._num_recalls == theirs._habit._num_recalls > 0


def test_what_differs_in_model_settings_or_writer_is_named(lm, tmp_path, shared_data):
    path = tmp_path / "mem"
    with lm.memory(path, SMALL) as memory:
        memory.read(STORY, name="story")
        with pytest.raises(StoreError, match="process"):
            lm.memory(path)
    with pytest.raises(ConfigError, match=r"gamma=1\.0 .* gamma=2\.0"):
        lm.memory(path, dataclasses.replace(SMALL, gamma=2.0))
    lm.memory(path, dataclasses.replace(SMALL, device_budget=1 << 20)).close()
    with lm.memory(path, MemoryConfig(device_budget=1 << 20, recollect="always")) as memory:
        said = {"device_budget": 1 << 20, "recollect": "always"}
        assert all(getattr(memory.config, name) == value for name, value in said.items())
        assert memory.config.local_tokens == SMALL.local_tokens  # what was left unsaid is as it was made
    with (
        EpisodicLM.from_pretrained(str(shared_data / "models" / "stories260K"), dtype="bfloat16") as other,
        pytest.raises(StoreError, match="dtype"),
    ):
        other.memory(path)


@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_after_forgetting_and_reading_anew_nothing_depends_on_what_was_forgotten(lm, tmp_path, codec):
    """Two memories that differ in their first document, of as many tokens, are the same without it."""
    results = []
    for number, first in enumerate([STORY, STORY.replace("Lily", "Tim").replace("park", "garden")]):
        ids = lm.chat_format.encode(first)[:300]
        text = lm.chat_format.decode(ids)
        path = tmp_path / f"mem{number}"
        with lm.memory(path, dataclasses.replace(SMALL, codec=codec)) as memory:
            memory.read(Document("secret", text))
            memory.read(OTHER, name="other")
            memory.read(OTHER[::-1], name="last")
            forgotten = memory.forget("secret")
            assert forgotten.later == ["other", "last"]
            length, start = forgotten.num_tokens, int(memory.holes[0, 0])
        assert [one.name for one in lm.reread(path, start)] == ["other", "last"]
        assert verify(path) == []
        with lm.memory(path) as memory:
            assert [one.name for one in memory.documents] == ["other", "last"]
            results.append((length, spans(memory), memory.surprise().tobytes(), answer(lm, memory)))
        assert not Path(f"{path}.reread").exists() and not Path(f"{path}.old").exists()
    assert results[0] == results[1]


def test_forgetting_what_is_not_there_names_what_is(lm, tmp_path):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(STORY, name="story")
        with pytest.raises(InputError, match="its documents are: story"):
            memory.forget("novel")
        assert answer(lm, memory)[0]
    with pytest.raises(InputError, match="RAM"):
        lm.memory(config=SMALL).forget("story")


def test_forks_of_a_stored_memory_go_on_apart_and_leave_it_alone(lm, tmp_path):
    with lm.memory(tmp_path / "mem", SMALL) as memory:
        memory.read(STORY, name="story")
        expected = answer(lm, memory)
        forks = [memory.fork() for _ in range(20)]
        for fork in forks[:3]:
            fork.read(OTHER, name="other")
        assert answer(lm, memory) == expected
        assert spans(forks[0]) == spans(forks[1]) != spans(memory)
        with torch.no_grad():
            assert np.array_equal(forks[0].token_ids(), forks[2].token_ids())


def test_a_fork_at_rest_holds_no_context_and_goes_on_to_the_bit(lm):
    memory = lm.memory(config=SMALL)
    memory.read(STORY, name="story")
    ids = torch.tensor([lm.chat_format.encode("Lily went")])
    resting, other = memory.fork(), memory.fork()
    logits = []
    with torch.no_grad():
        for fork in (resting, other):
            lm.model(input_ids=ids, past_key_values=lm.cache(fork), use_cache=True)
            if fork is resting:
                fork.rest()
                assert all(layer._context is None for layer in fork._memory_layers)
            after = lm.model(input_ids=ids[:, :1], past_key_values=lm.cache(fork), use_cache=True)
            logits.append(after.logits)
    assert torch.equal(*logits)
    asked = memory.fork()
    lm.answer(asked, "Who?", sampling=SHORT)
    assert all(layer._context is None for layer in asked._memory_layers)


def test_a_document_that_was_begun_and_not_read_leaves_no_trace(lm, tmp_path):
    memory = lm.memory(tmp_path / "mem", SMALL)
    lm._reading.open(memory)
    memory.begin_document(DocumentRecord("story", 1, 1, 9, "", "text", 9, 0.0))
    memory.drop_document_without_tokens()
    memory.close()
    with lm.memory(tmp_path / "mem") as memory:
        assert memory.documents == [] and memory.dialogue == "opened"
        memory.read(STORY, name="story")
    assert verify(tmp_path / "mem") == []


def test_a_conversation_was_computed_with_the_document_in_view_as_well(lm, tmp_path):
    with lm.memory(tmp_path / "m", SMALL) as memory:
        memory.read(STORY, name="story")
        memory.read(OTHER, name="other")
        lm.answer(memory, "Who loved to play?", sampling=SHORT)
        assert memory.forget("story").later == ["other", "the conversation"]


def test_ctrl_c_in_the_midst_of_a_chunk_waits_until_it_is_whole(lm, tmp_path, monkeypatch):
    with lm.memory(tmp_path / "whole", SMALL) as undisturbed:
        undisturbed.read(STORY, name="story")
        expected = spans(undisturbed), answer(lm, undisturbed)
    cut = EpisodicMemory._cut
    with lm.memory(tmp_path / "m", SMALL) as memory:
        for _ in range(2):

            def interrupted(self, *args, **named):
                monkeypatch.setattr(EpisodicMemory, "_cut", cut)
                signal.raise_signal(signal.SIGINT)  # the log has the chunk, the events do not
                return cut(self, *args, **named)

            monkeypatch.setattr(EpisodicMemory, "_cut", interrupted)
            with pytest.raises(KeyboardInterrupt):
                memory.read(STORY, name="story")
        memory.read(STORY, name="story")
        assert memory.documents[-1].stop == memory.num_tokens
        assert (spans(memory), answer(lm, memory)) == expected
    with lm.memory(tmp_path / "m", read_only=True) as memory:
        assert (spans(memory), answer(lm, memory)) == expected


@pytest.mark.parametrize("codec", ["exact", "int8"])
@pytest.mark.parametrize(("part", "name"), [(Residency, "admit"), (PageMap, "set")])
def test_ctrl_c_while_pages_are_fetched_or_sealed_waits_until_they_are(
    lm, tmp_path, monkeypatch, codec, part, name
):
    settings = dataclasses.replace(SMALL, codec=codec)
    with lm.memory(tmp_path / "whole", settings) as undisturbed:
        undisturbed.read(STORY, name="story")
        expected = spans(undisturbed), answer(lm, undisturbed)
    whole = getattr(part, name)

    def interrupted(self, *args, **named):
        monkeypatch.setattr(part, name, whole)
        if name == "set":
            signal.raise_signal(signal.SIGINT)  # the unit is sealed, its pages are not known
            return whole(self, *args, **named)
        slots = whole(self, *args, **named)
        signal.raise_signal(signal.SIGINT)  # the pages have slots, and nothing in them
        return slots

    with lm.memory(tmp_path / "m", settings) as memory:
        for _ in range(3):
            monkeypatch.setattr(part, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                memory.read(STORY, name="story")
                answer(lm, memory)
        monkeypatch.setattr(part, name, whole)
        memory.read(STORY, name="story")
        assert (spans(memory), answer(lm, memory)) == expected


@pytest.mark.parametrize("family", ["mistral-sliding", "mistral"])
def test_a_lossy_memory_seals_whether_or_not_its_model_has_layers_that_recall(tmp_path, family):
    model = tiny_model(family)
    with EpisodicLM(model) as lm:
        memory = lm.memory(config=dataclasses.replace(SMALL, codec="int8"))
        read_tokens(model, lm.cache(memory), token_ids(model, 400)[0].tolist(), chunk_tokens=32)
        sealed = memory._log.sealed_stop
    assert sealed > 200
