"""What tells the state of the code: every file of the package, and nothing that Python leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from emllm.evaluation.surroundings import code_digest


@pytest.fixture()
def package(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "one.py").write_text("x = 1\n")
    (tmp_path / "inner" / "task.toml").write_text("answer_tokens = 3\n")
    return tmp_path


def test_the_same_files_have_the_same_digest(package: Path) -> None:
    assert code_digest(package) == code_digest(package)
    assert len(code_digest()) == 16 and code_digest() == code_digest() != code_digest(package)


@pytest.mark.parametrize("name", ["one.py", "inner/task.toml"])
def test_a_change_of_any_file_shows(package: Path, name: str) -> None:
    before = code_digest(package)
    content = (package / name).read_bytes()
    (package / name).write_bytes(content + b"#")
    assert code_digest(package) != before
    (package / name).write_bytes(content)
    assert code_digest(package) == before


def test_a_file_that_is_added_renamed_or_removed_shows(package: Path) -> None:
    digests = [code_digest(package)]
    (package / "two.py").write_text("")
    digests.append(code_digest(package))
    (package / "two.py").rename(package / "three.py")
    digests.append(code_digest(package))
    (package / "one.py").unlink()
    digests.append(code_digest(package))
    assert len(set(digests)) == 4


def test_compiled_and_hidden_files_do_not_count(package: Path) -> None:
    before = code_digest(package)
    for folder in ("__pycache__", ".cache"):
        (package / folder).mkdir()
        (package / folder / "one.pyc").write_bytes(b"1")
    (package / ".swap").write_text("x")
    assert code_digest(package) == before
