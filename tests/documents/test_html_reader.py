from __future__ import annotations

import html
import lzma
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.documents.html import read_html
from emllm.errors import EmllmError, MissingExtraError, SourceError

words = st.text("abcdefgh é<&>漢", min_size=1).filter(str.strip)
blocks = st.sampled_from(["p", "div", "h2", "li", "td", "blockquote", "pre"])
inlines = st.sampled_from(["b", "i", "span", "a"])


def read(markup: str) -> str:
    return read_html(markup.encode(), "page.html")


def page_of(book: str) -> str:
    """A text set as HTML the way Project Gutenberg does: chapters, paragraphs, verse, page numbers."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", book):
        escaped = html.escape(paragraph)
        if paragraph.lstrip().startswith("CHAPTER"):
            paragraphs.append(f"<div class='chapter'><h2>{escaped.replace(chr(10), '<br/>')}</h2></div>")
        elif paragraph.startswith("  "):
            verse = "".join(f"<span class='i0'>{line}<br/></span>" for line in escaped.split("\n"))
            paragraphs.append(f"<div class='poem'>{verse}</div>")
        else:
            paragraphs.append(f"<p><a id='page_1'></a>{escaped}</p>")
    style = "<style>p { margin: 0 }</style><script>let unread = 1;</script>"
    return (
        f"<!DOCTYPE html><html><head><title>T</title>{style}</head><body>{''.join(paragraphs)}</body></html>"
    )


@given(st.lists(st.tuples(blocks, words), min_size=1))
def test_blocks_keep_every_word_in_order(parts: list[tuple[str, str]]) -> None:
    page = "".join(f"<{tag}>{html.escape(text)}</{tag}>\n" for tag, text in parts)
    assert read(page).split() == " ".join(text for _, text in parts).split()


@given(st.lists(st.tuples(inlines, words), min_size=1))
def test_inline_markup_never_parts_or_joins_words(parts: list[tuple[str, str]]) -> None:
    page = "".join(f"<{tag}>{html.escape(text)}</{tag}>" for tag, text in parts)
    assert read(f"<p>{page}</p>") == " ".join("".join(text for _, text in parts).split())


@given(st.text("<>/!-[]=\"'& abpdivre\n", max_size=80))
def test_any_markup_is_text_or_our_error(markup: str) -> None:
    try:
        read(markup)
    except EmllmError as error:
        assert "\n" not in str(error)


def test_a_gutenberg_page_keeps_the_entire_text(shared_data: Path) -> None:
    path = next((shared_data / "books_eval").glob("pg01063*"))
    book = lzma.decompress(path.read_bytes()).decode()
    assert read(page_of(book)).split() == book.split()


def test_paragraphs_lines_and_cells_are_told_apart() -> None:
    page = """<h1>Title</h1><p>One
      <b>two</b>  three.</p><p>Four<br>five<br><br>six</p><ul><li>a<li>b</ul>
      <table><tr><td>1</td><td>2</td></tr><tr><td>3</td><td>4</td></tr></table>tail"""
    assert read(page) == "Title\n\nOne two three.\n\nFour\nfive\n\nsix\n\na\nb\n\n1\t2\n3\t4\ntail"


def test_preformatted_text_keeps_its_spaces() -> None:
    page = "<p>code:</p>\n<pre><code>def f(x):\n    <b>return</b>  x\n</code></pre>\n<p>end</p>"
    assert read(page) == "code:\n\ndef f(x):\n    return  x\n\nend"


def test_indentation_and_line_breaks_count_in_preformatted_text() -> None:
    assert read("<p>a</p><pre>\n    b<br>  c\n</pre>") == "a\n\n    b\n  c"


def test_a_space_between_two_elements_parts_words() -> None:
    assert read("<p><b>one</b> <i>two</i></p>") == "one two"


def test_character_data_sections_are_text() -> None:
    assert read("<p>a <![CDATA[b <i>]]> c</p>") == "a b <i> c"


def test_the_main_element_is_read_alone_when_it_holds_most_of_the_text() -> None:
    chrome = "<header>Home Login</header><nav>World Sport</nav>", "<aside>Ten tricks</aside>"
    article = "<main><h1>Bridge opens</h1><p>" + "It was windy. " * 9 + "</p></main>"
    assert read(chrome[0] + article + chrome[1]) == "Bridge opens\n\n" + ("It was windy. " * 9).strip()


def test_a_small_main_element_hides_nothing() -> None:
    assert "The whole story" in read("<main>Ad</main><p>The whole story is out here.</p>")


@pytest.mark.parametrize("tag", ["script", "style", "noscript", "template", "title", "nav", "svg", "iframe"])
def test_what_is_not_content_is_left_out(tag: str) -> None:
    assert read(f"<body>before<{tag}>unread <b>deep</b></{tag}> after<!-- note --></body>") == "before after"


def test_an_unclosed_head_hides_nothing() -> None:
    assert read("<html><head><meta name=x><title>T</title><p>The text.") == "The text."


def test_deep_nesting_loses_nothing() -> None:
    assert read("<div>" * 3000 + "deep" + "</div>" * 3000 + "after") == "deep\nafter"


def test_a_declared_encoding_is_used() -> None:
    page = "<meta charset='iso-8859-1'><p>café</p>".encode("latin-1")
    assert read_html(page, "x") == "café"


def test_undeclared_bytes_outside_utf8_are_refused() -> None:
    with pytest.raises(SourceError, match="x: not UTF-8 text: invalid byte 0xe9 at byte 6, line 1"):
        read_html(b"<p>caf\xe9</p>", "x")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bs4", None)
    with pytest.raises(MissingExtraError, match=r"page.html: .*pip install 'emllm\[read\]'"):
        read("<p>x</p>")
