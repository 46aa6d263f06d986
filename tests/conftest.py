"""Fixtures that every room's tests share: data that may be absent, tolerances, hypothesis profile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import shapes
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from emllm import EpisodicLM

settings.register_profile(
    "emllm",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("emllm")

# A shell starts what it puts into the background with Ctrl-C ignored, and children inherit it; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("EMLLM_SHARED", Path(__file__).resolve().parents[2] / "shared"))

#: Absolute tolerance on logits and activations, by dtype.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@pytest.fixture(autouse=True)
def shapes_are_checked() -> None:
    """In the first calls of each test, where the run was asked to check shapes (Makefile)."""
    shapes.count_anew()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real texts and tiny checkpoints."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip("the development data folder is not here (set EMLLM_SHARED)")
    return path


@pytest.fixture(scope="module")
def lm(shared_data: Path) -> Iterator[EpisodicLM]:
    """A tiny model that was trained on children's stories; see tests/support/stories.py."""
    from emllm import EpisodicLM  # here, so that shapes are checked in what it imports

    with EpisodicLM.from_pretrained(str(shared_data / "models" / "stories260K"), dtype="float32") as lm:
        yield lm


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of tensors computed by the paper's released code."""
    path = SHARED / "golden"
    if not path.is_dir():
        pytest.skip("the golden data folder is not here (set EMLLM_SHARED)")
    return path


@pytest.fixture()
def generator() -> torch.Generator:
    """A seeded generator, so that no test touches the global one."""
    return torch.Generator().manual_seed(20240712)


@pytest.fixture()
def plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for products in 16 bits."""
    without = SimpleNamespace(
        _is_mkldnn_bf16_supported=lambda: False, _is_mkldnn_fp16_supported=lambda: False
    )
    monkeypatch.setattr(torch.ops, "mkldnn", without)


@pytest.fixture()
def able_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with them."""
    able = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True, _is_mkldnn_fp16_supported=lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", able)
