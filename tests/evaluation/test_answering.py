"""How a row answers: the stock model's words for full attention, one reading, questions apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_suite
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_suite import SMALL, sample, task, tiny_lm

from emllm.errors import ConfigError, InputError, SourceError
from emllm.evaluation.answering import Answerer
from emllm.evaluation.last_reading import LastReading
from emllm.evaluation.prompts import prompt_format, text_of, until_stop, without_middle
from emllm.evaluation.rag import Passages
from emllm.evaluation.rows import ROWS, Row
from emllm.evaluation.run import READING, Run
from emllm.evaluation.samples import Question, Sample

FULL, MEMORY, WINDOW = ROWS["full"], Row("mine"), ROWS["streaming-llm"]
CHUNK = {"chunk_tokens": 32}


@pytest.fixture(scope="module")
def lm():
    with tiny_lm() as lm:
        yield lm


@pytest.fixture(scope="module")
def bare_lm():
    with tiny_lm(template=None) as lm:
        yield lm


def stock(lm, ids, num_tokens):
    """What the model itself generates greedily."""
    lm.close()
    try:
        with torch.no_grad():
            out = lm.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )
    finally:
        lm.__init__(lm.model, lm.tokenizer, name=lm.name)
    return lm.chat_format.decode(out[0, len(ids) :].tolist())


@pytest.mark.parametrize("is_chat", [True, False])
def test_full_attention_answers_as_the_stock_model_does_on_the_same_ids(lm, is_chat):
    one, asked = task(is_chat=is_chat, answer_tokens=8), sample(1)
    layout = prompt_format(lm.chat_format, one)
    outcome = Answerer(lm, FULL, CHUNK).answer(one, asked)
    text, questions = layout.cut(text_of(asked), asked.questions)
    for question, reply in zip(questions, outcome.replies, strict=True):
        assert reply.prediction == stock(lm, [*layout.opening, *text, *question], 8)
        assert reply.answer_tokens == 8 and reply.evidence == ()
    assert outcome.tokens == outcome.read_tokens == len(layout.opening) + len(text)


def test_full_attention_over_a_long_text_reads_both_ends_within_the_trained_window(lm):
    one, asked = task(answer_tokens=8), sample(1, num_words=900, num_questions=1)
    layout = prompt_format(lm.chat_format, one)
    outcome = Answerer(lm, FULL, CHUNK).answer(one, asked)
    text, (question,) = layout.cut(text_of(asked), asked.questions)
    room = lm.geometry.trained_tokens - 8 - len(layout.opening) - len(question)
    half = room // 2
    kept = text[:half] + text[-half:]
    assert outcome.tokens == len(layout.opening) + len(text) > 512
    assert outcome.read_tokens == len(layout.opening) + len(kept) and len(kept) >= room - 1
    assert outcome.replies[0].prediction == stock(lm, [*layout.opening, *kept, *question], 8)


@pytest.mark.parametrize("row", [FULL, MEMORY, WINDOW])
def test_a_question_asked_second_is_answered_as_if_it_were_asked_alone(lm, row):
    asked = sample(2, num_words=200)
    answerer = Answerer(lm, row, CHUNK if row is FULL else SMALL)
    both = answerer.answer(task(), asked).replies
    alone = answerer.answer(task(), replace(asked, questions=asked.questions[1:])).replies
    assert (both[1].prediction, both[1].evidence) == (alone[0].prediction, alone[0].evidence)


def test_all_rows_read_the_same_tokens(lm, monkeypatch):
    import emllm.evaluation.answering as module

    read = []
    original = module.read_tokens

    def spy(model, cache, token_ids, **options):
        read.append(list(token_ids))
        original(model, cache, token_ids, **options)

    monkeypatch.setattr(module, "read_tokens", spy)
    for row in (FULL, MEMORY, WINDOW):
        Answerer(lm, row, CHUNK if row is FULL else SMALL).answer(task(), sample(3))
    assert len(read) == 3 and read[0] == read[1] == read[2]


def test_evidence_lies_in_the_text_and_has_no_words(lm):
    outcome = Answerer(lm, MEMORY, SMALL).answer(task(), sample(4, num_words=300))
    evidence = outcome.replies[0].evidence
    assert evidence and len(evidence) <= 5
    for item in evidence:
        assert set(item) == {"event", "start", "stop", "score", "layers"}
        assert 0 <= item["start"] < item["stop"] <= outcome.tokens
    assert outcome.recalled_tokens == 64


def test_the_chat_template_surrounds_the_prompt_unless_the_task_wants_it_bare(lm, bare_lm):
    decode = lm.tokenizer.decode
    chat = prompt_format(lm.chat_format, task())
    question = Question("Who?", (), answer_begins=" It is")
    assert decode(chat.opening) == "<s>user\n"
    _, (asked,) = chat.cut("A text. ", [question])
    assert decode(asked) == "Who?</s><s>assistant\n It is"
    for layout in (
        prompt_format(lm.chat_format, task(is_chat=False)),
        prompt_format(bare_lm.chat_format, task()),
    ):
        assert decode(layout.opening) == "<s>"
        assert decode(layout.cut("A text. ", [question])[1][0]) == "Who? It is"


def test_words_put_into_its_mouth_are_no_part_of_a_prediction(lm):
    asked = Sample("s", "", sample(1).text, (Question("Who?", (), answer_begins=" Lily had a"),))
    reply = Answerer(lm, FULL, CHUNK).answer(task(), asked).replies[0]
    assert not reply.prediction.startswith(" Lily had a")


def test_an_answer_ends_before_the_first_stop(lm):
    bare = task(answer_tokens=12, is_chat=False)
    whole = Answerer(lm, FULL, CHUNK).answer(bare, sample(1)).replies[0]
    stop = whole.prediction[2:4]
    ended = Answerer(lm, FULL, CHUNK).answer(replace(bare, stops=(stop,)), sample(1)).replies[0]
    assert ended.prediction == whole.prediction[: whole.prediction.index(stop)]
    assert ended.answer_tokens < whole.answer_tokens


@given(text=st.text("a\n ", max_size=12), stop=st.sampled_from(["\n", "aa", " a"]))
def test_nothing_of_a_stop_is_left_after_the_first_word(text, stop):
    answer, is_stopped = until_stop(text, [stop])
    assert text.startswith(answer)
    begin = len(text) - len(text.lstrip())
    assert (stop in text[begin:]) == is_stopped
    assert stop not in answer[begin:]


@given(ids=st.lists(st.integers(0, 9), max_size=30), room=st.integers(2, 40))
def test_what_is_kept_fits_and_has_as_much_of_the_start_as_of_the_end(ids, room):
    kept = without_middle(ids, room)
    assert len(kept) <= room
    if len(ids) <= room:
        assert kept == ids
    else:
        half = len(kept) // 2
        assert kept == ids[:half] + ids[-half:] and len(kept) >= room - 1


def test_a_question_as_long_as_the_window_is_refused(lm):
    asked = Sample("s", "", sample(1).text, (Question("Who? " * 400, ()),))
    with pytest.raises(InputError, match=r"leaves room for -?\d+ tokens"):
        Answerer(lm, FULL, CHUNK).answer(task(), asked)


def test_perplexity_is_the_mean_surprise_of_the_texts_tokens(lm):
    one = task(metric="perplexity", is_chat=False)
    asked = replace(sample(1, num_words=200), questions=(), before="Some words. ")
    outcome = Answerer(lm, FULL, CHUNK).answer(one, asked)
    layout = prompt_format(lm.chat_format, one)
    ids = [*layout.opening, *layout.cut(text_of(asked), ())[0]]
    lm.close()
    try:
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids])).logits[0].double()
    finally:
        lm.__init__(lm.model, lm.tokenizer, name=lm.name)
    losses = -logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].numpy()
    start = len(layout.opening) + len(layout.encode(asked.before))
    assert outcome.mean_surprise == pytest.approx(float(np.mean(losses[start - 1 :])), abs=1e-4)
    assert outcome.replies == ()


def test_perplexity_of_full_attention_is_of_the_beginning_that_fits(lm):
    one = task(metric="perplexity", is_chat=False)
    asked = replace(sample(1, num_words=900), questions=())
    outcome = Answerer(lm, FULL, CHUNK).answer(one, asked)
    assert outcome.read_tokens == 512 < outcome.tokens


def test_passages_take_the_place_of_the_text(lm, monkeypatch):
    asked = sample(1)
    given = []

    def found(row, lm, sample, question, budget_tokens):
        given.append((question.text, budget_tokens))
        return Passages("Max is a dog.", ({"rank": 0},))

    monkeypatch.setattr("emllm.evaluation.rag.passages_for", found)
    outcome = Answerer(lm, ROWS["rag"], {**SMALL, **CHUNK}).answer(task(), asked)
    layout = prompt_format(lm.chat_format, task())
    text, (question,) = layout.cut(text_of(asked, "Max is a dog."), asked.questions[:1])
    ids = [*layout.opening, *text]
    assert outcome.read_tokens == len(ids) < outcome.tokens
    assert [text for text, _ in given[1:]] == [question.text for question in asked.questions]
    assert {budget for _, budget in given} == {4 + 48 + 64}
    expected = stock(lm, [*ids, *question], 5)
    assert outcome.replies[0].prediction == expected
    assert all(reply.evidence == ({"rank": 0},) for reply in outcome.replies)


def test_a_search_that_cannot_work_is_found_out_before_the_first_sample(lm, monkeypatch):
    def missing(*args):
        raise ConfigError("no such embedder")

    monkeypatch.setattr("emllm.evaluation.rag.passages_for", missing)
    with pytest.raises(ConfigError, match="no such embedder"):
        Answerer(lm, ROWS["rag"], SMALL)


def test_rows_that_only_ask_otherwise_share_a_reading_and_answer_as_alone(lm, monkeypatch):
    never = Row("never", settings={"recollect": "never"})
    always = Row("always", settings={"recollect": "always", "recollect_tokens": 24})
    asked, last = sample(2, num_words=200), LastReading()
    alone = {row.name: Answerer(lm, row, SMALL).answer(task(), asked) for row in (never, always)}
    read = []
    monkeypatch.setattr(
        Answerer, "_read", lambda *args, whole=Answerer._read, **kw: read.append(1) or whole(*args, **kw)
    )
    for row in (never, always, never):
        outcome = Answerer(lm, row, SMALL, last).answer(task(), asked)
        expected = alone[row.name].replies
        assert [(r.prediction, r.evidence) for r in outcome.replies] == [
            (r.prediction, r.evidence) for r in expected
        ]
        assert outcome.read_seconds > 0
    assert len(read) == 1
    assert alone["never"].replies != alone["always"].replies


def test_another_text_or_other_settings_are_read_anew(lm):
    last, seen = LastReading(), []
    for row, asked in ((MEMORY, sample(1)), (WINDOW, sample(1)), (MEMORY, sample(1)), (MEMORY, sample(2))):
        Answerer(lm, row, SMALL, last).answer(task(), asked)
        seen.append(last._memory)
    assert len({id(memory) for memory in seen}) == len(seen)


def test_what_was_read_before_is_let_go_before_it_is_said_and_before_the_next_text_is_read(lm, monkeypatch):
    told = []
    last = LastReading(on_let_go=lambda: told.append((last._memory, len(read))))
    read = []
    monkeypatch.setattr(
        Answerer, "_read", lambda *args, whole=Answerer._read, **kw: read.append(1) or whole(*args, **kw)
    )
    monkeypatch.setattr("emllm.evaluation.rag.passages_for", lambda *args: Passages("Max is a dog."))
    for row, asked in (
        (MEMORY, sample(1)),
        (MEMORY, sample(1)),
        (MEMORY, sample(2)),
        (ROWS["rag"], sample(2)),
    ):
        Answerer(lm, row, SMALL, last).answer(task(), asked)
    assert told == [(None, 1), (None, 2)]


class Broken(BaseException):
    """Somebody pressed Ctrl-C."""


@pytest.fixture
def no_room(monkeypatch):
    """Nothing fits into RAM."""

    def refuse(num_bytes, geometry, *, name):
        raise SourceError(f"{name}: does not fit")

    monkeypatch.setattr("emllm.evaluation.answering.check_fits", refuse)


def what_was_said(outcome):
    return outcome.read_tokens, [(reply.prediction, reply.evidence) for reply in outcome.replies]


def test_a_text_that_does_not_fit_into_ram_is_read_into_a_folder_and_answered_alike(lm, request, tmp_path):
    samples = [sample(number, num_words=300) for number in (1, 2)]
    expected = [what_was_said(Answerer(lm, MEMORY, SMALL).answer(task(), one)) for one in samples]
    request.getfixturevalue("no_room")
    with pytest.raises(SourceError, match=r"does not fit$"):
        Answerer(lm, MEMORY, SMALL).answer(task(), samples[0])
    last = LastReading(tmp_path / "reading")
    answerer = Answerer(lm, MEMORY, SMALL, last)
    for one, wanted in zip(samples, expected, strict=True):
        outcome = answerer.answer(task(), one)
        assert what_was_said(outcome) == wanted and outcome.read_seconds > 0
        assert len(list((tmp_path / "reading").iterdir())) == 1
    last.discard()
    assert not (tmp_path / "reading").exists()


def test_reading_into_a_folder_goes_on_where_it_was_interrupted(lm, no_room, tmp_path):
    def interrupt(progress):
        if progress is not None and progress.num_read > 100:
            raise Broken

    asked, place = sample(1, num_words=300), tmp_path / "reading"
    whole = Answerer(lm, MEMORY, SMALL, LastReading(tmp_path / "whole")).answer(task(), asked)
    first = LastReading(place)
    with pytest.raises(Broken):
        Answerer(lm, MEMORY, SMALL, first).answer(task(), asked, progress=interrupt)
    first.close()
    (folder,) = place.iterdir()
    with lm.memory(folder, read_only=True) as begun:
        assert 0 < begun.num_tokens < whole.read_tokens
    again = Answerer(lm, MEMORY, SMALL, LastReading(place)).answer(task(), asked)
    assert what_was_said(again) == what_was_said(whole) and again.read_seconds is None


def test_a_text_that_does_not_fit_onto_the_disk_either_is_refused_before_it_is_read(
    lm, no_room, tmp_path, monkeypatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(SourceError, match=r"does not fit, and 0\.0 GB on the disk of"):
        Answerer(lm, MEMORY, SMALL, LastReading(tmp_path / "reading")).answer(task(), sample(1))
    assert not (tmp_path / "reading").exists()


def test_an_interrupted_run_goes_on_within_a_text_and_leaves_no_folder_when_it_is_done(
    lm, no_room, tmp_path, monkeypatch
):
    tiny_suite.install(monkeypatch)
    wanted = tiny_suite.wishes([task()], [MEMORY], limit=2)
    whole = Run(lm, wanted).into(tmp_path / "whole")
    steps = []

    def interrupt(step):
        steps.append(step)
        if len(steps) == 7:
            raise Broken

    with pytest.raises(Broken):
        Run(lm, wanted, on_step=interrupt).into(tmp_path / "run")
    (folder,) = (tmp_path / "run" / READING).iterdir()
    with lm.memory(folder, read_only=True) as begun:
        num_read = begun.num_tokens
    assert num_read > 0
    again = Run(lm, wanted).into(tmp_path / "run")
    assert again.results == whole.results
    assert not (tmp_path / "run" / READING).exists() and not (tmp_path / "whole" / READING).exists()
