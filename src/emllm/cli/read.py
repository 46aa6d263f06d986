"""``emllm read``: read texts into a memory that stays, and go on where it was interrupted.

This module does not know how anything is read or stored.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emllm.cli import options
from emllm.cli.exits import INTERRUPTED, complain
from emllm.cli.plan import size
from emllm.cli.settings import GivenSettings, with_settings
from emllm.cli.sources import load_documents, opened_lm
from emllm.cli.stored import DEFAULT_MODEL, Stored, check_new, memory_among, prepare, saying_if_not_prepared
from emllm.cli.terminal import counted, duration, reading, remark, say, say_json, working
from emllm.errors import InputError, SourceError
from emllm.machine import on_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from emllm.config import MemoryConfig
    from emllm.documents.document import Document
    from emllm.memory import EpisodicMemory
    from emllm.reading import ReadProgress
    from emllm.store.contents import DocumentRecord
    from emllm.store.maintenance import Summary


@with_settings
def command(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, folders or -.")],
    into: Annotated[
        Path, typer.Option("--into", metavar="MEM", help="The memory: a folder, made where there is none.")
    ],
    model: options.StoredModel = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    *,
    settings: GivenSettings,
) -> None:
    """Read texts into a memory on disk, a new one or one that exists.

    Safe to interrupt at any time: the same command goes on from there. What was read before is not read
    again. Settings are those of a new memory; one that exists keeps its own.
    """
    found = memory_among(sources)
    if found is not None:
        raise InputError(f"{found.path} is a memory; a memory can be asked, copied or extended, but not read")
    stored = Stored.at(into)
    if stored is None:
        check_new(into)
        config: MemoryConfig | None = settings.config
    else:
        config = stored.config(settings)
        model, dtype = stored.model(model), stored.dtype(dtype)
        _check_open(stored)
    documents = load_documents(sources)
    pending = unread(documents, stored, into=into)
    model = model or DEFAULT_MODEL
    seconds, num_before = 0.0, stored.contents.num_tokens if stored is not None else 0
    if pending:
        check_disk(pending, stored, config, into=into, model=model, device=device, dtype=dtype)
        try:
            with opened_lm(model, device=device, dtype=dtype) as lm, lm.memory(into, config) as memory:
                began = time.monotonic()
                _read(memory, pending)
                seconds = time.monotonic() - began
                prepare(lm, memory)
        except KeyboardInterrupt:
            raise typer.Exit(_interrupted(into)) from None
    elif stored is not None and not stored.is_prepared:
        make_up_for(stored, model, device=device, dtype=dtype)
    _report(into, documents, pending, num_before, seconds=seconds, as_json=json)


def make_up_for(stored: Stored, model: str, *, device: str, dtype: str) -> None:
    """Prepare a memory that has read everything, if that can be; it was interrupted, or failed."""
    with (
        saying_if_not_prepared(),
        opened_lm(model, device=device, dtype=dtype) as lm,
        lm.memory(stored.path) as memory,
    ):
        prepare(lm, memory)


def unread(documents: Sequence[Document], stored: Stored | None, *, into: Path) -> list[Document]:
    """The documents that the memory lacks, the one that it has in part first.

    Raises:
        InputError: it has another one in part.
    """
    if stored is None:
        return list(documents)
    begun = stored.unfinished
    whole = [known for known in stored.contents.documents if known is not begun]
    known = {(one.name, one.sha256) for one in whole}
    pending = [document for document in documents if (document.name, document.sha256) not in known]
    for document in pending:
        if any(one.name == document.name for one in whole):
            remark(f"emllm: {document.name}: {into} holds another text of this name; it will hold both")
        same = next((one.name for one in whole if one.sha256 == document.sha256), None)
        if same is not None:
            remark(f"emllm: {document.name}: {into} holds this text as {same}; it will hold it twice")
    if begun is None or not pending:
        return pending
    first = next((document for document in pending if document.sha256 == begun.sha256), None)
    if first is None:
        raise InputError(
            f"{into}: {begun.name} was read up to token {begun.stop - begun.start:,} of "
            f"{begun.num_tokens:,}; read the rest of it, or forget it, before {pending[0].name}"
        )
    return [first, *(document for document in pending if document is not first)]


def _share_left(document: Document, stored: Stored | None) -> float:
    """Which part of a document the memory lacks: all of it, or the rest of one that was begun."""
    begun = None if stored is None else stored.unfinished
    if begun is None or begun.sha256 != document.sha256:
        return 1.0
    return 1 - (begun.stop - begun.start) / begun.num_tokens


def check_disk(
    pending: Sequence[Document],
    stored: Stored | None,
    config: MemoryConfig | None,
    *,
    into: Path,
    model: str,
    device: str,
    dtype: str,
) -> None:
    """Refuse what the disk cannot hold, before it is read.

    Raises:
        SourceError: naming the estimate and what is free.
    """
    with working("measuring"):
        from emllm.config import MemoryConfig
        from emllm.models.outline import Located
        from emllm.needs import Needs, Workload
        from emllm.plan import FREE_SHARE, existing_folder
        from emllm.reading import BYTES_PER_TOKEN

        outline = Located(model).outline(device=device, dtype=dtype)
        if config is None:
            assert stored is not None
            config = MemoryConfig(**stored.header["settings"])
        resolved = config.resolve(
            trained_tokens=outline.geometry.trained_tokens, num_layers=outline.geometry.num_layers
        )
        lengths = [
            int(_share_left(document, stored) * len(document.text.encode()) / BYTES_PER_TOKEN) + 1
            for document in pending
        ]
        needs = Needs(
            outline, resolved, Workload(sum(lengths), max(lengths), 1.0, num_documents=len(lengths))
        )
        needed = needs.disk_bytes(resolved.codec)
        free = shutil.disk_usage(existing_folder(into)).free
    if needed > free * FREE_SHARE:
        raise SourceError(
            f"{into}: about {sum(lengths):,} tokens need {size(needed)} of disk with codec {resolved.codec}; "
            f"{size(free)} are free there (try another --into, or --codec for a new memory; see emllm plan)"
        )


def _check_open(stored: Stored) -> None:
    if stored.is_conversation:
        raise InputError(
            f"{stored.path}: questions were answered in it, so it cannot read documents any more"
        )


def _read(memory: EpisodicMemory, pending: Sequence[Document]) -> None:
    """Read the documents; Ctrl-C ends it after the chunk under way, a second one at once."""
    with interruptible_between_chunks() as check:
        for number, document in enumerate(pending, start=1):
            place = f" ({number}/{len(pending)})" if len(pending) > 1 else ""
            with reading(f"{document.name}{place}") as show:

                def progress(now: ReadProgress, show: Callable[[ReadProgress], None] = show) -> None:
                    show(now)
                    check()

                memory.read(document, progress=progress)


@contextmanager
def interruptible_between_chunks() -> Iterator[Callable[[], None]]:
    """Ctrl-C is kept until the value is called, which raises KeyboardInterrupt then; twice acts at once."""
    presses: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> Any:
        presses.append(number)
        if len(presses) > 1 and callable(before):
            before(number, frame)

    def check() -> None:
        if presses:
            raise KeyboardInterrupt

    with on_interrupt(note):
        yield check


def _interrupted(into: Path) -> int:
    from emllm.store.maintenance import describe

    return complain(
        f"interrupted; {describe(into).num_tokens:,} tokens are safe in {into}, and the same command goes on "
        f"from there",
        code=INTERRUPTED,
    )


def _report(
    into: Path,
    documents: Sequence[Document],
    pending: Sequence[Document],
    num_before: int,
    *,
    seconds: float,
    as_json: bool,
) -> None:
    from emllm.store.maintenance import describe

    summary = describe(into)
    num_read = summary.num_tokens - num_before
    speed = num_read / seconds if seconds else 0.0
    if as_json:
        say_json(to_json(summary, pending, num_read, seconds, speed))
        return
    if num_skipped := len(documents) - len(pending):
        remark(f"{num_skipped} of {len(documents)} documents had been read before")
    if pending:
        remark(f"read {num_read:,} tokens in {duration(seconds)} ({speed:,.0f} tokens/s)")
    say(
        f"{into}: {counted(len(summary.documents), 'document')}, {summary.num_tokens:,} tokens, "
        f"{counted(summary.num_events, 'event')} that may be recalled, {size(summary.num_bytes)}"
    )


def to_json(
    summary: Summary, pending: Sequence[Document], num_read: int, seconds: float, speed: float
) -> dict[str, Any]:
    """What was read, and the memory that holds it."""
    read_now = {(document.name, document.sha256) for document in pending}
    return {
        "memory": str(summary.path),
        "model": summary.header.get("model"),
        "tokens": summary.num_tokens,
        "events": summary.num_events,
        "bytes": summary.num_bytes,
        "documents": [
            document_json(one, is_new=(one.name, one.sha256) in read_now) for one in summary.documents
        ],
        "read_tokens": num_read,
        "read_seconds": seconds,
        "tokens_per_second": speed,
    }


def document_json(document: DocumentRecord, **more: Any) -> dict[str, Any]:
    """A document by its name, place and size."""
    return {
        "name": document.name,
        "start": document.start,
        "stop": document.stop,
        "tokens": document.num_tokens,
        "is_whole": document.stop == document.start + document.num_tokens,
        "kind": document.kind,
        "bytes": document.num_bytes,
        "sha256": document.sha256,
        **more,
    }
