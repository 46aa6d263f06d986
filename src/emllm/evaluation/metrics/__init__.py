"""Metrics by name: how much an answer is worth, from 0 to 1, as each benchmark defines it.

A metric takes the prediction and the question it answers. It never guesses: an answer that it cannot read
scores 0. ``perplexity`` is no metric of an answer: the runner computes it from the text.

Each module names the released scorer that it follows and where it does not. Libraries that only metrics need
are imported when such a metric is first computed. This module does not know what a metric does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from emllm.errors import ConfigError
from emllm.evaluation.metrics import (
    babilong,
    choice,
    classification,
    code,
    infinitebench,
    leval,
    locomo,
    numbers,
    retrieval,
    rouge,
    substring,
    words,
)
from emllm.evaluation.samples import Question

Metric = Callable[[str, Question], float]

METRICS: dict[str, Metric] = {
    "exact_match": words.exact_match,
    "qa_f1": words.qa_f1,
    "qa_f1_first_line": words.qa_f1_first_line,
    "qa_f1_zh": words.qa_f1_zh,
    "rouge": rouge.rouge,
    "rouge_first_line": rouge.rouge_first_line,
    "rouge_zh": rouge.rouge_zh,
    "classification": classification.classification,
    "count": retrieval.count,
    "first_integer": retrieval.first_integer,
    "retrieval": retrieval.retrieval,
    "retrieval_zh": retrieval.retrieval_zh,
    "code_sim": code.code_sim,
    "choice": choice.choice,
    "substring_all": substring.substring_all,
    "substring_any": substring.substring_any,
    "babilong": babilong.babilong,
    "locomo_adversarial": locomo.locomo_adversarial,
    "locomo_f1": locomo.locomo_f1,
    "leval_exam": leval.leval_exam,
    "leval_f1": leval.leval_f1,
    "leval_rouge": leval.leval_rouge,
    "numbers": numbers.numbers,
    "infinite_code_debug": infinitebench.infinite_code_debug,
    "infinite_code_run": infinitebench.infinite_code_run,
    "infinite_dialogue": infinitebench.infinite_dialogue,
    "infinite_kv": infinitebench.infinite_kv,
    "infinite_longbook_choice": infinitebench.infinite_longbook_choice,
    "infinite_longbook_qa": infinitebench.infinite_longbook_qa,
    "infinite_longbook_sum": infinitebench.infinite_longbook_sum,
    "infinite_math_calc": infinitebench.infinite_math_calc,
    "infinite_math_find": infinitebench.infinite_math_find,
}

#: The packages whose version a score depends on, by metric.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "qa_f1_zh": ("jieba",),
    "rouge": ("rouge",),
    "rouge_first_line": ("rouge",),
    "rouge_zh": ("rouge", "jieba"),
    "code_sim": ("thefuzz", "rapidfuzz"),
    "locomo_f1": ("nltk",),
    "leval_rouge": ("rouge-score",),
    "infinite_longbook_sum": ("rouge-score",),
}


def library_versions(name: str) -> dict[str, str]:
    """Versions of the packages that a metric computes with, of those that are installed."""
    found = {}
    for package in LIBRARIES.get(name, ()):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(sorted(METRICS))}, got {name!r}")
    return METRICS[name]
