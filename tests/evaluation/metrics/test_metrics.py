"""Laws that every metric keeps, and how they are found and what they need."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emllm.errors import ConfigError, MissingExtraError
from emllm.evaluation.metrics import LIBRARIES, METRICS, libraries, library_versions, locomo, metric
from emllm.evaluation.samples import Question

FACTS = {
    "all_classes": ["Date", "Food", "Foodstuff"],
    "labels": ["no", "yes", "garden"],
    "choices": ["Mr. Brown", "get_all", "", "12.5"],
    "letter": "B",
    "options": {"a": "x", "b": "Not mentioned"},
}
FORMS = ["letter", "letters", "judge", "number", "code", "text", ""]
pieces = st.sampled_from(
    [
        "The answer is (B)",
        "Paragraph 7",
        "段落7",
        "True [fact: False]",
        "12.5",
        "-3",
        "٣",
        "²",
        "Mr. Brown",
        "\n",
        "\x00",
        "…",
        "# x",
        "` `",
        "A",
        "BD",
        "Question",
        "no",
        "厦门",
        "。",
        "the final output",
        "{}",
        "$$",
        "\\",
        "(a)",
        ",",
        ";",
        ".",
        " . ",
        "İ",
        "\ud7ff",
        "🜚",
    ]
)
texts = (
    st.text(max_size=40)
    | st.lists(pieces, max_size=8).map("".join)
    | st.lists(pieces, max_size=8).map(" ".join)
)


@pytest.mark.parametrize("name", sorted(METRICS))
@given(
    said=texts,
    answers=st.lists(texts, max_size=3),
    category=st.integers(1, 5),
    form=st.sampled_from(FORMS),
    zh=st.booleans(),
)
def test_any_text_gives_a_score_between_0_and_1(name, said, answers, category, form, zh):
    facts = FACTS | {"category": category, "form": form, "language": "zh" if zh else "en"}
    score = METRICS[name](said, Question("?", tuple(answers), facts=facts))
    assert isinstance(score, float) and 0 <= score <= 1


@pytest.mark.parametrize("name", sorted(METRICS))
@given(
    answers=st.lists(texts, max_size=3),
    form=st.sampled_from(FORMS),
    blank=st.sampled_from(["", " ", "\n", "\n \t\n"]),
)
def test_a_blank_answer_scores_0(name, answers, form, blank):
    facts = FACTS | {"category": 1, "form": form}
    assert METRICS[name](blank, Question("?", tuple(answers), facts=facts)) == 0


@pytest.mark.parametrize("name", sorted(METRICS))
def test_an_answer_scores_the_same_every_time(name):
    question = Question("?", ("B", "7"), facts=FACTS | {"category": 4})
    assert len({METRICS[name]("It may be 7 or Mr. Brown", question) for _ in range(5)}) == 1


def test_an_unknown_metric_is_named():
    with pytest.raises(ConfigError, match=r"metric must be one of babilong, .*, got 'bleu'"):
        metric("bleu")


def test_a_missing_library_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "thefuzz", None)
    monkeypatch.setitem(sys.modules, "thefuzz.fuzz", None)
    with pytest.raises(MissingExtraError, match=r"^this metric needs thefuzz: pip install 'emllm\[eval\]'$"):
        metric("code_sim")("x", Question("?", ("x",)))


def test_importing_the_metrics_imports_no_library():
    heavy = "rouge rouge_score jieba thefuzz nltk lm_eval"
    script = (
        f"import sys, emllm.evaluation.metrics; print([n for n in '{heavy}'.split() if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_packages_of_a_metric_are_those_that_it_imports(name, monkeypatch):
    imported = set()

    def recorded(module):
        imported.add(module.partition(".")[0].replace("_", "-"))
        return import_module(module)

    monkeypatch.setattr(libraries, "import_module", recorded)
    for cached in (libraries.chinese_words, locomo._stemmer):
        cached.cache_clear()
    for form in FORMS:
        with suppress(ConfigError):
            metric(name)(
                "True two", Question("?", ("True two",), facts={**FACTS, "form": form, "category": 4})
            )
    assert imported == set(LIBRARIES.get(name, ())) - {"rapidfuzz"}
    assert set(library_versions(name)) == set(LIBRARIES.get(name, ()))


def test_loading_the_chinese_dictionary_says_nothing(capfd):
    jieba = pytest.importorskip("jieba")
    level = jieba.default_logger.level
    jieba.dt.initialized = False
    libraries.chinese_words.cache_clear()
    libraries.chinese_words()
    assert capfd.readouterr() == ("", "")
    assert jieba.default_logger.level == level
