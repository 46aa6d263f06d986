"""Peaks of memory: of what runs now, not of what ran before; where they are the process's, it is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from emllm.answers import peak_rss_bytes
from emllm.evaluation import peaks
from emllm.evaluation.peaks import PeakMeter, Peaks

BIG = 256 * 2**20


def filled(num_bytes: int) -> int:
    """Takes so much memory and gives it back."""
    return int(np.ones(num_bytes, dtype=np.uint8)[-1])


def test_a_peak_is_of_what_ran_since_the_start() -> None:
    meter = PeakMeter()
    meter.start()
    if meter.peaks().since != "sample":
        pytest.skip("this system does not start the peak of a process anew")
    before = meter.peaks().rss_bytes
    filled(BIG)
    assert meter.peaks().rss_bytes > before + 0.9 * BIG
    meter.start()
    assert meter.peaks().rss_bytes < before + 0.5 * BIG


@pytest.mark.parametrize("lacking", ["clear_refs", "status", "VmHWM"])
def test_where_it_cannot_be_started_anew_it_is_the_processs_and_said_to_be(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "_PROCESS", tmp_path)
    (tmp_path / "status").write_text("Name: x\nVmHWM:\t     100 kB\nVmRSS: 1 kB\n")
    (tmp_path / "clear_refs").touch()
    meter = PeakMeter()
    meter.start()
    assert meter.peaks() == Peaks(102_400, "sample", None)
    assert (tmp_path / "clear_refs").read_text() == "5"
    if lacking == "VmHWM":
        (tmp_path / "status").write_text("Name: x\n")
    else:
        (tmp_path / lacking).unlink()
    if lacking == "clear_refs":
        (tmp_path / "clear_refs").mkdir()
    meter.start()
    found = meter.peaks()
    assert found.since == "process" and found.rss_bytes == pytest.approx(peak_rss_bytes(), rel=0.1)


def test_devices_are_measured_each_once_and_only_cudas(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10 * (device.index + 1))
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    meter = PeakMeter([torch.device("cpu"), first, second, first])
    meter.start()
    assert reset == [first, second]
    assert meter.peaks().device_bytes == 30
    assert PeakMeter([torch.device("cpu")]).peaks().device_bytes is None
