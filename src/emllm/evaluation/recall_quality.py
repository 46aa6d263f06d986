"""How much of exact attention a ranking of events recalls, measured while a memory reads.

At a recall, each event has a mass: its share of the softmax attention that the chunk's queries pay to all
tokens that may be recalled, every token at one distance, averaged over queries and heads. A ranking that is
given a budget of tokens picks events, and these hold so much of the mass. Beside the memory's own ranking
stand every scorer without contiguity, the most that any events of that budget could hold, and two rankings
that do not look: the latest events and events by chance.

The mass is that of the attention which this memory's queries pay; what a model would have attended to that
had read with full attention is not known here. This module does not know texts, files or tables.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from emllm.config import ResolvedConfig
from emllm.memory.staging import RecallMoment
from emllm.recall.budget import select_events
from emllm.recall.exact import LOGITS_AT_ONCE, KeysOf, event_mass
from emllm.recall.queries import evenly
from emllm.recall.scorers import SCORERS

#: Queries of a chunk, evenly spaced, whose attention is what rankings are held against.
NUM_QUERIES = 32
#: Orders that events by chance are the mean of.
NUM_DRAWS = 8

#: In the order of tables: the memory's own ranking, every scorer, the bound, and those that do not look.
METHODS = ("configured", *SCORERS, "best", "recent", "random")


def mean_mass(
    query: Float[Tensor, "H T D"], keys_of: KeysOf, sizes: Int[np.ndarray, " N"], *, scaling: float
) -> Float[np.ndarray, " N"]:
    """Each event's share of the exact attention over all events, as the mean over queries and heads."""
    num_tokens = torch.from_numpy(sizes)
    at_once = max(1, LOGITS_AT_ONCE // max(1, int(sizes.sum()) * query.shape[0]))
    total = np.zeros(len(sizes))
    for some in query.split(at_once, dim=1):
        mass = event_mass(some, keys_of, num_tokens, scaling=scaling)
        total += mass.double().sum(dim=(0, 1)).cpu().numpy()
    return total / total.sum()


def most_mass(mass: Float[np.ndarray, " N"], sizes: Int[np.ndarray, " N"], *, budget_tokens: int) -> float:
    """The most that events of a budget could hold: by mass per token, the last one in part.

    With the part of an event this is a bound that no choice of whole events passes.
    """
    order = np.argsort(-mass / sizes, kind="stable")
    used = np.cumsum(sizes[order])
    num_whole = int(np.searchsorted(used, budget_tokens, side="right"))
    held = float(mass[order[:num_whole]].sum())
    if num_whole < len(sizes):
        left = budget_tokens - (int(used[num_whole - 1]) if num_whole else 0)
        edge = order[num_whole]
        held += float(mass[edge]) * left / int(sizes[edge])
    return held


@dataclass(frozen=True)
class LayerShares:
    """What rankings held in one layer, as means over the recalls that were looked at.

    Attributes:
        num_recalls: that were looked at.
        num_events: that were ranked, in the mean.
        share: of the exact mass, by method, one number a budget.
        of_best: the same as a share of the bound `best`.
        recalled_tokens: that the memory really recalled, in the mean; its budget less what lies before
            the local window.
        recalled_share: of the exact mass, that these held.
        recalled_of_best: the same as a share of the bound for so many tokens.
    """

    num_recalls: int
    num_events: float
    share: Mapping[str, Sequence[float]]
    of_best: Mapping[str, Sequence[float]]
    recalled_tokens: float
    recalled_share: float
    recalled_of_best: float


class RecallQuality:
    """Looks at every n-th recall of each layer; give it to `EpisodicMemory.observe_recall`.

    Written by being called.

    Args:
        config: of the memory.
        budgets: in tokens.
        every: look at the first recall of a layer, and then at every so manieth.
        seed: of events by chance.
    """

    def __init__(
        self, config: ResolvedConfig, budgets: Sequence[int], *, every: int = 1, seed: int = 0
    ) -> None:
        self._config = config
        self._budgets = tuple(budgets)
        self._every = every
        self._seed = seed
        self._num_recalls: Counter[int] = Counter()
        self._found: dict[int, list[_Found]] = defaultdict(list)

    @torch.no_grad()
    def __call__(self, moment: RecallMoment) -> None:
        """Look at one recall of one layer."""
        number = self._num_recalls[moment.layer_idx]
        self._num_recalls[moment.layer_idx] += 1
        if number % self._every == 0:
            self._found[moment.layer_idx].append(self._look(moment))

    def begin_text(self) -> None:
        """Count recalls anew, as another memory begins."""
        self._num_recalls.clear()

    def layers(self) -> dict[int, LayerShares]:
        """What was found so far, by layer."""
        return {layer_idx: _mean_of(found) for layer_idx, found in sorted(self._found.items())}

    def _look(self, moment: RecallMoment) -> _Found:
        sizes = moment.sizes
        asking = moment.turned(evenly(moment.query, NUM_QUERIES))
        mass = mean_mass(asking, moment.keys_of, sizes, scaling=moment.scaling)
        shares = {
            name: [self._held(mass, sizes, scores, budget) for budget in self._budgets]
            for name, scores in self._scores(moment).items()
        }
        shares["configured"] = [self._configured(mass, moment, budget) for budget in self._budgets]
        shares["best"] = [most_mass(mass, sizes, budget_tokens=budget) for budget in self._budgets]
        shares["random"] = self._random(mass, moment)
        recalled = np.array(moment.recalled, dtype=np.int64)
        recalled_tokens = int(sizes[recalled].sum())
        return _Found(
            len(sizes),
            np.array([shares[name] for name in METHODS]),
            recalled_tokens,
            float(mass[recalled].sum()),
            most_mass(mass, sizes, budget_tokens=recalled_tokens),
        )

    def _scores(self, moment: RecallMoment) -> dict[str, NDArray[np.float32]]:
        """The scores of all events by every scorer, and by age."""
        scores = {
            name: ranking.scores(
                moment.query,
                moment.turned,
                parts=moment.parts,
                sizes=moment.sizes,
                keys_of=moment.keys_of,
                event_key=self._config.event_key,
                scaling=moment.scaling,
                is_asking=moment.is_asking,
            )
            for name, ranking in SCORERS.items()
        }
        return {**scores, "recent": np.arange(len(moment.sizes), dtype=np.float32)}

    def _random(self, mass: NDArray[np.float64], moment: RecallMoment) -> list[float]:
        """What events by chance hold: the same orders for every budget, others at every recall."""
        random = np.random.default_rng((self._seed, moment.layer_idx, len(moment.sizes)))
        orders = random.random((NUM_DRAWS, len(moment.sizes)), dtype=np.float32)
        return [
            float(np.mean([self._held(mass, moment.sizes, order, budget) for order in orders]))
            for budget in self._budgets
        ]

    def _configured(self, mass: NDArray[np.float64], moment: RecallMoment, budget: int) -> float:
        """As the memory selects with this budget, but for what its contiguity queue held before."""
        events, _ = select_events(
            moment.scores,
            moment.sizes,
            budget_tokens=budget,
            contiguity=self._config.contiguity,
            min_event_tokens=self._config.min_event_tokens,
            candidates=moment.candidates,
        )
        return float(mass[events].sum())

    def _held(
        self, mass: NDArray[np.float64], sizes: NDArray[np.int64], scores: NDArray[np.float32], budget: int
    ) -> float:
        """The mass of the events that these scores select."""
        events, _ = select_events(
            scores,
            sizes,
            budget_tokens=budget,
            contiguity=0.0,
            min_event_tokens=self._config.min_event_tokens,
        )
        return float(mass[events].sum())


@dataclass(frozen=True)
class _Found:
    """What one look found: shares by method and budget, and what was really recalled."""

    num_events: int
    shares: NDArray[np.float64]
    recalled_tokens: int
    recalled_share: float
    recalled_best: float


def _mean_of(found: Sequence[_Found]) -> LayerShares:
    shares = np.stack([one.shares for one in found])
    of_best = shares / np.maximum(shares[:, [METHODS.index("best")]], np.finfo(float).tiny)
    return LayerShares(
        num_recalls=len(found),
        num_events=float(np.mean([one.num_events for one in found])),
        share=dict(zip(METHODS, shares.mean(axis=0).tolist(), strict=True)),
        of_best=dict(zip(METHODS, of_best.mean(axis=0).tolist(), strict=True)),
        recalled_tokens=float(np.mean([one.recalled_tokens for one in found])),
        recalled_share=float(np.mean([one.recalled_share for one in found])),
        recalled_of_best=float(
            np.mean([one.recalled_share / one.recalled_best if one.recalled_best else 1.0 for one in found])
        ),
    )
