"""Reading, asking and streaming with a real, tiny model: what a user of the Python interface relies on."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.stories import SHORT, SMALL, STORY

from emllm import Document, EpisodicLM, MemoryConfig, Sampling
from emllm.errors import ConfigError, InputError, SourceError
from emllm.generation import text_pieces
from emllm.models.load import load_model
from emllm.reading import check_fits, read_tokens


@pytest.fixture()
def memory(lm):
    memory = lm.memory(config=SMALL)
    memory.read(STORY, name="story")
    return memory


def state(memory):
    return (
        memory.num_tokens,
        [(event.start, event.stop) for event in memory.events()],
        memory.token_ids().tolist(),
        memory.surprise().tobytes(),
        memory.dialogue,
        list(memory.documents),
    )


def test_a_memory_that_nobody_holds_gives_its_room_back_at_once(lm):
    gc.disable()
    try:
        memory = lm.memory(config=SMALL)
        memory.read(STORY, name="story")
        lm.ask(memory, "Who was sad?", sampling=SHORT)
        fork = memory.fork()
        held = [weakref.ref(memory), weakref.ref(fork)]
        del memory, fork
        assert [one() for one in held] == [None, None]
    finally:
        gc.enable()


def test_asking_leaves_the_memory_as_it_was(lm, memory):
    before = state(memory)
    lm.ask(memory, "Who was sad?", sampling=SHORT)
    assert state(memory) == before


def test_the_same_question_has_the_same_answer_and_evidence_twice(lm, memory):
    first, second = (lm.ask(memory, "Who was sad?", sampling=SHORT) for _ in range(2))
    assert (first.text, first.evidence) == (second.text, second.evidence)


def test_streamed_pieces_make_the_answer(lm, memory):
    pieces = list(lm.stream(memory, "Who was sad?", sampling=SHORT))
    assert "".join(pieces).strip() == lm.ask(memory, "Who was sad?", sampling=SHORT).text
    assert len(pieces) > 1


def test_evidence_lies_in_the_document_and_says_what_the_log_says(lm, memory):
    evidence = lm.ask(memory, "Who was sad?", sampling=SHORT).evidence
    assert evidence
    for item in evidence:
        assert item.document == "story" and 0 <= item.position < 1
        assert item.text == lm.chat_format.decode(memory.token_ids(item.start, item.stop))
        is_ranked = item.event is not None
        assert (item.score > 0) == (item.layers > 0) == is_ranked
    assert len({(item.start, item.stop) for item in evidence}) == len(evidence) <= 5
    assert len(lm.ask(memory, "Who was sad?", sampling=SHORT, num_evidence=1).evidence) == 1


def test_a_turn_of_a_conversation_stays_in_the_memory(lm, memory):
    before = memory.num_tokens
    answer = lm.answer(memory, "Who was sad?", sampling=SHORT)
    text = lm.chat_format.decode(memory.token_ids(before))
    assert "Who was sad?" in text and text.rstrip().endswith(answer.text)
    lm.answer(memory, "And who helped?", sampling=SHORT)
    assert "And who helped?" in lm.chat_format.decode(memory.token_ids(before))
    with pytest.raises(InputError, match="fork it before asking"):
        memory.read("more", name="more")


def test_stock_generate_with_a_covering_memory_writes_the_stock_text(lm, shared_data):
    ids = torch.tensor([lm.chat_format.encode(STORY[:400])])
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    memory = lm.memory(config=MemoryConfig.preset("full", chunk_tokens=32))
    ours = lm.model.generate(ids, past_key_values=lm.cache(memory), **options)
    read = lm.memory(config=MemoryConfig.preset("full", chunk_tokens=32))
    read_tokens(lm.model, lm.cache(read), ids[0, :-1].tolist(), chunk_tokens=32)
    continued = lm.model.generate(ids, past_key_values=lm.cache(read), **options)
    lm.close()
    try:
        stock = lm.model.generate(ids, **options)
    finally:
        lm.__init__(lm.model, lm.tokenizer, name=lm.name)
    assert torch.equal(ours, stock) and torch.equal(continued, stock)


def test_a_model_that_was_given_back_is_said_to_be(lm, memory):
    cache = lm.cache(memory)
    lm.close()
    try:
        with pytest.raises(InputError, match=r"the model was given back \(close, or detach\)"):
            lm.ask(memory, "Who was sad?", sampling=SHORT)
        with pytest.raises(InputError, match=r"nor once it was given back"):
            lm.model(torch.tensor([[1, 2, 3]]), past_key_values=cache)
    finally:
        lm.__init__(lm.model, lm.tokenizer, name=lm.name)


def test_a_model_that_would_keep_gradients_is_told_what_to_do_and_reads_on(lm, memory):
    before = state(memory)
    ids = torch.tensor([lm.chat_format.encode("Lily went")])
    with pytest.raises(InputError, match=r"inside torch\.no_grad\(\)"):
        lm.model(ids, past_key_values=lm.cache(memory))
    assert state(memory) == before
    with torch.no_grad():
        lm.model(ids, past_key_values=lm.cache(memory))
    assert memory.num_tokens == before[0] + ids.shape[1]


def test_what_a_folder_cannot_give_is_warned_of(lm, tmp_path):
    (tmp_path / "first.txt").write_text("Lily had a red ball and a big dog.")
    (tmp_path / "void.txt").write_text("")
    memory = lm.memory(config=SMALL)
    with pytest.warns(UserWarning, match=r"void\.txt: empty \(skipped\)") as warned:
        memory.read(tmp_path)
    assert [document.name for document in memory.documents] == ["first.txt"]
    assert warned[0].filename == __file__


def test_documents_keep_their_names_and_places(lm, tmp_path):
    (tmp_path / "first.txt").write_text("Lily had a red ball and a big dog.")
    memory = lm.memory(config=SMALL)
    memory.read(tmp_path / "first.txt")
    memory.read(Document("second", "Tom had a blue car and a small cat."))
    assert [document.name for document in memory.documents] == ["first.txt", "second"]
    first, second = memory.documents
    assert "red ball" in lm.chat_format.decode(memory.token_ids(first.start, first.stop))
    assert "blue car" in lm.chat_format.decode(memory.token_ids(second.start, second.stop))
    assert memory.place(first.start) == ("first.txt", 0.0)


def test_an_interrupted_reading_leaves_whole_chunks_and_can_go_on(lm):
    ids = lm.chat_format.encode(STORY)

    def stop_early(step):
        if step.num_read >= 96:
            raise KeyboardInterrupt

    interrupted, whole = lm.memory(config=SMALL), lm.memory(config=SMALL)
    with pytest.raises(KeyboardInterrupt):
        read_tokens(lm.model, lm.cache(interrupted), ids, chunk_tokens=32, progress=stop_early)
    assert interrupted.num_tokens == 96
    read_tokens(lm.model, lm.cache(interrupted), ids[96:], chunk_tokens=32)
    read_tokens(lm.model, lm.cache(whole), ids, chunk_tokens=32)
    assert state(interrupted) == state(whole)


def test_an_abandoned_chunk_leaves_no_trace(lm, memory, monkeypatch):
    before = state(memory)
    twin = memory.fork()
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "commit", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            read_tokens(lm.model, lm.cache(memory), [5, 6, 7], chunk_tokens=32)
    assert state(memory) == before
    for each in (memory, twin):
        read_tokens(lm.model, lm.cache(each), [9, 8, 7], chunk_tokens=32)
    assert state(memory) == state(twin)


def test_a_memory_of_another_model_is_refused_and_one_of_another_copy_is_not(lm, memory, shared_data):
    folder = shared_data / "models" / "stories260K"
    other, alike = (load_model(folder, dtype="float32")[0] for _ in range(2))
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    before = state(memory)
    with EpisodicLM(other, lm.tokenizer) as finetuned:
        for use in (finetuned.ask, finetuned.answer, lambda *asked: list(finetuned.stream(*asked))):
            with pytest.raises(InputError, match="another model made this memory: the weights differ"):
                use(memory, "Who?")
        with pytest.raises(InputError, match="another model made this memory"):
            finetuned.cache(memory.fork())
    assert state(memory) == before
    with EpisodicLM(alike, lm.tokenizer) as same:
        assert same.ask(memory, "Who?", sampling=SHORT).text == lm.ask(memory, "Who?", sampling=SHORT).text


def test_progress_counts_up_to_all_tokens(lm):
    steps = []
    lm.memory(config=SMALL).read(STORY[:600], progress=steps.append)
    assert steps[-1].num_read == steps[-1].num_total
    assert [step.num_read for step in steps] == sorted({step.num_read for step in steps})
    assert steps[-1].seconds_left == 0


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("", "must not be empty, got ''"),
        ("  \n ", "must not be empty"),
        ("Who\ud800?", "is not valid UTF-8: .* at character 3"),
        (b"Who?", "must be a string, got bytes"),
        (None, "must be a string, got NoneType"),
        (["Who?"], "must be a string, got list"),
    ],
)
def test_what_is_no_text_is_neither_read_nor_asked(lm, memory, bad, why):
    with pytest.raises(InputError, match=f"text to read {why}"):
        lm.memory(config=SMALL).read(bad)
    with pytest.raises(InputError, match=f"a question {why}"):
        lm.ask(memory, bad)


def test_a_text_that_will_not_fit_is_refused_before_it_is_read(lm):
    with pytest.raises(SourceError, match=r"big\.txt: .* tokens and need .* GB are free"):
        check_fits(10**15, lm.geometry, name="big.txt")


def test_ids_outside_the_vocabulary_are_refused(lm):
    with pytest.raises(InputError, match=r"\[0, 512\), got 5 to 512"):
        read_tokens(lm.model, lm.cache(lm.memory(config=SMALL)), [5, 512], chunk_tokens=32)


def test_a_seed_repeats_a_sampled_answer_and_another_changes_it(lm, memory):
    answers = [
        lm.ask(memory, "Who?", sampling=Sampling(max_new_tokens=20, temperature=1.0, seed=seed)).text
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_new_tokens": 0}, {"temperature": -1}, {"temperature": 1e-45}, {"top_p": 0}),
        *({"repetition_penalty": 0}, {"seed": 2**64}, {"seed": -1}),
    ],
)
def test_a_wrong_sampling_setting_names_itself(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_a_character_of_several_tokens_is_held_back_until_it_is_whole():
    data = "naïve 🙂!".encode()
    pieces = list(text_pieces(iter(data), lambda ids: bytes(ids).decode("utf-8", "replace")))
    assert "".join(pieces) == "naïve 🙂!" and not any("\ufffd" in piece for piece in pieces)


def test_surprise_of_a_repeated_story_falls(memory):
    surprise = memory.surprise()
    assert np.isnan(surprise[0]) or surprise[0] >= 0
    assert (surprise[1:] >= 0).all()


def test_a_path_that_does_not_exist_is_a_source_error(lm):
    with pytest.raises(SourceError, match=r"nowhere\.txt"):
        lm.memory(config=SMALL).read(Path("nowhere.txt"))
