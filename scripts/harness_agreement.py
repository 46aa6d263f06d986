"""Whether the row `full` says what an independent program says: lm-evaluation-harness's own `hf` model.

    python scripts/harness_agreement.py DATA --tasks longbench/lcc,longbench/multi_news --samples 10

The shortest samples of each task are answered twice, greedily, from one checkpoint folder in one dtype: by
the row, as in `emllm eval run`, and by the harness, to which they are a task in YAML and JSONL that knows the
prompt as one text and the length of an answer. Tokenising, chat template, reading and generating are the
harness's and transformers'. A task's stops cut the harness's predictions afterwards, by our rule: the harness
would stop at a newline before the first word, LongBench scores what comes after it. Our metric scores both.

Where two predictions differ, the tokens at which they part are shown, with the logits that each program has
for them after the row's ids: a gap no wider than the programs' logits differ is a tie, and `--dtype float32`
decides it. Long answers are cut, since after a tie nothing can be compared. Where the prompt as one text has
other tokens than the row's pieces of it, what the harness's model says to the row's ids is shown too.

`--facts N` compares log-likelihoods too: N questions with four choices about facts planted in those texts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from emllm import EpisodicLM
from emllm.config import MemoryConfig
from emllm.evaluation.answering import Answerer
from emllm.evaluation.harness_model import HarnessModel
from emllm.evaluation.likelihood import last_logits
from emllm.evaluation.metrics import metric
from emllm.evaluation.prompts import prompt_format, text_of, until_stop
from emllm.evaluation.rows import ROWS, Row
from emllm.evaluation.samples import Question, Sample
from emllm.evaluation.suites import SampleNeeds, samples_function
from emllm.evaluation.task import Task
from emllm.evaluation.wishes import chosen_tasks
from emllm.models.load import DEFAULT_MODEL, is_default_unpacked, load_model

#: No text of more characters than this, times the tokens, is tokenised to see whether it fits.
_CHARS_PER_TOKEN = 8
_FACT_CHARS = 4000
_NAMES = ("amber falcon", "brisk tulip", "quiet harbour", "silver comet", "wooden lantern", "old orchard")


@dataclass(frozen=True)
class Asked:
    """One question: the prompt as one text without the chat template, and all ids that the row reads."""

    sample: Sample
    question: Question
    prompt: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Answered:
    """Both predictions for one question, and all ids that the harness's model read."""

    asked: Asked
    ours: str
    theirs: str
    their_ids: tuple[int, ...]


def shortest(
    lm: EpisodicLM, task: Task, data: Path | None, *, num_samples: int, tokens: range
) -> list[Asked]:
    """The shortest prompts of a task whose lengths are in a range, shortest first, one a sample."""
    encode = lm.chat_format.encode
    needs = SampleNeeds(data=data, count_tokens=lambda text: len(encode(text)), num_samples=num_samples)
    layout = prompt_format(lm.chat_format, task)
    found = []
    for sample in samples_function(task.samples)(task, needs):
        if not sample.questions or len(sample.text) > _CHARS_PER_TOKEN * tokens.stop:
            continue
        question = sample.questions[0]
        if question.answer_begins:
            raise SystemExit(
                f"{task.name} puts words into the model's mouth; the harness has no place for them"
            )
        text_ids, (question_ids,) = layout.cut(text_of(sample), [question])
        ids = (*layout.opening, *text_ids, *question_ids)
        if len(ids) in tokens:
            found.append(Asked(sample, question, text_of(sample) + question.text, ids))
    return sorted(found, key=lambda asked: len(asked.token_ids))[:num_samples]


def harness_samples(
    model: Any, name: str, body: dict[str, Any], docs: Sequence[dict[str, Any]], *, is_chat: bool = False
) -> list[dict[str, Any]]:
    """The harness's own log of a task's samples, in the order of the documents."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.jsonl"
        file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), "utf-8")
        data = {"data_files": {"test": str(file)}, "cache_dir": folder}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **body}
        (Path(folder) / f"{name}.yaml").write_text(json.dumps(task), "utf-8")  # JSON is a part of YAML
        run = simple_evaluate(
            model,
            tasks=[name],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            apply_chat_template=is_chat,
            bootstrap_iters=0,
            log_samples=True,
        )
    return sorted(run["samples"][name], key=lambda sample: sample["doc_id"])


def their_predictions(stock: HFLM, task: Task, asked: Sequence[Asked]) -> list[tuple[str, tuple[int, ...]]]:
    """What the harness's model says to the same prompts, and the ids it read."""
    body = {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "generation_kwargs": {"until": [], "max_gen_toks": task.answer_tokens, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    docs = [{"prompt": one.prompt, "target": (*one.question.answers, "")[0]} for one in asked]
    is_chat = task.is_chat and bool(stock.tokenizer.chat_template)
    said = []
    for one in harness_samples(stock, task.name.replace("/", "_"), body, docs, is_chat=is_chat):
        context = one["arguments"][0][0]
        ids = stock.tok_batch_encode([context], truncation=stock.truncation)[0][0].tolist()
        said.append((until_stop(one["filtered_resps"][0], task.stops)[0], tuple(ids)))
    return said


@torch.no_grad()
def parting(lm: EpisodicLM, stock: HFLM, task: Task, answered: Answered) -> str:
    """Where two predictions part, and the logits of both tokens there: of both programs, after our ids."""
    encode, end = lm.chat_format.encode, lm.tokenizer.eos_token_id
    ours, theirs = ([*encode(text), end] for text in (answered.ours, answered.theirs))
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    before = [*answered.asked.token_ids, *ours[:place]]
    here = last_logits(lm, lm.memory(config=MemoryConfig.preset("full")), before)[0].float()
    ids = torch.tensor([before], device=stock.device)
    there = stock.model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
    words = [repr(lm.tokenizer.decode([said[place]])) for said in (ours, theirs)]
    gaps, lines = [], [f"  after {place} tokens: ours {words[0]}, the harness {words[1]}"]
    for name, logits in (("ours", here), ("the harness", there)):
        first, second = (float(logits[said[place]]) for said in (ours, theirs))
        gaps.append(abs(first - second))
        best = [repr(lm.tokenizer.decode([token])) for token in logits.topk(2).indices.tolist()]
        lines.append(f"  logits of {name}: {first:.4f} and {second:.4f}; the two best {', '.join(best)}")
    differ = float((here - there).abs().max())
    verdict = "a tie" if max(gaps) <= differ else "no tie"
    lines.append(f"  the programs' logits differ by up to {differ:.4f} here: {verdict}")
    return "\n".join(lines)


def compared(
    lm: EpisodicLM, stock: HFLM, task: Task, asked: Sequence[Asked], *, row: Row = ROWS["full"]
) -> list[Answered]:
    """A task's questions, answered by a row and by the harness."""
    answerer = Answerer(lm, row, {})
    ours = [answerer.answer(task, one.sample).replies[0].prediction for one in asked]
    theirs = their_predictions(stock, task, asked)
    return [
        Answered(one, here, there, ids) for one, here, (there, ids) in zip(asked, ours, theirs, strict=True)
    ]


def report(lm: EpisodicLM, stock: HFLM, task: Task, answered: Sequence[Answered]) -> str:
    """A line of the table, and each difference."""
    score: Callable[..., float] = metric(task.metric)
    lengths = [len(one.asked.token_ids) for one in answered]
    same_ids = sum(one.asked.token_ids == one.their_ids for one in answered)
    same = sum(one.ours == one.theirs for one in answered)
    ours = 100 * fmean(score(one.ours, one.asked.question) for one in answered)
    theirs = 100 * fmean(score(one.theirs, one.asked.question) for one in answered)
    lines = [
        f"| {task.name} | {len(answered)} | {min(lengths):,} to {max(lengths):,} | {same_ids} | {same} "
        f"| {ours:.2f} | {theirs:.2f} |"
    ]
    for one in answered:
        if one.ours != one.theirs:
            lines += [f"  {one.asked.sample.sample_id}: {one.ours!r}", f"  harness: {one.theirs!r}"]
            lines.append(parting(lm, stock, task, one))
    return "\n".join(lines)


def planted_choices(texts: Sequence[str], num_facts: int) -> list[dict[str, Any]]:
    """Questions with four choices about a number planted in the middle of the beginning of a text."""
    docs = []
    for idx in range(num_facts):
        text, name = texts[idx % len(texts)][:_FACT_CHARS], _NAMES[idx % len(_NAMES)]
        cut = text.find("\n", len(text) // 2) % (len(text) + 1)
        choices = [f" {10_000 + 12_345 * (idx + other) % 89_999}" for other in range(4)]
        planted = f"{text[:cut]}\n\nThe pass key of the {name} is{choices[idx % 4]}.\n\n{text[cut:]}"
        prompt = f"{planted}\n\nThe pass key of the {name} is"
        docs.append({"prompt": prompt, "choices": choices, "answer": idx % 4})
    return docs


def likelihoods(
    lm: EpisodicLM, stock: HFLM, docs: Sequence[dict[str, Any]], **settings: Any
) -> list[tuple[list[float], list[float]]]:
    """Log-likelihoods of each question's choices: by ours under the harness, and by its own model."""
    body = {
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    models = (HarnessModel(lm, **{"preset": "full", **settings}), stock)
    logged = [harness_samples(model, "planted", body, docs) for model in models]
    found = [[[nats for nats, _ in one["filtered_resps"]] for one in samples] for samples in logged]
    return list(zip(*found, strict=True))


def likelihood_report(
    docs: Sequence[dict[str, Any]], pairs: Sequence[tuple[list[float], list[float]]]
) -> str:
    """How far log-likelihoods differ, and which choices are made by them."""
    gaps = [abs(a - b) for here, there in pairs for a, b in zip(here, there, strict=True)]
    chosen = [[nats.index(max(nats)) for nats in pair] for pair in pairs]
    right = [sum(pair[i] == doc["answer"] for pair, doc in zip(chosen, docs, strict=True)) for i in (0, 1)]
    return (
        f"log-likelihoods of {len(gaps)} choices: largest difference {max(gaps):.4f} nats, "
        f"mean {fmean(gaps):.4f}; the same choice in {sum(a == b for a, b in chosen)} of {len(docs)}; "
        f"right: ours {right[0]}, the harness {right[1]}"
    )


def main() -> None:
    """Compare task after task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", required=True, help="suite/task,...")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=(1000, 3000), help="of a prompt, at least and at most"
    )
    parser.add_argument("--answer-tokens", type=int, default=64, help="at most, whatever the task says")
    parser.add_argument("--facts", type=int, default=0, help="multiple-choice questions")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    names = args.tasks.split(",")
    tasks = chosen_tasks(list(dict.fromkeys(name.split("/")[0] for name in names)), names)
    if args.model == DEFAULT_MODEL and not is_default_unpacked():
        load_model()
    with EpisodicLM.from_pretrained(args.model, dtype=args.dtype) as lm:
        device, folder = str(lm.model.device), lm.model.name_or_path
        stock = HFLM(pretrained=folder, dtype=args.dtype, device=device, batch_size=1)
        print(f"{folder}, {lm.model.dtype} and {stock.model.dtype}, {device}")
        print("| task | samples | prompt tokens | same prompt ids | same predictions | ours | harness |")
        print("|---|---|---|---|---|---|---|", flush=True)
        texts: list[str] = []
        tokens = range(args.tokens[0], args.tokens[1] + 1)
        for whole in tasks:
            task = replace(whole, answer_tokens=min(whole.answer_tokens, args.answer_tokens))
            asked = shortest(lm, task, args.data, num_samples=args.samples, tokens=tokens)
            if not asked:
                print(f"  {task.name}: no prompt of {tokens.start} to {tokens.stop - 1} tokens")
                continue
            texts += [one.sample.text for one in asked]
            print(report(lm, stock, task, compared(lm, stock, task, asked)), flush=True)
        if args.facts and texts:
            docs = planted_choices(texts, args.facts)
            print(likelihood_report(docs, likelihoods(lm, stock, docs)))


if __name__ == "__main__":
    main()
