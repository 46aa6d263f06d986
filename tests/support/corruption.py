"""Damage to the files of a memory, and whether it is noticed before it can become a wrong answer."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.crashes import left_by_a_crash
from tests.support.torture import Case, Outcome, ask, read_on

from emllm.errors import StoreError
from emllm.store import maintenance

SEAL = "catalogue.crc"
CATALOGUE = "catalogue.sqlite"
KINDS = ("flip", "flip", "truncate", "lengthen", "zero", "zero a part", "delete", "swap")
_LOCKS = ("lock", "readers.lock")
#: SQLite makes the first anew whenever nobody has the catalogue open; a reader may leave the second empty.
_SHARED_MEMORY, _LOG = f"{CATALOGUE}-shm", f"{CATALOGUE}-wal"


@dataclass(frozen=True)
class Damage:
    """What was done to which files."""

    kind: str
    names: tuple[str, ...]
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {' and '.join(self.names)} {self.where}".rstrip()


@dataclass
class Verdict:
    """What became of one damage."""

    damage: Damage
    problems: list[str] = field(default_factory=list)
    is_found: bool = False
    is_refused: bool = False


def intact(case: Case, path: Path, *, was_closed: bool = True) -> Outcome:
    """Read all of a case into a folder and ask; its writer closed it, or died."""
    if was_closed:
        with case.open(path) as memory:
            read_on(case, memory)
    else:
        left_by_a_crash(case, path, num_steps=len(case.steps), leftover=False)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        copy = shutil.copytree(path, Path(scratch) / "copy")  # one that is opened is not what was left
        with case.open(copy, read_only=True) as memory:
            return ask(case, memory)


def inflict(path: Path, draw: random.Random) -> Damage:
    """Damage one file of a memory, or two; the bytes on the disk do change."""
    names = data_files(path)
    name = _drawn_name(names, draw)
    kind = draw.choice(KINDS)
    if kind == "swap":
        other = draw.choice([one for one in names if one != name])
        if (path / name).read_bytes() == (path / other).read_bytes():
            return inflict(path, draw)
        _swap(path / name, path / other)
        return Damage(kind, (name, other))
    if kind == "delete":
        (path / name).unlink()
        return Damage(kind, (name,))
    before = (path / name).read_bytes()
    after, where = _CHANGES[kind](before, draw)
    if before == after:
        return inflict(path, draw)
    (path / name).write_bytes(after)
    return Damage(kind, (name,), where)


def data_files(path: Path) -> list[str]:
    """Names of the files of a memory that can be damaged; locks hold nothing."""
    names = [str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()]
    left_out = [*_LOCKS, _SHARED_MEMORY]
    if not (path / _LOG).exists() or (path / _LOG).stat().st_size == 0:
        left_out.append(_LOG)
    return sorted(one for one in names if one not in left_out)


def _drawn_name(names: Sequence[str], draw: random.Random) -> str:
    """Files beside the data are few, so they are drawn more often than that."""
    kinds = sorted({one.split("/")[0] for one in names})
    kind = draw.choice(kinds)
    return draw.choice([one for one in names if one.split("/")[0] == kind])


def _flip(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    changed = bytearray(data)
    places = [draw.randrange(len(data)) for _ in range(draw.choice([1, 1, 1, 2, 8]))] if data else []
    for place in places:
        changed[place] ^= draw.choice([1 << draw.randrange(8), draw.randint(1, 255)])
    return bytes(changed), f"at {places}"


def _truncate(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    length = draw.randrange(len(data)) if data else 0
    return data[:length], f"to {length} of {len(data)} bytes"


def _lengthen(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    more = draw.randbytes(draw.randint(1, 5000))
    return data + more, f"by {len(more)} bytes"


def _zero(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    return bytes(len(data)), ""


def _zero_part(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    start = draw.randrange(len(data)) if data else 0
    stop = min(len(data), start + draw.choice([1, 16, 512, 4096]))
    return data[:start] + bytes(stop - start) + data[stop:], f"[{start}, {stop})"


_CHANGES: dict[str, Callable[[bytes, random.Random], tuple[bytes, str]]] = {
    "flip": _flip,
    "truncate": _truncate,
    "lengthen": _lengthen,
    "zero": _zero,
    "zero a part": _zero_part,
}


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def trial(
    case: Case,
    path: Path,
    expected: Outcome,
    draw: random.Random,
    *,
    scratch: Path,
    was_closed: bool = True,
    has_index: bool = False,
) -> Verdict:
    """Damage a copy of a memory, verify it, open it and ask.

    Args:
        path: the memory, which stays as it is.
        expected: what it answers.
        was_closed: by its writer; what a crash left has no seal, so that bytes of its catalogue which hold
            nothing may change unnoticed, but no answer.
        has_index: what its index files cover is not read from segments, so that bytes of those which hold it
            too may change unnoticed until somebody verifies, but no answer.
    """
    copy = scratch / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy)
    verdict = Verdict(inflict(copy, draw))
    must_be_found = _must_be_found(verdict.damage, was_closed=was_closed)
    try:
        lines = maintenance.verify(copy)
    except Exception as error:  # noqa: BLE001
        verdict.problems.append(f"verify raised {error!r}")
        lines = []
    verdict.is_found = any(_names_one(line, verdict.damage, copy) for line in lines)
    if must_be_found and not verdict.is_found:
        verdict.problems.append(f"verify did not name it, and found {lines}")
    read_only = draw.random() < 0.5
    try:
        with case.open(copy, read_only=read_only) as memory:
            differing = expected.differences(ask(case, memory))
    except StoreError as error:
        verdict.is_refused = True
        if not _names_one(str(error), verdict.damage, copy) and must_be_found:
            verdict.problems.append(f"the error does not name it: {error}")
    except Exception as error:  # noqa: BLE001
        verdict.problems.append(f"not a StoreError but {error!r}")
    else:
        if differing:
            verdict.problems.append(f"a wrong answer: {', '.join(differing)} differ")
        if must_be_found and not (has_index and _may_be_beside_pages(verdict.damage)):
            verdict.problems.append("it was opened and asked without an error")
    return verdict


def _must_be_found(damage: Damage, *, was_closed: bool) -> bool:
    """Without its seal a catalogue answers for its rows, not for its unused bytes."""
    if (damage.kind, damage.names) == ("delete", (SEAL,)):
        return False
    return was_closed or not all(name.startswith(CATALOGUE) for name in damage.names)


def _may_be_beside_pages(damage: Damage) -> bool:
    """Whether it left a segment's size, and perhaps its header and pages, as they were."""
    return damage.kind in ("flip", "zero a part") and damage.names[0].startswith("segments/")


def _names_one(line: str, damage: Damage, path: Path) -> bool:
    """Whether a line names a damaged file; without its catalogue, a folder is not a memory's any more."""
    if damage.kind == "delete" and damage.names == (CATALOGUE,):
        return str(path) in line
    return any(name in line for name in damage.names)
