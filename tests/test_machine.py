"""What the process gives back to the system, and when it may be interrupted."""

from __future__ import annotations

import ctypes
import signal
import threading
from pathlib import Path

import pytest

from emllm import machine


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(
    not Path("/proc/self/status").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc"
)
def test_small_blocks_that_were_freed_are_given_back():
    blocks = [bytes(2000) for _ in range(50_000)]
    kept = blocks[::100]  # what lies between them cannot be trimmed from an end
    held = resident_bytes()
    del blocks
    machine.give_back_freed_memory()
    assert held - resident_bytes() > 40_000_000 and len(kept) == 500


def test_where_there_is_no_glibc_nothing_happens(monkeypatch):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    machine.give_back_freed_memory()
    machine.keep_freed_memory()


def test_an_interruption_waits_until_the_end_and_comes_once():
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), machine.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        with machine.uninterrupted():
            signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"] and signal.getsignal(signal.SIGINT) is before
    with machine.uninterrupted():
        done.append("and again")
    assert done[-1] == "and again"


def test_what_goes_wrong_goes_wrong_although_nothing_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="wrong"), machine.uninterrupted():
        raise ValueError("wrong")
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_is_never_interrupted():
    ran = []

    def run():
        with machine.uninterrupted():
            ran.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ran == [True]
