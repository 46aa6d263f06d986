"""What our web pages share: escaped text, colours and fonts (frame.css), and a content security policy.

The policy allows a page its own style and script by their hashes, and pictures that it carries itself, so
that a text could not act even if it were not escaped. The module does not know what a page shows.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from importlib import resources

#: Every replacement has the length of what it replaces as a browser counts it, so that offsets hold.
ESCAPES = (
    dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)), "�")
    | {code: chr(code) for code in (0x09, 0x0A, 0x85)}
    | {0x0B: " ", 0x0C: " ", ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
    | {ord('"'): "&quot;", ord("'"): "&#39;"}
)


def escape(text: str) -> str:
    """Characters that a browser can only read as text, inside an element or a quoted attribute.

    Carriage returns, which a browser would drop, become spaces or line breaks; other control characters and
    lone surrogates the replacement character.
    """
    return visible_text(text).translate(ESCAPES)


def visible_text(text: str) -> str:
    """The document with one kind of line break, character for character as long as it was."""
    return text.replace("\r\n", " \n").replace("\r", "\n") if "\r" in text else text


def template_of(package: str, name: str) -> str:
    """A page's template, with the shared style in place of ``@@FRAME@@``."""
    frame = resources.files("emllm.analysis").joinpath("frame.css").read_text("utf-8")
    return resources.files(package).joinpath(name).read_text("utf-8").replace("@@FRAME@@\n", frame)


def filled(template: str, values: Mapping[str, str]) -> str:
    """The page: every ``@@NAME@@`` of a template replaced once, ``@@POLICY@@`` by its policy.

    Args:
        template: its style and script hold no name.
        values: markup by name, escaped where it is text.
    """
    all_values = {**values, "POLICY": "; ".join(_policy(template))}
    return re.sub(r"@@([A-Z]+)@@", lambda mark: all_values[mark[1]], template)


def _policy(template: str) -> Iterator[str]:
    yield "default-src 'none'"
    for tag in ("style", "script"):
        for body in re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
            yield f"{tag}-src 'sha256-{digest}'"
    yield "img-src data:; base-uri 'none'; form-action 'none'"
