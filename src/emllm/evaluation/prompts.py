"""A sample as token ids: in the same pieces for every row, so that all rows read the same tokens.

A prompt has the ids of text and question as one text, as the benchmarks tokenise it. What all of a sample's
questions leave as it is, is read once; a question begins with the ids that it changes at the end of the text
(a tokenizer joins a last newline with a first one). This module does not know rows, memories or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emllm.errors import InputError
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.task import Task
from emllm.models.chat import ChatFormat, before_any_text, chat_format

#: Tokens at the end of a text that a question might change, and more.
SEAM_TOKENS = 64
#: What chat templates that tell the date are told in every run, whenever it goes on.
TODAY = "26 Jul 2024"


@dataclass(frozen=True)
class PromptFormat:
    """How a task's prompts become ids with one tokenizer.

    Attributes:
        opening: ids before the text: the template's, or what the tokenizer puts before any text.
        before_answer: text between a question and its answer.
        encode: ids of a text as it stands behind the opening.
        piece: ids of a text in the middle, without what a tokenizer puts before a text.
        decode: text of ids, special tokens included.
    """

    opening: tuple[int, ...]
    before_answer: str
    encode: Callable[[str], list[int]]
    piece: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]

    def cut(self, text: str, questions: Sequence[Question]) -> tuple[list[int], list[list[int]]]:
        """Ids of a text that is read once, and those that ask each question.

        Args:
            text: with the instructions before it.

        Raises:
            InputError: a question has no ids.
        """
        text_ids = self.encode(text)
        asked = [one.text + self.before_answer + one.answer_begins for one in questions]
        if not all(map(self.encode, asked)):
            raise InputError("a question needs at least one token, got 0")
        tail, kept = self._tail(text, text_ids)
        joined = [self.encode(tail + one) for one in asked]
        num_same = min((_num_same(ids, text_ids[kept:]) for ids in joined), default=len(text_ids) - kept)
        return text_ids[: kept + num_same], [ids[num_same:] for ids in joined]

    def _tail(self, text: str, text_ids: Sequence[int]) -> tuple[str, int]:
        """The end of a text that has the same ids alone, and the number of ids before it."""
        for num_tokens in range(SEAM_TOKENS, min(2 * SEAM_TOKENS, len(text_ids))):
            kept = len(text_ids) - num_tokens
            tail = self.decode(text_ids[kept:])
            if text.endswith(tail) and self.encode(tail) == list(text_ids[kept:]):
                return tail, kept
        return text, 0

    def template(self, question: Question, num_ids: int) -> range:
        """Which of the ids that ask a question are the template's: they lead from it to its answer."""
        if not self.before_answer:
            return range(0)
        start = num_ids - len(self.piece(self.before_answer + question.answer_begins))
        return range(start, start + len(self.piece(self.before_answer)))


def text_of(sample: Sample, passages: str | None = None) -> str:
    """The instructions and the text, or what a search found in it."""
    return sample.before + (sample.text if passages is None else passages)


def dateless(chat: ChatFormat) -> ChatFormat:
    """A chat format that is the same on every day."""
    return chat_format(chat.tokenizer, model_stop_ids=chat.stop_ids, today=TODAY)


def prompt_format(chat: ChatFormat, task: Task) -> PromptFormat:
    """The format of a task's prompts; without a template, or where the task wants none, the bare prompt.

    Args:
        chat: see `dateless`.
    """
    tokenizer = chat.tokenizer
    if task.is_chat and getattr(tokenizer, "chat_template", None):
        return PromptFormat(
            chat.opening, chat.before_answer, chat.after_opening, chat.piece, tokenizer.decode
        )
    return PromptFormat(before_any_text(tokenizer), "", chat.encode, chat.piece, tokenizer.decode)


def _num_same(one: Sequence[int], other: Sequence[int]) -> int:
    """Ids that two beginnings have in common."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def without_middle(token_ids: Sequence[int], room: int) -> list[int]:
    """The ids, or as many from their start as from their end that fit (LongBench).

    **Deviation**: the ids themselves are kept; LongBench decodes both halves and tokenises them anew.

    Raises:
        InputError: there is no room for two of them.
    """
    if len(token_ids) <= room:
        return list(token_ids)
    half = room // 2
    if half < 1:
        raise InputError(f"the question leaves room for {room} tokens of the text")
    return [*token_ids[:half], *token_ids[len(token_ids) - half :]]


def until_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The answer before the first stop, and whether there was one.

    Space before the first word ends no answer, so that an answer may begin with a newline that is a stop.
    """
    begin = len(text) - len(text.lstrip())
    places = [place for stop in stops if (place := text.find(stop, begin)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
