"""What is fed for documents, questions and answers is what the chat template makes of the conversation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.chat_templates import CHAT_TEMPLATES, template_ids
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from emllm.models.chat import ChatFormat, chat_format

#: A byte-level tokenizer, and one that begins a word before whatever it encodes.
TOKENIZERS = ("smollm2-135m-tokenizer-only", "stories260K")
#: One that has tokens of a stop and the newline after it.
JOINING = "tinystories-656k"
DOCUMENT = "Once upon a time, Lily had a red ball.\n\nHer dog was called Max."
ASKED = ("Who is Max?", "And what did Lily have?")
ANSWERED = "Her dog."
WORDS = st.lists(st.sampled_from(["Lily", " ", "\n", "?", " was", "42", "ünï", "\u65e5\u672c"]), min_size=1)


@pytest.fixture(scope="module")
def tokenizers(shared_data: Path) -> dict[str, PreTrainedTokenizerBase]:
    """Real tokenizers, with the special tokens that the templates write."""
    found = {}
    for name in (*TOKENIZERS, JOINING):
        found[name] = AutoTokenizer.from_pretrained(shared_data / "models" / name)
        found[name].add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return found


@pytest.fixture(params=TOKENIZERS)
def bare(request: pytest.FixtureRequest, tokenizers) -> PreTrainedTokenizerBase:
    tokenizer = tokenizers[request.param]
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(params=CHAT_TEMPLATES)
def tokenizer(request: pytest.FixtureRequest, bare) -> PreTrainedTokenizerBase:
    bare.chat_template = CHAT_TEMPLATES[request.param]
    return bare


def fed(chat: ChatFormat, document: str, *turns: str) -> list[int]:
    """Ids of a document, then a question, an answer, a question and so on, piece by piece."""
    ids = [*chat.opening, *chat.document(document, is_first=True)]
    for number, text in enumerate(turns):
        ids += chat.piece(text) if number % 2 else chat.question(text, is_first=number == 0)
    return ids


def test_a_question_about_a_document_has_the_ids_of_the_template(tokenizer):
    ids = fed(chat_format(tokenizer), DOCUMENT, ASKED[0])
    assert ids == template_ids(tokenizer, f"{DOCUMENT}\n\n{ASKED[0]}")


def test_a_second_question_has_the_ids_of_the_template_after_the_answer(tokenizer):
    chat = chat_format(tokenizer)
    ids = fed(chat, DOCUMENT, ASKED[0], ANSWERED, ASKED[1])
    whole = template_ids(tokenizer, f"{DOCUMENT}\n\n{ASKED[0]}", ANSWERED, ASKED[1])
    if "<think>" in chat.before_answer:  # the template leaves the first answer's empty thought out again
        assert tokenizer.decode(ids).replace("<think>\n\n</think>\n\n", "", 1) == tokenizer.decode(whole)
    else:
        assert ids == whole


def test_documents_follow_each_other_as_paragraphs_of_one_turn(tokenizer):
    chat = chat_format(tokenizer)
    ids = fed(chat, DOCUMENT) + chat.document("More.", is_first=False) + chat.question("Who?", is_first=True)
    assert ids == template_ids(tokenizer, f"{DOCUMENT}\n\nMore.\n\nWho?")


def test_a_conversation_without_documents_has_the_ids_of_the_template(tokenizer):
    chat = chat_format(tokenizer)
    ids = [*chat.opening, *chat.after_opening(ASKED[0] + chat.before_answer)]
    assert ids == template_ids(tokenizer, ASKED[0])


def test_a_date_that_is_given_stands_where_the_template_tells_one_and_changes_nothing_else(tokenizer):
    plain, dated = chat_format(tokenizer), chat_format(tokenizer, today="26 Jul 2024")
    assert ("Today is" in plain.opening_text) == ("Today is 26 Jul 2024." in dated.opening_text)
    texts = [
        re.sub(r"Today is .*?\.", "", text)
        for chat in (plain, dated)
        for text in (chat.opening_text, chat.before_answer, chat.before_next)
    ]
    assert texts[:3] == texts[3:]


def test_a_model_that_may_think_is_asked_not_to(bare):
    bare.chat_template = CHAT_TEMPLATES["dated and thoughtful"]
    chat = chat_format(bare)
    assert chat.before_answer.endswith("</think>\n\n")


def test_without_a_template_the_ids_are_those_of_one_text(bare):
    chat = chat_format(bare)
    ids = fed(chat, DOCUMENT, ASKED[0])
    assert ids == [*chat.opening, *chat.encode(f"{DOCUMENT}\n\nQuestion: {ASKED[0]}\nAnswer:")]


@given(document=WORDS, question=WORDS)
def test_where_tokens_would_join_each_piece_keeps_its_own_and_the_text_is_the_templates(
    tokenizers, document, question
):
    tokenizer = tokenizers[TOKENIZERS[0]]
    tokenizer.chat_template = CHAT_TEMPLATES["SmolLM2"]
    said, asked = "".join(document), "".join(question)
    chat = chat_format(tokenizer)
    ids, whole = fed(chat, said, asked), template_ids(tokenizer, f"{said}\n\n{asked}")
    assert tokenizer.decode(ids) == tokenizer.decode(whole)
    if said == said.strip() and asked == asked.lstrip():
        assert ids == whole


def test_a_newline_at_the_end_of_a_document_is_not_joined_with_those_before_the_question(tokenizers):
    tokenizer = tokenizers[TOKENIZERS[0]]
    tokenizer.chat_template = CHAT_TEMPLATES["SmolLM2"]
    chat = chat_format(tokenizer)
    read = [*chat.opening, *chat.document("A text.\n", is_first=True)]
    whole = template_ids(tokenizer, "A text.\n\n\nWho?")
    assert [*read, *chat.question("Who?", is_first=True)] != whole
    assert tokenizer.decode(read[-1]) == "\n" and tokenizer.decode(whole[: len(read)]).endswith(".\n\n")


def test_a_stop_stays_the_documents_where_a_tokenizer_joins_it_with_the_newline_before_the_question(
    tokenizers,
):
    tokenizer = tokenizers[JOINING]
    tokenizer.chat_template = CHAT_TEMPLATES["SmolLM2"]
    chat = chat_format(tokenizer)
    read = [*chat.opening, *chat.document(DOCUMENT, is_first=True)]
    whole = template_ids(tokenizer, f"{DOCUMENT}\n\n{ASKED[0]}")
    assert read[:-1] == whole[: len(read) - 1]
    pieces = (read[-1], whole[len(read) - 1])
    assert tuple(map(tokenizer.decode, pieces)) == (".", ".\n")
    ids = [*read, *chat.question(ASKED[0], is_first=True)]
    assert tokenizer.decode(ids) == tokenizer.decode(whole)
