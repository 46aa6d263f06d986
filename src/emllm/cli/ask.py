"""``emllm ask``: read texts or open a memory, answer questions, show what was recalled.

This module does not know how reading, recall or answering work.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from emllm.cli import options
from emllm.cli.settings import GivenSettings, with_settings
from emllm.cli.sources import load_documents, opened_lm, read_documents
from emllm.cli.stored import DEFAULT_MODEL, memory_among, opened_memory
from emllm.cli.terminal import say, say_json
from emllm.documents.document import checked_text
from emllm.errors import InputError

if TYPE_CHECKING:
    from emllm.answers import Answer
    from emllm.generation import Sampling
    from emllm.lm import EpisodicLM
    from emllm.memory import EpisodicMemory


@with_settings
def command(
    words: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE... QUESTION", help="Files, folders, - or one memory; a question."),
    ],
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question", "-q", metavar="TEXT", help="A question; may be repeated.", show_default=False
        ),
    ] = None,
    model: options.StoredModel = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    evidence: options.NumEvidence = 5,
    json: options.Json = False,
    *,
    settings: GivenSettings,
) -> None:
    """Read texts, or open a stored memory, and answer questions, with the events that were recalled.

    With -q the texts are read once for all questions. --json prints one object per question. A memory is
    not changed by questions.
    """
    sources, questions = split_words(words, question or [])
    wishes = Wishes(max_new_tokens, temperature, top_p, seed, evidence, json)
    stored = memory_among(sources)
    if stored is not None:
        with opened_memory(stored, settings, model=model, device=device, dtype=dtype) as (lm, memory):
            _answer_all(lm, memory, questions, wishes, wishes.sampling)
        return
    config = settings.config
    documents = load_documents(sources)
    with opened_lm(model or DEFAULT_MODEL, device=device, dtype=dtype) as lm:
        memory = lm.memory(config=config)
        sampling = wishes.sampling  # before reading: it may be a mistake
        read_documents(lm, memory, documents)
        _answer_all(lm, memory, questions, wishes, sampling)


class Wishes(NamedTuple):
    """How answers are made and shown."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    num_evidence: int
    as_json: bool

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        from emllm.generation import Sampling

        return Sampling(self.max_new_tokens, self.temperature, self.top_p, seed=self.seed)


def split_words(words: list[str], questions: list[str]) -> tuple[list[str], list[str]]:
    """Sources and questions: without ``-q`` the last word is the question.

    Raises:
        InputError: there is no question, or no source.
    """
    if questions:
        return words, [checked_text(question, "the question") for question in questions]
    sources, last = words[:-1], words[-1]
    if last == "-" or os.path.exists(last):
        raise InputError(f"no question: {last!r} is a source; put the question last or give it with -q")
    if not sources:
        raise InputError(f"no source, or no question: got only {last!r} (emllm ask SOURCE... QUESTION)")
    return sources, [checked_text(last, "the question")]


def _answer_all(
    lm: EpisodicLM, memory: EpisodicMemory, questions: list[str], wishes: Wishes, sampling: Sampling
) -> None:
    from emllm.cli.answers import remark_stats

    for number, asked in enumerate(questions):
        if len(questions) > 1 and not wishes.as_json:
            say(f"\n> {asked}")
        answered = _answer(lm, memory, asked, wishes, sampling)
        if not wishes.as_json:
            remark_stats(answered.stats, has_read=memory.home is None and number == 0)


def _answer(
    lm: EpisodicLM, memory: EpisodicMemory, question: str, wishes: Wishes, sampling: Sampling
) -> Answer:
    """Ask on a fork, and print the answer with its evidence."""
    from emllm.cli.answers import show_evidence

    def show(piece: str) -> None:
        if not wishes.as_json:
            say(piece, end="")

    answered = lm.ask(memory, question, sampling=sampling, num_evidence=wishes.num_evidence, on_text=show)
    if wishes.as_json:
        say_json(answered.to_json())
        return answered
    say("\n")
    if wishes.num_evidence:
        show_evidence(lm, memory, answered)
    return answered
