from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.documents import Document, load, load_all
from emllm.documents.kinds import KIND_OF_SUFFIX
from emllm.documents.load import bytes_below
from emllm.documents.readers import READERS
from emllm.documents.text import may_be_text
from emllm.errors import EmllmError, MissingExtraError, SourceError
from emllm.store.place import prepare

HEADS = [b"", b"%PDF-1.7\n", b"PK\x03\x04", b"<html><p>", b"\xff\xfe", b"\xef\xbb\xbf", b"\x89PNG\r\n\x1a\n"]

CONTENTS = st.builds(
    lambda head, tail: head + tail,
    st.sampled_from(HEADS),
    st.binary(max_size=300) | st.text().map(str.encode),
)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@given(
    suffix=st.sampled_from([*KIND_OF_SUFFIX, "", ".py", ".docx"]),
    data=CONTENTS,
)
def test_any_bytes_under_any_suffix_are_a_document_or_our_error(
    scratch: Path, suffix: str, data: bytes
) -> None:
    path = scratch / f"file{suffix}"
    path.write_bytes(data)
    try:
        document = load(path)
    except EmllmError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert document.text.strip()
        assert not {"\x00", "\r"} & set(document.text)
        document.text.encode()
        assert document.num_bytes == len(data)


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])).filter(str.strip))
def test_a_text_file_round_trips(scratch: Path, text: str) -> None:
    path = scratch / "round.txt"
    path.write_bytes(text.encode())
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if expected.strip():
        assert load(path).text == expected


@given(
    st.lists(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_names_are_unique_whatever_is_named_alike(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder), {f"{name}.txt": name for name in names})
        files = [root / f"{name}.txt" for name in names]
        documents, warnings = load_all(files)
        assert [document.text for document in documents] == names
        assert len({document.name for document in documents}) == len(names)
        assert not warnings
        for document, file in zip(documents, files, strict=True):
            assert file.as_posix().endswith(document.name)


def test_every_suffix_has_a_reader() -> None:
    assert set(KIND_OF_SUFFIX.values()) == set(READERS)


def test_every_kind_is_found_by_suffix_and_by_content(
    tmp_path: Path, make_pdf: Callable[..., bytes], make_epub: Callable[..., bytes]
) -> None:
    contents = {
        "text": b"the text",
        "html": b"\n<!DOCTYPE HTML><p>the text</p>",
        "pdf": make_pdf("the text"),
        "epub": make_epub({"a.xhtml": "<p>the text</p>"}),
    }
    for kind, content in contents.items():
        for name in ["bare", *(f"UP{s.upper()}" for s, k in KIND_OF_SUFFIX.items() if k == kind)]:
            write(tmp_path, {name: content})
            assert load(tmp_path / name) == Document(name, "the text", kind=kind, num_bytes=len(content))


def test_source_code_that_begins_with_html_is_kept_as_it_is(tmp_path: Path) -> None:
    code = "<!doctype html>\n<?php echo 1 ?>\n"
    assert load(write(tmp_path, {"a.php": code}) / "a.php").text == code


def test_standard_input_is_a_dash() -> None:
    assert load("-", stdin=io.BytesIO(b"piped\r\n")) == Document("stdin", "piped\n", num_bytes=7)
    assert load("-", stdin=io.BytesIO(b"<html><p>page</p>")).text == "page"


def test_the_process_standard_input_is_the_default() -> None:
    code = "from emllm.documents import load; print(load('-').text)"
    done = subprocess.run([sys.executable, "-c", code], input=b"piped", capture_output=True, check=True)
    assert done.stdout.split() == [b"piped"]


def test_a_process_without_standard_input_gets_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SourceError, match=r"^standard input: cannot be read"):
        load("-")


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("through",), daemon=True)
    writer.start()
    assert load(tmp_path / "pipe").text == "through"
    writer.join()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b" \n\t\r\n", "only whitespace"),
        (b"\xef\xbb\xbf", "only whitespace"),
        (b"\x89PNG\r\n\x1a\n\x00", "binary file, looks like: PNG image"),
        (b"PK\x03\x04\x00\x00\xff", "binary file, looks like: ZIP archive"),
        (b"PK\x03\x04\x00\x00\xff word/document.xml", "binary file, looks like: Word document"),
        (b"\x7fELF\x02\x01\x00", "binary file, looks like: ELF program"),
        (b"\x00\x00\x00 ftypmp42", "binary file, looks like: MP4 video"),
        (b"a.txt".ljust(257, b"\0") + b"ustar", "binary file, looks like: tar archive"),
        (b"%PDF-1.4\n\xe2\xe3\xcf\xd3", "binary file, looks like: PDF document"),
        (b"one\x00two", "binary file, not text (UTF-16 needs a byte order mark)"),
        (b"ok\nbad \xff", "not UTF-8 text: invalid byte 0xff at byte 7, line 2"),
    ],
)
def test_an_unreadable_text_file_says_what_it_is(tmp_path: Path, content: bytes, problem: str) -> None:
    path = write(tmp_path, {"a.txt": content}) / "a.txt"
    with pytest.raises(SourceError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {problem}"


@pytest.mark.parametrize(
    ("name", "problem"),
    [("a.pdf", "not a readable PDF"), ("a.epub", "not a readable EPUB"), ("a.html", "no text")],
)
def test_a_damaged_file_says_what_it_is_not(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(SourceError, match=f"{name}: .*{problem}"):
        load(write(tmp_path, {name: "<br>"}) / name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.txt", "none.txt: no such file or folder"),
        ("", "'': no such file or folder"),
        ("https://a.b/c", "https://a.b/c: no such file or folder (a web address: download it first)"),
        ("/dev/null", "/dev/null: a device, not a file"),
        ("a\nb", "'a\\nb': no such file or folder"),
        ("x" * 5000, f"{'x' * 5000}: cannot be read, File name too long"),
    ],
)
def test_what_is_no_file_gets_one_line(source: str, message: str) -> None:
    for call in (load, lambda source: load_all([source])):
        with pytest.raises(SourceError) as caught:
            call(source)
        assert str(caught.value) == message


def test_a_path_with_nul_gets_our_error() -> None:
    for call in (load, load_all):
        with pytest.raises(SourceError, match="cannot be read, embedded null byte"):
            call("a\0b")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="a folder, not a file"):
        load(tmp_path)


def test_the_size_is_checked_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"a.txt": "x" * 2000}) / "a.txt"
    assert load(path, max_bytes=2000).num_bytes == 2000
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(SourceError, match=r"a.txt: 2,000 bytes, more than the limit of 1,999$"):
        load(path, max_bytes=1999)


def test_an_endless_pipe_ends_at_the_limit() -> None:
    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None and 0 <= size <= 10
            return b"x" * size

    with pytest.raises(SourceError, match=r"^standard input: more than the limit of 9 bytes$"):
        load("-", stdin=Endless(), max_bytes=9)


def test_an_epub_that_unpacks_beyond_the_limit_is_refused(
    tmp_path: Path, make_epub: Callable[..., bytes]
) -> None:
    book = make_epub({"a.xhtml": "<p>text</p>"})
    write(tmp_path, {"a.epub": book})
    assert load(tmp_path / "a.epub", max_bytes=len(book)).text == "text"
    with zipfile.ZipFile(tmp_path / "a.epub", "a", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", b"0" * 10**6)
    with pytest.raises(
        SourceError, match=r"a.epub, unpacked: 1,00\d,\d+ bytes, more than the limit of 500,000"
    ):
        load(tmp_path / "a.epub", max_bytes=500_000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_gets_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.txt": "x"}) / "a.txt"
    path.chmod(0)
    with pytest.raises(SourceError, match=r"a.txt: cannot be read, Permission denied"):
        load(path)


def test_an_operating_system_error_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "a.txt")

    path = write(tmp_path, {"a.txt": "x"}) / "a.txt"
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SourceError, match=r"a.txt: cannot be read, Permission denied$"):
        load(path)


def test_a_folder_is_read_through_in_order_and_tells_what_it_passed_over(tmp_path: Path) -> None:
    files = {
        "b.txt": "B",
        "a/z.md": "Z",
        "a/y.txt": "Y",
        "a.txt": "A",
        ".git/config": "hidden",
        ".env": "hidden",
    }
    write(tmp_path, {**files, "pic.png": b"\x89PNG\r\n\x1a\n\x00", "void.txt": ""})
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken").symlink_to("nowhere")
    write(tmp_path, {"a/book.mem/lock": "process 1 on here", "a/book.mem/catalogue.sqlite": "x"})
    prepare(tmp_path / "begun.mem")
    write(tmp_path, {"begun.mem/lock": "process 1 on here"})
    os.mkfifo(tmp_path / "pipe")
    documents, warnings = load_all([tmp_path])
    assert [document.name for document in documents] == ["a/y.txt", "a/z.md", "a.txt", "b.txt"]
    assert [document.text for document in documents] == ["Y", "Z", "A", "B"]
    assert sorted(warning.removeprefix(f"{tmp_path}/") for warning in warnings) == [
        ".env: hidden (skipped)",
        ".git: hidden (skipped)",
        "a/book.mem: a memory (skipped)",
        "begun.mem: a memory (skipped)",
        "broken: no such file or folder (skipped)",
        "loop: link to a folder (skipped)",
        "pic.png: binary file, looks like: PNG image (skipped)",
        "pipe: no regular file (skipped)",
        "void.txt: empty (skipped)",
    ]


@pytest.mark.parametrize("lost", ["", "catalogue.sqlite"])
def test_a_memory_is_no_folder_of_texts(tmp_path: Path, lost: str) -> None:
    prepare(tmp_path / "book.mem")
    write(tmp_path / "book.mem", {"lock": "process 1 on here", "catalogue.sqlite": "x"})
    if lost:
        (tmp_path / "book.mem" / lost).unlink()
    said = (
        f"is a memory without its {lost}, no folder of texts$" if lost else "is a memory, no folder of texts$"
    )
    with pytest.raises(SourceError, match=said):
        load_all([tmp_path / "book.mem"])


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    write(tmp_path, {".notes/a.txt": "A"})
    assert [document.name for document in load_all([tmp_path / ".notes"]).documents] == ["a.txt"]


def test_a_folder_without_readable_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r": no readable file in this folder$"):
        load_all([tmp_path])
    write(tmp_path, {"a.txt": "", "b.txt": ""})
    with pytest.raises(
        SourceError, match=r"in this folder \(2 skipped, first: .*a.txt: empty \(skipped\)\)$"
    ):
        load_all([tmp_path])


def test_a_missing_extra_skips_files_of_a_folder_but_not_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    write(tmp_path, {"a.pdf": "%PDF-"})
    with pytest.raises(MissingExtraError):
        load_all([tmp_path])
    write(tmp_path, {"a.txt": "A"})
    documents, warnings = load_all([tmp_path])
    assert len(documents) == 1
    assert "emllm[read]" in warnings[0]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    write(tmp_path, {"x/n.txt": "1", "y/n.txt": "2", "m.txt": "3"})
    named = load_all([tmp_path / "x/n.txt", tmp_path / "y/n.txt", tmp_path / "m.txt"]).documents
    assert [document.name for document in named] == ["x/n.txt", "y/n.txt", "m.txt"]


def test_one_file_is_read_once_however_often_it_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "A"})
    (tmp_path / "b.txt").symlink_to("a.txt")
    documents, warnings = load_all([tmp_path / "a.txt", tmp_path, str(tmp_path / "a.txt")])
    assert [document.text for document in documents] == ["A"]
    assert len(warnings) == 3


def test_standard_input_is_read_once_and_keeps_its_name(tmp_path: Path) -> None:
    write(tmp_path, {"stdin": "file"})
    documents, warnings = load_all(["-", "-", tmp_path / "stdin"], stdin=io.BytesIO(b"piped"))
    assert [document.name for document in documents] == ["stdin", f"{tmp_path.name}/stdin"]
    assert warnings == ["-: named twice, read once"]


def test_a_named_file_that_cannot_be_read_stops_everything(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "A", "b.txt": ""})
    with pytest.raises(SourceError, match=r"b.txt: empty"):
        load_all([tmp_path / "a.txt", tmp_path / "b.txt"])


def test_one_path_instead_of_a_list_is_one_source(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "A"})
    assert load_all(str(tmp_path / "a.txt")).documents == [Document("a.txt", "A", num_bytes=1)]


def test_importing_the_room_loads_no_reading_library() -> None:
    code = "import emllm.documents, sys; sys.exit(bool({'bs4', 'pypdf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(st.dictionaries(st.sampled_from(["a.txt", "b.md", "c.html", "d", "e.bin", ".f"]), CONTENTS))
def test_all_that_a_folder_gives_counts_toward_its_size(contents: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in contents.items():
            (Path(folder) / name).write_bytes(data)
        try:
            read = {document.name for document in load_all(folder, max_bytes=6000).documents}
        except SourceError:
            read = set()
        least = sum(len(contents[name]) for name in read)
        most = sum(len(data) for name, data in contents.items() if not name.startswith("."))
        assert least <= bytes_below(folder, max_bytes=6000) <= most


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\x00", b"one\x00two", b"caf\xe9 au lait"])
def test_what_is_skipped_for_being_binary_does_not_count_toward_the_size(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "skipped").write_bytes(data)
    (tmp_path / "story.txt").write_text("A story.")
    assert bytes_below(str(tmp_path), max_bytes=100) == len("A story.")
    assert [document.name for document in load_all(tmp_path).documents] == ["story.txt"]


def test_a_character_that_is_cut_by_the_end_of_the_beginning_is_text() -> None:
    assert all(may_be_text("日本語".encode()[:stop]) for stop in range(9))
