"""PDF files as plain text, page after page, through pypdf.

Does not know how to look at pictures of text, and leaves line breaks and hyphens where the page has them.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from emllm.errors import MissingExtraError, SourceError


def read_pdf(data: bytes, label: str) -> str:
    """The text of all pages; a page ends a line but not a paragraph, because sentences run on.

    Raises:
        SourceError: damaged, encrypted with a password, or pages without text (scans).
        MissingExtraError: pypdf is not installed.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError
    except ImportError as error:
        raise MissingExtraError(f"{label}: PDF needs pypdf: pip install 'emllm[read]'") from error
    try:
        with _quiet_pypdf():
            reader = PdfReader(io.BytesIO(data))
            if reader.is_encrypted and not reader.decrypt(""):  # printing may need one, reading may not
                raise SourceError(f"{label}: encrypted with a password, save an open copy first")
            pages = [page.extract_text() for page in reader.pages]
    except SourceError:
        raise
    except DependencyError as error:
        needs = "needs the package cryptography: pip install 'pypdf[crypto]'"
        raise SourceError(f"{label}: encrypted with AES, {needs}") from error
    except Exception as error:  # a damaged file makes pypdf fail in many ways
        raise SourceError(f"{label}: not a readable PDF ({type(error).__name__})") from error
    if not any(page.strip() for page in pages):
        raise SourceError(f"{label}: no text on any of {len(pages)} pages, pictures only? Run OCR first")
    return "\n".join(pages)


@contextmanager
def _quiet_pypdf() -> Iterator[None]:
    """Keeps pypdf's remarks about sloppy files off stderr; the logger is restored afterwards."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
