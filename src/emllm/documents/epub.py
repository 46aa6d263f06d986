"""EPUB books as plain text: the chapters in the order of the spine.

**Deviation**: an EPUB is opened as what it is, a ZIP file with a manifest. EbookLib 0.20 (AGPL) gives up
on a book that lacks a font, a table of contents or a metadata element, which every reading device opens.

Does not know tables of contents, covers or fonts.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
from typing import TYPE_CHECKING
from urllib.parse import unquote

from emllm.documents.html import parse, read_html
from emllm.errors import EmllmError, SourceError

if TYPE_CHECKING:
    from bs4 import Tag


def read_epub(data: bytes, label: str) -> str:
    """The text of all chapters in reading order, a blank line between them.

    Raises:
        SourceError: damaged, a chapter missing, or locked by digital rights management.
        MissingExtraError: BeautifulSoup is not installed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = set(archive.namelist())
            locked = _locked(archive, label) if "META-INF/encryption.xml" in members else set()
            texts = []
            for chapter in _spine(archive, label):
                if chapter in locked:
                    raise SourceError(f"{label}: chapter {chapter} is locked (DRM), needs an open copy")
                if chapter not in members:
                    raise SourceError(f"{label}: damaged EPUB, chapter {chapter} is missing")
                texts.append(read_html(archive.read(chapter), f"{label}, chapter {chapter}"))
    except EmllmError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise SourceError(f"{label}: not a readable EPUB ({type(error).__name__})") from error
    return "\n\n".join(text for text in texts if text)


def expanded_bytes(data: bytes) -> int:
    """What the archive claims to hold once unpacked; 0 when it is no archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return 0


def _spine(archive: zipfile.ZipFile, label: str) -> list[str]:
    """Archive paths of the chapters, in reading order."""
    roots = _tags(archive, "META-INF/container.xml", "rootfile", label)
    package = unquote(str(roots[0]["full-path"]))
    items = {item.get("id"): item for item in _tags(archive, package, "item", label)}
    chapters = []
    for reference in _tags(archive, package, "itemref", label):
        item = items[reference["idref"]]
        if "html" in str(item.get("media-type", "html")):
            path = posixpath.join(posixpath.dirname(package), unquote(str(item["href"])))
            chapters.append(posixpath.normpath(path))
    return chapters


def _locked(archive: zipfile.ZipFile, label: str) -> set[str]:
    references = _tags(archive, "META-INF/encryption.xml", "cipherreference", label)
    return {posixpath.normpath(unquote(str(reference["uri"]))) for reference in references}


def _tags(archive: zipfile.ZipFile, path: str, name: str, label: str) -> list[Tag]:
    """Elements of an XML member by local name; html.parser lowers all names and keeps prefixes."""
    soup = parse(archive.read(path), f"{label}, {path}")
    return [tag for tag in soup.find_all(True) if tag.name.rpartition(":")[2] == name]
