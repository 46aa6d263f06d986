"""Write the tables in docs/settings.md anew from the code."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from emllm.cli.settings import default_of, setting_help
from emllm.config import PRESETS, VARIANTS, MemoryConfig

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def main() -> None:
    """Put every table between its marks."""
    text = PAGE.read_text("utf-8")
    for name, table in (("settings", settings()), ("presets", named(PRESETS)), ("variants", named(VARIANTS))):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda mark, table=table: mark[1] + table + mark[2], text, flags=re.DOTALL)
    PAGE.write_text(text, "utf-8")
    print(f"wrote {PAGE}")


def settings() -> str:
    """Every setting with its default and meaning."""
    said = setting_help()
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(MemoryConfig):
        default = default_of(field) if field.default is None else f"`{field.default}`"
        rows.append(f"| `{field.name}` | {default} | {said[field.name]} |")
    return "\n".join(rows) + "\n"


def named(groups: Mapping[str, Mapping[str, object]]) -> str:
    """What each name of a group sets."""
    rows = ["| name | sets |", "|---|---|"]
    for name, values in groups.items():
        changes = ", ".join(f"`{key}={value}`" for key, value in values.items()) or "nothing"
        rows.append(f"| `{name}` | {changes} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
