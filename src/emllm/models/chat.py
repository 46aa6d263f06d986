"""A tokenizer's chat template, cut where documents, questions and answers go.

A document is read once and each question only appends, so the template is taken apart: what comes before
the documents, what stands between a question and its answer, and what leads from an answer to the
next question. The cuts are found by rendering marks. The ids are those of the whole conversation as one
text, except where a tokenizer joins the end of one piece with the beginning of the next (a last newline with
a first one): there each piece keeps its own. Without a template a plain question-and-answer form is used.
Models that may think before they answer are asked not to (`enable_thinking`), as an answer's tokens are few;
the empty thought that some templates write for it stays before every answer. This module does not know
memories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emllm.errors import ModelError

_DOCUMENT, _QUESTION, _ANSWER, _NEXT = (
    "\u2983doc\u2984",
    "\u2983ask\u2984",
    "\u2983say\u2984",
    "\u2983nxt\u2984",
)
#: What templates ask for the date, and what answers instead; the newline after it is not rendered.
_NOW, _DATED = "strftime_now", "{{%- macro {}(format) -%}}{}{{%- endmacro %}}\n"
#: Between one document and the next, and between passages that are read again.
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class ChatFormat:
    """The pieces of a conversation about documents, as token ids and text.

    Attributes:
        opening: ids before the first document.
        opening_text: the template's text that they stand for; empty without a template.
        before_question: text between the documents and a question.
        before_answer: text between a question and the answer.
        before_next: text between an answer and the next question.
        stop_ids: ids that end an answer.
    """

    tokenizer: Any
    opening: tuple[int, ...]
    opening_text: str
    before_question: str
    before_answer: str
    before_next: str
    stop_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Ids of a text that nothing stands before; nothing is added."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def piece(self, text: str) -> list[int]:
        """Ids of a text in the middle of a conversation: what a tokenizer puts before a text is left out."""
        after_mark = self._after(_ANSWER, text)
        return self.encode(text) if after_mark is None else after_mark

    def after_opening(self, text: str) -> list[int]:
        """Ids of the first words after the opening."""
        after_opening = self._after(self.opening_text, text)
        return self.piece(text) if after_opening is None else after_opening

    def document(self, text: str, *, is_first: bool) -> list[int]:
        """Ids of a document: after the opening, or after an earlier document."""
        return self.after_opening(text) if is_first else self.piece(SEPARATOR + text)

    def question(self, text: str, *, is_first: bool) -> list[int]:
        """Ids that ask: after the documents, or after an earlier answer."""
        before = self.before_question if is_first else self.before_next
        return self.piece(before + text + self.before_answer)

    def _after(self, before: str, text: str) -> list[int] | None:
        """Ids of a text as it follows another; None where the two are joined in one token."""
        begun, ids = self.encode(before), self.encode(before + text)
        return ids[len(begun) :] if ids[: len(begun)] == begun else None

    def decode(self, token_ids: Any) -> str:
        """Text of ids, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


def before_any_text(tokenizer: Any) -> tuple[int, ...]:
    """Ids that a tokenizer puts before any text; what it ends a text with is left out."""
    added = tokenizer("", add_special_tokens=True)["input_ids"]
    return tuple(i for i in added if i != tokenizer.eos_token_id or i == tokenizer.bos_token_id)


def chat_format(
    tokenizer: Any, *, model_stop_ids: frozenset[int] = frozenset(), today: str | None = None
) -> ChatFormat:
    """The chat format of a tokenizer.

    Args:
        model_stop_ids: ids at which the model's generation settings stop.
        today: the date for templates that tell one; None: of this day.

    Raises:
        ModelError: the template does not show a user's words as they are.
    """
    own = {tokenizer.eos_token_id} - {None}
    if not getattr(tokenizer, "chat_template", None):
        return ChatFormat(
            tokenizer,
            before_any_text(tokenizer),
            "",
            "\n\nQuestion: ",
            "\nAnswer:",
            "\n\nQuestion: ",
            model_stop_ids | own,
        )
    asked = [{"role": "user", "content": f"{_DOCUMENT}{_QUESTION}"}]
    more = [*asked, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}]
    first, second = (_rendered(tokenizer, messages, today) for messages in (asked, more))
    if any(mark not in second for mark in (_ANSWER, _NEXT)) or f"{_DOCUMENT}{_QUESTION}" not in first:
        raise ModelError("the chat template changes a user's words; it cannot be cut around documents")
    opening_text = first.split(_DOCUMENT)[0]
    before_answer = first.split(_QUESTION)[1]
    before_next = second.split(_ANSWER)[1].split(_NEXT)[0]
    opening = tokenizer(opening_text, add_special_tokens=False)["input_ids"]
    turn_end = tokenizer(before_next, add_special_tokens=False)["input_ids"][:1]
    special = {i for i in turn_end if i in set(tokenizer.all_special_ids)}
    return ChatFormat(
        tokenizer,
        tuple(opening),
        opening_text,
        "\n\n",
        before_answer,
        before_next,
        model_stop_ids | own | special,
    )


def _rendered(tokenizer: Any, messages: list[dict[str, str]], today: str | None) -> str:
    """A conversation as text, up to where the assistant speaks."""
    changed = {}
    template = tokenizer.get_chat_template()
    if today is not None and _NOW in template:
        changed["chat_template"] = _DATED.format(_NOW, today) + template
    return str(
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, **changed
        )
    )
