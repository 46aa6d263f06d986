from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.chat_templates import CHAT_TEMPLATES, template_ids
from tests.support.tiny_suite import TEMPLATE, task
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from emllm.errors import InputError
from emllm.evaluation.prompts import TODAY, PromptFormat, dateless, prompt_format
from emllm.evaluation.samples import Question
from emllm.models.chat import chat_format

PIECES = st.lists(
    st.sampled_from(["\n", " ", "\t", "word", "Question:", ".", "42", "é", "\u4e2d"]), max_size=12
)


@pytest.fixture(scope="module")
def layout(shared_data: Path) -> PromptFormat:
    file = shared_data / "models" / "smollm2-135m-tokenizer-only" / "tokenizer.json"
    words = PreTrainedTokenizerFast(
        tokenizer_file=str(file), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    words.chat_template = TEMPLATE.replace("<s>", "<|im_start|>").replace("</s>", "<|im_end|>")
    return prompt_format(chat_format(words), task())


@given(PIECES, PIECES, st.integers(0, 40))
def test_a_prompt_has_the_ids_of_one_text(layout, end, asked, num_words):
    text = "Some words. " * num_words + "".join(end)
    question = Question("".join(asked) + "?", (), answer_begins=" It is")
    text_ids, (ids,) = layout.cut(text, [question])
    whole = layout.encode(text + question.text + layout.before_answer + question.answer_begins)
    assert [*text_ids, *ids] == whole


@given(PIECES, PIECES, PIECES)
def test_all_questions_begin_where_the_first_of_them_changes_the_text(layout, end, one, other):
    text = "Some words. " * 30 + "".join(end)
    questions = [Question("".join(asked) + "?", ()) for asked in (one, other)]
    text_ids, asked = layout.cut(text, questions)
    for question, ids in zip(questions, asked, strict=True):
        assert [*text_ids, *ids] == layout.encode(text + question.text + layout.before_answer)


@given(PIECES, PIECES)
def test_the_ids_of_the_template_are_found_behind_the_question(layout, end, asked):
    question = Question("".join(asked) + "?", (), answer_begins=" It is")
    _, (ids,) = layout.cut("Some words. " * 30 + "".join(end), [question])
    span = layout.template(question, len(ids))
    assert layout.decode(ids[span.start : span.stop]) == layout.before_answer
    assert layout.decode(ids[span.stop :]) == " It is"


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
@pytest.mark.parametrize("words", ["smollm2-135m-tokenizer-only", "stories260K"])
def test_a_prompt_has_the_ids_of_the_chat_template(shared_data, words, name):
    """The second tokenizer begins a word before whatever it encodes."""
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / words)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATES[name]
    layout = prompt_format(chat_format(tokenizer), task())
    text, question = "Lily had a red ball. " * 30 + "\n\n", Question("Who had a ball?", ())
    text_ids, (ids,) = layout.cut(text, [question])
    assert [*layout.opening, *text_ids, *ids] == template_ids(tokenizer, text + question.text)
    span = layout.template(question, len(ids))
    assert ids[span.start :] == layout.piece(layout.before_answer)
    assert span.stop == len(ids)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_prompt_is_the_same_on_every_day(shared_data, name):
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")
    tokenizer.chat_template = CHAT_TEMPLATES[name]
    today = dateless(chat_format(tokenizer))
    assert ("Today is" not in today.opening_text) or TODAY in today.opening_text
    again = dateless(chat_format(tokenizer, today="1 Jan 1970"))
    assert (again.opening, again.before_answer) == (today.opening, today.before_answer)


def test_newlines_at_the_end_of_a_text_are_other_ids_where_a_question_follows(layout):
    assert layout.decode(layout.encode("A text.\n\n")[-1:]) == "\n\n"
    text_ids, (ids,) = layout.cut("A text.\n\n", [Question("Who?", ())])
    assert layout.decode(text_ids) == "A text."
    assert layout.decode(ids).startswith("\n\nWho?")


def test_a_question_without_ids_is_refused(layout):
    bare = PromptFormat((), "", layout.encode, layout.piece, layout.decode)
    with pytest.raises(InputError, match="at least one token"):
        bare.cut("A text.", [Question("", ())])
