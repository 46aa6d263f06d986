"""The examples of docs/python.md run as they stand, and generated pages are of the code as it is."""

from __future__ import annotations

import ast
import pkgutil
import re
from dataclasses import fields
from pathlib import Path

import pytest
from families import FAMILIES
from tests.support.stories import STORY

from emllm import EpisodicLM
from emllm.answers import Evidence, Stats
from emllm.config import MemoryConfig
from emllm.evaluation.task import suite_names, tasks_of

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "python.md"


def test_the_examples_of_the_page_run_one_after_the_other(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5
    tiny = EpisodicLM.from_pretrained(str(shared_data / "models" / "stories260K"), dtype="float32")
    monkeypatch.setattr(EpisodicLM, "from_pretrained", lambda name: tiny)
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(STORY, "utf-8")
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert (
        "['book.txt', 'note', 'minutes.txt', 'long']" in said and "never []" in said and "['after']" in said
    )


def test_the_page_of_supported_models_lists_the_default_and_every_family_that_is_tested() -> None:
    page = (PAGE.parent / "models.md").read_text("utf-8")
    assert set(re.findall(r"^\| ([\w-]+) \| \w+ForCausalLM \|", page, re.MULTILINE)) == {"default", *FAMILIES}


def test_the_page_names_every_key_of_an_answer_as_json() -> None:
    names = set(
        re.findall(r"`([\w.\[\]]+)`", "".join(re.findall(r"^\| `.*?\|", PAGE.read_text("utf-8"), re.M)))
    )
    keys = {"answer", "evidence", "stats"}
    keys |= {f"evidence[].{field.name}" for field in fields(Evidence)}
    keys |= {f"stats.{field.name}" for field in fields(Stats)}
    assert names == keys


def test_the_page_of_evaluation_names_the_suites_that_borrow_a_prompt() -> None:
    page = (PAGE.parent / "evaluation.md").read_text("utf-8")
    (borrowing,) = re.findall(
        r"Four tasks or suites are not their benchmark's own:(.*?)\n\n", page, re.DOTALL
    )
    prompts = {task.prompt for task in tasks_of("longbench")}
    own = ("longbench", "longbench-e")
    others = [task for suite in suite_names() if suite not in own for task in tasks_of(suite)]
    assert {task.suite for task in others if task.prompt in prompts} == {"qmsum", "narrativeqa", "literaryqa"}
    for name in ("qmsum", "narrativeqa", "literaryqa", "niah/classic"):
        assert f"`{name}`" in borrowing


def rows_of_paper(num_columns: int) -> list[list[str]]:
    """The rows of docs/paper.md's table of so many columns, without its head."""
    lines = re.findall(r"^\| (.*) \|$", (PAGE.parent / "paper.md").read_text("utf-8"), re.MULTILINE)
    rows = [line.split(" | ") for line in lines]
    return [row for row in rows if len(row) == num_columns][1:]


def test_every_row_from_the_paper_leads_to_functions_and_test_files_that_are_there() -> None:
    settings = {field.name for field in fields(MemoryConfig)}
    rows = rows_of_paper(4)
    assert len(rows) > 20
    for _, functions, tests, _ in rows:
        room = ""
        for name in re.findall(r"`([^`]+)`", functions):
            setting = re.fullmatch(r'(\w+)="(\w+)"', name)
            if setting:
                MemoryConfig(**{setting[1]: setting[2]})
            elif "." in name:
                pkgutil.resolve_name(f"emllm.{name}")
                room = name.rpartition(".")[0]
            elif name not in settings:
                pkgutil.resolve_name(f"emllm.{room}.{name}")
        names = re.findall(r"`([^`]+)`", tests)
        assert names or tests == "same"
        for name in names:
            assert (TESTS / name).is_file(), name


def test_every_row_of_the_released_code_leads_to_tests_that_are_there() -> None:
    files = [*TESTS.glob("conformance/test_quirks_*.py"), TESTS / "segmentation/test_quirks_segmentation.py"]
    there = [
        node.name
        for file in files
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    rows = rows_of_paper(3)
    assert len(rows) > 20
    for row in rows:
        names = re.findall(r"`(test_\w+?)(?:\.\.\.)?`", row[2])
        assert names or (TESTS / row[2].strip("`")).is_file(), row
        for name in names:
            assert sum(test.startswith(name) for test in there) == 1, name
