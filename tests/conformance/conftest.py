"""The replayed golden runs and their attention mass, computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tests.conformance.golden_mass import accumulated_mass
from tests.conformance.replay import LAYERS, Replay, Run, replay
from torch import Tensor


@pytest.fixture(scope="session")
def replayed(golden: Path) -> Callable[..., tuple[Run, Replay]]:
    """A run by its variant name, and its replay: whole, or the first steps of it."""

    @cache
    def get(variant: str, num_steps: int | None = None) -> tuple[Run, Replay]:
        run = Run(golden, variant)
        return run, replay(golden, run, num_steps=num_steps)

    return get


@pytest.fixture(scope="session")
def masses(replayed: Callable[..., tuple[Run, Replay]]) -> Callable[[str], list[Tensor]]:
    """Of a run by its variant name, every layer's attention mass, one row per query head."""

    @cache
    def get(variant: str) -> list[Tensor]:
        return [accumulated_mass(*replayed(variant), idx, per_query_head=True) for idx in range(LAYERS)]

    return get
