"""A segmented text as a picture: surprise and events over the whole text, and a stretch of it token by token.

matplotlib is imported when a picture is drawn, and only its objects are used: no window, no global state.
Colours are Okabe and Ito's, apart in every common kind of colour vision and in grey.
The module does not know files, models or segmenters.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from emllm.analysis.segmented import SegmentedText
from emllm.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SURPRISE, THRESHOLD, EVENTS = "#0072b2", "#d55e00", "#009e73"
BOUNDARY, DETAIL = "#5a5a5a", "#ececec"
#: Tokens of the detail when none are asked for; label slots across the picture.
DETAIL_TOKENS, LABEL_SLOTS = 400, 62
#: Most columns of the overview, fewest tokens in one, and columns that its smooth line averages.
OVERVIEW_COLUMNS, COLUMN_TOKENS, SMOOTH_COLUMNS = 240, 40, 9
#: Characters of a boundary token that its label has room for.
LABEL_CHARS = 12


def render_png(text: SegmentedText, *, start: int = 0, stop: int | None = None, dpi: int = 150) -> bytes:
    """The picture of `figure` as the bytes of a PNG file."""
    buffer = BytesIO()
    figure(text, start=start, stop=stop).savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def figure(text: SegmentedText, *, start: int = 0, stop: int | None = None) -> Figure:
    """Surprise and events per thousand tokens over the whole text, and tokens ``[start, stop)`` in detail.

    The detail shows every token's surprise, the threshold, a line at each boundary and, where there is room,
    the text of the token that began the event.

    Args:
        text: what to draw.
        start: first token of the detail.
        stop: token after the last of the detail; 400 tokens after `start` unless given, never past the end.

    Raises:
        InputError: the detail is empty or outside the text.
        MissingExtraError: matplotlib is not installed.
    """
    stop = min(start + DETAIL_TOKENS if stop is None else stop, text.num_tokens)
    if not 0 <= start < stop:
        raise InputError(
            f"a detail needs 0 <= start < stop <= {text.num_tokens} tokens, got {start} and {stop}"
        )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'emllm[plot]'") from error
    picture = Figure(figsize=(13, 8.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(picture)
    overview, density, detail = picture.subplots(3, 1, height_ratios=(1.1, 0.7, 2.2))
    picture.suptitle(_title(text), fontsize=13, fontweight="bold", parse_math=False, x=0.01, ha="left")
    _draw_overview(overview, density, text)
    for axes in (overview, density):
        axes.axvspan(start, stop, facecolor=DETAIL, edgecolor=BOUNDARY, lw=1, zorder=0)
    _draw_detail(detail, text, start=start, stop=stop)
    for axes in (overview, density, detail):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(lambda token, _: f"{token:,.0f}")
    return picture


def span_means(
    surprise: Float[np.ndarray, " T"], starts: Int[np.ndarray, " N"], *, stops: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """Mean of the known values of each span ``[start, stop)``, in nats; NaN where none is known."""
    is_known = ~np.isnan(surprise)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_known, surprise, 0.0), dtype=np.float64)])
    counts = np.concatenate([[0], np.cumsum(is_known)])
    num_known = counts[stops] - counts[starts]
    return np.where(num_known > 0, sums[stops] - sums[starts], np.nan) / np.maximum(num_known, 1)


def _title(text: SegmentedText) -> str:
    facts = f"{text.num_tokens:,} tokens in {len(text.events):,} events, read with {text.model}"
    return _drawable(f"{text.document}: {facts}", max_chars=110)


def _draw_overview(overview: Axes, density: Axes, text: SegmentedText) -> None:
    num_columns = int(np.clip(text.num_tokens // COLUMN_TOKENS, 1, OVERVIEW_COLUMNS))
    edges = np.linspace(0, text.num_tokens, num_columns + 1).astype(int)
    columns = np.arange(num_columns)
    around = (
        np.maximum(columns - SMOOTH_COLUMNS // 2, 0),
        np.minimum(columns + SMOOTH_COLUMNS // 2 + 1, num_columns),
    )
    overview.stairs(
        span_means(text.surprise, edges[:-1], stops=edges[1:]),
        edges,
        color=SURPRISE,
        lw=0.9,
        alpha=0.45,
        baseline=None,
    )
    smooth = span_means(text.surprise, edges[around[0]], stops=edges[around[1]])
    overview.plot((edges[1:] + edges[:-1]) / 2, smooth, color=SURPRISE, lw=2)
    overview.set_ylabel("mean surprise\n(nats)")
    width = text.num_tokens / num_columns
    overview.set_title(
        f"The whole text, in steps of {width:,.0f} tokens and smoothed; grey marks the detail below",
        loc="left",
        fontsize=10,
    )
    begun = np.histogram(text.boundaries, bins=edges)[0]
    density.stairs(begun / np.diff(edges) * 1000, edges, color=EVENTS, fill=True, alpha=0.75)
    density.set_ylabel("events per\n1,000 tokens")
    for axes in (overview, density):
        axes.set_xlim(0, text.num_tokens)
        axes.margins(y=0.08)
    density.set_ylim(bottom=0)
    density.set_xlabel("position in the text (tokens)")


def _draw_detail(detail: Axes, text: SegmentedText, *, start: int, stop: int) -> None:
    tokens = np.arange(start, stop)
    surprise, threshold = (
        text.surprise[start:stop],
        np.where(np.isinf(text.threshold), np.nan, text.threshold),
    )
    first, last = np.searchsorted(text.boundaries, [start, stop])
    boundaries = np.asarray(text.boundaries[first:last], dtype=int)
    detail.vlines(
        boundaries, 0, 1, transform=detail.get_xaxis_transform(), color=BOUNDARY, lw=0.8, alpha=0.55
    )
    detail.plot(
        tokens,
        surprise,
        color=SURPRISE,
        lw=1.1 if stop - start <= 1000 else 0.5,
        label="surprise",
        drawstyle="steps-mid",
    )
    detail.plot(
        tokens,
        threshold[start:stop],
        color=THRESHOLD,
        lw=1.4,
        ls="--",
        label="threshold",
        drawstyle="steps-mid",
    )
    known = boundaries[~np.isnan(text.surprise[boundaries])]
    detail.plot(
        known, text.surprise[known], "o", color=BOUNDARY, mec="white", ms=5.5, label="first token of an event"
    )
    detail.set_xlim(start - 0.5, stop - 0.5)
    detail.set_ylim(0, 1.14 * max(float(np.nanmax(np.nan_to_num(surprise))), 1.0))
    detail.set_xlabel("position in the text (tokens)")
    detail.set_ylabel("surprise of a token (nats)")
    detail.set_title(f"Detail: tokens {start:,} to {stop - 1:,}", loc="left", fontsize=10, pad=64)
    detail.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, ncols=3)
    _label(detail, text, _with_room(boundaries, text.surprise, spacing=(stop - start) / LABEL_SLOTS))


def _label(detail: Axes, text: SegmentedText, boundaries: list[int]) -> None:
    for boundary in boundaries:
        label = f"“{_drawable(text.pieces[boundary], max_chars=LABEL_CHARS)}”"
        detail.annotate(
            label,
            (boundary, 1),
            xycoords=detail.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8,
            parse_math=False,
            annotation_clip=False,
        )


def _with_room(boundaries: np.ndarray, surprise: Float[np.ndarray, " T"], *, spacing: float) -> list[int]:
    """The boundaries to label, at least `spacing` tokens apart, the most surprising first."""
    chosen: list[int] = []
    for boundary in sorted(boundaries.tolist(), key=lambda token: -np.nan_to_num(surprise[token])):
        if all(abs(boundary - other) >= spacing for other in chosen):
            chosen.append(boundary)
    return sorted(chosen)


def _drawable(name: str, *, max_chars: int) -> str:
    """One line of characters that the font has; a missing one becomes a middle dot instead of a warning."""
    font: Any = _font()
    line = "".join(
        char if char.isprintable() and font.get_char_index(ord(char)) else "·"
        for char in " ".join(name.split())
    )
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def _font() -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties()))
