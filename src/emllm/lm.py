"""EpisodicLM: a language model with episodic memories, the object that users hold.

Attaches to the model when it is made and detaches when it is closed. Questions fork: the memory that is
asked is unchanged. This module does not know attention, events or how anything is stored.
"""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from emllm.answers import Answer, Evidence, Stats, peak_rss_bytes
from emllm.attention.geometry import ModelGeometry
from emllm.config import MemoryConfig
from emllm.documents.document import checked_text
from emllm.errors import InputError, ModelError
from emllm.evidence import evidence_of
from emllm.generation import Sampling, text_pieces
from emllm.memory import EpisodicMemory
from emllm.memory.stored import open_memory
from emllm.memory.truncating import truncate
from emllm.models.attach import attach
from emllm.models.cache import EpisodicCache
from emllm.models.chat import SEPARATOR, ChatFormat, chat_format
from emllm.models.fingerprint import difference, fingerprint
from emllm.models.load import load_model
from emllm.models.sampling import make_chooser
from emllm.reading import ProgressCallback, read_tokens
from emllm.recall.trace import RecallTrace
from emllm.recollecting import NEUTRAL_QUESTION, Asking, recollects
from emllm.remembering import DocumentReading, counting
from emllm.store.contents import DocumentRecord
from emllm.store.renewing import renewed

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
        self._fingerprint: dict[str, str] | None = None

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

    def memory(
        self,
        path: str | Path | None = None,
        config: MemoryConfig | None = None,
        *,
        read_only: bool = False,
    ) -> EpisodicMemory:
        """A memory for this model: in RAM, or in a folder that is opened, or made where there is none.

        Everything that a memory with a folder reads is durable chunk by chunk; close it, or use it in a
        ``with``, to let others write to it.

        Args:
            path: of the folder.
            config: of a new memory; one that exists has its own, which this must not contradict.
            read_only: any number of processes may ask such a memory at once; it cannot read on.

        Raises:
            StoreError: the folder is damaged, in use, or of another model; says which part of it differs.
            ConfigError: the memory was made with other settings.
        """
        if path is None:
            memory = EpisodicMemory(self.geometry, config, piece_of=self._piece_of)
        else:
            memory = open_memory(
                path,
                self.geometry,
                config,
                identity={
                    "emllm_version": version("emllm"),
                    "fingerprint": self.fingerprint,
                    "model": self.name,
                },
                differs=lambda kept: difference(kept.get("fingerprint", {}), self.fingerprint),
                piece_of=self._piece_of,
                read_only=read_only,
            )
        memory.reader = self._reading.read
        memory.model = weakref.ref(self.model)
        return memory

    @property
    def _piece_of(self) -> Callable[[int], str] | None:
        """The text of a token id."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return None
        return lambda token_id: str(tokenizer.decode([token_id]))

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a stored memory holds this model against: its config, weights, tokenizer and dtype."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model, self.tokenizer)
        return self._fingerprint

    def cache(self, *memories: EpisodicMemory) -> EpisodicCache:
        """What to give the model as ``past_key_values``; row b of a batch is read into ``memories[b]``.

        Raises:
            InputError: another model computed what a memory holds.
        """
        for memory in memories:
            self._check_own(memory)
        return self._attachment.cache(*memories)

    def _check_own(self, memory: EpisodicMemory) -> None:
        """Refuse the keys and values of another model; another copy of this one is none."""
        model = None if memory.model is None else memory.model()
        if model is None or model is self.model:
            return
        differs = difference(fingerprint(model), fingerprint(self.model))
        if differs is not None:
            raise InputError(f"another model made this memory: {differs}")
        memory.model = weakref.ref(self.model)  # so that the weights are compared once

    @property
    def _reading(self) -> DocumentReading:
        return DocumentReading(self.model, self.cache, self.geometry, lambda: self.chat_format)

    def reread(
        self, path: str | Path, token: int, *, progress: ProgressCallback | None = None
    ) -> list[DocumentRecord]:
        """Compute anew what a stored memory holds from a token on, without what was forgotten.

        Works on a copy beside it, which the memory becomes when all is read; interrupted, it is as it was.

        Args:
            token: where a document begins, or began before it was forgotten, or where the documents end.

        Returns:
            The documents that were read again.

        Raises:
            InputError: no document begins or began there.
            StoreError: the folder is in use, damaged or of another model, or the disk is full.
        """
        with renewed(Path(path)) as building:
            with self.memory(building, read_only=True) as old:
                _check_start(old, token)
                texts, unfinished, dialogue = old.texts_from(token), old.document_being_read, old.dialogue
            truncate(building, token)
            with self.memory(building) as memory:
                for document, token_ids in texts:
                    if document is not None:
                        start = memory.num_tokens
                        num_tokens = document.num_tokens if document == unfinished else len(token_ids)
                        memory.begin_document(
                            dataclasses.replace(
                                document, start=start, stop=start, num_tokens=num_tokens, read_seconds=0.0
                            )
                        )
                    chunk = memory.config.chunk_tokens
                    cache = self.cache(memory)
                    counted = progress if document is None else counting(memory, progress)
                    read_tokens(self.model, cache, token_ids, chunk_tokens=chunk, progress=counted)
                if dialogue == "answered":
                    memory.dialogue = dialogue
        return [document for document, _ in texts if document is not None]

    def prepare(self, memory: EpisodicMemory) -> None:
        """Find out now what the next question to a memory would have to, so that its answer comes sooner.

        That is what the memory recalls whatever is asked; a folder keeps it until the memory reads on.

        Raises:
            ModelError: the model has no tokenizer.
            StoreError: the disk is full or fails; nothing that was durable is lost.
        """
        if recollects(memory):
            self.asking.usual(memory)
            memory.flush()

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
        return self._answer(fork, question, sampling or Sampling(), num_evidence, on_text, keep=False)

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
        return self._answer(memory, question, sampling or Sampling(), num_evidence, on_text, keep=True)

    def _answer(
        self,
        memory: EpisodicMemory,
        question: str,
        sampling: Sampling,
        num_evidence: int,
        on_text: OnText | None,
        *,
        keep: bool,
    ) -> Answer:
        num_tokens, num_events = memory.num_tokens, memory.num_events
        begun = time.perf_counter()
        trace = memory.trace_recall()
        ids: list[int] = []
        pieces: list[str] = []
        try:
            with closing(self._stream(memory, question, sampling, ids, trace, keep=keep)) as stream:
                for piece in stream:
                    pieces.append(piece)
                    if on_text is not None and on_text(piece) is False:
                        break
        finally:
            memory.end_trace()
        memory.rest()
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
        fork = memory.fork()
        return self._stream(fork, question, sampling or Sampling(), [], fork.trace_recall(), keep=False)

    def _stream(
        self,
        memory: EpisodicMemory,
        question: str,
        sampling: Sampling,
        ids: list[int],
        trace: RecallTrace,
        *,
        keep: bool,
    ) -> Generator[str, None, None]:
        """Ask and answer in place; the generated ids are appended to `ids`."""
        checked_text(question, "a question")
        self._reading.open(memory)
        chat = self.chat_format
        is_first = memory.dialogue != "answered"
        dialogue, num_tokens = memory.dialogue, memory.num_tokens
        prompt = chat.after_opening(question + chat.before_answer) if dialogue == "opened" else None
        documents = memory.documents
        if prompt is None:
            prompt = chat.question(question, is_first=is_first)
        answer = self.asking.answer(
            memory,
            prompt,
            choose=make_chooser(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                seed=sampling.seed,
            ),
            max_new_tokens=sampling.max_new_tokens,
            trace=trace,
            head_stop=documents[0].start if documents else len(chat.opening),
            tail_start=documents[-1].stop if documents else len(chat.opening),
            template=range(len(prompt) - len(chat.piece(chat.before_answer)), len(prompt)),
            keep=keep,
        )
        memory.dialogue = "answered"  # first, so that it is written with the tokens
        try:
            with closing(answer) as tokens:
                yield from text_pieces(_recorded(tokens, ids), chat.decode)
        except BaseException:
            if memory.num_tokens == num_tokens:  # nothing was asked
                memory.dialogue = dialogue
            raise

    @property
    def asking(self) -> Asking:
        """How questions that are token ids already are answered through a memory."""
        chat = self.chat_format
        return Asking(
            model=self.model,
            cache_of=self.cache,
            fresh=lambda config: self.memory(config=config),
            between=tuple(chat.piece(SEPARATOR)),
            stop_ids=chat.stop_ids,
            neutral=tuple(chat.piece(chat.before_question + NEUTRAL_QUESTION)),
        )

    def evidence(self, memory: EpisodicMemory, trace: RecallTrace, limit: int) -> tuple[Evidence, ...]:
        """The strongest events of a trace, with their texts and places."""
        return evidence_of(memory, trace, limit, self.chat_format.decode)

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


def _check_start(memory: EpisodicMemory, token: int) -> None:
    """Refuse to compute anew from the midst of a document: its beginning would belong to none.

    Raises:
        InputError: no document begins or began there.
    """
    starts = {one.start for one in memory.documents} | {one.stop for one in memory.documents[-1:]}
    if token not in starts and not any(low <= token < high for low, high in memory.holes):
        raise InputError(f"no document begins at token {token}, or did before it was forgotten")
