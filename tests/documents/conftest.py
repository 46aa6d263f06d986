"""Makers of PDF and EPUB files, written by hand so that they do not depend on the readers' libraries."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import pytest

CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""


@pytest.fixture(scope="session")
def make_pdf() -> Callable[..., bytes]:
    def make(*pages: str) -> bytes:
        kids = " ".join(f"{4 + 2 * page_idx} 0 R" for page_idx in range(len(pages)))
        objects = [
            "<< /Type /Catalog /Pages 2 0 R >>",
            f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
            "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        ]
        for page_idx, text in enumerate(pages):
            lines = " T* ".join(f"({line}) Tj" for line in text.split("\n")) if text else ""
            content = f"BT /F1 12 Tf 14 TL 72 720 Td {lines} ET"
            objects.append(
                f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * page_idx} 0 R "
                "/Resources << /Font << /F1 3 0 R >> >> >>"
            )
            objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
        data, offsets = b"%PDF-1.4\n", []
        for object_id, body in enumerate(objects, start=1):
            offsets.append(len(data))
            data += f"{object_id} 0 obj\n{body}\nendobj\n".encode("latin-1")
        table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
        trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
        head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
        return data + (head + table + trailer).encode("latin-1")

    return make


@pytest.fixture(scope="session")
def make_epub() -> Callable[..., bytes]:
    def make(
        chapters: dict[str, str],
        *,
        spine: list[str] | None = None,
        manifest: str = "",
        extra: dict[str, str] | None = None,
        container: str = CONTAINER,
    ) -> bytes:
        """``chapters``: file name to body; ``spine``: file names in reading order."""
        items = "".join(
            f'<item id="{name}" href="{name}" media-type="application/xhtml+xml"/>' for name in chapters
        )
        references = "".join(f'<itemref idref="{name}"/>' for name in spine or chapters)
        package = (
            '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
            f"<manifest>{items}{manifest}</manifest><spine>{references}</spine></package>"
        )
        members = {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": container,
            "OPS/book.opf": package,
            **{
                f"OPS/{name}": f'<?xml version="1.0" encoding="utf-8"?>'
                f'<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{body}</body></html>'
                for name, body in chapters.items()
            },
            **(extra or {}),
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    return make
