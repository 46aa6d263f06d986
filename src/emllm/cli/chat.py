"""``emllm chat``: a conversation whose memory grows.

Ctrl-C stops an answer and nothing else; Ctrl-D leaves. This module does not know how answers are made.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emllm.cli import options
from emllm.cli.settings import GivenSettings, with_settings
from emllm.cli.sources import load_documents, opened_lm, read_documents
from emllm.cli.stored import DEFAULT_MODEL, Stored, check_new, memory_among, opened_memory, prepare
from emllm.cli.terminal import remark, say, say_json, working
from emllm.documents.document import checked_text
from emllm.errors import InputError
from emllm.machine import on_interrupt

if TYPE_CHECKING:
    from emllm.answers import Answer
    from emllm.generation import Sampling
    from emllm.lm import EpisodicLM
    from emllm.memory import EpisodicMemory

HELP = (
    "/events shows what the last answer recalled, /help this, /quit or Ctrl-D leaves; Ctrl-C stops an answer"
)


@with_settings
def command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SOURCE...|MEM]", help="Texts to read first, or one memory."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="NEW",
            help="A memory that the conversation becomes part of; goes on with the one that is there.",
            show_default=False,
        ),
    ] = None,
    model: options.StoredModel = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = None,
    evidence: options.NumEvidence = 5,
    json: options.Json = False,
    *,
    settings: GivenSettings,
) -> None:
    """Talk with a model that remembers the whole conversation, and the texts or the memory given.

    Reads one message a line, also from a pipe. --json prints one object per answer. A memory that is given
    stays as it is: the conversation ends with the process, or goes into the one that --save names.
    """
    if "-" in (sources or []):
        raise InputError("chat reads messages from standard input, so - cannot be a text to read")
    with _opened(sources or [], save, settings, model=model, device=device, dtype=dtype) as (lm, memory):
        from emllm.generation import Sampling

        sampling = Sampling(max_new_tokens, temperature, top_p, seed=seed)
        conversation = Conversation(lm, memory, sampling, num_evidence=evidence, as_json=json)
        conversation.prepare()
        for message in messages():
            if message in ("/quit", "/exit"):
                return
            conversation.turn(message)


@contextmanager
def _opened(
    sources: list[str],
    save: Path | None,
    settings: GivenSettings,
    *,
    model: str | None,
    device: str,
    dtype: str,
) -> Iterator[tuple[EpisodicLM, EpisodicMemory]]:
    """A model, and the memory that the conversation becomes part of.

    Raises:
        InputError: the sources and `save` do not go together.
    """
    source = memory_among(sources)
    saved = None if save is None else _saved(save, source, sources)
    if source is not None and save is None:
        with opened_memory(source, settings, model=model, device=device, dtype=dtype) as (lm, memory):
            yield lm, memory.fork()
        return
    stored = saved or source
    config = settings.config if stored is None else stored.config(settings)
    documents = load_documents(sources) if sources and source is None else []
    if stored is not None:
        model, dtype = stored.model(model), stored.dtype(dtype)
    with opened_lm(model or DEFAULT_MODEL, device=device, dtype=dtype) as lm:
        if save is not None and source is not None and saved is None:
            from emllm.store.maintenance import clone

            with working("copying the memory"):
                clone(source.path, save)
        with lm.memory(save, config) as memory:
            if documents:
                read_documents(lm, memory, documents)
            yield lm, memory


def _saved(save: Path, source: Stored | None, sources: list[str]) -> Stored | None:
    """The conversation that is saved there already; None where a new one can be.

    Raises:
        InputError: what is there is no conversation, or one about something else than the sources.
    """
    if source is not None and source.unfinished is not None:
        raise InputError(
            f"{source.path}: {source.unfinished.name} was read in part only; read the rest of it first: "
            f"emllm read SOURCE --into {source.path}"
        )
    saved = Stored.at(save)
    if saved is None:
        check_new(save, is_copy=source is not None)
        return None
    if source is not None and saved.header.get("parent") != source.uuid:
        raise InputError(f"{save} is a memory, but no conversation that began with {source.path}")
    if saved.contents.documents and not saved.is_conversation and "parent" not in saved.header:
        rest = "" if saved.unfinished is None else f"emllm read {saved.unfinished.name} --into {save}, then "
        raise InputError(
            f"{save} holds documents and no conversation, which would end its reading; keep it so with: "
            f"{rest}emllm chat {save} --save NEW"
        )
    if sources and source is None:
        raise InputError(
            f"{save} is a memory already; go on with it, without texts: emllm chat --save {save}"
        )
    return saved


@dataclass
class Conversation:
    """A memory that grows by one question and one answer a turn."""

    lm: EpisodicLM
    memory: EpisodicMemory
    sampling: Sampling
    num_evidence: int
    as_json: bool
    last: Answer | None = None

    def turn(self, message: str) -> None:
        """Answer one line; a line that cannot be answered is remarked, and the conversation goes on."""
        if message == "/events":
            self._show_events()
        elif message.startswith("/"):
            remark(HELP if message == "/help" else f"unknown command {message!r}; {HELP}")
        elif message.strip():
            try:
                checked_text(message, "the question")
            except InputError as error:
                remark(f"emllm: {error}")
            else:
                self._answer(message)

    def prepare(self) -> None:
        """Find out now what the next answer needs, while a person reads the last one; Ctrl-C leaves it."""
        if is_typed():
            with on_interrupt(signal.default_int_handler), suppress(KeyboardInterrupt):
                prepare(self.lm, self.memory)

    def _answer(self, message: str) -> None:
        with stopping() as is_stopped:

            def show(piece: str) -> bool:
                if not self.as_json:
                    say(piece, end="")
                return not is_stopped()

            self.last = self.lm.answer(
                self.memory,
                message,
                sampling=self.sampling,
                num_evidence=self.num_evidence,
                on_text=show,
            )
            self.memory.flush()
        if self.as_json:
            say_json(self.last.to_json())
        else:
            say("")
        self.prepare()

    def _show_events(self) -> None:
        from emllm.cli.answers import remark_stats, show_evidence

        if self.last is None:
            remark("nothing was asked yet")
            return
        if self.as_json:
            say_json(self.last.to_json())
            return
        show_evidence(self.lm, self.memory, self.last)
        remark_stats(self.last.stats)


def is_typed() -> bool:
    """Whether messages come from a person, one after the other."""
    return sys.stdin is not None and sys.stdin.isatty()


def messages() -> Iterator[str]:
    """Lines that the user types, until Ctrl-D; Ctrl-C at the prompt drops the line, twice in a row leaves."""
    if not is_typed():
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")
        for line in sys.stdin or ():  # none at all where it is closed
            yield line.rstrip("\r\n")
        return
    import readline  # noqa: F401  (input() edits lines once it is imported)

    remark(HELP)
    was_dropped = False
    while True:
        try:
            with on_interrupt(signal.default_int_handler):
                line = input("> ")
        except EOFError:
            remark("")
            return
        except KeyboardInterrupt:
            if was_dropped:
                raise
            was_dropped = True
            remark("\n(Ctrl-C again, or Ctrl-D, leaves)")
        else:
            was_dropped = False
            yield line.strip()


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks to stop, inside the block, and does no more; the value says whether it was pressed."""
    presses: list[int] = []
    with on_interrupt(lambda number, _: presses.append(number)):
        yield lambda: bool(presses)
