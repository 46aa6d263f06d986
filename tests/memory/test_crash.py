"""A memory whose process is killed, or whose disk fails: what was reported is there, and reading goes on.

The same in large numbers: `python scripts/torture.py crash` and `... faults`.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from tests.support import crashes
from tests.support.torture import Case, Step, random_case

from emllm.store import maintenance
from emllm.store.folder import MemoryFolder

NUM_KILLS = 20


def test_a_memory_that_is_killed_at_any_instant_reads_on_to_the_same_bits(tmp_path):
    draw = random.Random(0)
    num_kills = 0
    for seed in range(100):
        case = random_case(seed)
        expected, seconds = crashes.measure(case, tmp_path / f"undisturbed-{seed}")
        for i in range(3):
            path = tmp_path / f"killed-{seed}-{i}"
            kills = draw.randint(1, 3)
            trial = crashes.crash(
                case, path, expected, seconds=seconds, kills=kills, seed=draw.getrandbits(32)
            )
            assert not trial.problems, f"{case}: {trial.problems}"
            num_kills += trial.num_kills
        if num_kills >= NUM_KILLS:
            return
    raise AssertionError(f"{num_kills} kills only")


def short_case() -> Case:
    """Long enough that units are sealed, of which a lossy codec writes each a second time."""
    case = random_case(2, num_tokens=60, codec="int8")
    steps = tuple(
        Step(start, stop, is_flushed)
        for start, stop, is_flushed in [(0, 20, False), (20, 21, False), (21, 22, True), (22, 60, False)]
    )
    return Case(case.seed, case.shape, case.config, case.tape, steps, {0: 20, 21: 39})


@pytest.mark.parametrize(
    ("fault", "is_new"),
    [("ENOSPC", True), ("EIO", False), ("broken", False), ("full", True), ("die", True), ("die", False)],
    ids=lambda value: {True: "new", False: "left by a crash"}.get(value, value),
)
def test_a_disk_that_fails_at_any_change_costs_nothing_that_was_durable(tmp_path, fault, is_new):
    case = short_case()
    expected, _ = crashes.measure(case, tmp_path / "undisturbed")
    start = tmp_path / "start"
    if not is_new:
        crashes.left_by_a_crash(case, start, num_steps=1)
    num_steps = len(crashes.disk_steps(case, copied(start, tmp_path / "counted")))
    assert num_steps > 20
    for position in range(num_steps):
        path = copied(start, tmp_path / f"failing-{position}")
        trial = crashes.fail(case, path, expected, position=position, fault=fault)
        assert not trial.problems, f"{trial.what}: {trial.problems}"


def copied(start: Path, to: Path) -> Path:
    if start.exists():
        shutil.copytree(start, to)
    return to


def test_what_a_crash_leaves_needs_no_write_ahead_log(tmp_path):
    case = short_case()
    path = tmp_path / "memory"
    crashes.left_by_a_crash(case, path, num_steps=2)
    for suffix in ("-wal", "-shm"):
        (path / f"catalogue.sqlite{suffix}").unlink(missing_ok=True)
    with MemoryFolder.open(path) as folder:
        assert folder.contents.num_tokens == case.steps[1].stop
    assert maintenance.verify(path) == []
