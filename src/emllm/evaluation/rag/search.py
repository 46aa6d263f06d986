"""A search among a sample's passages, as a row's settings want it, for the model that will read them.

Event passages are cut where the model is surprised while it reads the text through a window alone, as the
paper's variant S does: no refinement, nothing recalled. This module does not know tasks, prompts or answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

from emllm.analysis.segment import segment
from emllm.config import MemoryConfig
from emllm.documents.document import Document
from emllm.errors import ConfigError, ModelError
from emllm.evaluation.rag.embedding import EmbeddedTexts, embed, similarities
from emllm.evaluation.rag.passages import (
    EVENT_WORDS,
    PASSAGE_WORDS,
    Passage,
    event_passages,
    fixed_passages,
)
from emllm.evaluation.rag.retrieve import joined, ranked, within_budget
from emllm.evaluation.samples import Question, Sample
from emllm.lm import EpisodicLM
from emllm.models.embedding import DEFAULT_EMBEDDER, Embedder, load_embedder

#: Samples whose passages are kept: questions about one sample follow one another, rows take turns.
_KEPT = 4

#: What a row may set for its passages, and what it is otherwise.
PASSAGE_SETTINGS: Mapping[str, Any] = {
    "passages": "fixed",  # or `events`
    "passage_words": PASSAGE_WORDS,  # of a fixed passage
    "event_words": EVENT_WORDS,  # that events are joined to
    "passage_order": "text",  # or `rank`
    "embedder": DEFAULT_EMBEDDER,
}

#: Settings of a memory that decide where surprise cuts.
_SEGMENTING = ("gamma", "surprise_window_tokens", "min_event_tokens", "max_event_tokens", "chunk_tokens")


@runtime_checkable
class Row(Protocol):
    """What is asked of a row here."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its settings by name, those of other rooms among them."""
        ...


@dataclass(frozen=True)
class Passages:
    """What a search found for a question.

    Attributes:
        text: what is read in place of the sample's text; empty for an empty text.
        evidence: the passages in it as JSON, the most alike first, with their ranks (0: the first), their
            characters in the sample's text and their similarity to the question, -1 to 1.
    """

    text: str
    evidence: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class _Searchable:
    """A sample's passages and their vectors."""

    passages: list[Passage]
    vectors: EmbeddedTexts


class PassageSearch:
    """Finds passages; keeps the embedding models it loaded and the last samples' vectors.

    Args:
        embedders: by name, where they are loaded already; others are loaded when they are asked for.
    """

    def __init__(self, embedders: Mapping[str, Embedder] | None = None) -> None:
        self._embedders = dict(embedders or {})
        self._samples: OrderedDict[Any, _Searchable] = OrderedDict()

    def passages_for(
        self, row: Row, lm: EpisodicLM, sample: Sample, question: Question, budget_tokens: int
    ) -> Passages:
        """The passages of a sample most like a question, joined by blank lines.

        The search is for the bare question, or for the prompt after the text where there is none.

        Args:
            row: its settings name what is in `PASSAGE_SETTINGS`.
            lm: counts tokens, and cuts events.
            budget_tokens: of all passages together, what joins them included.

        Raises:
            ConfigError: a setting of the row is not possible, or no budget.
            ModelError: the embedding model cannot be loaded, or the model has no tokenizer.
        """
        if lm.tokenizer is None:
            raise ModelError("this model has no tokenizer; give one to EpisodicLM(model, tokenizer)")
        settings = {name: row.settings.get(name, value) for name, value in PASSAGE_SETTINGS.items()}
        embedder = self._embedder(str(settings["embedder"]), lm)
        searchable = self._searchable(row, lm, sample, settings, embedder)
        query = question.query.strip() or question.text.strip()
        scores = [0.0] * len(searchable.passages)
        if query and scores:
            scores = similarities(searchable.vectors, embed(embedder, [query]))
        ranking = ranked(scores)
        found = within_budget(
            searchable.passages,
            ranking,
            budget_tokens=budget_tokens,
            count_tokens=lambda text: len(
                lm.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            ),
            order=str(settings["passage_order"]),
        )
        evidence = tuple(
            {
                "rank": one.rank,
                "start_char": one.passage.start,
                "stop_char": one.passage.stop,
                "score": round(scores[ranking[one.rank]], 4),
            }
            for one in sorted(found, key=lambda one: one.rank)
        )
        return Passages(joined(found), evidence)

    def _embedder(self, name: str, lm: EpisodicLM) -> Embedder:
        if name not in self._embedders:
            self._embedders[name] = load_embedder(name, lm.model.device)
        return self._embedders[name]

    def _searchable(
        self, row: Row, lm: EpisodicLM, sample: Sample, settings: Mapping[str, Any], embedder: Embedder
    ) -> _Searchable:
        """The sample's passages with their vectors, made once."""
        kind = settings["passages"]
        if kind not in ("fixed", "events"):
            raise ConfigError(f"passages must be one of fixed, events, got {kind!r}")
        config = _segmenting(row) if kind == "events" else None
        words = _words(settings, "event_words" if kind == "events" else "passage_words")
        key = (sample.sample_id, sample.text, embedder.name, words, config, config and lm.name)
        if key not in self._samples:
            if config is None:
                passages = fixed_passages(sample.text, words=words)
            else:
                passages = event_passages(_event_texts(lm, sample, config), least_words=words)
            vectors = embed(embedder, [passage.text for passage in passages])
            self._samples[key] = _Searchable(passages, vectors)
        self._samples.move_to_end(key)
        while len(self._samples) > _KEPT:
            self._samples.popitem(last=False)
        return self._samples[key]


def _words(settings: Mapping[str, Any], name: str) -> int:
    value = settings[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")
    return value


def _segmenting(row: Row) -> MemoryConfig:
    """A memory that only cuts: surprise decides, a window is all that is seen."""
    own = {name: row.settings[name] for name in _SEGMENTING if row.settings.get(name) is not None}
    return MemoryConfig.preset("streaming-llm", segmenter="surprise", **own)


def _event_texts(lm: EpisodicLM, sample: Sample, config: MemoryConfig) -> list[str]:
    """Texts of the events that the model cuts the sample's text into; together they are the text."""
    if not sample.text.strip():
        return []
    return [event.text for event in segment(lm, Document(sample.sample_id, sample.text), config).events]


def passages_for(
    row: Row, lm: EpisodicLM, sample: Sample, question: Question, budget_tokens: int
) -> Passages:
    """As `PassageSearch.passages_for`, with one search for the whole process, made at the first call."""
    return _search().passages_for(row, lm, sample, question, budget_tokens)


@cache
def _search() -> PassageSearch:
    return PassageSearch()
