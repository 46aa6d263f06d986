"""A report as one self-contained web page: light and dark, narrow and wide, without script or network.

Every text is escaped, and a content security policy in the page allows its own style by its hash and pictures
that it carries itself, nothing else: an answer could not act even if it were not escaped. The module does not
know how the page looks (report.html does), nor figures.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence

from emllm.analysis.frame import escape, filled, template_of
from emllm.evaluation.report.layout import Block, Cell, Chapter, Section, Table
from emllm.evaluation.report.plots import Picture

MARKS = {"better": "▲", "worse": "▼"}


def render_page(chapters: Sequence[Chapter]) -> str:
    """The chapters as an HTML document, with a list of contents."""
    values = {
        "TITLE": escape(", ".join(chapter.title for chapter in chapters)),
        "CONTENTS": "".join(_contents(idx, chapter) for idx, chapter in enumerate(chapters)),
        "CHAPTERS": "\n".join(_chapter(idx, chapter) for idx, chapter in enumerate(chapters)),
    }
    return filled(template_of("emllm.evaluation.report", "report.html"), values)


def _contents(idx: int, chapter: Chapter) -> str:
    items = (
        f'<li><a href="#c{idx}s{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(chapter.sections)
    )
    return f'<p><a href="#c{idx}">{escape(chapter.title)}</a></p><ul>{"".join(items)}</ul>'


def _chapter(idx: int, chapter: Chapter) -> str:
    sections = "\n".join(
        _section(f"c{idx}s{number}", section) for number, section in enumerate(chapter.sections)
    )
    title = f'<h2 id="c{idx}">{escape(chapter.title)}</h2>'
    return f'<article aria-labelledby="c{idx}">{title}\n{sections}</article>'


def _section(name: str, section: Section) -> str:
    blocks = "\n".join(
        _block(f"{name}b{number}", block, section.title) for number, block in enumerate(section.blocks)
    )
    return (
        f'<section aria-labelledby="{name}"><h3 id="{name}">{escape(section.title)}</h3>\n{blocks}</section>'
    )


def _block(name: str, block: Block, heading: str) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if isinstance(block, Picture):
        return _picture(block)
    return _table(name, block, has_title=block.is_folded or block.title != heading)


def _picture(picture: Picture) -> str:
    images = "".join(
        f'<img class="{theme}" alt="{escape(picture.words)}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
        for theme, svg in (("light", picture.light), ("dark", picture.dark))
    )
    words = escape(picture.words)
    return f'<figure><figcaption>{words}</figcaption><div class="scroll">{images}</div></figure>'


def _table(name: str, table: Table, *, has_title: bool) -> str:
    head = "".join(_heading(text) for text in table.head)
    lines = "".join(f"<tr>{''.join(_cells(line))}</tr>\n" for line in table.lines)
    kind = ' class="words"' if table.is_text else ""
    title = escape(table.title)
    label = f'aria-labelledby="{name}"' if has_title else f'aria-label="{title}"'
    body = (
        f'<div class="scroll" role="region" {label} tabindex="0"><table{kind} {label}>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table></div>"
    )
    if table.is_folded:
        return f'<details><summary id="{name}">{title}</summary>{body}</details>'
    return f'<p class="name" id="{name}">{title}</p>\n{body}' if has_title else body


def _heading(text: str) -> str:
    """A column's name; what stands in brackets at its end goes below it."""
    found = re.fullmatch(r"(.*\S) \(([^()]*)\)", text)
    name, detail = found.groups() if found else (text, "")
    words = " ".join(f"<span>{escape(word)}</span>" for word in name.split())
    return f'<th scope="col">{words}{f"<small>{escape(detail)}</small>" if detail else ""}</th>'


def _cells(line: Sequence[Cell]) -> Iterator[str]:
    for column, cell in enumerate(line):
        tag, scope = ("td", "") if column else ("th", ' scope="row"')
        verdict = (
            f'<span class="mark" role="img" aria-label="{cell.verdict}">{MARKS[cell.verdict]}</span>'
            if cell.verdict
            else ""
        )
        kind = f' class="{cell.verdict}"' if cell.verdict else ""
        details = cell.detail.split("; ") if cell.detail else []
        detail = "".join(f"<small>{escape(it)}</small>" for it in details)
        yield f"<{tag}{scope}{kind}>{verdict}{escape(cell.text)}{detail}</{tag}>"
