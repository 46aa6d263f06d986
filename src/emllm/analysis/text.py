"""A segmented text as plain characters, one event a paragraph, for a terminal or a pipe.

The module does not know colours, terminals or files; who prints chooses the width.
"""

from __future__ import annotations

import textwrap

from emllm.analysis.segmented import SegmentedText, TextEvent, mean_and_max

#: Control characters, which a terminal would obey, become a visible replacement; tab and newline stay.
_CONTROLS = {code: "�" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"} | {
    0x0D: None
}


def render_text(text: SegmentedText, *, width: int | None = None) -> str:
    """The text as paragraphs, one event each, under a header line of its own.

    A header reads ``[event] tokens start-stop (length), mean and max surprise``, events counted from 0, the
    span half-open. Blank lines inside an event are dropped so that they only ever separate events, and an
    event that begins inside a line loses that line's leading space.

    Args:
        text: what to show.
        width: columns to flow the text into; None keeps the line breaks of the document.
    """
    mean, _ = mean_and_max(text.surprise)
    summary = (
        f"{_one_line(text.document)}: {text.num_tokens:,} tokens, {len(text.events):,} events, "
        f"mean surprise {nats(mean)}, read with {_one_line(text.model)}"
    )
    return "\n\n".join([summary, *(_paragraph(event, width) for event in text.events)]) + "\n"


def nats(value: float) -> str:
    """A surprise with its unit, or ``unknown``."""
    return "unknown" if value != value else f"{value:.2f} nats"


def _paragraph(event: TextEvent, width: int | None) -> str:
    plural = "" if event.num_tokens == 1 else "s"
    header = (
        f"[{event.event_idx}] tokens {event.start}-{event.stop} ({event.num_tokens} token{plural}), "
        f"mean {nats(event.mean_surprise)}, max {nats(event.max_surprise)}"
    )
    inert = event.text.translate(_CONTROLS)
    lines = [line.rstrip() for line in inert.split("\n") if line.strip()]
    if lines and not inert.startswith("\n"):
        lines[0] = lines[0].removeprefix(" ")
    body = "\n".join(lines) if width is None else textwrap.fill(" ".join(inert.split()), max(width, 1))
    return f"{header}\n{body}" if body else header


def _one_line(name: str) -> str:
    return " ".join(name.translate(_CONTROLS).split())
