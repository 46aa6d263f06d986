"""``emllm memory forget``: take a document out of a memory, and compute anew what was read after it.

This module does not know how anything is forgotten.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emllm.cli import options
from emllm.cli.exits import INTERRUPTED, complain
from emllm.cli.read import interruptible_between_chunks
from emllm.cli.sources import opened_lm
from emllm.cli.stored import Stored, existing, prepare
from emllm.cli.terminal import counted, reading, say, say_json, working
from emllm.errors import InputError

if TYPE_CHECKING:
    from emllm.lm import EpisodicLM
    from emllm.memory.forgetting import Forgotten
    from emllm.reading import ReadProgress


def forget(
    mem: Annotated[Path, typer.Argument(metavar="MEM", help="A memory: the folder that it lives in.")],
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Of a document, as `emllm memory show` has it."),
    ] = None,
    reread: Annotated[
        bool, typer.Option("--reread", help="Then compute what came after it anew, with the model.")
    ] = False,
    model: options.StoredModel = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
) -> None:
    """Remove a document from a memory for good.

    What was read after it was computed with it in view, and keeps traces of it that nobody can take out:
    the documents are named, and --reread computes them anew. --reread without a name does so for all that
    was forgotten before.
    """
    stored = existing(mem)
    start = _first_affected(stored, name)
    if name is None and not reread:
        raise InputError(f"no document to forget from {mem}; emllm memory show {mem} names them")
    if name is None and start is None:
        raise InputError(f"{mem}: nothing was forgotten, so that there is nothing to read anew")
    later = _later(stored, start)
    forgotten = None
    if reread and later and start is not None:
        with opened_lm(stored.model(model), device=device, dtype=stored.dtype(dtype)) as lm:
            lm.memory(mem, read_only=True).close()  # it must be the right model before anything is forgotten
            forgotten = None if name is None else _forget(stored, name, as_json=json)
            _reread(lm, mem, start)
            with lm.memory(mem) as memory:
                prepare(lm, memory)
    elif name is not None:
        forgotten = _forget(stored, name, as_json=json)
    if json:
        say_json(
            {
                "memory": str(mem),
                "document": name,
                "tokens": 0 if forgotten is None else forgotten.num_tokens,
                "events": 0 if forgotten is None else forgotten.num_events,
                "later": later,
                "is_reread": reread and bool(later),
            }
        )
    elif later and reread:
        say(f"read anew: {', '.join(later)}")
    elif later:
        say(
            f"computed with it in view, which cannot be taken out: {', '.join(later)} "
            f"(emllm memory forget {mem} --reread computes that anew)"
        )


def _first_affected(stored: Stored, name: str | None) -> int | None:
    """Where the document begins; without a name, the first that was forgotten. None where there is none."""
    if name is None:
        return min((start for start, _ in stored.contents.state.get("holes", [])), default=None)
    documents = reversed(stored.contents.documents)  # of two with the same name the later one is forgotten
    return next((document.start for document in documents if document.name == name), None)


def _later(stored: Stored, start: int | None) -> list[str]:
    """What was read after a document that begins at this token, by name."""
    from emllm.memory.forgetting import read_after

    return [] if start is None else read_after(stored.contents, start + 1)


def _forget(stored: Stored, name: str, *, as_json: bool) -> Forgotten:
    from emllm.memory.forgetting import forget

    with working("forgetting"):
        forgotten = forget(stored.path, name)
    if not as_json:
        say(f"forgot {name}: {forgotten.num_tokens:,} tokens, {counted(forgotten.num_events, 'event')}")
    return forgotten


def _reread(lm: EpisodicLM, path: Path, start: int) -> None:
    try:
        with interruptible_between_chunks() as check, reading("what came later") as show:

            def progress(now: ReadProgress) -> None:
                show(now)
                check()

            lm.reread(path, start, progress=progress)
    except KeyboardInterrupt:
        said = f"interrupted; nothing was read anew, and emllm memory forget {path} --reread begins again"
        raise typer.Exit(complain(said, code=INTERRUPTED)) from None
