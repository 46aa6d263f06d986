"""What a source is, by its suffix and, where that says nothing, by its first bytes.

Does not know how any kind is read (`readers`), and never guesses an encoding.
"""

from __future__ import annotations

from pathlib import PurePath

KIND_OF_SUFFIX = {
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".epub": "epub",
}

_OFFICE = {b"word/": "Word document", b"xl/": "Excel workbook", b"ppt/": "PowerPoint presentation"}

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG image",
    b"\xff\xd8\xff": "JPEG image",
    b"GIF8": "GIF image",
    b"II*\x00": "TIFF image",
    b"MM\x00*": "TIFF image",
    b"%PDF-": "PDF document",
    b"PK\x03\x04": "ZIP archive",
    b"\x1f\x8b": "gzip archive",
    b"BZh": "bzip2 archive",
    b"\xfd7zXZ\x00": "xz archive",
    b"\x28\xb5\x2f\xfd": "Zstandard archive",
    b"7z\xbc\xaf\x27\x1c": "7-Zip archive",
    b"Rar!\x1a\x07": "RAR archive",
    b"\x7fELF": "ELF program",
    b"\xcf\xfa\xed\xfe": "Mach-O program",
    b"\xca\xfe\xba\xbe": "Java class or Mach-O program",
    b"MZ": "Windows program",
    b"\x00asm": "WebAssembly program",
    b"SQLite format 3\x00": "SQLite database",
    b"PAR1": "Parquet table",
    b"GGUF": "GGUF model",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "Microsoft Office 97 document",
    b"ID3": "MP3 sound",
    b"OggS": "Ogg sound",
    b"fLaC": "FLAC sound",
    b"RIFF": "WebP image or WAVE sound",
}


def kind_of(data: bytes, name: str) -> str:
    """Key of the reader for these bytes: the suffix decides, then the content, then it is text.

    HTML is recognised by content only under a name without suffix, so that a template or a script
    that begins with ``<!doctype html>`` stays source code.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix in KIND_OF_SUFFIX:
        return KIND_OF_SUFFIX[suffix]
    if data.startswith(b"%PDF-"):
        return "pdf"
    if data.startswith(b"PK\x03\x04") and b"application/epub+zip" in data[:128]:
        return "epub"
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not suffix and start.startswith((b"<!doctype html", b"<html")):
        return "html"
    return "text"


def looks_like(data: bytes) -> str | None:
    """What binary bytes probably are, in words for an error message; None if nothing is known."""
    if data[4:8] == b"ftyp":
        return "MP4 video"
    if data[257:262] == b"ustar":
        return "tar archive"
    for signature, what in _SIGNATURES.items():
        if data.startswith(signature):
            if what == "ZIP archive":
                return next((office for part, office in _OFFICE.items() if part in data), what)
            return what
    return None
