"""The readers by kind: bytes in, text out. A new kind is a line here and one for its suffix in `kinds`.

Does not know files, names or sizes (`load`).
"""

from __future__ import annotations

from collections.abc import Callable

from emllm.documents.epub import read_epub
from emllm.documents.html import read_html
from emllm.documents.pdf import read_pdf
from emllm.documents.text import read_text

READERS: dict[str, Callable[[bytes, str], str]] = {
    "text": read_text,
    "html": read_html,
    "pdf": read_pdf,
    "epub": read_epub,
}
