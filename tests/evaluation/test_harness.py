"""emllm under EleutherAI's harness: the stock model's figures where the budget covers the text."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from families import tiny_model

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from emllm import EpisodicLM, MemoryConfig
from emllm.errors import ConfigError, InputError, MissingExtraError
from emllm.evaluation import harness
from emllm.evaluation.harness_model import HarnessModel
from emllm.models.load import load_model

TOLERANCE = 2e-4
STORY = "Once upon a time, there was a little girl named Lily. She had a red ball. " * 6
CONTEXTS = ["", "Lily had a", STORY, STORY + "One day, Lily  "]
CONTINUATIONS = [" red ball", " dog.", " a", " big"]
CHUNKED = {"chunk_tokens": 32, "local_tokens": 48}
TASKS = {
    "tiny_choice": """
        output_type: multiple_choice
        doc_to_text: "{{text}} Then"
        doc_to_choice: [" she went home.", " it", " the dog was happy and ran"]
        doc_to_target: 1
        metric_list: [{metric: acc}, {metric: acc_norm}]
        """,
    "tiny_rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
        """,
    "tiny_answer": """
        output_type: generate_until
        doc_to_text: "{{text}} Then"
        doc_to_target: "she"
        generation_kwargs: {until: [".", "dog"], max_gen_toks: 24, do_sample: false}
        metric_list: [{metric: exact_match}]
        """,
}


def requests(kind, *arguments):
    return [Instance(kind, {}, args, idx) for idx, args in enumerate(arguments)]


@pytest.fixture(scope="module")
def folder(shared_data):
    return str(shared_data / "models" / "stories260K")


@pytest.fixture(scope="module", params=["trained", "random"])
def pair(request, folder):
    """The harness's own model and ours: a trained one, and a random one of another family."""
    stock, tokenizer = load_model(folder, device="cpu", dtype="float32")
    ours = load_model(folder, device="cpu", dtype="float32")[0]
    if request.param == "random":
        stock, ours = (tiny_model("qwen3", vocab_size=stock.config.vocab_size) for _ in range(2))
    theirs = HFLM(pretrained=stock, tokenizer=tokenizer, device="cpu", batch_size=1)
    with EpisodicLM(ours, tokenizer) as lm:
        yield theirs, HarnessModel(lm, preset="full", **CHUNKED)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of three local tasks, for ``--include_path``."""
    where = tmp_path_factory.mktemp("tasks")
    texts = ["Once upon a time there was a dog.", STORY, "Lily and Tom went to the park."]
    (where / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = f"{{data_files: {{test: {where / 'docs.jsonl'}}}, cache_dir: {where / 'cache'}}}"
    for name, body in TASKS.items():
        lines = [f"task: {name}", "dataset_path: json", f"dataset_kwargs: {data}", "test_split: test"]
        (where / f"{name}.yaml").write_text("\n".join([*lines, *map(str.strip, body.strip().split("\n"))]))
    return where


def test_likelihoods_are_those_of_the_stock_model(pair):
    theirs, ours = pair
    asked = requests("loglikelihood", *((c, t) for c in CONTEXTS for t in CONTINUATIONS))
    for (expected, is_greedy), found in zip(
        theirs.loglikelihood(asked, disable_tqdm=True),
        ours.loglikelihood(asked, disable_tqdm=True),
        strict=True,
    ):
        assert found == (pytest.approx(expected, abs=TOLERANCE), is_greedy)


def test_a_greedy_continuation_is_known_as_one(pair):
    theirs, ours = pair
    (said,) = theirs.generate_until(requests("generate_until", (STORY, {"max_gen_toks": 3})), True)
    asked = requests("loglikelihood", (STORY, said), (STORY, said + "!"))
    expected = [is_greedy for _, is_greedy in theirs.loglikelihood(asked, disable_tqdm=True)]
    assert [is_greedy for _, is_greedy in ours.loglikelihood(asked, disable_tqdm=True)] == expected


def test_rolling_likelihoods_are_those_of_the_stock_model(pair):
    theirs, ours = pair
    asked = requests("loglikelihood_rolling", (STORY,), ("Lily",), ("A dog ran.\n\nIt was happy.",))
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    found = ours.loglikelihood_rolling(asked, disable_tqdm=True)
    assert found == [pytest.approx(value, abs=TOLERANCE, rel=1e-6) for value in expected]


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["."], "max_gen_toks": 30},
        {"until": ["\n\n", " the"], "max_gen_toks": 30, "temperature": 0.0},
        {"until": ["no such thing"], "max_gen_toks": 7, "do_sample": False, "temperature": 0.7},
    ],
)
def test_answers_are_those_of_the_stock_model(pair, settings):
    theirs, ours = pair
    asked = requests("generate_until", *((context, settings) for context in CONTEXTS[1:]))
    answers = ours.generate_until(asked, disable_tqdm=True)
    assert answers == theirs.generate_until(asked, disable_tqdm=True)
    assert not any(stop in answer for stop in settings["until"] for answer in answers)


def test_an_answer_has_no_more_tokens_than_asked_for(pair):
    _, ours = pair
    (answer,) = ours.generate_until(requests("generate_until", (STORY, {"max_gen_toks": 5})), True)
    (longer,) = ours.generate_until(requests("generate_until", (STORY, {"max_gen_toks": 9})), True)
    assert longer.startswith(answer) and len(longer) > len(answer)


def test_requests_with_one_context_share_its_reading(pair):
    _, ours = pair
    lengths = []
    hook = ours.lm.model.register_forward_pre_hook(
        lambda model, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        ours.loglikelihood(requests("loglikelihood", *((STORY, t) for t in CONTINUATIONS * 2)), True)
    finally:
        hook.remove()
    context = len(ours.tok_encode(STORY.rstrip()))
    continuations = [len(ours._encode_pair(STORY, text)[1]) - 1 for text in CONTINUATIONS * 2]
    assert sum(lengths) == context + sum(continuations)


def test_what_is_asked_of_a_context_does_not_depend_on_what_else_is(pair):
    _, ours = pair
    asked = requests("loglikelihood", *((STORY, text) for text in CONTINUATIONS))
    alone = [ours.loglikelihood([one], disable_tqdm=True)[0] for one in asked]
    assert ours.loglikelihood(asked, disable_tqdm=True) == alone


def test_a_text_longer_than_the_budget_is_read_whole(folder):
    """Without recall the figures differ from full attention, and no token is left out."""
    with EpisodicLM.from_pretrained(folder, dtype="float32", device="cpu") as lm:
        text = requests("loglikelihood_rolling", (STORY * 6,))
        narrow = HarnessModel(lm, preset="streaming-llm", sink_tokens=4, local_tokens=48, chunk_tokens=32)
        lengths = []
        hook = lm.model.register_forward_pre_hook(
            lambda model, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        (found,) = narrow.loglikelihood_rolling(text, disable_tqdm=True)
        hook.remove()
        assert sum(lengths) == len(narrow.tok_encode(STORY * 6))
        (full,) = HarnessModel(lm, preset="full").loglikelihood_rolling(text, disable_tqdm=True)
        assert abs(found - full) > 1


def test_tasks_of_the_harness_have_the_same_results(pair, tasks):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    theirs, ours = (
        simple_evaluate(model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=True)
        for model in pair
    )
    for name in TASKS:
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert ours["results"][name][metric] == pytest.approx(value, rel=1e-5), (name, metric)
        for expected, found in zip(theirs["samples"][name], ours["samples"][name], strict=True):
            assert flat(found["filtered_resps"]) == pytest.approx(flat(expected["filtered_resps"]), abs=1e-3)
    json.dumps(ours["config"], default=str)
    assert ours["config"]["emllm_settings"]["recall_tokens"] == "all"


def flat(responses):
    """Numbers of nested lists; of texts, their characters."""
    if isinstance(responses, str):
        return [float(ord(letter)) for letter in responses]
    if isinstance(responses, list | tuple):
        return [number for one in responses for number in flat(one)]
    return [float(responses)]


def test_the_first_token_is_added_once(pair):
    theirs, ours = pair
    bos = ours.tokenizer.bos_token
    for text in ("Lily", f"{bos}Lily", ""):
        for special in (None, True, False):
            assert ours.tok_encode(text, add_special_tokens=special) == theirs.tok_encode(text, special)


def test_the_chat_template_is_the_tokenizers(pair):
    theirs, ours = pair
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    strict = template.replace("<{{", "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}<{{")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    before = ours.tokenizer.chat_template
    try:
        for ours.tokenizer.chat_template in (template, strict):
            assert ours.apply_chat_template(turns) == theirs.apply_chat_template(turns)
        assert ours.apply_chat_template(turns) == "<user>Who?<a>"
        assert ours.chat_template(True) == strict
    finally:
        ours.tokenizer.chat_template = before


def test_sampling_follows_the_seed(pair):
    _, ours = pair
    asked = requests("generate_until", (STORY, {"do_sample": True, "temperature": 1.5, "max_gen_toks": 20}))
    answers = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            answers += ours.generate_until(asked, disable_tqdm=True)
    first, again, other = answers
    assert first == again != other


def test_settings_without_effect_are_warned_of(pair, caplog):
    _, ours = pair
    ours.generate_until(requests("generate_until", ("Lily", {"num_beams": 4, "max_gen_toks": 1})), True)
    assert "without effect: num_beams" in caplog.text


def test_mistakes_are_named(pair):
    _, ours = pair
    with pytest.raises(ConfigError, match="unknown setting 'recall_toks'"):
        HarnessModel(ours.lm, recall_toks=3)
    with pytest.raises(ConfigError, match="preset must be one of"):
        HarnessModel(ours.lm, preset="best")
    with pytest.raises(InputError, match=r"batch_size must be 1 .* got 8"):
        HarnessModel(ours.lm, batch_size=8)


def test_what_the_user_says_goes_before_what_the_harness_adds(folder):
    added = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    model = HarnessModel.create_from_arg_string(f"pretrained={folder},device=cpu,gamma=2.5", added)
    with model.lm:
        assert (model.device.type, model.config.gamma) == ("cpu", 2.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_harnesss_own_device_is_not_insisted_on(folder):
    with HarnessModel.create_from_arg_obj({"pretrained": folder}, {"device": "cuda:0"}).lm as lm:
        assert lm.model.device.type == "cpu"


def test_settings_reach_the_memories(pair):
    _, ours = pair
    settings = {"variant": "S", "gamma": 2.0, "sink_tokens": 16}
    model = HarnessModel(ours.lm, preset="em-llm", **settings)
    assert model.config == MemoryConfig.preset("em-llm", **settings)


def test_the_harness_knows_its_own_models_and_ours():
    from lm_eval.api.registry import get_model

    for _ in range(2):
        harness.register()
    assert get_model("emllm") is HarnessModel
    assert get_model("hf") is HFLM


def test_the_command_line_runs_a_task(folder, tasks, monkeypatch, capsys):
    settings = f"pretrained={folder},preset=full,dtype=float32,chunk_tokens=32"
    run = ["--model", "emllm", "--model_args", settings, "--tasks", "tiny_choice"]
    monkeypatch.setattr(sys, "argv", ["lm-eval", *run, "--include_path", str(tasks)])
    harness.main()
    out = capsys.readouterr().out
    assert "tiny_choice" in out and "acc_norm" in out


def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_two(monkeypatch, capsys):
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: HarnessModel(preset="best"))
    with pytest.raises(SystemExit) as stopped:
        harness.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: preset must be one of")


def test_a_missing_harness_says_what_to_install(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'emllm\[eval\]'"):
        harness.register()
