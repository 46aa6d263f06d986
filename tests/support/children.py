"""Forked processes: one that answers, and one that is killed while it works.

A fork of a warmed process starts in milliseconds, which is what makes hundreds of kills a matter of minutes.
The process that forks should do no tensor work with several threads itself.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import torch

T = TypeVar("T")

#: A child that says nothing for so long hangs.
PATIENCE_SECONDS = 120.0


class ChildError(AssertionError):
    """A child raised, hung or died; the message is its traceback, if there is one.

    Attributes:
        told: what it told before.
        has_died: it neither ended nor raised nor was killed by this process.
    """

    def __init__(self, message: str, *, told: Sequence[Any] = (), has_died: bool = False) -> None:
        super().__init__(message)
        self.told = list(told)
        self.has_died = has_died


def in_child(work: Callable[[], T]) -> T:
    """What `work` returns in a process of its own.

    Raises:
        ChildError: it raised, hung or died.
    """
    _, messages = _watch(lambda tell: tell(("returned", work())), seconds=PATIENCE_SECONDS)
    by_kind = dict(messages)
    if "returned" not in by_kind:
        raise ChildError(by_kind.get("raised", "the child hung or died"))
    return by_kind["returned"]


def killed_at(delay: float, work: Callable[[Callable[[Any], None]], None]) -> tuple[bool, list[Any], float]:
    """Kill a child so many seconds after it was made.

    Args:
        delay: seconds; a child that is done before is let go.
        work: is given what tells this process something.

    Returns:
        Whether it was killed while it worked, all that it told before, and the seconds that it lived.

    Raises:
        ChildError: it raised before it was killed, or hung.
    """

    def working(tell: Callable[[Any], None]) -> None:
        work(lambda value: tell(("told", value)))
        tell(("ended", None))

    began = time.monotonic()
    is_over, messages = _watch(working, seconds=min(delay, PATIENCE_SECONDS))
    lived = time.monotonic() - began
    by_kind = dict(messages)
    told = [value for what, value in messages if what == "told"]
    has_ended = "ended" in by_kind
    if "raised" in by_kind:
        raise ChildError(by_kind["raised"])
    if not has_ended and (is_over or delay >= PATIENCE_SECONDS):
        raise ChildError("the child hung or died by itself", told=told, has_died=is_over)
    return not has_ended, told, lived


def die() -> NoReturn:
    """End this process as a crash would."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _watch(
    work: Callable[[Callable[[Any], None]], None], *, seconds: float
) -> tuple[bool, list[tuple[str, Any]]]:
    """Whether a child was over within some seconds, and its messages; in any case it is over now."""
    child, pipe = _fork(work)
    received = bytearray()
    try:
        is_over = _receive(pipe, received, until=time.monotonic() + seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        _receive(pipe, received, until=time.monotonic() + PATIENCE_SECONDS)
    finally:
        os.close(pipe)
    return is_over, list(_messages(bytes(received)))


def _fork(work: Callable[[Callable[[Any], None]], None]) -> tuple[int, int]:
    """A child's number, and the end of the pipe from which its messages come."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        torch.set_num_threads(1)

        def tell(message: Any) -> None:
            data = pickle.dumps(message)
            os.write(writing, len(data).to_bytes(4, "little") + data)

        try:
            work(tell)
        except BaseException:  # noqa: BLE001
            tell(("raised", traceback.format_exc()))
    finally:
        os._exit(0)


def _receive(pipe: int, received: bytearray, *, until: float) -> bool:
    """Whether the pipe came to its end in time."""
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return False
        more = os.read(pipe, 1 << 16)
        if not more:
            return True
        received += more


def _messages(data: bytes) -> Iterator[tuple[str, Any]]:
    """Whole messages; the last one may have been cut off by the kill."""
    while len(data) >= 4:
        stop = 4 + int.from_bytes(data[:4], "little")
        if len(data) < stop:
            return
        yield pickle.loads(data[4:stop])
        data = data[stop:]
