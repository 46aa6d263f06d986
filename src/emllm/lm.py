"""EpisodicLM: a language model with episodic memories, the object that users hold.

Attaches to the model when it is made and detaches when it is closed. Questions fork: the memory that is
asked is unchanged. This module does not know attention, events or how anything is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from emllm.answers import Answer, Evidence, Stats, peak_rss_bytes
from emllm.attention.geometry import ModelGeometry
from emllm.config import MemoryConfig
from emllm.documents.document import Document
from emllm.documents.load import load_all
from emllm.errors import InputError, ModelError
from emllm.generation import Sampling, generate_tokens, text_pieces
from emllm.memory import EpisodicMemory
from emllm.memory.episodic import StoredDocument
from emllm.models.attach import attach
from emllm.models.cache import EpisodicCache
from emllm.models.chat import ChatFormat, chat_format
from emllm.models.load import load_model
from emllm.models.sampling import make_chooser
from emllm.reading import ProgressCallback, check_fits, read_tokens
from emllm.recall.trace import RecallTrace

#: What `EpisodicMemory.read` takes: a path to a file or folder, or text (a `str`), or a document.
Source = Path | str | Document

DEFAULT_EVIDENCE = 5

#: Told each piece of an answer as it comes; returning False ends the answer.
OnText = Callable[[str], bool | None]


class EpisodicLM:
    """A causal language model that reads into memories and answers from them.

    Args:
        model: a loaded transformers model with rotary positions; changed in place until `close`.
        tokenizer: its tokenizer; without one only token ids can be read.
        name: how to speak of the model.

    Raises:
        UnsupportedModelError: the self-check found something that a memory cannot take over exactly.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, name: str | None = None) -> None:
        self._attachment = attach(model)
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self._chat: ChatFormat | None = None

    @classmethod
    def from_pretrained(
        cls, name: str = "default", *, device: str = "auto", dtype: str = "auto"
    ) -> EpisodicLM:
        """Load a model by hub id, folder or GGUF file; ``default`` is the one that needs no hub.

        Raises:
            ModelError: it cannot be found, loaded or supported.
        """
        model, tokenizer = load_model(name, device=device, dtype=dtype)
        return cls(model, tokenizer, name=name)

    @property
    def geometry(self) -> ModelGeometry:
        """What a memory must know of the model."""
        return self._attachment.geometry

    @property
    def chat_format(self) -> ChatFormat:
        """The chat template of the tokenizer, cut where documents and questions go."""
        if self.tokenizer is None:
            raise ModelError("this model has no tokenizer; give one to EpisodicLM(model, tokenizer)")
        if self._chat is None:
            settings = getattr(self.model, "generation_config", None)
            stop = getattr(settings, "eos_token_id", None)
            stop_ids = frozenset(stop if isinstance(stop, list) else [] if stop is None else [stop])
            self._chat = chat_format(self.tokenizer, model_stop_ids=stop_ids)
        return self._chat

    def memory(self, config: MemoryConfig | None = None) -> EpisodicMemory:
        """A new, empty memory for this model, in RAM."""
        piece_of = None
        if self.tokenizer is not None:
            tokenizer = self.tokenizer

            def piece_of(token_id: int) -> str:
                return str(tokenizer.decode([token_id]))

        memory = EpisodicMemory(self.geometry, config, piece_of=piece_of)
        memory.reader = self._read
        return memory

    def cache(self, *memories: EpisodicMemory) -> EpisodicCache:
        """What to give the model as ``past_key_values``; row b of a batch is read into ``memories[b]``."""
        return self._attachment.cache(*memories)

    def _read(
        self, memory: EpisodicMemory, source: Source, name: str | None, progress: ProgressCallback | None
    ) -> list[StoredDocument]:
        """Read documents into a memory; see `EpisodicMemory.read`."""
        if memory.dialogue == "answered":
            raise InputError(
                "a memory in which questions were answered cannot read documents; fork it before asking"
            )
        stored = []
        for document in self._documents(source, name):
            check_fits(len(document.text.encode()), self.geometry, name=document.name)
            stored.append(self._read_document(memory, document, progress))
        return stored

    def _documents(self, source: Source, name: str | None) -> list[Document]:
        if isinstance(source, Document):
            return [source]
        if isinstance(source, Path):
            return load_all([source]).documents
        if not source.strip():
            raise InputError(f"text to read must not be empty, got {source!r}")
        return [Document(name or "text", source)]

    def _read_document(
        self, memory: EpisodicMemory, document: Document, progress: ProgressCallback | None
    ) -> StoredDocument:
        self._open(memory)
        text = document.text if memory.dialogue == "opened" else f"\n\n{document.text}"
        token_ids = self.chat_format.encode(text)
        start = memory.num_tokens
        begun = time.perf_counter()
        chunk = memory.config.chunk_tokens
        read_tokens(self.model, self.cache(memory), token_ids, chunk_tokens=chunk, progress=progress)
        memory.read_tokens += len(token_ids)
        memory.read_seconds += time.perf_counter() - begun
        stored = StoredDocument(document.name, start, memory.num_tokens)
        memory.documents.append(stored)
        memory.dialogue = "documents"
        return stored

    def _open(self, memory: EpisodicMemory) -> None:
        """Read what the chat template puts before the first words, once."""
        if memory.dialogue == "empty":
            opening = self.chat_format.opening
            chunk = memory.config.chunk_tokens
            read_tokens(self.model, self.cache(memory), opening, chunk_tokens=chunk)
            memory.dialogue = "opened"

    def ask(
        self,
        memory: EpisodicMemory,
        question: str,
        *,
        sampling: Sampling | None = None,
        num_evidence: int = DEFAULT_EVIDENCE,
        on_text: OnText | None = None,
    ) -> Answer:
        """Answer a question on a fork of the memory, which is unchanged.

        Args:
            on_text: told each piece of the answer as it comes; the answer ends where it returns False.

        Raises:
            InputError: the question is empty.
            ModelError: the model has no tokenizer, or computes logits that are not finite.
        """
        fork = memory.fork()
        return self.answer(fork, question, sampling=sampling, num_evidence=num_evidence, on_text=on_text)

    def answer(
        self,
        memory: EpisodicMemory,
        question: str,
        *,
        sampling: Sampling | None = None,
        num_evidence: int = DEFAULT_EVIDENCE,
        on_text: OnText | None = None,
    ) -> Answer:
        """As `ask`, but question and answer become part of the memory: a turn of a conversation."""
        num_tokens, num_events = memory.num_tokens, memory.num_events
        begun = time.perf_counter()
        trace = memory.trace_recall()
        ids: list[int] = []
        pieces: list[str] = []
        for piece in self._stream(memory, question, sampling or Sampling(), ids):
            pieces.append(piece)
            if on_text is not None and on_text(piece) is False:
                break
        speed = memory.read_tokens / memory.read_seconds if memory.read_seconds else 0.0
        stats = Stats(
            tokens=num_tokens,
            events=num_events,
            read_tokens=memory.read_tokens,
            read_seconds=memory.read_seconds,
            tokens_per_second=speed,
            answer_tokens=len(ids),
            answer_seconds=time.perf_counter() - begun,
            peak_rss_bytes=peak_rss_bytes(),
        )
        return Answer("".join(pieces).strip(), self.evidence(memory, trace, num_evidence), stats)

    def stream(
        self, memory: EpisodicMemory, question: str, *, sampling: Sampling | None = None
    ) -> Iterator[str]:
        """The answer piece by piece, on a fork of the memory, which is unchanged."""
        return self._stream(memory.fork(), question, sampling or Sampling(), [])

    def _stream(
        self, memory: EpisodicMemory, question: str, sampling: Sampling, ids: list[int]
    ) -> Iterator[str]:
        """Ask and answer in place; the generated ids are appended to `ids`."""
        if not question.strip():
            raise InputError(f"a question must not be empty, got {question!r}")
        self._open(memory)
        chat = self.chat_format
        is_first = memory.dialogue != "answered"
        prompt = chat.encode(question + chat.before_answer) if memory.dialogue == "opened" else None
        memory.dialogue = "answered"
        tokens = generate_tokens(
            self.model,
            self.cache(memory),
            prompt if prompt is not None else chat.question(question, is_first=is_first),
            choose=make_chooser(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                seed=sampling.seed,
            ),
            max_new_tokens=sampling.max_new_tokens,
            stop_ids=chat.stop_ids,
            chunk_tokens=memory.config.chunk_tokens,
        )
        return text_pieces(_recorded(tokens, ids), chat.decode)

    def evidence(self, memory: EpisodicMemory, trace: RecallTrace, limit: int) -> tuple[Evidence, ...]:
        """The strongest events of a trace, with their texts and places."""
        found = []
        for recalled in trace.strongest(limit):
            event = memory.event(recalled.event)
            place = memory.place(event.start)
            found.append(
                Evidence(
                    event=recalled.event,
                    start=event.start,
                    stop=event.stop,
                    document=None if place is None else place[0],
                    position=None if place is None else place[1],
                    text=self.chat_format.decode(memory.token_ids(event.start, event.stop)),
                    score=recalled.score,
                    layers=recalled.layers,
                )
            )
        return tuple(found)

    def close(self) -> None:
        """Give the model back as it was, bit for bit."""
        self._attachment.detach()

    def __enter__(self) -> EpisodicLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _recorded(tokens: Iterator[int], ids: list[int]) -> Iterator[int]:
    for token in tokens:
        ids.append(token)
        yield token
