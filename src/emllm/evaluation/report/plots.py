"""Curves and grids of a report as SVG pictures, each for a light and for a dark page.

matplotlib is imported when a picture is drawn, and its settings are changed only while it is. Colours are
Okabe and Ito's, apart in every common kind of colour vision; rows differ by marker too.
This module does not know files or where a picture stands on a page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from emllm.errors import MissingExtraError
from emllm.evaluation.report.curves import Curve, Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", "--", ":")
#: Cells of a heat map with at most this many columns carry their number.
MAX_NUMBERED = 10


@dataclass(frozen=True)
class Theme:
    """Colours of a picture: writing, grid lines, and one for each row."""

    ink: str
    line: str
    rows: tuple[str, ...]


LIGHT = Theme(
    "#1f1b16",
    "#ddd6c8",
    ("#1f1b16", "#0072b2", "#d55e00", "#009e73", "#b8568c", "#a67c00", "#3b9bd1", "#655d52"),
)
DARK = Theme(
    "#ebe6dc",
    "#353941",
    ("#ebe6dc", "#56b4e9", "#ff8c42", "#2fc79a", "#e39bc4", "#f0e442", "#8ab8ff", "#a8a196"),
)


@dataclass(frozen=True)
class Picture:
    """A picture twice, as SVG, and what it shows in words."""

    light: bytes
    dark: bytes
    words: str


def draw_curve(curve: Curve, all_rows: Sequence[str]) -> Picture:
    """Lines of a curve, one for each row; a hollow marker where a row answered fewer questions than another.

    Args:
        all_rows: of the report, so that a row looks the same in every picture.
    """
    return _picture(lambda theme: _curve_figure(curve, all_rows, theme), curve_title(curve))


def draw_grid(grid: Grid) -> Picture:
    """A heat map for each row, depth by length, on one scale from 0 to 100."""
    return _picture(lambda theme: _grid_figure(grid, theme), grid_title(grid))


def curve_title(curve: Curve) -> str:
    """What a curve shows, in words."""
    return f"{curve.suite}: {'perplexity' if curve.is_perplexity else 'score'} by {curve.axis}"


def grid_title(grid: Grid) -> str:
    """What a grid shows, in words."""
    return f"{grid.suite}: score by length and depth"


def _picture(draw: Callable[[Theme], Figure], words: str) -> Picture:
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'emllm[plot]'") from error
    drawn = []
    for theme in (LIGHT, DARK):
        with matplotlib.rc_context({"svg.hashsalt": "emllm", "svg.fonttype": "path"}):
            figure, buffer = draw(theme), BytesIO()
            FigureCanvasSVG(figure)
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        drawn.append(buffer.getvalue())
    light, dark = drawn
    return Picture(light, dark, words)


def _curve_figure(curve: Curve, all_rows: Sequence[str], theme: Theme) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.8), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(curve.labels))
    for row, points in curve.rows.items():
        row_idx = all_rows.index(row)
        colour = theme.rows[row_idx % len(theme.rows)]
        style = STYLES[row_idx // len(theme.rows) % len(STYLES)]
        marker: Any = MARKERS[row_idx % len(MARKERS)]
        means = [np.nan if point is None else point.mean for point in points]
        axes.plot(places, means, style, color=colour, linewidth=1.6, label=row, marker=marker, markersize=6)
        thin = [i for i, point in enumerate(points) if point is not None and point.is_thin]
        hollow = {"marker": marker, "markersize": 6, "markerfacecolor": _paper(theme)}
        axes.plot(places[thin], np.array(means)[thin], linestyle="", color=colour, zorder=3, **hollow)
    axes.set_xticks(places, curve.labels)
    axes.set_xlabel("length in tokens" if curve.axis == "length" else "depth in the text")
    axes.set_ylabel("perplexity" if curve.is_perplexity else "score")
    if not curve.is_perplexity:
        axes.set_ylim(-3, 103)
    axes.grid(axis="y", color=theme.line, linewidth=0.8)
    legend = figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_color(theme.ink)
        text.set_parse_math(False)
    _dress(axes, theme)
    return figure


def _paper(theme: Theme) -> str:
    return "#fdfcf8" if theme is LIGHT else "#15171b"


def _grid_figure(grid: Grid, theme: Theme) -> Figure:
    from matplotlib.figure import Figure

    num_columns = min(len(grid.rows), 2)
    num_lines = -(-len(grid.rows) // num_columns)
    height = 0.8 + num_lines * (0.9 + 0.27 * len(grid.depths))
    figure = Figure(figsize=(7.0, height), layout="constrained")
    all_axes = figure.subplots(num_lines, num_columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (row, cells) in zip(all_axes, grid.rows.items(), strict=False):
        means = np.array([[np.nan if cell is None else cell for cell in line] for line in cells])
        image = axes.imshow(means, vmin=0, vmax=100, cmap="cividis", aspect="auto", interpolation="nearest")
        axes.set_title(row, color=theme.ink, fontsize=10, loc="left", parse_math=False)
        axes.set_xticks(range(len(grid.lengths)), grid.lengths, fontsize=8)
        axes.set_yticks(range(len(grid.depths)), grid.depths, fontsize=8)
        axes.tick_params(labelbottom=True, labelleft=True)
        _write_numbers(axes, means)
        _dress(axes, theme)
    for axes in all_axes[len(grid.rows) :]:
        axes.set_visible(False)
    figure.supxlabel("length in tokens", color=theme.ink, fontsize=9)
    figure.supylabel("depth in the text", color=theme.ink, fontsize=9)
    bar = figure.colorbar(image, ax=list(all_axes), shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)
    _dress(bar.ax, theme)
    return figure


def _write_numbers(axes: Axes, means: np.ndarray) -> None:
    if means.shape[1] > MAX_NUMBERED:
        return
    for (y, x), mean in np.ndenumerate(means):
        if not np.isnan(mean):
            colour = "#ffffff" if mean < 55 else "#10141a"
            axes.text(x, y, f"{mean:.0f}", ha="center", va="center", fontsize=7, color=colour)


def _dress(axes: Axes, theme: Theme) -> None:
    axes.tick_params(colors=theme.ink, which="both", length=0)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)
