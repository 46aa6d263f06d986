"""The flags, the settings file and the table in the documentation all say what `MemoryConfig` says."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.cli.settings import config_from, setting_help
from emllm.config import PRESETS, VARIANTS, MemoryConfig

FIELDS = [field.name for field in dataclasses.fields(MemoryConfig)]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["ask", "segment", "chat"])
def test_every_setting_is_a_flag(run, command: str) -> None:
    shown = run(command, "-h").out
    for name in FIELDS:
        assert f"--{name.replace('_', '-')} " in shown


def test_every_setting_is_explained() -> None:
    assert [name for name, said in setting_help().items() if said] == FIELDS


def test_a_flag_overrides_the_file_and_the_file_overrides_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("preset = 'em-llm'\ngamma = 3\nrepresentatives = 2\nrecall_tokens = 'all'\n")
    config = config_from({"config_file": path, "gamma": 2.5, "scorer": None})
    assert config == MemoryConfig.preset("em-llm", gamma=2.5, representatives=2, recall_tokens="all")


@given(preset=st.sampled_from(sorted(PRESETS)), variant=st.none() | st.sampled_from(sorted(VARIANTS)))
def test_flags_make_the_same_settings_as_python(preset: str, variant: str | None) -> None:
    assert config_from({"preset": preset, "variant": variant}) == MemoryConfig.preset(preset, variant=variant)


def test_the_documented_tables_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    script = runpy.run_path(str(ROOT / "scripts" / "settings_table.py"))
    for table in (script["settings"](), script["named"](PRESETS), script["named"](VARIANTS)):
        assert table in text, "run python scripts/settings_table.py"
