"""What is done to whole memories, killed at any instant or on a failing disk, and what is found then.

A place is a folder with a `memory` and, where an operation needs one, a `child` that was cloned from it. Each
operation changes one of them, its subject, and leaves the other as it is. Every function returns what went
wrong, one line each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.support.children import ChildError, in_child, killed_at
from tests.support.crashes import Failing, Trial
from tests.support.driven_memory import attend
from tests.support.torture import Case, held_by, read_on

from emllm.errors import InputError, StoreError
from emllm.memory import EpisodicMemory, forgetting
from emllm.memory.compacting import compact
from emllm.memory.truncating import truncate
from emllm.store import disk, maintenance
from emllm.store.place import is_memory
from emllm.store.renewing import renewed

#: Documents of a memory that something is done to; the one in the middle is forgotten.
NUM_DOCUMENTS = 3


@dataclass(frozen=True)
class Operation:
    """Something that is done to a place.

    Attributes:
        run: does it; a second time, it goes on or begins again.
        subject: the memory that it changes or makes.
        is_atomic: the subject is as it was, or as it shall be, and never in between.
        is_forgetting: nothing of the document in the middle is left in the subject.
        begins: what was done to the place before.
    """

    run: Callable[[Case, Path], None]
    subject: str = "memory"
    is_atomic: bool = True
    is_forgetting: bool = False
    begins: Callable[[Case, Path], None] | None = None


def documented(case: Case) -> Case:
    """The case with documents from its first token to its last."""
    steps = case.steps
    firsts = [steps[i * len(steps) // NUM_DOCUMENTS].start for i in range(NUM_DOCUMENTS)]
    stops = [*firsts[1:], steps[-1].stop]
    return dataclasses.replace(
        case,
        documents={start: stop - start for start, stop in zip(firsts, stops, strict=True) if stop > start},
    )


def forgotten_document(case: Case) -> tuple[str, int, int]:
    """Name, first token and end of the document that is forgotten."""
    start = sorted(case.documents)[len(case.documents) // 2]
    return f"document {start}", start, start + case.documents[start]


def _forget(case: Case, place: Path) -> None:
    forgetting.forget(place / "memory", forgotten_document(case)[0])


def _forget_in_the_child(case: Case, place: Path) -> None:
    forgetting.forget(place / "child", forgotten_document(case)[0])


def _forget_while_open(case: Case, place: Path) -> None:
    name = forgotten_document(case)[0]
    with case.open(place / "memory") as memory:
        if any(document.name == name for document in memory.documents):
            memory.forget(name)


def _read_anew(case: Case, place: Path) -> None:
    start = forgotten_document(case)[1]
    with renewed(place / "memory") as building:
        with case.open(building, read_only=True) as old:
            texts = old.texts_from(start)
        truncate(building, start)
        with case.open(building) as memory:
            for document, token_ids in texts:
                if document is not None:
                    first = memory.num_tokens
                    memory.begin_document(dataclasses.replace(document, start=first, stop=first))
                _read_chunks(case, memory, len(token_ids))


def _read_chunks(case: Case, memory: EpisodicMemory, num_tokens: int) -> None:
    """From the tape, wherever the tokens stood before."""
    stop = memory.num_tokens + num_tokens
    while memory.num_tokens < stop:
        start, end = memory.num_tokens, min(memory.num_tokens + 16, stop)
        memory.begin_chunk(case.tape.token_ids[start:end])
        attend(memory, case.tape, start, end)
        memory.commit(case.tape.token_ids[start:end], case.tape.logits[start:end])


def _clone(case: Case, place: Path) -> None:
    maintenance.clone(place / "memory", place / "child")


def _copy(case: Case, place: Path) -> None:
    maintenance.copy(place / "memory", place / "child")


def _talk(case: Case, place: Path) -> None:
    """As a conversation that is saved: in a clone, which is made first if need be."""
    if not is_memory(place / "child"):
        _clone(case, place)
    with case.open(place / "child") as memory:
        _read_chunks(case, memory, len(case.tape) - memory.num_tokens)


def _compact(case: Case, place: Path) -> None:
    compact(place / "memory")


OPERATIONS: dict[str, Operation] = {
    "forget": Operation(_forget, is_forgetting=True),
    "forget while open": Operation(_forget_while_open, is_forgetting=True),
    "forget in a clone": Operation(_forget_in_the_child, "child", is_forgetting=True, begins=_clone),
    "forget in the source of a clone": Operation(_forget, is_forgetting=True, begins=_clone),
    "read anew": Operation(_read_anew, begins=_forget),
    "copy": Operation(_copy, "child"),
    "clone": Operation(_clone, "child"),
    "compact": Operation(_compact, begins=_clone),
    "talk": Operation(_talk, "child", is_atomic=False),
}


@dataclass(frozen=True)
class Known:
    """What is known of an operation that nothing disturbed.

    Attributes:
        start: a place as it was before, not to be touched.
        before: hashes of what the subject held; None where it did not exist.
        after: hashes of what it holds.
        bystander: hashes of the other memory, and of its files.
        old_files: of the subject that no longer exist.
        steps: changes of the disk, in order.
        seconds: that it took.
    """

    start: Path
    before: dict[str, str] | None
    after: dict[str, str]
    bystander: dict[str, str]
    old_files: frozenset[str]
    steps: list[str]
    seconds: float


def known(case: Case, operation: Operation, start: Path, scratch: Path) -> Known:
    """Make the place in `start`, and do the operation once on a copy of it."""

    def made() -> None:
        start.mkdir()
        with case.open(start / "memory") as memory:
            read_on(case, memory)
        if operation.begins is not None:
            operation.begins(case, start)

    def done() -> tuple[list[str], float]:
        seen: list[str] = []
        disk.hook = lambda what, changed: seen.append(f"{what} {changed.name.split('.')[-1]}")
        began = time.monotonic()
        operation.run(case, scratch)
        return seen, time.monotonic() - began

    in_child(made)
    copied(start, scratch)
    before = in_child(lambda: _held(case, scratch / operation.subject))
    bystander = in_child(lambda: _bystander(case, operation, scratch))
    old = _data_files(scratch / operation.subject)
    steps, seconds = in_child(done)
    after = in_child(lambda: _held(case, scratch / operation.subject))
    assert after is not None
    gone = frozenset(old.keys() - _data_files(scratch / operation.subject).keys())
    return Known(start, before, after, bystander, gone, steps, seconds)


def copied(start: Path, to: Path) -> Path:
    """A copy of a place; files of clones are copied too."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(start, to)
    return to


def fail(
    case: Case, operation: Operation, undisturbed: Known, place: Path, position: int, fault: str
) -> Trial:
    """Let one change of the disk fail while the operation is done; then look, and do it again."""
    trial = Trial(case, what=f"{fault} at {position}")
    copied(undisturbed.start, place)

    def working(tell: Callable[[object], None]) -> None:
        disk.hook = Failing(position, fault)
        _run_and_tell(case, operation, place, tell)

    try:
        was_killed, told, _ = killed_at(60.0, working)
        trial.num_kills = int(was_killed)
    except ChildError as error:
        if fault != "die" or not error.has_died:
            trial.problems.append(str(error))
            return trial
        trial.num_kills, told = 1, error.told
    trial.num_refused = sum(one != "done" for one in told)
    has_room = fault not in ("broken", "die")
    if "done" not in told and has_room and undisturbed.before is None and operation.is_atomic:
        left = sorted(path.name for path in (place / operation.subject).glob("*"))
        trial.problems += [f"refused, yet it left {', '.join(left)}"] if left else []
    _check(case, operation, undisturbed, place, trial, is_done="done" in told)
    return trial


def kill(case: Case, operation: Operation, undisturbed: Known, place: Path, draw: random.Random) -> Trial:
    """Kill the operation at a random instant; then look, and do it again."""
    trial = Trial(case, what="killed")
    copied(undisturbed.start, place)
    try:
        was_killed, told, _ = killed_at(
            draw.uniform(0.0, 1.2 * undisturbed.seconds + 0.01),
            lambda tell: _run_and_tell(case, operation, place, tell),
        )
    except ChildError as error:
        trial.problems.append(str(error))
        return trial
    trial.num_kills = int(was_killed)
    _check(case, operation, undisturbed, place, trial, is_done="done" in told)
    return trial


def _run_and_tell(case: Case, operation: Operation, place: Path, tell: Callable[[object], None]) -> None:
    """Only a `StoreError` may say that it failed."""
    try:
        operation.run(case, place)
    except StoreError as error:
        tell(str(error))
    else:
        tell("done")


def _check(
    case: Case, operation: Operation, undisturbed: Known, place: Path, trial: Trial, *, is_done: bool
) -> None:
    """Look at what a fault left, do the operation again, and look at that."""
    subject = place / operation.subject

    def looked(when: str, *, is_done: bool) -> list[str]:
        held = _held(case, subject)
        problems = maintenance.verify(subject) if held is not None else []
        if held is None and (undisturbed.before is not None or is_done):
            problems.append("no memory is left")
        expected = [undisturbed.after] if is_done else [undisturbed.after, undisturbed.before]
        if held is not None and held not in expected and (operation.is_atomic or is_done):
            nearest = [name for name in held if held[name] != undisturbed.after.get(name)]
            problems.append(f"it is neither as before nor as after: {', '.join(nearest)} differ")
        problems += _remains(case, operation, undisturbed, subject) if is_done else []
        now = _bystander(case, operation, place)
        problems += ["the other memory differs"] if now != undisturbed.bystander else []
        return [f"{when}: {problem}" for problem in problems]

    def again() -> list[str]:
        if undisturbed.before is None and operation.is_atomic and is_memory(subject):
            case.open(subject).close()  # it is whole; whoever writes next tidies up
        else:
            try:
                operation.run(case, place)
            except InputError:  # there is nothing to forget
                if _held(case, subject) != undisturbed.after:
                    raise
        problems = looked("done again", is_done=True)
        return problems + [f"left behind: {name}" for name in maintenance.extras(subject)]

    try:
        trial.problems += in_child(lambda: looked("after the fault", is_done=is_done))
        trial.problems += in_child(again)
    except ChildError as error:
        trial.problems.append(f"cannot be done again: {error}")


def _held(case: Case, path: Path) -> dict[str, str] | None:
    if not is_memory(path):
        return None
    with case.open(path, read_only=True) as memory:
        return held_by(case, memory)


def _bystander(case: Case, operation: Operation, place: Path) -> dict[str, str]:
    """The memory that the operation leaves alone: what it holds, and its files."""
    other = place / ("memory" if operation.subject == "child" else "child")
    return {**(_held(case, other) or {}), **_data_files(other)}


def _data_files(path: Path) -> dict[str, str]:
    """Hashes of a memory's data files by their names."""
    files = [one for kind in ("segments", "recent") for one in sorted((path / kind).glob("*"))]
    return {f"{one.parent.name}/{one.name}": hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def _remains(case: Case, operation: Operation, undisturbed: Known, subject: Path) -> list[str]:
    """What is left of a forgotten document: old files, its name, keys of its tokens as they are."""
    is_read_anew = operation.run is _read_anew
    if not (operation.is_forgetting or is_read_anew):
        return []
    there = sorted(undisturbed.old_files & _data_files(subject).keys())
    problems = [f"{name} is still there" for name in there]
    if is_read_anew:  # what came later has the document's places now
        return problems
    stored = b"".join(one.read_bytes() for one in sorted(subject.rglob("*")) if one.is_file())
    name, start, stop = forgotten_document(case)
    others = [f"document {first}" for first in case.documents if first != start]
    if name.encode() in stored and not any(other.startswith(name) for other in others):
        problems.append(f"the name {name!r} is still there")
    for layer_idx, keys in enumerate(case.tape.keys):
        raw = [
            keys[:, token].contiguous().view(torch.uint8).numpy().tobytes() for token in range(start, stop)
        ]
        found = [start + i for i, data in enumerate(raw) if data in stored]
        problems += [f"the keys of tokens {found} of layer {layer_idx} are still there"] if found else []
    return problems
