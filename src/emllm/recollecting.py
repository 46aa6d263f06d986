"""Answering a question: through the memory as it is, or from the passages that it recalls, read again.

Recollecting takes three readings. The question is read with the whole memory. The strongest of the events
that all layers together recall for it are read again, each alone before the question, and so are the two
ends of the text, which no layer ranks: the less the question surprises after a passage, the more it
has to do with it (query likelihood, as in Sachan et al. 2022, arXiv 2204.07496). What comes first then, with
its neighbours in time, is read again in order, before the same question, in a small context of its own with
full attention, and the answer comes from there. The setting `recollect` says whether, `rerank_events` how
many are read alone; docs/recall.md says what both are worth. This module does not know templates, or how an
answer is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emllm.config import MemoryConfig
from emllm.framing import Frame
from emllm.generation import Chooser, generate_tokens
from emllm.memory import EpisodicMemory
from emllm.reading import read_together, read_tokens
from emllm.recall.queries import asking_tokens
from emllm.recall.rereading import REACH, events_to_reread, joined_spans
from emllm.recall.trace import RecalledEvent, RecallTrace, Usual, place_of
from emllm.segmentation.threshold import boundary_flags

#: Events of the consensus that are looked at: more than ever fit.
_NUM_RANKED = 256
#: A passage is not read again if a question surprises by so many nats more after it than after the best.
RERANK_NATS = 10.0
#: What is asked to know what is recalled whatever is asked.
NEUTRAL_QUESTION = "What is this text about?"


@dataclass(frozen=True)
class Asking:
    """A model, and what stands around passages that are read again.

    Attributes:
        cache_of: the cache that runs the model through memories, a row of a batch through each.
        fresh: an empty memory with these settings.
        between: ids that part one passage from the next.
        stop_ids: ids that end an answer.
        neutral: ids of a question that asks for nothing in particular, without the template after it.
    """

    model: Any
    cache_of: Callable[..., Any]
    fresh: Callable[[MemoryConfig], EpisodicMemory]
    between: tuple[int, ...]
    stop_ids: frozenset[int]
    neutral: tuple[int, ...]

    def answer(
        self,
        memory: EpisodicMemory,
        prompt_ids: Sequence[int],
        *,
        choose: Chooser,
        max_new_tokens: int,
        trace: RecallTrace,
        head_stop: int,
        tail_start: int,
        template: range = range(0),
        keep: bool = True,
    ) -> Generator[int, None, None]:
        """Read a question into a memory, and generate the answer.

        What leads from the question to the answer is read into the memory after the answer, so that the first
        token need not wait for it, and never where nothing is kept; unless the prompt goes on after it.

        Args:
            trace: of the memory, which records what is recalled for the question.
            head_stop: the tokens before it stand before the passages too: a template's opening, instructions.
            tail_start: the tokens from it on stand after the passages: the conversation so far.
            template: the prompt's ids that every question has. What they recall stands out for no question,
                so they do not take part in the consensus.
            keep: whether all of it, as far as it was shown, becomes part of the memory. Where nothing is read
                again it does as it comes; without `keep` a last token that is shown may be missing.
        """
        if not recollects(memory):
            for token in self._generate(memory, prompt_ids, choose, max_new_tokens):
                try:
                    yield token
                except GeneratorExit:  # what was shown is kept, though no next token is asked for
                    if keep:
                        self._read(memory, [token])
                    raise
            return
        trace.take_off(self.usual(memory))
        question_start = memory.num_tokens
        num_asked = template.start if template else len(prompt_ids)
        question, unread = prompt_ids[:num_asked], prompt_ids[num_asked:]
        self._ask(memory, question)
        if unread and template.stop < len(prompt_ids):
            memory.end_trace()
            self._read(memory, prompt_ids[num_asked : template.stop])
            memory.trace_recall(trace)
            self._read(memory, prompt_ids[template.stop :])
            unread = ()
        answer_ids: list[int] = []
        try:
            frame = Frame.of(
                memory, head_stop=head_stop, tail_start=tail_start, question_start=question_start
            )
            answer = self._recollected(memory, prompt_ids, question, frame, trace, choose, max_new_tokens)
            for token in answer:
                answer_ids.append(token)
                yield token
        finally:
            if keep:
                memory.end_trace()
                self._read(memory, [*unread, *answer_ids])

    def _recollected(
        self,
        memory: EpisodicMemory,
        prompt_ids: Sequence[int],
        question: Sequence[int],
        frame: Frame,
        trace: RecallTrace,
        choose: Chooser,
        max_new_tokens: int,
    ) -> Iterator[int]:
        """Generate from passages, which `recollect_every_tokens` seeks anew where the answer surprises.

        After a token that surprises, what was said since asks as well: on a fork that reads it, its recalls
        are added to the question's, and passages are held against both. (After FLARE, Jiang et al. 2023,
        arXiv 2305.06983, which writes a sentence anew where a token of it was improbable; here what is said
        stays.)
        """
        every, gamma = memory.config.recollect_every_tokens, memory.config.gamma
        answer: list[int] = []
        query = question
        while True:
            passages = self.passages(memory, trace, query, frame)
            context = [*self.context(memory, passages, frame, prompt_ids), *prompt_ids, *answer]
            begun = len(answer)
            fresh = self.fresh(_settings(memory, len(context) + max_new_tokens - begun))
            for token in self._generate(fresh, context, choose, max_new_tokens - begun, before=answer):
                answer.append(token)
                yield token
                is_enough = 0 < every <= len(answer) - begun and len(answer) < max_new_tokens
                if is_enough and is_surprising(fresh.surprise(len(context)), gamma=gamma):
                    break
            else:
                return
            memory = memory.fork()
            memory.trace_recall(trace)
            self._ask(memory, answer[begun:])
            query = [*question, *answer[begun:]]

    def usual(self, memory: EpisodicMemory) -> Usual:
        """What a neutral question recalls, asked on a fork: no evidence for any other.

        It is asked once, until the memory or a fork of it reads on.
        """
        moment = memory.moment
        if moment.usual is None or moment.usual.asked != self.neutral:
            fork = memory.fork()
            trace = fork.trace_recall()
            self._read(fork, self.neutral)
            moment.usual = Usual(self.neutral, trace.standing)
        return moment.usual

    def passages(
        self, memory: EpisodicMemory, trace: RecallTrace, question: Sequence[int], frame: Frame
    ) -> list[int | range]:
        """What is worth reading again for a question, the best first: events, and the ends of the text.

        The strongest of the trace in order of how little the question surprises after each: the surprise of
        all its ids together, in nats, after the event with its neighbours as they would be read again. What
        surprises by `RERANK_NATS` more than the best of the text is left out: beside a passage that fits,
        others that are like it mislead a small model, and so does what was read last. An earlier turn of the
        conversation, in which the same may have been asked, does not make the text superfluous. The trace is
        told what is left. Where nothing is reranked, all are, the ends last; and nothing is for a question of
        more tokens than half of what the model was trained on.
        """
        limit = memory.config.rerank_events or _NUM_RANKED
        known = memory.recallable_spans()
        before = frame.conversation.start
        ranked = [
            one
            for one in trace.strongest(limit)
            if one.event < frame.num_events and known[one.event, 0] < before
        ]
        found: list[RecalledEvent | range] = [*ranked, *frame.unranked]
        is_short = 0 < len(question) <= memory.geometry.trained_tokens // 2
        if memory.config.rerank_events and len(found) > 1 and is_short:
            found = self._reranked(memory, found, question, frame)
        trace.choose(found)
        return list(map(place_of, found))

    def _reranked(
        self,
        memory: EpisodicMemory,
        found: Sequence[RecalledEvent | range],
        question: Sequence[int],
        frame: Frame,
    ) -> list[RecalledEvent | range]:
        """Those after which the question surprises little, the least first."""
        known, before = memory.recallable_spans(), frame.conversation.start
        spans = [_with_neighbours(one, known) for one in map(place_of, found)]
        nats = self._surprises_after(memory, [(start, min(stop, before)) for start, stop in spans], question)
        is_text = np.array([isinstance(one, range) or known[one.event, 0] < frame.text_stop for one in found])
        is_kept = nats <= nats[is_text].min(initial=np.inf) + RERANK_NATS
        return [found[i] for i in np.argsort(nats, kind="stable") if is_kept[i]]

    def _surprises_after(
        self, memory: EpisodicMemory, spans: Sequence[tuple[int, int]], question: Sequence[int]
    ) -> NDArray[np.float64]:
        """How much a question surprises after each of some spans of a memory, in nats.

        Spans of like length are read together, as many as one chunk holds.
        """
        chunk_tokens = memory.config.chunk_tokens
        parting = self._parting(question)
        texts = [[*memory.kept_ids(start, stop), *parting, *question] for start, stop in spans]
        nats = np.zeros(len(texts))
        for group in alike([len(text) for text in texts], most_tokens=chunk_tokens):
            alone = [self.fresh(MemoryConfig.preset("full", segmenter="fixed", refine="none")) for _ in group]
            together = [texts[i] for i in group]
            read_together(self.model, self.cache_of(*alone), together, chunk_tokens=chunk_tokens)
            for i, one in zip(group, alone, strict=True):
                nats[i] = one.surprise(len(texts[i]) - len(question), len(texts[i])).sum()
        return nats

    def context(
        self,
        memory: EpisodicMemory,
        passages: Sequence[int | range],
        frame: Frame,
        prompt_ids: Sequence[int],
    ) -> list[int]:
        """What is read before the prompt in place of the memory: what leads to the text, passages in order,
        the conversation.

        The conversation and the passages that no layer ranks count among the tokens that are read again; half
        of them are for events whatever their length.
        """
        known, talk = memory.recallable_spans(), frame.conversation
        ends = [one for one in passages if isinstance(one, range)]
        taken = sum(len(memory.kept_ids(one.start, one.stop)) for one in (*ends, talk))
        budget = memory.config.recollect_tokens
        events = events_to_reread(
            [one for one in passages if isinstance(one, int)],
            known[:, 1] - known[:, 0],
            budget_tokens=max(budget - taken, budget // 2),
        )
        spans = [
            (0, frame.text_start),
            *map(tuple, known[events].clip(frame.text_start, talk.start).tolist()),
            *((one.start, one.stop) for one in (*ends, talk)),
        ]
        there = sorted(span for span in spans if span[0] < span[1])
        joined = joined_spans(np.array(there, dtype=np.int64).reshape(-1, 2))
        pieces = [memory.kept_ids(start, stop) for start, stop in joined]
        ids: list[int] = []
        followed_by = [*pieces[1:], prompt_ids][: len(pieces)]
        for (_, stop), piece, following in zip(joined, pieces, followed_by, strict=True):
            ids += piece
            ids += self._parting(following) if frame.text_start != stop != talk.stop else ()
        return ids

    def _parting(self, following: Sequence[int]) -> tuple[int, ...]:
        """What parts a passage from what follows it: nothing more where that begins so itself."""
        return () if tuple(following[: len(self.between)]) == self.between else self.between

    def _ask(self, memory: EpisodicMemory, token_ids: Sequence[int]) -> None:
        """Read ids as a question, which is compared with all events; more at once are read as a text is."""
        num_pieces = -(-len(token_ids) // asking_tokens(memory.config.chunk_tokens))
        for piece in np.array_split(np.array(token_ids, dtype=np.int64), max(num_pieces, 1)):
            self._read(memory, piece.tolist())

    def _read(self, memory: EpisodicMemory, token_ids: Sequence[int]) -> None:
        """Read ids, if there are any."""
        if token_ids:
            chunk_tokens = memory.config.chunk_tokens
            read_tokens(self.model, self.cache_of(memory), token_ids, chunk_tokens=chunk_tokens)

    def _generate(
        self,
        memory: EpisodicMemory,
        prompt_ids: Sequence[int],
        choose: Chooser,
        max_new_tokens: int,
        before: Sequence[int] = (),
    ) -> Iterator[int]:
        return generate_tokens(
            self.model,
            self.cache_of(memory),
            prompt_ids,
            choose=choose,
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            chunk_tokens=memory.config.chunk_tokens,
            before=before,
        )


def _with_neighbours(passage: int | range, known: NDArray[np.int64]) -> tuple[int, int]:
    """Start and stop of a span, or of an event with those beside it."""
    if isinstance(passage, range):
        return passage.start, passage.stop
    last = len(known) - 1
    return int(known[max(passage - REACH, 0), 0]), int(known[min(passage + REACH, last), 1])


def _settings(memory: EpisodicMemory, num_tokens: int) -> MemoryConfig:
    """How so many tokens are read again: with full attention, as far as the model was trained.

    A question or an answer that is longer is attended to as the memory attends to a text.
    """
    if num_tokens <= memory.geometry.trained_tokens:
        return MemoryConfig.preset("full", chunk_tokens=memory.config.chunk_tokens)
    return MemoryConfig(**{**asdict(memory.config), "codec": "exact", "recollect": "never"})


def is_surprising(surprise: NDArray[np.float32], *, gamma: float) -> bool:
    """Whether the last token surprises beyond those before it, as where an event begins (EM-LLM, Eq. 1)."""
    flags, _ = boundary_flags(surprise, gamma=gamma, window_tokens=len(surprise))
    return bool(flags[-1:].any())


def alike(lengths: Sequence[int], *, most_tokens: int) -> list[list[int]]:
    """Texts in groups, those of like length together: none has more tokens, padded, but one text alone."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= most_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def recollects(memory: EpisodicMemory) -> bool:
    """Whether a question to this memory is answered from passages that are read again."""
    return memory.config.recollects(is_selective=memory.is_selective)
