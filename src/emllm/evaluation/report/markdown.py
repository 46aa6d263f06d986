"""A report as Markdown, to be read as it is or rendered; pictures stay in the page, their numbers are here.

This module does not know figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from emllm.evaluation.report.layout import Block, Cell, Chapter, Section, Table

MARKS = {"better": " ▲", "worse": " ▼", "": ""}


def render_markdown(chapters: Sequence[Chapter]) -> str:
    """The chapters, one heading of second order each."""
    lines = ["# Evaluation report", ""]
    for chapter in chapters:
        lines += [f"## {_escaped(chapter.title)}", ""]
        for section in chapter.sections:
            written = [line for block in section.blocks for line in _block(block)]
            if written and not _is_page_only(section):
                lines += [f"### {_escaped(section.title)}", "", *written]
    return "\n".join(lines).rstrip() + "\n"


def _is_page_only(section: Section) -> bool:
    """Whether its words are about tables that stand in the page alone."""
    tables = [block for block in section.blocks if isinstance(block, Table)]
    return bool(tables) and all(table.is_page_only for table in tables)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, str):
        yield from (_escaped(block), "")
    elif isinstance(block, Table) and not block.is_page_only:
        yield from (f"**{_escaped(block.title)}**", "")
        yield _line([_escaped(name) for name in block.head])
        yield _line(["---", *(["---"] if block.is_text else ["---:"]) * (len(block.head) - 1)])
        yield from (_line([_cell(cell) for cell in line]) for line in block.lines)
        yield ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    detail = f" ({_escaped(cell.detail)})" if cell.detail else ""
    return _escaped(cell.text) + MARKS[cell.verdict] + detail


def _escaped(text: str) -> str:
    """Text on one line in which nothing is markup."""
    return re.sub(r"([\\`*<>|\[\]&])", r"\\\1", " ".join(text.split()))
