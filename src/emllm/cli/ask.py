"""``emllm ask``: read texts, answer questions, show what was recalled.

This module does not know how reading, recall or answering work.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from emllm.cli import options
from emllm.cli.settings import with_settings
from emllm.cli.sources import check_question, load_documents, opened_lm, read_documents
from emllm.cli.terminal import say, say_json
from emllm.config import MemoryConfig
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
        typer.Argument(metavar="SOURCE... QUESTION", help="Files, folders or -, then the question."),
    ],
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question", "-q", metavar="TEXT", help="A question; may be repeated.", show_default=False
        ),
    ] = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    evidence: options.NumEvidence = 5,
    json: options.Json = False,
    *,
    config: MemoryConfig,
) -> None:
    """Read texts and answer questions about them, with the events that were recalled.

    With -q the texts are read once for all questions. --json prints one object per question.
    """
    sources, questions = split_words(words, question or [])
    documents = load_documents(sources)
    with opened_lm(model, device=device, dtype=dtype) as lm:
        from emllm.cli.answers import remark_stats
        from emllm.generation import Sampling

        sampling = Sampling(max_new_tokens, temperature, top_p, seed=seed)
        memory = lm.memory(config=config)
        read_documents(lm, memory, documents)
        for asked in questions:
            if len(questions) > 1 and not json:
                say(f"\n> {asked}")
            answered = _answer(lm, memory, asked, sampling=sampling, num_evidence=evidence, as_json=json)
            if not json:
                remark_stats(answered.stats, is_first=asked is questions[0])


def split_words(words: list[str], questions: list[str]) -> tuple[list[str], list[str]]:
    """Sources and questions: without ``-q`` the last word is the question.

    Raises:
        InputError: there is no question, or no source.
    """
    if questions:
        return words, [check_question(question) for question in questions]
    sources, last = words[:-1], words[-1]
    if last == "-" or os.path.exists(last):
        raise InputError(f"no question: {last!r} is a source; put the question last or give it with -q")
    if not sources:
        raise InputError(f"no source, or no question: got only {last!r} (emllm ask SOURCE... QUESTION)")
    return sources, [check_question(last)]


def _answer(
    lm: EpisodicLM,
    memory: EpisodicMemory,
    question: str,
    *,
    sampling: Sampling,
    num_evidence: int,
    as_json: bool,
) -> Answer:
    """Ask on a fork, and print the answer with its evidence."""
    from emllm.cli.answers import show_evidence

    def show(piece: str) -> None:
        if not as_json:
            say(piece, end="")

    answered = lm.ask(memory, question, sampling=sampling, num_evidence=num_evidence, on_text=show)
    if as_json:
        say_json(answered.to_json())
        return answered
    say("\n")
    if num_evidence:
        show_evidence(lm, memory, answered)
    return answered
