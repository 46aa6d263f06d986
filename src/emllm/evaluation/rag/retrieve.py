"""Retrieval: the passages most like a question, as many as a budget of tokens holds.

Passages are taken by rank until one does not fit; of that one the first words are, so that the budget is full
as it is for a memory. This module does not know how likeness is measured, nor which model counts the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from emllm.errors import ConfigError
from emllm.evaluation.rag.passages import Passage

#: How the passages that were found stand: as in the text, or the most alike first.
ORDERS = ("text", "rank")

BETWEEN = "\n\n"


def ranked(scores: Sequence[float]) -> list[int]:
    """Indices by falling score; the earlier of two that are alike is first."""
    return sorted(range(len(scores)), key=lambda idx: -scores[idx])


@dataclass(frozen=True)
class Found:
    """A passage, or the first words of it, that is read for a question.

    Attributes:
        passage: without spaces around it.
        rank: among all passages, 0 the most alike.
    """

    passage: Passage
    rank: int


def within_budget(
    passages: Sequence[Passage],
    ranking: Sequence[int],
    *,
    budget_tokens: int,
    count_tokens: Callable[[str], int],
    order: str = "text",
) -> list[Found]:
    """The best passages, which joined have `budget_tokens` at most, in the order in which they are read.

    Args:
        ranking: indices of passages, the best first.
        count_tokens: how many tokens the model that reads them makes of a text.
        order: `text` or `rank`.

    Raises:
        ConfigError: an unknown order, or no budget.
    """
    if order not in ORDERS:
        raise ConfigError(f"passage_order must be one of {', '.join(ORDERS)}, got {order!r}")
    if budget_tokens < 1:
        raise ConfigError(f"a budget for passages must be >= 1 token, got {budget_tokens}")

    def found(num_whole: int, num_words: int) -> list[Found]:
        """The first passages of the ranking, and some words of the next one."""
        chosen = [passages[idx] for idx in ranking[:num_whole]]
        if num_words:
            chosen.append(passages[ranking[num_whole]].first_words(num_words))
        those = [Found(one.stripped(), rank) for rank, one in enumerate(chosen) if one.text.strip()]
        return sorted(those, key=lambda one: one.passage.start) if order == "text" else those

    def fits(those: Iterable[Found]) -> bool:
        return count_tokens(joined(those)) <= budget_tokens

    num_whole = _largest(len(ranking), lambda count: fits(found(count, 0)))
    if num_whole == len(ranking):
        return found(num_whole, 0)
    last = passages[ranking[num_whole]]
    num_words = _largest(last.num_words, lambda count: fits(found(num_whole, count)))
    return found(num_whole, num_words)


def joined(found: Iterable[Found]) -> str:
    """What is read: the passages with blank lines between them."""
    return BETWEEN.join(one.passage.text for one in found)


def _largest(limit: int, is_possible: Callable[[int], bool]) -> int:
    """A count that is possible and whose next is not, or the limit; 0 is taken to be possible.

    Found by doubling and halving, so that few and short texts are counted.
    """
    low, high = 0, 1
    while high <= limit and is_possible(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if is_possible(middle):
            low = middle
        else:
            high = middle
    return low
