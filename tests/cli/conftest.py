"""The command line in this process: what it prints and how it ends; and tiny models that it must refuse."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from emllm.cli.main import main

SENTENCE = "Once upon a time there was a little girl named Lily. She had a big red dog called Max. "


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture()
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_main(*argv: object) -> Ended:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return Ended(code, *capsys.readouterr())

    return run_main


@pytest.fixture()
def refuses(run: Run) -> Callable[..., str]:
    """Runs what must be refused: exit code 2, nothing on stdout, one line on stderr, which it returns."""

    def run_refused(*argv: object) -> str:
        ended = run(*argv)
        assert ended.code == 2
        assert ended.out == ""
        assert ended.err.startswith("emllm: ") and ended.err.count("\n") == 1 and ended.err.endswith("\n")
        return ended.err.strip()

    return run_refused


@pytest.fixture()
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return give


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs, trained on one sentence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([SENTENCE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, rotary positions and 512 of them."""
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture()
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(SENTENCE * 20)
    return path


@pytest.fixture(scope="session")
def broken_models(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Checkpoints with a tokenizer: without rotary positions, and with weights that are not numbers."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"vocab_size": len(tiny_tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    nan = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        nan.lm_head.weight.fill_(float("nan"))
    made = {
        "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, **sizes)),
        "bloom": BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=2, **sizes)),
        "nan": nan,
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in made}
