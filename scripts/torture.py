"""Torture of stored memories: kill them, let their disk fail, damage their files, and see what is left.

    python scripts/torture.py crash --kills 300       SIGKILL at random instants of a reading process
    python scripts/torture.py faults                  every change of the disk fails once, for good, or kills
    python scripts/torture.py corrupt --trials 1000   bytes flipped, files cut, zeroed, swapped, deleted

No model is needed: memories of tiny random layers, settings and codecs are driven with random keys and
values, drawn from `--seed`. `crash` and `faults` do the same to what is
done to whole memories: forgetting, reading anew, copies, clones and what goes on in them, compacting.
Whatever happens, what was reported as durable must be there, reading on must end with the bits of an
undisturbed run, a document is forgotten wholly or not at all, and damage must be named instead of answered
from. Exit code 1 on any failure.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tests.support import corruption, crashes, operations, torture

#: Memories that are killed, and damages that are done, for every case that is read undisturbed.
MEMORIES_PER_CASE = 4
DAMAGES_PER_CASE = 50
#: Kills of one memory in a row, at most.
KILLS_IN_A_ROW = 4


class Report:
    """Counts by row of a table, and every failure with what made it."""

    def __init__(self, first_column: str, *, is_json: bool) -> None:
        self._first_column = first_column
        self._is_json = is_json
        self.rows: dict[str, Counter[str]] = {}
        self.failures: list[str] = []

    def count(self, row: str, **counts: int) -> None:
        """Add to a row."""
        self.rows.setdefault(row, Counter()).update(counts)

    def fail(self, where: str, problems: list[str]) -> None:
        """Note what went wrong, and say so at once."""
        for problem in problems:
            self.failures.append(f"{where}: {problem}")
            print(self.failures[-1], file=sys.stderr)

    def show(self, **settings: Any) -> int:
        """Print it; the exit code."""
        if self._is_json:
            print(json.dumps({**settings, "rows": self.rows, "failures": self.failures}, indent=2))
            return int(bool(self.failures))
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        lines = [[self._first_column, *columns]]
        lines += [[name, *(str(row[one]) for one in columns)] for name, row in sorted(self.rows.items())]
        total = [str(sum(row[one] for row in self.rows.values())) for one in columns]
        widths = [max(map(len, column)) for column in zip(*lines, ["all", *total], strict=True)]
        for line in [*lines, ["all", *total]]:
            print(line[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(line[1:], widths[1:], strict=True)))
        print("no failures" if not self.failures else f"{len(self.failures)} failures, see above")
        return int(bool(self.failures))


def crash(args: argparse.Namespace, scratch: Path) -> int:
    """Kill until enough were killed while they worked."""
    report = Report("codec", is_json=args.json)
    draw = random.Random(args.seed)
    num_kills = 0
    for case, expected, seconds in _cases(args, scratch):
        for _ in range(MEMORIES_PER_CASE):
            kills = min(draw.randint(1, KILLS_IN_A_ROW), args.kills - num_kills)
            path = scratch / "killed"
            trial = crashes.crash(
                case, path, expected, seconds=seconds, kills=kills, seed=draw.getrandbits(32)
            )
            shutil.rmtree(path, ignore_errors=True)
            num_kills += trial.num_kills
            counts = {"memories": 1, "kills": trial.num_kills, "failures": len(trial.problems)}
            report.count(case.config.codec, **counts)
            report.fail(f"{case}, {kills} kills", trial.problems)
            if num_kills >= args.kills:
                return report.show(seed=args.seed, kills=num_kills)
        for name, operation, undisturbed in _operations(case, scratch):
            place = scratch / "place"
            trial = operations.kill(operations.documented(case), operation, undisturbed, place, draw)
            num_kills += trial.num_kills
            counts = {"memories": 1, "kills": trial.num_kills, "failures": len(trial.problems)}
            report.count(name, **counts)
            report.fail(f"{case}, {name}", trial.problems)
    raise AssertionError("unreachable")


def faults(args: argparse.Namespace, scratch: Path) -> int:
    """Every fault at every change of the disk: of a memory that is made, and of one that a crash left."""
    report = Report("fault", is_json=args.json)
    memories = _cases(args, scratch, num_tokens=args.tokens)
    for _ in range(args.memories):
        case, expected, _ = next(memories)
        for begun in (0, len(case.steps) // 2):
            start = scratch / "start"
            if begun:
                crashes.left_by_a_crash(case, start, num_steps=begun)
            _every_fault(case, start, expected, scratch, report)
            shutil.rmtree(start, ignore_errors=True)
        for name, operation, undisturbed in _operations(case, scratch):
            _every_fault_of_an_operation(case, name, operation, undisturbed, scratch / "place", report)
    return report.show(seed=args.seed, memories=args.memories, tokens=args.tokens)


def _every_fault(
    case: torture.Case, start: Path, expected: torture.Outcome, scratch: Path, report: Report
) -> None:
    steps = crashes.disk_steps(case, _copied(start, scratch / "counted"))
    for fault in crashes.FAULTS:
        for position, step in enumerate(steps):
            path = _copied(start, scratch / "failing")
            trial = crashes.fail(case, path, expected, position=position, fault=fault)
            counts = {"memories": 1, "told of it": int(trial.num_refused > 0), "died": trial.num_kills}
            report.count(fault, **counts, failures=len(trial.problems))
            report.fail(f"{case}, {fault} at {position} ({step})", trial.problems)


def _every_fault_of_an_operation(
    case: torture.Case,
    name: str,
    operation: operations.Operation,
    undisturbed: operations.Known,
    place: Path,
    report: Report,
) -> None:
    case = operations.documented(case)
    for fault in crashes.FAULTS:
        for position, step in enumerate(undisturbed.steps):
            trial = operations.fail(case, operation, undisturbed, place, position, fault)
            counts = {"memories": 1, "told of it": int(trial.num_refused > 0), "died": trial.num_kills}
            report.count(f"{name}, {fault}", **counts, failures=len(trial.problems))
            report.fail(f"{case}, {name}, {fault} at {position} ({step})", trial.problems)


def _operations(
    case: torture.Case, scratch: Path
) -> Iterator[tuple[str, operations.Operation, operations.Known]]:
    """Everything that is done to whole memories, and how it goes when nothing disturbs it."""
    for name, operation in operations.OPERATIONS.items():
        start = scratch / "begun"
        yield (
            name,
            operation,
            operations.known(operations.documented(case), operation, start, scratch / "place"),
        )
        shutil.rmtree(start)


def corrupt(args: argparse.Namespace, scratch: Path) -> int:
    """Damage memories that were closed, and some that a crash left."""
    report = Report("damage", is_json=args.json)
    draw = random.Random(args.seed)
    num_done = 0
    while num_done < args.trials:
        case = torture.random_case(args.seed + num_done, recall_all=True)
        was_closed = draw.random() < 0.8
        path = scratch / "memory"
        expected = corruption.intact(case, path, was_closed=was_closed)
        for _ in range(min(DAMAGES_PER_CASE, args.trials - num_done)):
            verdict = corruption.trial(case, path, expected, draw, scratch=scratch, was_closed=was_closed)
            row = f"{verdict.damage.kind}{'' if was_closed else ', after a crash'}"
            found = {"found by verify": int(verdict.is_found), "refused": int(verdict.is_refused)}
            report.count(row, trials=1, **found, failures=len(verdict.problems))
            report.fail(f"{case}, {verdict.damage}", verdict.problems)
            num_done += 1
        shutil.rmtree(path)
        _progress(args, f"{num_done} of {args.trials} damages")
    return report.show(seed=args.seed, trials=num_done)


def _cases(
    args: argparse.Namespace, scratch: Path, **sizes: int
) -> Iterator[tuple[torture.Case, torture.Outcome, float]]:
    """Cases without end, and what an undisturbed run of each gives."""
    seed = args.seed
    while True:
        case = torture.random_case(seed, **sizes)
        _progress(args, str(case))
        expected, seconds = crashes.measure(case, scratch / "undisturbed")
        shutil.rmtree(scratch / "undisturbed")
        yield case, expected, seconds
        seed += 1


def _copied(start: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    if start.exists():
        shutil.copytree(start, to)
    return to


def _progress(args: argparse.Namespace, line: str) -> None:
    if not args.json:
        print(line, file=sys.stderr)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(kills=0, trials=0, memories=0, tokens=0)
    commands = parser.add_subparsers(required=True, dest="command")
    for function in (crash, faults, corrupt):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--json", action="store_true", help="a JSON object instead of a table")
    commands.choices["crash"].add_argument("--kills", type=int, default=300)
    commands.choices["corrupt"].add_argument("--trials", type=int, default=1000)
    commands.choices["faults"].add_argument("--memories", type=int, default=4)
    commands.choices["faults"].add_argument("--tokens", type=int, default=60, help="that each memory reads")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        return args.function(args, Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
