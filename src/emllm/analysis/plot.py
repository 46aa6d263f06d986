"""A segmented text as a picture: surprise over the whole text, the most surprising events, and a stretch.

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
#: Characters of an event's first words that its label has room for, and a line below the picture of events.
LABEL_CHARS, QUOTED_CHARS = 14, 150
#: Points above the detail that the labels need.
LABEL_POINTS = 92
#: Most surprising events that are quoted.
NUM_QUOTED = 5
#: Least share of the whole text that marks the detail in it.
LEAST_MARKED = 1 / 300


def render_png(text: SegmentedText, *, start: int = 0, stop: int | None = None, dpi: int = 150) -> bytes:
    """The picture of `figure` as the bytes of a PNG file."""
    buffer = BytesIO()
    figure(text, start=start, stop=stop).savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def figure(text: SegmentedText, *, start: int = 0, stop: int | None = None) -> Figure:
    """Surprise over the whole text, its most surprising events, and tokens ``[start, stop)`` in detail.

    The detail shows every token's surprise, the threshold, a line at each boundary and, where there is room,
    the first words of the event.

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
    picture = Figure(figsize=(13, 10), layout="constrained", facecolor="white")
    FigureCanvasAgg(picture)
    overview, events, detail = picture.subplots(3, 1, height_ratios=(1, 1.3, 2))
    picture.suptitle(_title(text), fontsize=13, fontweight="bold", parse_math=False, x=0.01, ha="left")
    _draw_overview(overview, text)
    _draw_events(events, text)
    marked = max(stop, min(start + round(text.num_tokens * LEAST_MARKED), text.num_tokens))
    for axes in (overview, events):
        axes.set_xlim(0, text.num_tokens)
        axes.axvspan(start, marked, facecolor=DETAIL, edgecolor=BOUNDARY, lw=1, zorder=0)
    _draw_detail(detail, text, start=start, stop=stop)
    for axes in (overview, events, detail):
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


def _draw_overview(overview: Axes, text: SegmentedText) -> None:
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
    overview.set_title(
        f"The whole text, in steps of {text.num_tokens / num_columns:,.0f} tokens and smoothed; "
        "grey marks the detail below",
        loc="left",
        fontsize=10,
    )
    overview.margins(y=0.08)


def _draw_events(axes: Axes, text: SegmentedText) -> None:
    """Every event at its place and mean surprise; the most surprising ones numbered, and quoted below."""
    middles = [(event.start + event.stop) / 2 for event in text.events]
    means = [event.mean_surprise for event in text.events]
    size = 2.2 if len(means) > 1000 else 5
    axes.plot(middles, means, "s", color=EVENTS, ms=size, alpha=0.6, mew=0, antialiased=False)
    quoted = text.most_surprising(NUM_QUOTED)
    lines = []
    for rank, event in enumerate(quoted, start=1):
        place = ((event.start + event.stop) / 2, event.mean_surprise)
        axes.plot(*place, "o", color=EVENTS, mec="white", ms=6)
        axes.annotate(str(rank), place, xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
        words = _drawable(text.opening(event.event_idx, max_chars=QUOTED_CHARS), max_chars=QUOTED_CHARS)
        lines.append(f"{rank}  {event.mean_surprise:.1f} nats at token {event.start:,}: “{words}”")
    length = text.num_tokens / len(means)
    axes.set_title(f"Every event, {length:,.1f} tokens long on average", loc="left", fontsize=10)
    axes.set_ylabel("mean surprise\nof an event (nats)")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.set_xlabel("position in the text (tokens)")
    axes.annotate(
        "\n".join(lines),
        (0, 0),
        xycoords="axes fraction",
        xytext=(0, -38),
        textcoords="offset points",
        va="top",
        fontsize=9,
        linespacing=1.35,
        parse_math=False,
    )


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
    detail.set_title(f"Detail: tokens {start:,} to {stop - 1:,}", loc="left", fontsize=10, pad=LABEL_POINTS)
    _draw_legend(detail)
    _label(detail, text, _with_room(boundaries, text.surprise, spacing=(stop - start) / LABEL_SLOTS))


def _draw_legend(detail: Axes) -> None:
    """Above the labels, on the line of the title, where it hides nothing."""
    from matplotlib.transforms import ScaledTranslation

    detail.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        bbox_transform=detail.transAxes
        + ScaledTranslation(0, LABEL_POINTS / 72, detail.figure.dpi_scale_trans),
        frameon=False,
        fontsize=9,
        ncols=3,
        borderaxespad=0,
        borderpad=0,
    )


def _label(detail: Axes, text: SegmentedText, boundaries: list[int]) -> None:
    for boundary in boundaries:
        event_idx = int(np.searchsorted(text.boundaries, boundary))
        words = text.opening(event_idx, max_chars=LABEL_CHARS)
        label = f"“{_drawable(words, max_chars=LABEL_CHARS)}”"
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
