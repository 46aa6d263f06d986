"""The web page of a segmented text: complete, inert, self-contained and readable on every tint."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import lzma
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.analysis.frame import escape, template_of
from emllm.analysis.page import NUM_LEVELS, NUM_PEAKS, levels, paragraphs, render_page, scale
from emllm.analysis.segmented import SegmentedText

HOSTILE = [
    "</script>",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--",
    "]]>",
    "\u2028\u2029",
    "\"'`&amp;&lt;",
    "@@DATA@@",
    "@@TEXT@@",
    "\\1",
    "\x00\x1b\ud800",
    "\r\n",
    "\n\nNew",
    "😀",
]
PIECES = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5)), min_size=1, max_size=30)
TEMPLATE = template_of("emllm.analysis", "page.html")


class Page(HTMLParser):
    """What a browser would see: elements with attributes, and the text of the main part."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.main = ""
        self.data = ""
        self.depth = 0
        self.in_data = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.depth += tag == "span"
        self.in_data = tag == "script" and dict(attrs).get("id") == "data"

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "span"
        self.in_data = False

    def handle_data(self, data: str) -> None:
        if self.in_data:
            self.data += data
        elif self.depth and self.elements[-1][1].get("class", "").startswith("e "):
            self.main += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def segmented(pieces: list[str], boundaries: list[int] | None = None, **names: object) -> SegmentedText:
    surprise = np.random.default_rng(0).gamma(1.0, 2.0, len(pieces)).astype(np.float32)
    surprise[0] = np.nan
    threshold = np.full(len(pieces), 3.0, np.float32)
    fields = {"document": "book", "model": "tiny", "settings": {}} | names
    cuts = boundaries or list(range(0, len(pieces), 3))
    return SegmentedText(pieces=pieces, surprise=surprise, threshold=threshold, boundaries=cuts, **fields)


def utf16_units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def skeleton(page: Page) -> list[tuple[str, list[str]]]:
    return [(tag, sorted(attrs)) for tag, attrs in page.elements if tag not in ("span", "p", "section")]


@given(PIECES)
def test_a_text_adds_no_element_but_its_own_fragments(pieces: list[str]) -> None:
    plain = Page(render_page(segmented(["word "] * len(pieces))))
    page = Page(render_page(segmented(pieces)))
    assert skeleton(page) == skeleton(plain)
    assert {name for tag, attrs in page.elements if tag in ("span", "p", "section") for name in attrs} <= {
        "id",
        "class",
        "role",
    }


@given(st.text(max_size=20), st.sampled_from(HOSTILE))
def test_names_and_settings_are_as_inert_as_the_text(name: str, hostile: str) -> None:
    plain = Page(render_page(segmented(["a", "b"], document="d", model="m", settings={"k": "v"})))
    odd = name + hostile
    page = Page(render_page(segmented(["a", "b"], document=odd, model=odd, settings={odd: [odd]})))
    assert skeleton(page) == skeleton(plain)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_escaped_text_fits_a_quoted_attribute_and_means_itself(text: str) -> None:
    assert not set("<>\"'") & set(escape(text))
    assert html.unescape(escape(text)) == text


@given(PIECES)
def test_every_character_keeps_its_offset_as_a_browser_counts(pieces: list[str]) -> None:
    rendered = render_page(segmented(pieces))
    rendered.encode("utf-8")
    page = Page(rendered)
    document = "".join(pieces)
    assert sum(json.loads(page.data)["lengths"]) == utf16_units(document) == utf16_units(page.main)
    for shown, char in zip(page.main, document, strict=True):
        assert shown == char or (shown in " \n�" and (not char.isprintable() or char == "\r"))


@given(PIECES)
def test_every_event_has_one_first_fragment_in_order(pieces: list[str]) -> None:
    text = segmented(pieces)
    identities = re.findall(r"<span id=(e\d+) ", render_page(text))
    assert identities == [f"e{event.event_idx}" for event in text.events]


@given(PIECES)
def test_the_data_are_numbers_only_and_agree_with_the_events(pieces: list[str]) -> None:
    text = segmented(pieces)
    data = json.loads(Page(render_page(text)).data)
    assert data["starts"] == list(text.boundaries)
    for name in ("lengths", "surprise", "threshold"):
        assert len(data[name]) == text.num_tokens
    assert all(isinstance(value, int | None) for values in data.values() for value in values)
    for event, mean in zip(text.events, data["mean"], strict=True):
        assert (
            mean is None
            if math.isnan(event.mean_surprise)
            else abs(mean / 100 - event.mean_surprise) < 0.0051
        )


@given(st.text(st.sampled_from("ab  \n\n\t"), max_size=300), st.data())
def test_paragraphs_partition_the_document(text: str, data: st.DataObject) -> None:
    text = text * data.draw(st.sampled_from([1, 100]))
    starts = sorted(data.draw(st.sets(st.integers(0, max(len(text) - 1, 0)), max_size=20)) | {0})
    found = paragraphs(text, event_starts=starts)
    assert "".join(text[part.start : part.stop] for part in found) == text
    assert all(part.start < part.stop for part in found)


def test_lines_wrapped_by_hand_flow_and_verse_and_code_keep_theirs() -> None:
    prose = "It was the best of times, it was the worst of times, it was the age\n" * 3 + "of wisdom.\n\n"
    verse = "Tyger Tyger, burning bright,\nIn the forests of the night;\n\n"
    code = "def f():\n    return 1\n\n"
    found = paragraphs(prose + verse + code, event_starts=[0])
    assert [part.is_verbatim for part in found] == [False, True, True]


@given(st.lists(st.floats(0, 50, width=32), min_size=1, max_size=50))
def test_more_surprise_never_gives_a_lower_tint(nats: list[float]) -> None:
    surprise = np.array(sorted(nats), dtype=np.float32)
    edges = scale(surprise, low=10.0, high=90.0)
    found = levels(surprise, edges=edges)
    assert (np.diff(edges) > 0).all() and len(edges) == NUM_LEVELS - 1
    assert (np.diff(found) >= 0).all() and found.min() >= 0 and found.max() < NUM_LEVELS


def test_unknown_surprise_has_the_palest_tint_and_no_number() -> None:
    page = render_page(SegmentedText("d", "m", ["a"], np.array([np.nan]), np.array([np.nan]), [0]))
    assert '<span id=e0 class="e t0">a</span>' in page
    assert json.loads(Page(page).data)["mean"] == [None]


def test_the_page_asks_nothing_of_any_server() -> None:
    page = render_page(segmented(["a", " b"]))
    linked = [
        value for _, attrs in Page(page).elements for name, value in attrs.items() if name in ("src", "href")
    ]
    assert [link for link in linked if not re.fullmatch(r"#e\d+", link)] == ["data:,"]
    assert not re.findall(r"@import|url\(|https?:|fetch\(|XMLHttp|WebSocket|innerHTML|eval\(", page)


@given(PIECES)
def test_the_most_surprising_events_are_linked_and_quoted_as_text(pieces: list[str]) -> None:
    text = segmented(pieces)
    page = Page(render_page(text))
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    assert links == [f"#e{event.event_idx}" for event in text.most_surprising(NUM_PEAKS)]
    identities = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {link.removeprefix("#") for link in links} <= identities


def test_the_policy_allows_this_style_and_this_script_and_nothing_else() -> None:
    page = render_page(segmented(["<style>x</style>", "<script>y</script>"]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert all(not name.startswith(("on", "style")) for _, attrs in Page(page).elements for name in attrs)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_contrasts_with_every_surface_in_both_themes(theme: int) -> None:
    colours = {
        name: pair[theme]
        for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", TEMPLATE)
    }
    surfaces = ["paper", "panel", "hit", *(f"t{level}" for level in range(NUM_LEVELS))]
    pairs = [("ink", surface) for surface in surfaces]
    pairs += [("quiet", "paper"), ("quiet", "panel"), ("hit-now-ink", "hit-now")]
    for ink, surface in pairs:
        assert contrast(colours[ink], colours[surface]) >= 4.5, (ink, surface)
    tints = [luminance(colours[f"t{level}"]) for level in range(NUM_LEVELS)]
    assert tints == sorted(tints, reverse=theme == 0), "tints must be told apart in grey"


def luminance(colour: str) -> float:
    """WCAG 2.2 relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink: str, surface: str) -> float:
    low, high = sorted([luminance(ink), luminance(surface)])
    return (high + 0.05) / (low + 0.05)


def test_a_book_of_100_000_words_is_a_page_below_six_megabytes(shared_data: Path) -> None:
    (source,) = (shared_data / "books_eval").glob("*bleak-house*")
    words = re.findall(r"\s*\S+", lzma.decompress(source.read_bytes()).decode())[:100_000]
    pieces = re.findall(r"\s?\w{1,11}|\s?[^\w\s]|\s", "".join(words))
    page = render_page(segmented(pieces, list(range(0, len(pieces), 17))))
    assert len(pieces) > 120_000 and len(page.encode()) < 6e6
