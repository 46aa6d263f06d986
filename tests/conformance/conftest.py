"""The replayed golden runs, computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tests.conformance.replay import Replay, Run, replay


@pytest.fixture(scope="session")
def replayed(golden: Path) -> Callable[..., tuple[Run, Replay]]:
    """A run by its variant name, and its replay: whole, or the first steps of it."""

    @cache
    def get(variant: str, num_steps: int | None = None) -> tuple[Run, Replay]:
        run = Run(golden, variant)
        return run, replay(golden, run, num_steps=num_steps)

    return get
