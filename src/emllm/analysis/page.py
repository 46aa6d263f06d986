"""A segmented text as one self-contained web page that asks nothing of any server.

The text itself is static HTML, so it is there before, and without, the script; the numbers follow as one JSON
block in which nothing comes from the text. Every character of the document stays in place, since the script
finds a token by its offset. The module does not know how the page looks or behaves (page.html does), nor
files, models or segmenters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from emllm.analysis.frame import ESCAPES, escape, filled, template_of, visible_text
from emllm.analysis.segmented import SegmentedText, mean_and_max
from emllm.analysis.text import nats

#: Tints of the page, from least to most surprise; page.html has a colour for each.
NUM_LEVELS = 7
#: Events in the list of the most surprising ones, and characters of each.
NUM_PEAKS, PEAK_CHARS = 6, 90
#: Characters after which a paragraph without blank lines is cut at its next line or event, and of a section.
PARAGRAPH_CHARS, SECTION_CHARS = 4000, 8000
#: A line this much shorter than the document's width was ended on purpose; documents wider than this are not
#: wrapped by hand at all.
FULL_LINE, MAX_WRAPPED_CHARS = 0.7, 100


def render_page(text: SegmentedText) -> str:
    """The text as an HTML document: its events tinted by mean surprise, with overview, search and legend.

    Paragraphs that were wrapped by hand flow again, other line breaks stay; the reader can ask for all.
    Events are numbered from 0 as everywhere; surprise is shown in nats, to a hundredth.
    """
    event_means = np.array([event.mean_surprise for event in text.events])
    event_edges = scale(event_means, low=10.0, high=90.0)
    values = {
        "DOCUMENT": escape(text.document),
        "FACTS": escape(_facts(text)),
        "MODEL": escape(text.model),
        "SETTINGS": _settings(text),
        "LEGEND": _legend(event_edges),
        "PEAKS": _peaks(text),
        "TEXT": _body(text, levels(event_means, edges=event_edges)),
        "DATA": _data(text, event_edges),
    }
    return filled(template_of("emllm.analysis", "page.html"), values)


def scale(surprise: Float[np.ndarray, " T"], *, low: float, high: float) -> Float[np.ndarray, " edges"]:
    """Inner edges of the tints, in nats, evenly spaced between two percentiles and rounded to a tenth."""
    known = surprise[~np.isnan(surprise)]
    first, last = np.percentile(known, [low, high]) if known.size else (0.0, 0.0)
    step = max(round(float(last - first) / (NUM_LEVELS - 2), 1), 0.1)
    return np.round(max(round(float(first), 1), 0.1) + step * np.arange(NUM_LEVELS - 1), 1)


def levels(surprise: Float[np.ndarray, " T"], *, edges: Float[np.ndarray, " edges"]) -> Int[np.ndarray, " T"]:
    """Tint of each value: how many edges it reaches; 0 where unknown."""
    return np.where(np.isnan(surprise), 0, np.searchsorted(edges, surprise, side="right"))


@dataclass(frozen=True)
class Paragraph:
    """Characters ``[start, stop)`` of a document that stand together.

    Attributes:
        is_verbatim: its line breaks mean something.
        is_continued: the next paragraph follows without a blank line, as a cut through a long one does.
    """

    start: int
    stop: int
    is_verbatim: bool
    is_continued: bool


def paragraphs(text: str, *, event_starts: Sequence[int]) -> list[Paragraph]:
    """The document cut after blank lines, and in very long paragraphs at lines or events; a partition."""
    lines = [line for line in text.split("\n") if line.strip()]
    width = float(np.percentile([len(line.rstrip()) for line in lines], 90)) if lines else 0.0
    gaps = [gap.end() for gap in re.finditer(r"\n\s*\n", text)]
    bounds = sorted({0, *gaps, len(text)})
    found: list[Paragraph] = []
    for start, stop in pairwise(bounds):
        is_verbatim = not _is_wrapped(text[start:stop], width)
        cuts = [start, *_cuts(text, start, stop, event_starts), stop]
        found += [Paragraph(a, b, is_verbatim, b < stop) for a, b in pairwise(cuts)]
    return found


def _is_wrapped(paragraph: str, width: float) -> bool:
    """Whether the line breaks of a paragraph only keep it within the document's width."""
    lines = [line.rstrip() for line in paragraph.strip("\r\n").split("\n")]
    are_flush = not any(line[:1].isspace() for line in lines)
    if len(lines) == 1:
        return are_flush
    return are_flush and width <= MAX_WRAPPED_CHARS and min(map(len, lines[:-1])) >= FULL_LINE * width


def _cuts(text: str, start: int, stop: int, event_starts: Sequence[int]) -> Iterator[int]:
    while stop - start > 2 * PARAGRAPH_CHARS:
        line = text.find("\n", start + PARAGRAPH_CHARS, stop - 1) + 1
        event_idx = int(np.searchsorted(event_starts, start + PARAGRAPH_CHARS))
        event_start = event_starts[event_idx] if event_idx < len(event_starts) else stop
        start = line if line and line - start <= 2 * PARAGRAPH_CHARS else event_start
        if start >= stop:
            return
        yield start


def _body(text: SegmentedText, event_levels: Int[np.ndarray, " N"]) -> str:
    """The sections of the document: paragraphs of event fragments; an event's first has its id."""
    visible = visible_text(text.text)
    starts = _shown_starts(text, visible)
    spans = [(start, event_idx) for event_idx, start in enumerate(starts)]
    spans = [(0, -1), *spans] if starts[0] else spans
    stops = [*(start for start, _ in spans[1:]), len(visible)]
    parts: list[str] = ["<section>"]
    section_start, span_idx = 0, 0
    for paragraph in paragraphs(visible, event_starts=starts):
        if paragraph.start - section_start >= SECTION_CHARS:
            parts.append("</section>\n<section>")
            section_start = paragraph.start
        names = " v" * paragraph.is_verbatim + " n" * paragraph.is_continued
        parts.append(f'<p class="{names[1:]}">' if names else "<p>")
        while span_idx < len(spans) and spans[span_idx][0] < paragraph.stop:
            (span_start, event_idx), stop = spans[span_idx], min(stops[span_idx], paragraph.stop)
            start = max(span_start, paragraph.start)
            identity = f" id=e{event_idx}" if start == span_start and event_idx >= 0 else ""
            level = event_levels[event_idx] if event_idx >= 0 else 0
            parts.append(
                f'<span{identity} class="e t{level}">{visible[start:stop].translate(ESCAPES)}</span>'
            )
            if stops[span_idx] > paragraph.stop:
                break
            span_idx += 1
        parts.append("</p>")
    parts += [f'<span id=e{event_idx} class="e t0"></span>' for _, event_idx in spans[span_idx:]]
    return "".join([*parts, "</section>"])


def _shown_starts(text: SegmentedText, visible: str) -> list[int]:
    """First character of each event, after its leading white space, so that its mark stands at a word."""
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in text.pieces])])
    starts = offsets[list(text.boundaries)].tolist()
    return [
        stop - len(visible[start:stop].lstrip() or visible[start:stop])
        for start, stop in pairwise([*starts, len(visible)])
    ]


def _data(text: SegmentedText, event_edges: Float[np.ndarray, " edges"]) -> str:
    """Numbers for the script, surprise in hundredths of a nat, lengths in UTF-16 units."""
    numbers = {
        "starts": list(text.boundaries),
        "mean": _hundredths(np.array([event.mean_surprise for event in text.events])),
        "max": _hundredths(np.array([event.max_surprise for event in text.events])),
        "lengths": [len(piece.encode("utf-16-le", "surrogatepass")) // 2 for piece in text.pieces],
        "surprise": _hundredths(text.surprise),
        "threshold": _hundredths(np.where(np.isinf(text.threshold), np.nan, text.threshold)),
        "eventEdges": _hundredths(event_edges),
        "tokenEdges": _hundredths(scale(text.surprise, low=50.0, high=97.0)),
    }
    return json.dumps(numbers, separators=(",", ":"))


def _hundredths(surprise: Float[np.ndarray, " T"]) -> list[int | None]:
    rounded = np.nan_to_num(np.round(surprise.astype(np.float64) * 100)).astype(int).tolist()
    return [None if unknown else value for value, unknown in zip(rounded, np.isnan(surprise), strict=True)]


def _legend(edges: Float[np.ndarray, " edges"]) -> str:
    labels = [f"below {edges[0]:.1f}", *(f"{a:.1f} to {b:.1f}" for a, b in pairwise(edges))]
    labels.append(f"{edges[-1]:.1f} or more")
    return "".join(f'<li class="e t{level}">{label}</li>' for level, label in enumerate(labels))


def _peaks(text: SegmentedText) -> str:
    return "".join(
        f"<li><a href=#e{event.event_idx}>{escape(text.opening(event.event_idx, max_chars=PEAK_CHARS))}</a> "
        f"<small>{nats(event.mean_surprise)}</small></li>"
        for event in text.most_surprising(NUM_PEAKS)
    )


def _facts(text: SegmentedText) -> str:
    mean, maximum = mean_and_max(text.surprise)
    plural = "" if len(text.events) == 1 else "s"
    return (
        f"{text.num_tokens:,} tokens in {len(text.events):,} event{plural}; "
        f"surprise {nats(mean)} on average, {nats(maximum)} at most"
    )


def _settings(text: SegmentedText) -> str:
    return "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in text.settings.items()
    )
