"""A report of run folders, written as Markdown for reading, CSV for computing and a page for looking.

This module does not know figures or formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emllm.errors import StoreError
from emllm.evaluation.report.comparison import Comparison, comparisons
from emllm.evaluation.report.csv import render_csv
from emllm.evaluation.report.figures import (
    cost_section,
    difference_section,
    published_section,
    score_sections,
)
from emllm.evaluation.report.groups import group_section
from emllm.evaluation.report.layout import Chapter
from emllm.evaluation.report.markdown import render_markdown
from emllm.evaluation.report.origins import example_section, failure_section, method_section, overview_section
from emllm.evaluation.report.page import render_page
from emllm.evaluation.report.pictures import curve_section
from emllm.evaluation.report.records import read_run
from emllm.evaluation.report.tables import Figures, figures_of


def write_report(run_folders: Sequence[Path], into: Path, *, reference: str | None = None) -> list[Path]:
    """Write report.md, report.csv and report.html into a folder, which is made if it is not there.

    Folders of one model are laid together, as shards or as runs of different rows; each other model has
    tables of its own.

    Args:
        run_folders: as the runner left them; a run may still be going on.
        into: where to write.
        reference: the row that others are compared with; `full`, else `default`, unless given.

    Raises:
        ConfigError: there is no folder, or no row of that name.
        StoreError: a folder cannot be read, or two contradict each other.
    """
    found = comparisons([read_run(Path(folder)) for folder in run_folders], reference=reference)
    computed = [(comparison, figures_of(comparison)) for comparison in found]
    chapters = [chapter(comparison, figures) for comparison, figures in computed]
    texts = {
        "report.md": render_markdown(chapters),
        "report.csv": render_csv(computed),
        "report.html": render_page(chapters),
    }
    try:
        into.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (into / name).write_text(text, "utf-8", errors="replace", newline="\n")
    except OSError as error:
        raise StoreError(f"{into}: the report cannot be written: {error.strerror or error}") from error
    return [into / name for name in texts]


def chapter(comparison: Comparison, figures: Figures) -> Chapter:
    """All that is said about one model; sections without content are left out."""
    sections = [
        overview_section(comparison),
        *score_sections(comparison, figures),
        group_section(comparison),
        difference_section(comparison, figures),
        cost_section(comparison),
        curve_section(comparison),
        published_section(comparison, figures),
        failure_section(comparison),
        example_section(comparison),
        method_section(comparison),
    ]
    return Chapter(comparison.title, tuple(section for section in sections if section.blocks))
