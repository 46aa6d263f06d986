from __future__ import annotations

import codecs

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emllm.documents.text import decode, normalise, read_text
from emllm.errors import SourceError

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
lines = st.lists(st.sampled_from(["word", "\n", "\r\n", "\r", "\ufeff", "é", "🐍", "%PDF-", "GIF8"])).map(
    "".join
)


@given(texts | lines)
@example("\ufeff\ufeffdouble mark")
@example("a\r\r\nb\r")
@example("\ufffe")
def test_utf8_text_round_trips_apart_from_mark_and_line_ends(text: str) -> None:
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert normalise(read_text(text.encode(), "x")) == expected


@given(texts, st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]))
def test_a_byte_order_mark_names_its_encoding(text: str, encoding: str) -> None:
    assert read_text(("\ufeff" + text).encode(encoding), "x") == text


@given(st.text())
@example("a\x00b\r\n\r")
def test_normalised_text_is_valid_unicode_without_nul_or_carriage_return(text: str) -> None:
    got = normalise(text)
    got.encode()
    assert not {"\x00", "\r"} & set(got)


def test_normalising_joins_surrogate_pairs_and_replaces_lone_halves() -> None:
    assert normalise("\ud835\udc00 \ud835") == "𝐀 \ufffd"


def test_an_invalid_byte_is_named_with_offset_and_line() -> None:
    data = "première\nseconde\n".encode() + b"caf\xe9\n"
    with pytest.raises(SourceError, match=r"^x: not UTF-8 text: invalid byte 0xe9 at byte 21, line 3$"):
        read_text(data, "x")


def test_offsets_count_the_byte_order_mark() -> None:
    with pytest.raises(SourceError, match="0xff at byte 4, line 1"):
        read_text(codecs.BOM_UTF8 + b"a\xff", "x")


def test_a_cut_utf16_file_is_refused() -> None:
    with pytest.raises(SourceError, match="not UTF-16-LE text: invalid byte 0x62 at byte 6, line 2"):
        read_text(codecs.BOM_UTF16_LE + "a\n".encode("utf-16-le") + b"b", "x")


def test_utf16_without_a_mark_is_refused_with_a_hint() -> None:
    with pytest.raises(SourceError, match="byte order mark"):
        read_text("text".encode("utf-16-le"), "x")


@pytest.mark.parametrize("declared", ["latin-1", "iso-8859-1", "us-ascii", "windows-1252"])
def test_declared_latin1_is_windows_1252_as_in_browsers(declared: str) -> None:
    assert decode(b"\x93caf\xe9\x94", "x", declared=declared) == "“café”"


@pytest.mark.parametrize("declared", ["utf-16", "rot13", "base64", "no such", "", "nul\x00", None])
def test_a_useless_declaration_means_utf8(declared: str | None) -> None:
    assert decode("café".encode(), "x", declared=declared) == "café"
