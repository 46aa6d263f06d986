"""A memory that becomes what was made of a copy: nobody's folders are touched, and nobody waits in vain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from emllm.store.catalogue import Change
from emllm.store.folder import MemoryFolder
from emllm.store.maintenance import verify
from emllm.store.place import is_memory
from emllm.store.renewing import renewed

TOKENS = 4


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a [b].mem"
    with MemoryFolder.create(path, {}) as folder:
        add(folder)
    return path


def add(folder: MemoryFolder) -> None:
    """One more segment."""
    start = folder.contents.num_tokens
    content = {
        "pages.0": torch.zeros(1, 6, dtype=torch.uint8),
        "token_ids": torch.arange(TOKENS, dtype=torch.int32),
    }
    new = folder.add("segment", start, start + TOKENS, content)
    folder.commit(Change(start + TOKENS, [new], [], 0, np.zeros((0, 2), dtype=np.int64), None, {}))


def num_tokens(path: Path) -> int:
    with MemoryFolder.open(path) as folder:
        return folder.contents.num_tokens


def test_the_memory_becomes_what_was_made_and_nothing_is_left_beside_it(path):
    with renewed(path) as building, MemoryFolder.open(building, writable=True) as folder:
        add(folder)
    assert num_tokens(path) == 2 * TOKENS and verify(path) == []
    assert os.listdir(path.parent) == [path.name]


def test_a_block_that_raises_leaves_the_memory_and_nothing_beside_it(path):
    with pytest.raises(KeyError), renewed(path):
        raise KeyError
    assert num_tokens(path) == TOKENS and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_the_user_keeps_beside_it_is_not_touched(path, is_folder):
    names = (f"{path.name}.reread", f".{path.name}.emllm-0123abcd", f".{path.name}.emllm-mine")
    for name in names:
        mine = path.with_name(name) / "thesis" if is_folder else path.with_name(name)
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
    with renewed(path):
        pass
    assert sorted(os.listdir(path.parent)) == sorted([path.name, *names])
    assert len(list(path.parent.rglob("thesis"))) == 3 * is_folder


def test_two_at_once_do_not_meet(path):
    with renewed(path) as one, renewed(path) as other:
        assert one != other and is_memory(one) and is_memory(other)
    assert verify(path) == []


def test_what_a_killed_process_left_is_removed_by_the_next(path):
    program = (
        "import os, signal, sys; from pathlib import Path; from emllm.store.renewing import renewed\n"
        "with renewed(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL and len(os.listdir(path.parent)) == 2
    with renewed(path):
        assert len(os.listdir(path.parent)) == 2
    assert os.listdir(path.parent) == [path.name]


def test_a_reader_at_the_end_is_waited_for(path):
    reader = MemoryFolder.open(path)
    closing = threading.Timer(0.3, reader.close)
    with renewed(path) as building:
        with MemoryFolder.open(building, writable=True) as folder:
            add(folder)
        closing.start()
    closing.join()
    assert num_tokens(path) == 2 * TOKENS
