"""Answering a question: through the memory as it is, or from the passages that it recalls, read again.

Recollecting takes three readings. The question is read with the whole memory. The strongest of the events
that all layers together recall for it are read again one by one, each before the question: the less the
question surprises after an event, the more it has to do with it (query likelihood, as in Sachan et al. 2022,
arXiv 2204.07496). What comes first then, with its neighbours in time, is read again in order, before the same
question, in a small context of its own with full attention, and the answer comes from there. The setting
`recollect` says whether, `rerank_events` how many are read one by one; docs/recall.md says what both are
worth. This module does not know templates, or how an answer is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emllm.config import MemoryConfig
from emllm.generation import Chooser, generate_tokens
from emllm.memory import EpisodicMemory
from emllm.memory.sequence import Moment
from emllm.reading import read_tokens
from emllm.recall.rereading import REACH, events_to_reread, joined_spans
from emllm.recall.trace import RecallTrace

#: Events of the consensus that are looked at: more than ever fit.
_NUM_RANKED = 256
#: An event is not read again if a question surprises by so many nats more after it than after the best.
RERANK_NATS = 10.0
#: What is asked to know what is recalled whatever is asked.
NEUTRAL_QUESTION = "What is this text about?"


@dataclass(frozen=True)
class Asking:
    """A model, and what stands around passages that are read again.

    Attributes:
        cache_of: the cache that runs the model through a memory.
        fresh: an empty memory with these settings.
        between: ids that part one passage from the next.
        stop_ids: ids that end an answer.
        neutral: ids of a question that asks for nothing in particular, without the template after it.
        usual_at: what the neutral question recalled, for memories that have not read on since.
    """

    model: Any
    cache_of: Callable[[EpisodicMemory], Any]
    fresh: Callable[[MemoryConfig], EpisodicMemory]
    between: tuple[int, ...]
    stop_ids: frozenset[int]
    neutral: tuple[int, ...]
    usual_at: MutableMapping[Moment, RecallTrace]

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

        Args:
            trace: of the memory, which records what is recalled for the question.
            head_stop: the tokens before it stand before the passages too: a template's opening, instructions.
            tail_start: the tokens from it on stand after the passages: the conversation so far.
            template: the prompt's ids that every question has. What they recall stands out for no question,
                so they do not take part in the consensus.
            keep: whether the answer becomes part of the memory where it came from passages.
        """
        if not recollects(memory):
            yield from self._generate(memory, prompt_ids, choose, max_new_tokens)
            return
        trace.take_off(self.usual(memory))
        start, stop = (template.start, template.stop) if template else (len(prompt_ids), len(prompt_ids))
        self._read(memory, prompt_ids[:start])
        memory.end_trace()
        self._read(memory, prompt_ids[start:stop])
        memory.trace_recall(trace)
        self._read(memory, prompt_ids[stop:])
        context = self.context(
            memory,
            self.ranking(memory, trace, prompt_ids[:start]),
            head_stop=head_stop,
            tail_start=tail_start,
            question_start=memory.num_tokens - len(prompt_ids),
        )
        answer_ids: list[int] = []
        try:
            fresh = self.fresh(MemoryConfig.preset("full", chunk_tokens=memory.config.chunk_tokens))
            for token in self._generate(fresh, context, choose, max_new_tokens):
                answer_ids.append(token)
                yield token
        finally:
            if keep:
                self._read(memory, answer_ids)

    def usual(self, memory: EpisodicMemory) -> RecallTrace:
        """What a neutral question recalls, asked on a fork: no evidence for any other."""
        known = self.usual_at.get(memory.moment)
        if known is not None:
            return known
        fork = memory.fork()
        trace = fork.trace_recall()
        self._read(fork, self.neutral)
        self.usual_at[memory.moment] = trace
        return trace

    def ranking(self, memory: EpisodicMemory, trace: RecallTrace, question: Sequence[int]) -> list[int]:
        """The events that are worth reading again for a question, the one that matters most first.

        The strongest of the trace in order of how little the question surprises after each: the surprise of
        all its ids together, in nats, after the event with its neighbours as they would be read again. What
        surprises by `RERANK_NATS` more than the best is left out: beside a passage that fits, others that are
        like it mislead a small model. The trace is told of the order.
        """
        events = [one.event for one in trace.strongest(memory.config.rerank_events or _NUM_RANKED)]
        if not memory.config.rerank_events or len(events) < 2 or not question:
            return events
        known = memory.recallable_spans()
        surprises = []
        for event in events:
            low, high = max(event - REACH, 0), min(event + REACH, len(known) - 1)
            passage = _kept(memory, int(known[low, 0]), int(known[high, 1]))
            alone = self.fresh(MemoryConfig.preset("full", segmenter="fixed", refine="none"))
            self._read(alone, [*passage, *self.between, *question])
            surprises.append(float(alone.surprise(alone.num_tokens - len(question)).sum()))
        most = min(surprises) + RERANK_NATS
        kept = [events[i] for i in np.argsort(surprises, kind="stable") if surprises[i] <= most]
        trace.put_first(kept)
        return kept

    def context(
        self,
        memory: EpisodicMemory,
        ranking: Sequence[int],
        *,
        head_stop: int,
        tail_start: int,
        question_start: int,
    ) -> list[int]:
        """What is read in place of the memory: its head, passages of ranked events in order, and its tail.

        What no recall can bring back stands there as it is, as it does for every layer: the sinks are part of
        the head, and the tail begins where the last event ends that has left the local window. What leads to
        the text is at most a quarter of what the model was trained on. The tail, without the question, counts
        among the tokens that are read again; half of them are for passages whatever its length.
        """
        config = memory.config
        text_start = min(head_stop, memory.geometry.trained_tokens // 4)
        head_stop = min(max(text_start, config.sink_tokens), question_start)
        known = memory.recallable_spans()
        unrecalled = int(known[-1, 1]) if len(known) else 0
        tail_start = max(tail_start, memory.num_tokens - config.local_tokens)
        tail_start = max(min(tail_start, question_start, unrecalled), head_stop)
        budget = config.recollect_tokens
        events = events_to_reread(
            ranking,
            known[:, 1] - known[:, 0],
            budget_tokens=max(budget - (question_start - tail_start), budget // 2),
        )
        passages = known[events].clip(head_stop, tail_start).tolist()
        spans = [(0, head_stop), *passages, (tail_start, memory.num_tokens)]
        ids: list[int] = []
        for start, stop in joined_spans(np.array([span for span in spans if span[0] < span[1]])):
            ids += _kept(memory, start, stop)
            ids += self.between if text_start != stop != memory.num_tokens else ()
        return ids

    def _read(self, memory: EpisodicMemory, token_ids: Sequence[int]) -> None:
        """Read ids, if there are any."""
        if token_ids:
            chunk_tokens = memory.config.chunk_tokens
            read_tokens(self.model, self.cache_of(memory), token_ids, chunk_tokens=chunk_tokens)

    def _generate(
        self, memory: EpisodicMemory, prompt_ids: Sequence[int], choose: Chooser, max_new_tokens: int
    ) -> Iterator[int]:
        return generate_tokens(
            self.model,
            self.cache_of(memory),
            prompt_ids,
            choose=choose,
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            chunk_tokens=memory.config.chunk_tokens,
        )


def _kept(memory: EpisodicMemory, start: int, stop: int) -> list[int]:
    """The tokens of a span that were not forgotten."""
    ids: list[int] = []
    for hole_start, hole_stop in [*sorted(memory.holes.tolist()), (stop, stop)]:
        if start < min(hole_start, stop):
            ids += memory.token_ids(start, min(hole_start, stop)).tolist()
        start = max(start, hole_stop)
    return ids


def recollects(memory: EpisodicMemory) -> bool:
    """Whether a question to this memory is answered from passages that are read again.

    `auto`: where not all of the text can be attended to.
    """
    wanted = memory.config.recollect
    return wanted == "always" or (wanted == "auto" and memory.is_selective)
