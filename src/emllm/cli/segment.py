"""``emllm segment``: the events of a text, and the surprise of its tokens.

This module does not know how a text is cut or drawn.
"""

from __future__ import annotations

import json as json_format
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emllm.cli import options
from emllm.cli.settings import with_settings
from emllm.cli.sources import load_one, opened_lm
from emllm.cli.terminal import columns, counted, reading, remark, say_json
from emllm.config import MemoryConfig
from emllm.errors import ConfigError, MissingExtraError
from emllm.machine import on_interrupt

if TYPE_CHECKING:
    from emllm.analysis.segmented import SegmentedText

FORMATS = ("txt", "json", "png", "html")


@with_settings
def command(
    source: Annotated[str, typer.Argument(help="A file, or - for standard input.")],
    output: options.Output = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="|".join(FORMATS), help="By default from the name of the file, else txt."),
    ] = None,
    model: options.Model = "default",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: options.Json = False,
    *,
    config: MemoryConfig,
) -> None:
    """Cut a text into events where the model is surprised: text, JSON, a picture or a web page.

    sink_tokens is taken as 0, so that the events begin with the text.
    """
    form = choose_format(format, output, as_json=json)
    if output is not None:
        check_writable(output, source)
    document = load_one(source, command="segment")
    with opened_lm(model, device=device, dtype=dtype) as lm:
        from emllm.analysis.segment import segment

        with reading(document.name) as progress:
            text = segment(lm, document, config, progress)
    rendered = render(text, form)
    if output is not None:
        write_whole(output, rendered)
        remark(
            f"wrote {output}, {len(rendered):,} bytes: "
            f"{counted(text.num_tokens, 'token')}, {counted(len(text.events), 'event')}"
        )
    if json:
        say_json(text.to_json())
    elif output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(rendered)
        sys.stdout.buffer.flush()


def choose_format(form: str | None, output: Path | None, *, as_json: bool) -> str:
    """What to write: as asked, else by the file's suffix, else text.

    Raises:
        ConfigError: unknown, or two wishes that contradict each other; MissingExtraError: no matplotlib.
    """
    if form is None and output is not None:
        form = output.suffix.lower().removeprefix(".")
        if form not in FORMATS:
            raise ConfigError(f"{output}: the suffix must be one of {', '.join(FORMATS)}, or give --format")
    if as_json and output is None and form not in (None, "json"):
        raise ConfigError(f"--json contradicts --format {form}; give --output a file for one of them")
    form = form or ("json" if as_json else "txt")
    if form not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    if form == "png" and output is None and sys.stdout.isatty():
        raise ConfigError("a picture cannot be shown on a terminal; give --output FILE.png")
    if form == "png":
        import importlib.util

        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtraError("pictures need matplotlib: pip install 'emllm[plot]'")
    return form


def check_writable(path: Path, source: str) -> None:
    """Refuse a file that could not be written, by trying in its folder, or that is the text itself.

    Raises:
        ConfigError: it is the source or a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: a folder, not a file to write")
    if _is_device(path):
        return
    if source != "-" and path.exists() and os.path.exists(source) and path.samefile(source):
        raise ConfigError(f"{path}: is the text itself, which would be lost; give --output another file")
    path = path.resolve()  # of a link, what it leads to
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent):
            return
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written, {path.parent}: {error.strerror}") from error


def render(text: SegmentedText, form: str) -> bytes:
    """The segmented text as the bytes of a file."""
    if form == "png":
        from emllm.analysis.plot import render_png

        return render_png(text)
    if form == "html":
        from emllm.analysis.page import render_page

        return render_page(text).encode("utf-8", "replace")
    if form == "json":
        return (json_format.dumps(text.to_json(), ensure_ascii=False, allow_nan=False) + "\n").encode()
    from emllm.analysis.text import render_text

    return render_text(text, width=columns() if sys.stdout.isatty() else None).encode("utf-8", "replace")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file aside and rename it, so that what is there is never half; Ctrl-C leaves nothing aside.

    A link goes on leading to what it leads to, and what is no file, as /dev/stdout, is written to as it is.

    Raises:
        ConfigError: the disk is full, or the folder has become unwritable.
    """
    with on_interrupt(signal.default_int_handler):
        try:
            if _is_device(path):  # not resolved: what leads to a pipe has no name of its own
                path.write_bytes(data)
            else:
                _replace(path.resolve(), data)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written, {error.strerror}") from error


def _replace(target: Path, data: bytes) -> None:
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.write_bytes(data)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    """Whether something is there that is no file: a device, a pipe."""
    return path.exists() and not path.is_file()
