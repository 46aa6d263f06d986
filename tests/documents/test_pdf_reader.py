from __future__ import annotations

import base64
import importlib.util
import io
import logging
import sys
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.documents.pdf import read_pdf
from emllm.errors import EmllmError, MissingExtraError, SourceError

# One page saying "Sealed", AES-128, no password to open it; written by pypdf 7.1 with cryptography 50.
AES = (
    "c-oCrJ!=#}7%ptWG&UA?4njK3&ezU|9tZijLop%oE=EDGn3<i8C&_Nun+u7ZU}0q$3!C5{u(c5s!76?c>_j1ADu07Idw01zJPVhd"
    "W!`7rk7wTZVW(FX>KE}01=C00KO6!K5zNg!P^o}urO1=6bp@=%36+SXQV1sq)r1hEupu$gI%QN^5^F=L##~E<5k{5}Wwg~;BnDwi"
    "tDss1E=$VHWURvK?v{hmie7ge5Y6Y^%tH*KYwe^1Z$lOw8?ZGNN+&|+wbvW@I_T$sW$wmU0Q+Yx5H(yU?-n*hlqdB()a`9B9C?-~"
    "h?-sFdu9m+ZgaZhdj8QBx3TSf+v>7j|BaSh($;hNPGFB_P;U{0AP%clax7ek?2`=F&3rIBF#d~lJVtuaW$XSf<g7gJ_`>N;@Z|80"
    "dv|JS?;x8x|5WXN`?)`L?!xih*+;*>erhe&-^^ToaP#wz)k|+59y~wV`*`cs=@+dpXI{U*{_NMw$Ku$Obq1*h75P}jHONAL%Fm!S"
    "CNfZmj3}nKAc}-OwKsf_Mbz{<OLUQdXc<<7Ffuhr1)-3H20buBh0`%-)FLS`3VTdwYU5N&lPX0um)7by#l$d_hW6cn6)lZJR&!#g"
    "Q<x#CV#^RCI#pa@Wk?8RE_Td`SZanjLnzohO;a6&CqtI`dT)wNpA2@hU4OT>UA8`2$nEl$%Sxvu7|qt2Yh-j$elo_U->k!ag3>64"
    "#%M@8g-Zc~0-)goc^uOirf`ViFv{LZHpDQdlb9eA7$JB9V`$PZ#(aeNLbo?u(VJtlecuIoQ6tYiq<zU<&C(p=!G0l#v_iO~f^%oJ"
    "7CfOWW=3LRm9<nPHc6`g;}WD@%WSc`<sm=Oa>wh!_nIV0__s{gmh0dTL})mW"
)


def test_pages_come_in_order_a_line_apart(make_pdf: Callable[..., bytes]) -> None:
    assert read_pdf(make_pdf("First line\nsecond line", "Next page"), "x") == (
        "First line\nsecond line\nNext page"
    )


@given(data=st.data())
def test_any_damage_is_text_or_our_error(data: st.DataObject, make_pdf: Callable[..., bytes]) -> None:
    pdf = bytearray(make_pdf("Some text", "more"))
    for _ in range(data.draw(st.integers(1, 8))):
        pdf[data.draw(st.integers(0, len(pdf) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_pdf(bytes(pdf[: data.draw(st.integers(0, len(pdf)))]), "x")
    except EmllmError as error:
        assert "\n" not in str(error)


def test_pages_without_text_are_refused(make_pdf: Callable[..., bytes]) -> None:
    with pytest.raises(SourceError, match=r"^scan.pdf: no text on any of 2 pages, pictures only\? Run OCR"):
        read_pdf(make_pdf("", ""), "scan.pdf")


def test_a_page_without_text_among_others_is_passed_over(make_pdf: Callable[..., bytes]) -> None:
    assert read_pdf(make_pdf("Cover", "", "End"), "x").split() == ["Cover", "End"]


def encrypted(pdf: bytes, password: str) -> bytes:
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_a_password_is_asked_for_by_an_error(make_pdf: Callable[..., bytes]) -> None:
    with pytest.raises(SourceError, match=r"^x: encrypted with a password"):
        read_pdf(encrypted(make_pdf("secret"), "pass"), "x")


def test_a_pdf_that_only_forbids_printing_is_read(make_pdf: Callable[..., bytes]) -> None:
    assert read_pdf(encrypted(make_pdf("open"), ""), "x") == "open"


def test_aes_is_read_or_names_the_package_that_it_needs() -> None:
    pdf = zlib.decompress(base64.b85decode(AES))
    if importlib.util.find_spec("cryptography"):
        assert read_pdf(pdf, "x") == "Sealed"
    else:
        with pytest.raises(SourceError, match="cryptography"):
            read_pdf(pdf, "x")


def test_sloppy_files_leave_no_remarks_and_the_logger_as_it_was(
    make_pdf: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("pypdf").setLevel(logging.INFO)
    try:
        assert read_pdf(make_pdf("text").replace(b"startxref\n", b"startxref\n9"), "x") == "text"
        assert not caplog.records
        assert logging.getLogger("pypdf").level == logging.INFO
    finally:
        logging.getLogger("pypdf").setLevel(logging.NOTSET)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(MissingExtraError, match=r"x.pdf: .*pip install 'emllm\[read\]'"):
        read_pdf(b"", "x.pdf")
