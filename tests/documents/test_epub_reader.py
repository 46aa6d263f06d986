from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.documents.epub import expanded_bytes, read_epub
from emllm.errors import EmllmError, SourceError


@given(order=st.permutations(["a.xhtml", "b.xhtml", "c.xhtml"]))
def test_chapters_come_in_the_order_of_the_spine(order: list[str], make_epub: Callable[..., bytes]) -> None:
    chapters = {name: f"<h1>{name}</h1><p>Text of {name}</p>" for name in ["c.xhtml", "a.xhtml", "b.xhtml"]}
    assert read_epub(make_epub(chapters, spine=order), "x") == "\n\n".join(
        f"{name}\n\nText of {name}" for name in order
    )


@given(data=st.data())
def test_any_damage_is_text_or_our_error(data: st.DataObject, make_epub: Callable[..., bytes]) -> None:
    book = bytearray(make_epub({"a.xhtml": "<p>text</p>"}))
    for _ in range(data.draw(st.integers(1, 8))):
        book[data.draw(st.integers(0, len(book) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_epub(bytes(book), "x")
    except EmllmError as error:
        assert "\n" not in str(error)


def test_books_written_by_ebooklib_are_read() -> None:
    epub = pytest.importorskip("ebooklib.epub", reason="EbookLib, here only an oracle, is not installed")
    book = epub.EpubBook()
    book.set_title("T")
    chapters = []
    for number in ["one", "two"]:
        chapter = epub.EpubHtml(title=number, file_name=f"text/{number}.xhtml")
        chapter.content = f"<h1>Chapter {number}</h1><p>It was <i>{number}</i> o’clock.</p>"
        book.add_item(chapter)
        chapters.append(chapter)
    book.toc = chapters
    book.add_item(epub.EpubNcx())
    book.add_item(epub.EpubNav())
    book.spine = ["nav", *reversed(chapters)]
    buffer = io.BytesIO()
    epub.write_epub(buffer, book)
    expected = "\n\n".join(f"Chapter {n}\n\nIt was {n} o’clock." for n in ["two", "one"])
    assert read_epub(buffer.getvalue(), "x") == expected


def test_a_lacking_font_contents_page_or_metadata_does_not_matter(make_epub: Callable[..., bytes]) -> None:
    font = '<item id="f" href="f.ttf" media-type="font/ttf"/>'
    assert read_epub(make_epub({"a.xhtml": "<p>text</p>"}, manifest=font), "x") == "text"


def test_names_are_unquoted_and_pictures_in_the_spine_passed_over(make_epub: Callable[..., bytes]) -> None:
    manifest = (
        '<item id="pic" href="p.png" media-type="image/png"/>'
        '<item id="odd" href="a%20b.xhtml" media-type="application/xhtml+xml"/>'
    )
    extra = {"OPS/p.png": "\x89PNG\x00", "OPS/a b.xhtml": "<p>odd name</p>"}
    book = make_epub(
        {"a.xhtml": "<p>text</p>"}, spine=["pic", "a.xhtml", "odd"], manifest=manifest, extra=extra
    )
    assert read_epub(book, "x") == "text\n\nodd name"


def test_a_missing_chapter_is_an_error_not_a_shorter_book(make_epub: Callable[..., bytes]) -> None:
    manifest = '<item id="b" href="b.xhtml" media-type="application/xhtml+xml"/>'
    book = make_epub({"a.xhtml": "<p>text</p>"}, spine=["a.xhtml", "b"], manifest=manifest)
    with pytest.raises(SourceError, match=r"^x: damaged EPUB, chapter OPS/b.xhtml is missing$"):
        read_epub(book, "x")


def encryption_of(path: str) -> dict[str, str]:
    xml = f'<encryption xmlns:enc="e"><enc:CipherReference URI="{path}"/></encryption>'
    return {"META-INF/encryption.xml": xml}


def test_locked_chapters_are_refused(make_epub: Callable[..., bytes]) -> None:
    book = make_epub({"a.xhtml": "<p>text</p>"}, extra=encryption_of("OPS/a.xhtml"))
    with pytest.raises(SourceError, match=r"^x: chapter OPS/a.xhtml is locked \(DRM\)"):
        read_epub(book, "x")


def test_scrambled_fonts_lock_nothing(make_epub: Callable[..., bytes]) -> None:
    book = make_epub({"a.xhtml": "<p>text</p>"}, extra=encryption_of("OPS/f.ttf"))
    assert read_epub(book, "x") == "text"


@pytest.mark.parametrize("container", ["", "<container/>", '<rootfile full-path="none.opf"/>'])
def test_a_book_without_package_is_refused(container: str, make_epub: Callable[..., bytes]) -> None:
    with pytest.raises(SourceError, match=r"^x: not a readable EPUB"):
        read_epub(make_epub({"a.xhtml": "<p>text</p>"}, container=container), "x")


def test_the_unpacked_size_is_known_before_unpacking(make_epub: Callable[..., bytes]) -> None:
    big = make_epub({"a.xhtml": "x" * 10_000})
    assert 10_000 < expanded_bytes(big) < 12_000
    assert expanded_bytes(b"no archive") == 0
