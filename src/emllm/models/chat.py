"""A tokenizer's chat template, cut where documents, questions and answers go.

A document is read once and each question only appends, so the template is taken apart: what comes before
the documents, what stands between a question and its answer, and what leads from an answer to the
next question. The cuts are found by rendering marks. Without a template a plain question-and-answer
form is used. This module does not know memories.
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


@dataclass(frozen=True)
class ChatFormat:
    """The pieces of a conversation about documents, as token ids and text.

    Attributes:
        opening: ids before the first document.
        before_question: text between the documents and a question.
        before_answer: text between a question and the answer.
        before_next: text between an answer and the next question.
        stop_ids: ids that end an answer.
    """

    tokenizer: Any
    opening: tuple[int, ...]
    before_question: str
    before_answer: str
    before_next: str
    stop_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Ids of a piece in the middle of the conversation: nothing is added."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def question(self, text: str, *, is_first: bool) -> list[int]:
        """Ids that ask: after the documents, or after an earlier answer."""
        before = self.before_question if is_first else self.before_next
        return self.encode(before + text + self.before_answer)

    def decode(self, token_ids: Any) -> str:
        """Text of ids, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


def chat_format(tokenizer: Any, *, model_stop_ids: frozenset[int] = frozenset()) -> ChatFormat:
    """The chat format of a tokenizer.

    Args:
        model_stop_ids: ids at which the model's generation settings stop.

    Raises:
        ModelError: the template does not show a user's words as they are.
    """
    own = {tokenizer.eos_token_id} - {None}
    if not getattr(tokenizer, "chat_template", None):
        opening = tokenizer("", add_special_tokens=True)["input_ids"]
        opening = [i for i in opening if i != tokenizer.eos_token_id or i == tokenizer.bos_token_id]
        return ChatFormat(
            tokenizer, tuple(opening), "\n\nQuestion: ", "\nAnswer:", "\n\nQuestion: ", model_stop_ids | own
        )
    asked = [{"role": "user", "content": f"{_DOCUMENT}{_QUESTION}"}]
    more = [*asked, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}]
    first = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    second = tokenizer.apply_chat_template(more, tokenize=False, add_generation_prompt=True)
    if any(mark not in second for mark in (_ANSWER, _NEXT)) or f"{_DOCUMENT}{_QUESTION}" not in first:
        raise ModelError("the chat template changes a user's words; it cannot be cut around documents")
    opening_text = first.split(_DOCUMENT)[0]
    before_answer = first.split(_QUESTION)[1]
    before_next = second.split(_ANSWER)[1].split(_NEXT)[0]
    encode = tokenizer(opening_text, add_special_tokens=False)["input_ids"]
    turn_end = tokenizer(before_next, add_special_tokens=False)["input_ids"][:1]
    special = {i for i in turn_end if i in set(tokenizer.all_special_ids)}
    return ChatFormat(
        tokenizer, tuple(encode), "\n\n", before_answer, before_next, model_stop_ids | own | special
    )
