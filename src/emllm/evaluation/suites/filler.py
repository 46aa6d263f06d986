"""Text of no importance, in sentences, for facts to hide in: the noise group, books, Python's own help.

The noise group is RULER's and the passkey's. RULER's essays (Paul Graham's) are not passed on here; books of
the data folder stand for them, and where there is no data folder a text that comes with every Python
(``pydoc_data.topics``, the language reference). A text that is too short is repeated. This module does not
know what is hidden.
"""

from __future__ import annotations

import re
from textwrap import wrap

from emllm.evaluation.suites.files import text_names, text_of
from emllm.evaluation.suites.needs import SampleNeeds

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

#: White space after a full stop and, perhaps, a closing quote ends a sentence; after a title it does not.
_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)]))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)\s+"
)
#: A longer sentence is cut between words: so finely a depth and a length are kept.
_PIECE_CHARS = 400
_PARAGRAPH_END = re.compile(r"\n\s*\n")


class Filler:
    """Sentences of a folder of books, or of Python's help; what was read stays for the next sample.

    Args:
        needs: the data folder of the run.
        folder: of the data folder, with ``.txt`` or ``.txt.xz`` files.

    Raises:
        SourceError: there is a data folder, but no such folder of texts in it.
    """

    def __init__(self, needs: SampleNeeds, folder: str) -> None:
        self._needs = needs
        self._read: dict[int, list[str]] = {}
        if needs.data is None:
            self.name = "python"
            self._titles = _help_titles()
        else:
            self.name = folder
            self._titles = text_names(needs.data, folder)

    def sentences(self, num_sentences: int, *, first: int) -> list[str]:
        """So many sentences, from the beginning of the text with that number (modulo how many there are)."""
        found: list[str] = []
        while len(found) < num_sentences:
            found += self._sentences_of(first % len(self._titles))
            first += 1
        return found[:num_sentences]

    def _sentences_of(self, title_idx: int) -> list[str]:
        if title_idx not in self._read:
            title = self._titles[title_idx]
            text = _help_text(title) if self._needs.data is None else text_of(self._needs, title)
            self._read[title_idx] = sentences_of(text) or [NOISE]
        return self._read[title_idx]


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, each on one line; an ended paragraph ends a sentence.

    **Deviation** from RULER, which takes nltk's: by a regular expression, without a download, and long
    ones are cut.
    """
    paragraphs = (" ".join(paragraph.split()) for paragraph in _PARAGRAPH_END.split(text))
    sentences = (
        sentence for paragraph in paragraphs if paragraph for sentence in _SENTENCE_END.split(paragraph)
    )
    return [piece for sentence in sentences for piece in _cut(sentence)]


def _cut(sentence: str) -> list[str]:
    """The sentence, in pieces where it is long (lists and grammars in Python's help have no full stops)."""
    if len(sentence) <= _PIECE_CHARS:
        return [sentence]
    return wrap(sentence, _PIECE_CHARS, break_long_words=False, break_on_hyphens=False)


def _help_titles() -> list[str]:
    from pydoc_data.topics import topics

    return sorted(topics)


def _help_text(title: str) -> str:
    from pydoc_data.topics import topics

    return str(topics[title])
