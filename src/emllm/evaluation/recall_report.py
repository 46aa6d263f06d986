"""A study of recall as tables, Markdown, JSON and one picture.

Shares are in per cent. matplotlib is imported when the picture is drawn, and its settings are changed only
while it is. This module does not know how anything was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from emllm.errors import ConfigError, MissingExtraError
from emllm.evaluation.recall_needles import NEAR_TOP, NeedleRanks
from emllm.evaluation.recall_quality import METHODS
from emllm.evaluation.recall_study import StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What each method is, in words.
SAID: Mapping[str, str] = {
    "configured": "the memory's own ranking, with its contiguity and shortlist",
    "dot": "mean query against mean event key, without contiguity",
    "votes": "a vote of each query and head over the event keys, without contiguity",
    "attention": "attention per token as the event keys let it be estimated, without contiguity",
    "exact": "a vote of each query and head over all tokens, without contiguity",
    "best": "the most that events of the budget could hold, the last one in part",
    "recent": "the latest events",
    "random": "events by chance",
}
#: Okabe and Ito's colours, and a style that tells lines apart without them.
_LINES: Mapping[str, tuple[str, str, str]] = {
    "configured": ("#0072b2", "-", "o"),
    "dot": ("#d55e00", "-", "s"),
    "votes": ("#009e73", "-", "^"),
    "attention": ("#56b4e9", "-", "p"),
    "exact": ("#cc79a7", "-", "D"),
    "best": ("#1f1b16", "--", "v"),
    "recent": ("#a67c00", ":", "P"),
    "random": ("#655d52", ":", "X"),
}


@dataclass(frozen=True)
class RecallTable:
    """A table of texts; all columns but the first `num_left` are numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_left: int = 1


def tables(result: StudyResult) -> list[RecallTable]:
    """The mean over layers, the memory's own ranking by layer, and the needles if there are any."""
    found = [_by_method(result), _by_layer(result)]
    return [*found, _by_needle(result)] if result.needles else found


def _by_method(result: StudyResult) -> RecallTable:
    rows = []
    for method in METHODS:
        cells = map(_cell, result.mean("share", method), result.mean("of_best", method))
        rows.append((method, *cells))
    return RecallTable(
        "Exact attention held, mean over layers, % (in brackets: % of the best)",
        ("budget in tokens", *(f"{budget:,}" for budget in result.budgets)),
        tuple(rows),
    )


def _by_layer(result: StudyResult) -> RecallTable:
    rows = []
    for layer_idx, layer in result.layers.items():
        cells = map(_cell, layer.share["configured"], layer.of_best["configured"])
        recalled = _cell(layer.recalled_share, layer.recalled_of_best)
        facts = (f"{layer.num_recalls:,}", f"{layer.num_events:,.0f}")
        rows.append((str(layer_idx), *facts, *cells, f"{recalled} of {layer.recalled_tokens:,.0f}"))
    budgets = (f"{budget:,}" for budget in result.budgets)
    return RecallTable(
        "The memory's own ranking by layer, and what it really recalled of how many tokens",
        ("layer", "recalls", "events", *budgets, "recalled"),
        tuple(rows),
    )


def _by_needle(result: StudyResult) -> RecallTable:
    num_layers = len(result.layers)
    rows = tuple(
        (
            needle.document,
            f"{needle.position:,}",
            f"{needle.num_events:,}",
            _rank(needle.best),
            _rank(needle.median),
            "-" if needle.consensus is None else f"{needle.num_near_top} of {num_layers}",
            _rank(needle.consensus),
        )
        for needle in result.needles
    )
    return RecallTable(
        "Rank of each needle's event when it is asked for, 0 is the first (-: it could not be recalled)",
        ("text", "token", "events", "best", "median", f"layers < {NEAR_TOP}", "all layers"),
        rows,
    )


def _cell(share: float, of_best: float) -> str:
    return f"{100 * share:.1f} ({100 * of_best:.0f})"


def _rank(rank: float | None) -> str:
    return "-" if rank is None else f"{rank:g}"


def needles_said(needles: Sequence[NeedleRanks]) -> str:
    """How many needles all layers together rank near the top; empty without needles."""
    ranks = [needle.consensus for needle in needles if needle.consensus is not None]
    if not ranks:
        return "no needle could be recalled" if needles else ""
    near = sum(rank < NEAR_TOP for rank in ranks)
    return f"all layers together rank {near} of {len(ranks)} needles among the first {NEAR_TOP} events"


def said(result: StudyResult) -> str:
    """What was looked at, in a sentence."""
    num_tokens = sum(text.num_tokens for text in result.texts)
    num_recalls = sum(layer.num_recalls for layer in result.layers.values())
    every = "every recall" if result.every == 1 else f"one of {result.every} recalls"
    texts = "1 text" if len(result.texts) == 1 else f"{len(result.texts)} texts"
    return (
        f"{result.model}, {num_tokens:,} tokens in {texts}: "
        f"{num_recalls:,} recalls in {len(result.layers)} layers, {every} of each"
    )


def render_markdown(result: StudyResult) -> str:
    """The tables as Markdown, with what they mean."""
    parts = [
        "# How much of exact attention is recalled",
        f"{said(result)}.",
        "An event's mass is its share of the exact attention over all tokens that may be recalled, each at "
        "one distance, as the mean over evenly spaced queries of a chunk and all heads. A ranking picks "
        "events within a budget of tokens; the share is the mass of what it picked.",
        "\n".join(f"- `{method}`: {SAID[method]}" for method in METHODS),
    ]
    for table in tables(result):
        parts += [f"## {table.title}", _markdown_table(table)]
    if result.needles:
        parts.append(f"{needles_said(result.needles).capitalize()}.")
    texts = [f"- {_inert(text.name)}: {text.num_tokens:,} tokens" for text in result.texts]
    settings = ", ".join(f"{name}={value}" for name, value in result.settings.items())
    parts += ["## Texts", "\n".join(texts), "## Settings", f"`{settings}`, seed {result.seed}"]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: RecallTable) -> str:
    marks = ["---" if column < table.num_left else "---:" for column in range(len(table.head))]
    lines = [table.head, tuple(marks), *table.rows]
    return "\n".join(f"| {' | '.join(map(_inert, line))} |" for line in lines)


def _inert(text: str) -> str:
    """A user's words on one line, that mean nothing to Markdown."""
    words = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\`*_[]|<" else char for char in words)


def render_svg(result: StudyResult) -> bytes:
    """Share against budget, a line a method: the mean over layers; the band is the memory's own, by layer.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'emllm[plot]'") from error
    with matplotlib.rc_context({"svg.hashsalt": "emllm", "svg.fonttype": "path"}):
        figure, buffer = Figure(figsize=(8.0, 4.6), layout="constrained", facecolor="white"), BytesIO()
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        _draw(axes, result)
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw(axes: Axes, result: StudyResult) -> None:
    own = [layer.share["configured"] for layer in result.layers.values()]
    low, high = ([100 * pick(column) for column in zip(*own, strict=True)] for pick in (min, max))
    axes.fill_between(
        result.budgets, low, high, color=_LINES["configured"][0], alpha=0.12, lw=0, label="configured, layers"
    )
    for method in METHODS:
        colour, style, marker = _LINES[method]
        shares = [100 * share for share in result.mean("share", method)]
        axes.plot(
            result.budgets,
            shares,
            style,
            color=colour,
            marker=marker,
            ms=5,
            mec="white",
            lw=1.6,
            label=method,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(result.budgets, [f"{budget:,}" for budget in result.budgets])
    axes.minorticks_off()
    axes.set_ylim(0, 103)
    axes.set_xlabel("budget of recalled tokens per layer")
    axes.set_ylabel("exact attention held (%)")
    axes.set_title(said(result), loc="left", fontsize=9, parse_math=False)
    axes.grid(axis="y", color="#dddddd", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def make_folder(into: Path) -> None:
    """The folder that files will go to, before anything slow begins.

    Raises:
        ConfigError: it cannot be made.
        MissingExtraError: matplotlib, which the picture needs, is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("pictures need matplotlib: pip install 'emllm[plot]'")
    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{into}: cannot be made, {error.strerror}") from error


def write(result: StudyResult, into: Path) -> list[Path]:
    """Write recall.json, recall.md and recall.svg into a folder.

    Raises:
        ConfigError: it cannot be written.
    """
    found = json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False, indent=1)
    files = {
        "recall.json": f"{found}\n".encode(),
        "recall.md": render_markdown(result).encode("utf-8", "replace"),
        "recall.svg": render_svg(result),
    }
    try:
        for name, data in files.items():
            (into / name).write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{into}: cannot be written, {error.strerror}") from error
    return [into / name for name in files]
