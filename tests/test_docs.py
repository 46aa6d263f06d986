"""The examples of docs/python.md run as they stand, and generated pages are of the code as it is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from families import FAMILIES
from tests.support.stories import STORY

from emllm import EpisodicLM
from emllm.answers import Evidence, Stats

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


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
    keys |= {f"evidence[].{field.name}" for field in dataclasses.fields(Evidence)}
    keys |= {f"stats.{field.name}" for field in dataclasses.fields(Stats)}
    assert names == keys
