"""Processes that die, and disks that fail, while a memory is being read; and what is found afterwards.

Every function returns what went wrong, one line each.
"""

from __future__ import annotations

import dataclasses
import errno
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.children import ChildError, die, in_child, killed_at
from tests.support.torture import Case, Outcome, Step, held_by, read_on, undisturbed

from emllm.errors import StoreError
from emllm.store import disk, folder, maintenance

#: What a disk may do at one of its changes: fail once, fail or be full from then on, or the process dies
#: there. A full disk still deletes, and syncs what it has.
FAULTS = ("ENOSPC", "EIO", "broken", "full", "die")
_FREES = ("unlink", "fsync")


@dataclass
class Trial:
    """A memory that was killed or failed, some times in a row."""

    case: Case
    problems: list[str] = field(default_factory=list)
    num_kills: int = 0
    num_refused: int = 0
    what: str = ""


def measure(case: Case, path: Path) -> tuple[Outcome, float]:
    """What an undisturbed run ends with, in RAM and in a folder alike, and the seconds of the latter."""
    expected = in_child(lambda: undisturbed(case))

    def whole_run() -> tuple[Outcome, float]:
        began = time.monotonic()
        with case.open(path) as memory:
            outputs = read_on(case, memory)
        seconds = time.monotonic() - began
        return Outcome(outputs, _reopened(case, path)), seconds

    found, seconds = in_child(whole_run)
    if expected.differences(found):
        raise AssertionError(f"{case}: undisturbed, yet {', '.join(expected.differences(found))} differ")
    return expected, seconds


def crash(case: Case, path: Path, expected: Outcome, *, seconds: float, kills: int, seed: int) -> Trial:
    """Kill a memory some times in a row at random instants, each time reading on from what is there.

    Args:
        seconds: that an undisturbed run takes.
    """
    draw = random.Random(seed)
    trial = Trial(case)
    stands = 0
    for _ in range(kills):
        share = 1.0 - stands / case.steps[-1].stop
        delay = draw.uniform(0.0, seconds * (0.2 + 0.8 * share))
        try:
            was_killed, told, _ = killed_at(delay, lambda tell: _read_and_tell(case, path, tell))
        except ChildError as error:
            trial.problems.append(f"a run after {trial.num_kills} kills failed: {error}")
            return trial
        trial.num_kills += was_killed
        stands = _check_told(told, expected, trial, at_least=stands)
        _check_after(case, path, stands, trial)
    _check_end(case, path, expected, stands, trial)
    return trial


def _read_and_tell(case: Case, path: Path, tell: Callable[[Any], None]) -> None:
    """What the child does: after every step that is durable, it says so."""
    with case.open(path) as memory:
        tell((memory.num_tokens, 0, ""))
        read_on(case, memory, done=_Teller(tell).done)


class _Teller:
    """Tells what must be durable when a step is over.

    A flush makes everything durable. A chunk may still be on its way to the disk until the next one is
    committed; single tokens may be longer.
    """

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell
        self._on_its_way = 0

    def done(self, step: Step, output: str) -> None:
        """A step is over."""
        durable = 0
        if step.is_flushed:
            durable, self._on_its_way = step.stop, 0
        elif step.stop - step.start > 1:
            durable, self._on_its_way = self._on_its_way, step.stop
        self._tell((durable, step.start, output))

    def refused(self, step: Step, error: StoreError) -> None:
        """A step is over, of which and of those before nobody knows what is durable."""
        self._on_its_way = 0
        self._tell(str(error))


def _check_told(told: Sequence[Any], expected: Outcome, trial: Trial, *, at_least: int) -> int:
    """Tokens that are durable by what the child told, whose outputs must be the expected ones."""
    for durable, start, output in told:
        at_least = max(at_least, durable)
        if output and expected.outputs[start] != output:
            trial.problems.append(f"the outputs of token {start} differ before the kill")
    return at_least


def _check_after(case: Case, path: Path, stands: int, trial: Trial) -> None:
    """Right after a crash, before anybody repairs anything."""
    if not folder.is_memory(path):
        if stands:
            trial.problems.append(f"no memory is left, {stands} tokens were reported")
        return
    found = in_child(lambda: _look(case, path))
    trial.problems += [f"after a crash: {line}" for line in found["problems"]]
    if found["num_tokens"] < stands:
        trial.problems.append(f"{found['num_tokens']} tokens are left, {stands} were reported")


def _look(case: Case, path: Path) -> dict[str, Any]:
    problems = maintenance.verify(path)
    with case.open(path, read_only=True) as memory:
        return {"problems": problems, "num_tokens": memory.num_tokens}


def _check_end(case: Case, path: Path, expected: Outcome, stands: int, trial: Trial) -> None:
    """Reading on to the end gives what an undisturbed run gave, and leaves nothing behind."""

    def finish() -> tuple[int, Outcome, dict[str, str], list[str], list[str]]:
        with case.open(path) as memory:
            num_tokens = memory.num_tokens
            outputs = read_on(case, memory)
            held = held_by(case, memory)
        reopened = _reopened(case, path)
        ending = Outcome(outputs, held)
        return num_tokens, ending, reopened, maintenance.verify(path), maintenance.extras(path)

    try:
        num_tokens, ending, reopened, problems, extras = in_child(finish)
    except ChildError as error:
        trial.problems.append(f"cannot read on: {error}")
        return
    if num_tokens < stands:
        trial.problems.append(f"{num_tokens} tokens are left, {stands} were reported")
    trial.problems += [f"{what} differ at the end" for what in expected.differences(ending)]
    again = Outcome({}, reopened)
    trial.problems += [f"{what} differ once reopened" for what in expected.differences(again)]
    trial.problems += [f"at the end: {line}" for line in problems]
    trial.problems += [f"left behind: {name}" for name in extras]


def _reopened(case: Case, path: Path) -> dict[str, str]:
    with case.open(path) as memory:
        return held_by(case, memory)


def left_by_a_crash(case: Case, path: Path, *, num_steps: int, leftover: bool = True) -> None:
    """A memory whose reader died after some steps; with a file that no catalogue names, if wanted."""

    def work(tell: Callable[[Any], None]) -> None:
        memory = case.open(path)
        part = dataclasses.replace(case, steps=case.steps[:num_steps])
        read_on(part, memory)
        memory.flush()
        if leftover:
            (path / "recent" / "000000000000-000000000001-00000000.safetensors").write_bytes(b"half a file")
        tell("read")
        die()

    try:
        killed_at(60.0, work)
    except ChildError as error:
        if not error.has_died or error.told != ["read"]:
            raise


def disk_steps(case: Case, path: Path) -> list[str]:
    """Every change of the disk in an undisturbed run from where the memory stands, in order."""

    def counted() -> list[str]:
        seen: list[str] = []
        disk.hook = lambda what, changed: seen.append(f"{what} {changed.name.split('.')[-1]}")
        with case.open(path) as memory:
            read_on(case, memory)
        return seen

    return in_child(counted)


def fail(case: Case, path: Path, expected: Outcome, *, position: int, fault: str) -> Trial:
    """Let one change of the disk fail while a memory is read on, then look at what is there.

    The process, unless it dies, goes on reading: what could not be written yet is written later. Only a
    `StoreError` may tell it.
    """
    trial = Trial(case, what=f"{fault} at {position}")
    try:
        was_killed, told, _ = killed_at(
            60.0, lambda tell: _read_on_failing(case, path, position, fault, tell)
        )
        trial.num_kills = int(was_killed)
    except ChildError as error:
        if fault != "die" or not error.has_died:
            trial.problems.append(str(error))
            return trial
        trial.num_kills, told = 1, error.told
    refusals = [one for one in told if isinstance(one, str)]
    trial.num_refused = len(refusals)
    stands = _check_told([one for one in told if not isinstance(one, str)], expected, trial, at_least=0)
    _check_after(case, path, stands, trial)
    _check_end(case, path, expected, stands, trial)
    return trial


def _read_on_failing(case: Case, path: Path, position: int, fault: str, tell: Callable[[Any], None]) -> None:
    disk.hook = Failing(position, fault)
    try:
        memory = case.open(path)
    except StoreError as error:
        tell(str(error))
        try:
            memory = case.open(path)  # a fault that passes is no obstacle to a second try
        except StoreError:
            if fault in ("ENOSPC", "EIO"):
                raise
            return
    teller = _Teller(tell)
    read_on(case, memory, done=teller.done, refused=teller.refused)
    try:
        memory.close()
    except StoreError as error:
        tell(str(error))
    else:
        tell((memory.num_tokens, 0, ""))


class Failing:
    """Fails at the n-th change of the disk."""

    def __init__(self, position: int, fault: str) -> None:
        self._position = position
        self._fault = fault
        self._num_steps = 0

    def __call__(self, what: str, path: Path) -> None:
        position, self._num_steps = self._num_steps, self._num_steps + 1
        if position < self._position or (position > self._position and self._fault in ("ENOSPC", "EIO")):
            return
        if self._fault == "die":
            die()
        if self._fault == "full" and what in _FREES:
            return
        number = errno.EIO if self._fault in ("EIO", "broken") else errno.ENOSPC
        raise OSError(number, f"injected at {what}", str(path))
