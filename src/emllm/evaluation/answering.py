"""One sample answered by one row: the text is read once, each question is asked on a fork.

Greedy, and the same for all rows but for what they attend to. This module does not know scores, files or
which rows there are.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emllm.config import UNLIMITED_TOKENS
from emllm.errors import SourceError, StoreError
from emllm.evaluation.last_reading import LastReading, asked_with
from emllm.evaluation.prompts import (
    PromptFormat,
    dateless,
    prompt_format,
    text_of,
    until_stop,
    without_middle,
)
from emllm.evaluation.rows import Row, attended_tokens
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.task import Task
from emllm.evaluation.wishes import PERPLEXITY
from emllm.generation import text_pieces
from emllm.lm import EpisodicLM
from emllm.memory import EpisodicMemory
from emllm.models.outline import Outline
from emllm.models.sampling import make_chooser
from emllm.needs import Needs, Workload
from emllm.plan import existing_folder
from emllm.reading import ProgressCallback, check_fits, read_tokens
from emllm.recall.trace import RecallTrace

if TYPE_CHECKING:
    from emllm.evaluation.rag import Passages

NUM_EVIDENCE = 5


@dataclass(frozen=True)
class Reply:
    """An answer to one question.

    Attributes:
        prediction: what was generated, before the first stop; never with the words put into its mouth.
        answer_tokens: generated, those of a stop included.
        evidence: the strongest recalled events, or the passages that were read, as JSON.
        read_tokens: of this question's own passages; None where the text was read for all questions.
        seconds: from the question to the end of the answer.
        first_token_seconds: from the question to the first token.
    """

    prediction: str
    answer_tokens: int
    evidence: tuple[dict[str, Any], ...]
    read_tokens: int | None
    seconds: float
    first_token_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a row made of a sample.

    Attributes:
        tokens: of the prompt before the questions.
        read_tokens: those that the row read; the mean over questions that have passages of their own.
        replies: one a question.
        mean_surprise: of the text's tokens that were read, in nats; None unless that is the task.
        read_seconds: of reading the text; None where an interrupted run had read some of it.
        recalled_tokens: budget of recalled events per layer; None: all.
    """

    tokens: int
    read_tokens: int
    replies: tuple[Reply, ...]
    mean_surprise: float | None
    read_seconds: float | None
    recalled_tokens: int | None


class Answerer:
    """Answers samples with one model and one row.

    Args:
        lm: attached model with its tokenizer.
        row: the method.
        shared: settings that the user gave for all rows.
        last: shared with the answerers of other rows, which may have read the same text alike.

    Raises:
        ConfigError: the row's settings are wrong, or exceed the model.
    """

    def __init__(
        self, lm: EpisodicLM, row: Row, shared: Mapping[str, Any], last: LastReading | None = None
    ) -> None:
        self._lm = lm
        self._row = row
        self._shared = shared
        self._config = row.config(shared)
        geometry = lm.geometry
        self._resolved = row.resolved(
            shared, trained_tokens=geometry.trained_tokens, num_layers=geometry.num_layers
        )
        self._last = last or LastReading()
        self._chat = dateless(lm.chat_format)
        if row.kind == "passages":
            # A wrong setting, or an embedding model that is not there, shows before the first sample.
            self._row = replace(row, settings=row.search_settings(shared))
            question = Question("What is it?", ())
            self._passages(Sample("rehearsal", "", "A short text to begin with.", (question,)), question)

    def answer(self, task: Task, sample: Sample, *, progress: ProgressCallback | None = None) -> Outcome:
        """Read the sample's text and answer its questions.

        Raises:
            InputError: a question is empty, or leaves no room for the text.
            SourceError: the text will not fit into memory.
        """
        layout = prompt_format(self._chat, task)
        text_ids, questions = layout.cut(text_of(sample), sample.questions)
        tokens = len(layout.opening) + len(text_ids)
        if self._row.kind == "passages":
            self._last.let_go()
            replies = tuple(self._with_passages(task, sample, one, layout) for one in sample.questions)
            read = [reply.read_tokens or 0 for reply in replies]
            return Outcome(tokens, round(sum(read) / max(len(read), 1)), replies, None, 0.0, 0)
        kept = self._kept(task, layout, text_ids, questions)
        ids = [*layout.opening, *kept]
        memory, read_seconds = self._last.of(
            self._resolved,
            ids,
            lambda folder: self._read(ids, name=sample.sample_id, folder=folder, progress=progress),
        )
        head_stop = len(layout.opening) + len(layout.encode(sample.before))
        surprise = None
        if task.metric == PERPLEXITY:
            surprise = _mean(memory.surprise(min(head_stop, memory.num_tokens)))
        replies = tuple(
            self._reply(
                task,
                asked_with(memory, self._resolved),
                asked,
                head_stop=head_stop,
                template=layout.template(one, len(asked)),
            )
            for one, asked in zip(sample.questions, questions, strict=True)
        )
        budget = self._resolved.recall_tokens
        recalled = None if budget == UNLIMITED_TOKENS else budget
        return Outcome(tokens, memory.num_tokens, replies, surprise, read_seconds, recalled)

    def _kept(
        self, task: Task, layout: PromptFormat, text_ids: list[int], questions: Sequence[Sequence[int]]
    ) -> list[int]:
        """What of the text is read: full attention reads no more than the model was trained on.

        With several questions the longest counts, as the text is read once for all of them.
        """
        if self._row.kind == "memory":
            return text_ids
        window = self._lm.geometry.trained_tokens - len(layout.opening)
        if task.metric == PERPLEXITY:
            return text_ids[: max(window, 0)]
        longest = max((len(ids) for ids in questions), default=0)
        return without_middle(text_ids, window - task.answer_tokens - longest)

    def _read(
        self,
        token_ids: Sequence[int],
        *,
        name: str,
        folder: Path | None = None,
        progress: ProgressCallback | None = None,
    ) -> tuple[EpisodicMemory, float | None]:
        """A memory of a text, and the seconds that reading it took; None if it went on from before.

        Args:
            folder: where it is kept if it does not fit into RAM.

        Raises:
            SourceError: it fits neither into RAM nor onto the disk.
        """
        lm = self._lm
        begun = time.perf_counter()
        memory = self._empty(len(token_ids), name, folder)
        num_read = memory.num_tokens
        try:
            chunk_tokens, cache = self._resolved.chunk_tokens, lm.cache(memory)
            read_tokens(lm.model, cache, token_ids[num_read:], chunk_tokens=chunk_tokens, progress=progress)
        except BaseException:
            with suppress(StoreError):  # what is told is why it ended
                memory.close()
            raise
        return memory, None if num_read else time.perf_counter() - begun

    def _empty(self, num_tokens: int, name: str, folder: Path | None) -> EpisodicMemory:
        """A memory for a text: in RAM, in a folder where it does not fit, or what the folder holds of it."""
        lm = self._lm
        if folder is None or not folder.exists():
            try:
                check_fits(4 * num_tokens, lm.geometry, name=name)
                return lm.memory(config=self._config)
            except SourceError as error:
                if folder is None:
                    raise
                self._last.discard()
                outline = Outline(lm.geometry, 0, 0, 0, 0)  # what a folder takes does not hang on the rest
                needs = Needs(outline, self._resolved, Workload(num_tokens, num_tokens, 1.0))
                _check_disk(needs.disk_bytes(self._resolved.codec), folder, error)
                folder.parent.mkdir(parents=True)
        return lm.memory(folder, self._config)

    def _with_passages(self, task: Task, sample: Sample, question: Question, layout: PromptFormat) -> Reply:
        """One question about what a search found for it."""
        begun = time.perf_counter()
        passages = self._passages(sample, question)
        text_ids, (ids,) = layout.cut(text_of(sample, passages.text), [question])
        kept = self._kept(task, layout, text_ids, [ids])
        memory, _ = self._read([*layout.opening, *kept], name=sample.sample_id)
        reply = self._reply(task, memory, ids, begun=begun, read_tokens=memory.num_tokens)
        return replace(reply, evidence=passages.evidence)

    def _passages(self, sample: Sample, question: Question) -> Passages:
        from emllm.evaluation.rag import passages_for  # late: only such rows need it

        return passages_for(self._row, self._lm, sample, question, attended_tokens(self._shared))

    def _reply(
        self,
        task: Task,
        memory: EpisodicMemory,
        prompt_ids: Sequence[int],
        *,
        head_stop: int = 0,
        template: range = range(0),
        begun: float | None = None,
        read_tokens: int | None = None,
    ) -> Reply:
        """Ask in a memory that nobody else needs, and answer greedily.

        Args:
            head_stop: the tokens before it, template and instructions, stand before what is read again.
            template: ids of the prompt that every question has.
        """
        begun = time.perf_counter() if begun is None else begun
        trace = memory.trace_recall()
        marks: list[float] = []
        tokens = self._lm.asking.answer(
            memory,
            prompt_ids,
            choose=make_chooser(temperature=0.0, top_p=1.0, repetition_penalty=1.0, seed=None),
            max_new_tokens=task.answer_tokens,
            trace=trace,
            head_stop=head_stop,
            tail_start=memory.num_tokens,
            template=template,
            keep=False,
        )
        text, is_stopped = "", False
        with closing(_marked(tokens, marks)) as marked:
            for piece in text_pieces(marked, self._chat.decode):
                text, is_stopped = until_stop(text + piece, task.stops)
                if is_stopped:
                    break
        ended = time.perf_counter()
        first = marks[0] if marks else ended
        evidence = self._evidence(memory, trace) if self._row.kind == "memory" else ()
        return Reply(text, len(marks), evidence, read_tokens, ended - begun, first - begun)

    def _evidence(self, memory: EpisodicMemory, trace: RecallTrace) -> tuple[dict[str, Any], ...]:
        """Where the strongest recalled events lie, without their texts."""
        return tuple(
            {
                "event": one.event,
                "start": one.start,
                "stop": one.stop,
                "score": round(one.score, 4),
                "layers": one.layers,
            }
            for one in self._lm.evidence(memory, trace, NUM_EVIDENCE)
        )


def _check_disk(num_bytes: int, folder: Path, why: SourceError) -> None:
    """Refuse a text that does not fit onto the disk either."""
    there = existing_folder(folder)
    free = shutil.disk_usage(there).free
    if num_bytes > free:
        raise SourceError(f"{why}, and {free / 1e9:.1f} GB on the disk of {there}") from why


def _marked(tokens: Any, marks: list[float]) -> Any:
    """The tokens, with the time at which each came."""
    for token in tokens:
        marks.append(time.perf_counter())
        yield token


def _mean(values: np.ndarray) -> float:
    """Mean of the known values.

    Raises:
        ValueError: there is none.
    """
    known = values[~np.isnan(values)].astype(np.float64)
    if not len(known):
        raise ValueError("the text has no token that was predicted")
    mean = float(known.mean())
    assert math.isfinite(mean), "surprise is finite where it is known"
    return mean
