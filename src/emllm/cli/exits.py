"""How a run ends: exit codes, one line for what went wrong, and Ctrl-C at any time.

Anything that is not foreseen here is a bug and keeps its traceback. This module does not know the commands.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from emllm.errors import EmllmError
from emllm.machine import on_interrupt

MISTAKE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
#: What the machine refuses, and a user can change.
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.ENAMETOOLONG),
)


def complete_streams() -> None:
    """Standard streams that the caller closed lead nowhere, as if to /dev/null.

    Else the next file that is opened would be what is printed to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the first number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def run_politely(run: Callable[[], int]) -> int:
    """The exit code of a run, with one line on stderr for each end that is not a bug."""
    try:
        with quiet_libraries():
            code = run()
            sys.stdout.flush()
            return code
    except EmllmError as error:
        return complain(str(error))
    except BrokenPipeError:
        return _pipe_closed()
    except KeyboardInterrupt:
        return complain("interrupted", code=INTERRUPTED)
    except Exception as error:
        message = _foreseen(error)
        if message is None:
            raise
        return complain(message)


def complain(message: str, *, code: int = MISTAKE) -> int:
    """Says one line on stderr; answers with the exit code."""
    print(f"emllm: {' '.join(message.split())}", file=sys.stderr, flush=True)  # noqa: T201
    return code


def _foreseen(error: BaseException) -> str | None:
    """What to say of an exception that is no bug: wrong usage, what the machine refuses, no memory left."""
    import typer

    # Typer 0.29 has its own copy of click; the base of its public BadParameter is UsageError in each.
    if isinstance(error, typer.BadParameter.__bases__[0]):
        return f"{error.format_message()} (-h shows the usage)"  # type: ignore[attr-defined]
    if isinstance(error, OSError) and error.errno in _REFUSED:
        if error.filename is None:  # what was printed could not be: Python would try again at the end
            _give_up_output()
        return f"{error.filename or 'output'}: {os.strerror(error.errno)}"
    words = str(error)
    is_torch = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in words
        or "not enough memory" in words
    )
    if isinstance(error, MemoryError) or is_torch:
        asked = next((f" ({line.strip()})" for line in words.splitlines() if "allocate" in line), "")
        return f"out of memory{asked[:200]}; a smaller --chunk-tokens, model or text needs less"
    return None


def _pipe_closed() -> int:
    """The reader of stdout is gone: nothing more can be said."""
    _give_up_output()
    return PIPE_CLOSED


def _give_up_output() -> None:
    """Nothing more is printed on stdout, so that Python's own flush at the end does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C leaves at once, with one line. An exception instead would abort torch while it is imported."""
    with on_interrupt(_leave):
        yield


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing is open that must be closed, but for the cursor that a progress bar may have hidden."""
    os.write(2, b"\r\x1b[K\x1b[?25hemllm: interrupted\n" if os.isatty(2) else b"emllm: interrupted\n")
    os._exit(INTERRUPTED)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No advice from libraries on the user's terminal, unless Python was asked for warnings."""
    unset = [
        name for name in ("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS") if name not in os.environ
    ]
    os.environ.update(dict.fromkeys(unset, "true"))
    import logging
    import warnings

    silent, root = logging.NullHandler(), logging.getLogger()
    root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(silent)
        for name in unset:
            os.environ.pop(name, None)
