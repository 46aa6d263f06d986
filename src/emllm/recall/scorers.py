"""How well each event matches the present queries: one score per event and layer.

A scorer gets the queries of a chunk, turned as if at the end of the local window, and the event keys,
unrotated, so that every event is compared at one distance. Scores of one call are comparable with each
other and with nothing else. This module does not know how event keys are made nor what is done with the
scores.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from emllm.dims import Scores
from emllm.recall.compare import attention_shares, best_logits, most_standing_out
from emllm.recall.event_keys import key_tokens
from emllm.recall.exact import KeysOf, exact
from emllm.recall.index import IndexPart
from emllm.recall.queries import evenly, longest, mean_query, part_means
from emllm.recall.shortlist import keys_of as gathered

#: Scores from queries ``[H, T, D]``, the event keys of consecutive parts, the scaling of logits, and how many
#: tokens each key stands for (`event_keys.key_tokens`).
Scorer = Callable[[Tensor, Sequence[IndexPart], float, Tensor], Scores]

#: Logits that exist at once, so that a long question over a large index stays within little RAM, and within
#: what a program that frees memory keeps for the next time.
LOGITS_AT_ONCE = 1 << 22


def dot(
    query: Float[Tensor, "H T D"],
    parts: Sequence[IndexPart],
    scaling: float,
    key_tokens: Tensor | None = None,
) -> Scores:
    """Dot product of the mean query with the mean of an event's representative keys, over all heads.

    The paper's similarity (EM-LLM, section 3.3, after InfLLM, Eq. 2). The sum over the query heads
    of a group is taken first, so a layer costs one vector per KV head. Unscaled, as order is all that
    matters; `scaling` and `key_tokens` are ignored.
    """
    num_kv_heads = parts[0].keys.shape[0]
    mean = query.float().mean(dim=1).unflatten(0, (num_kv_heads, -1)).sum(dim=1)
    scores = []
    for part in parts:
        keys = part.floats()
        means = keys.mean(dim=2) if keys.shape[2] > 1 else keys[:, :, 0]
        scores.append(torch.einsum("KD,KND->N", mean.to(keys.dtype), means).float())
    return torch.cat(scores)


def attention(
    query: Float[Tensor, "H T D"],
    parts: Sequence[IndexPart],
    scaling: float,
    key_tokens: Float[Tensor, "R N"],
) -> Scores:
    """The estimated share of attention that an event gets per token of it, mean over queries and heads.

    Every key of an event counts as so many tokens with that key; what comes out estimates
    `recall.exact.event_mass`, and a budget of tokens holds the more of it the more an event has per token.
    **Deviation** from the paper, which compares one mean query with one mean key (docs/lab-notes.md).
    """
    num_kv_heads, _, _, head_dim = parts[0].keys.shape
    queries = (query * scaling).reshape(num_kv_heads, -1, head_dim)
    num_queries, num_events = queries.shape[1], key_tokens.shape[1]
    at_once = max(1, LOGITS_AT_ONCE // (num_kv_heads * num_events))
    shares = [
        attention_shares(some, parts, key_tokens) * (some.shape[1] / num_queries)
        for some in queries.split(at_once, dim=1)
    ]
    tokens = key_tokens.sum(dim=0).to(query.device)
    return functools.reduce(torch.add, shares) / tokens


@dataclass(frozen=True)
class Rest:
    """Many events by some of them.

    Attributes:
        sample: the keys of some.
        weight: how many events each of them stands for.
    """

    sample: IndexPart
    weight: float


def votes(
    query: Float[Tensor, "H T D"],
    parts: Sequence[IndexPart],
    scaling: float,
    key_tokens: Tensor | None = None,
    *,
    rest: Rest | None = None,
) -> Scores:
    """Every query of every head casts one vote over all events; an event's score is its best votes.

    For each query and head an event counts with the best of its representative keys, a softmax over
    the events follows, and the score is the sum over KV heads of an event's highest probability.
    **Deviation** from the paper, which compares one mean query: the mean loses what single queries look
    for (docs/lab-notes.md).

    Args:
        key_tokens: ignored, an event counts with its best key.
        rest: events that take part in the softmax and are not scored.
    """
    num_kv_heads, _, _, head_dim = parts[0].keys.shape
    queries = (query * scaling).reshape(num_kv_heads, -1, head_dim)
    num_events = sum(part.num_events for part in parts)
    at_once = max(1, LOGITS_AT_ONCE // (num_kv_heads * num_events))
    best: Tensor | None = None
    for some in queries.split(at_once, dim=1):
        logits, lse = best_logits(some, parts)
        if rest is not None:
            lse = torch.logaddexp(lse, best_logits(some, [rest.sample])[1] + math.log(rest.weight))
        log_shares = most_standing_out(logits, lse)
        best = log_shares if best is None else torch.maximum(best, log_shares)
    assert best is not None
    return best.exp_().sum(dim=0)


def votes_in_two_stages(
    query: Float[Tensor, "H T D"],
    parts: Sequence[IndexPart],
    scaling: float,
    key_tokens: Tensor | None = None,
) -> Scores:
    """The votes of a question over many events: all with a few queries and keys, then the best with all.

    The best events of the first stage are scored by all queries and keys, in a softmax over them and a sample
    that stands for the rest; the others keep the scores of the first stage. Up to `ONE_STAGE_EVENTS` events,
    `votes`. What it costs and what it loses is in docs/lab-notes.md.
    """
    num_events = sum(part.num_events for part in parts)
    if num_events <= ONE_STAGE_EVENTS:
        return votes(query, parts, scaling)
    scores = votes(longest(query, FIRST_VOTES), [part.first(FIRST_KEYS) for part in parts], scaling)
    best = np.sort(scores.topk(SECOND_EVENTS).indices.cpu().numpy())
    others = np.setdiff1d(np.arange(num_events), best, assume_unique=True)
    some = others[:: -(-len(others) // REST_EVENTS)]
    keys, sample = gathered(parts, best), gathered(parts, some)
    assert keys is not None and sample is not None
    rest = Rest(sample, len(others) / len(some))
    scores[torch.from_numpy(best).to(scores.device)] = votes(query, [keys], scaling, rest=rest)
    return scores


#: Parts of a chunk that is read whose mean queries ask what attention it pays (`attention`).
READING_PARTS = 2
#: Queries of a question that vote, of a longer chunk that is read, and of one in an exact ranking.
ASKING_VOTES = 64
READING_VOTES = 4
EXACT_VOTES = 32
#: Keys of an event that those few are compared with: ranking is bound by how much of the index is read.
READING_KEYS = 2
#: Up to so many events a question is ranked in one stage. In the first of two stages that many of its queries
#: vote over that many keys of each event.
ONE_STAGE_EVENTS = 4096
FIRST_VOTES = 8
FIRST_KEYS = 2
#: Events of the second stage, and about how many stand for the rest there.
SECOND_EVENTS = 2048
REST_EVENTS = 1024


@dataclass(frozen=True)
class Ranking:
    """A way to rank events: which queries of a chunk take part, and how they score events.

    Attributes:
        reading: of a chunk that is read.
        asking: of a question.
        score: from event keys; None where the keys of all tokens are asked for (`recall.exact`).
        score_asking: the same for a question over many events; None is `score`.
        reading_keys: while a long chunk is read, events are ranked by that many of their keys, the first;
            None is all of them. A question is always compared with all.
    """

    reading: Callable[[Tensor], Tensor]
    asking: Callable[[Tensor], Tensor]
    score: Scorer | None
    score_asking: Scorer | None = None
    reading_keys: int | None = None

    def sample(self, query: Float[Tensor, "H T D"], *, is_asking: bool) -> Float[Tensor, "H votes D"]:
        """The queries that take part."""
        return self.asking(query) if is_asking else self.reading(query)

    def scorer(self, *, is_asking: bool) -> Scorer | None:
        """What scores events."""
        return self.score_asking if is_asking and self.score_asking is not None else self.score

    def parts(self, parts: Sequence[IndexPart], *, is_asking: bool) -> Sequence[IndexPart]:
        """The event keys to compare with."""
        if self.reading_keys is None or is_asking:
            return parts
        return [part.first(self.reading_keys) for part in parts]

    def scores(
        self,
        query: Float[Tensor, "H T D"],
        turned: Callable[[Tensor], Tensor],
        *,
        parts: Sequence[IndexPart],
        sizes: NDArray[np.int64],
        keys_of: KeysOf,
        event_key: str,
        scaling: float,
        is_asking: bool,
    ) -> NDArray[np.float32]:
        """How well events match a chunk's queries.

        Args:
            query: before rotation.
            turned: gives queries as they stand towards all events.
            parts: the event keys of consecutive parts.
            sizes: tokens of each event.
            keys_of: the keys of all tokens, where it is they that are ranked.
            event_key: what those of `parts` are.
            scaling: factor on the logits.
            is_asking: whether the chunk is a question, or is decoded; else it is read.
        """
        asking = turned(self.sample(query, is_asking=is_asking))
        score = self.scorer(is_asking=is_asking)
        if score is None:
            return exact(asking, keys_of, torch.from_numpy(sizes), scaling).float().cpu().numpy()
        seen = self.parts(parts, is_asking=is_asking)
        tokens = key_tokens(event_key, sizes, seen[0].keys.shape[1])
        return score(asking, seen, scaling, tokens).float().cpu().numpy()


_asking = functools.partial(evenly, num=ASKING_VOTES)

SCORERS: Mapping[str, Ranking] = {
    "dot": Ranking(reading=mean_query, asking=mean_query, score=dot),
    "votes": Ranking(
        reading=functools.partial(evenly, num=READING_VOTES),
        asking=_asking,
        score=votes,
        score_asking=votes_in_two_stages,
        reading_keys=READING_KEYS,
    ),
    "attention": Ranking(
        reading=functools.partial(part_means, num=READING_PARTS),
        asking=_asking,
        score=attention,
        score_asking=votes_in_two_stages,
    ),
    "exact": Ranking(
        reading=functools.partial(evenly, num=EXACT_VOTES),
        asking=_asking,
        score=None,
    ),
}
