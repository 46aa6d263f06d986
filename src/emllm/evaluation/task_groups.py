"""Tasks of a suite that are asked for, and averaged, under one name: those that a paper's tables have.

Of EM-LLM (arXiv 2407.09450), Tables 3 to 7: its "Avg." of LongBench is the plain mean of 15 English tasks,
without passage_count. Their prompts, answer lengths and metrics are the benchmark's own and the task files',
the chat template is left out for the same tasks, and nothing of a text is cut, as in memory rows here. On
InfiniteBench, of which it has six tasks, its prompts differ (docs/published-numbers.md).
This module does not know how tasks are run or averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Of a suite, the tasks of each group, in the paper's order.
GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "longbench": {
        "paper": (
            *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"),
            *("gov_report", "qmsum", "multi_news", "trec", "triviaqa", "samsum"),
            *("passage_retrieval_en", "lcc", "repobench-p"),
        )
    },
    "infinitebench": {
        "paper": (
            *("code_debug", "math_find", "longbook_choice_eng"),
            *("kv_retrieval", "passkey", "number_string"),
        )
    },
}


def groups_of(suites: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The groups of these suites as ``suite/group``, each with its tasks as ``suite/task``."""
    return {
        f"{suite}/{group}": tuple(f"{suite}/{task}" for task in tasks)
        for suite in suites
        for group, tasks in GROUPS.get(suite, {}).items()
    }
