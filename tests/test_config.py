"""Settings: every name is known everywhere, and a contradiction is an error that names it."""

import pytest

from emllm import config as config_module
from emllm.attention.layout import POSITION_POLICIES
from emllm.config import PRESETS, VARIANTS, MemoryConfig
from emllm.errors import ConfigError
from emllm.recall.event_keys import MAKERS, WEIGHTS_NEEDED
from emllm.recall.scorers import SCORERS
from emllm.segmentation.baselines import NEEDS
from emllm.segmentation.objectives import REGISTRY


def test_every_registry_holds_the_names_that_the_settings_allow():
    assert set(SCORERS) == set(config_module.SCORERS)
    assert set(MAKERS) == set(WEIGHTS_NEEDED) == set(config_module.EVENT_KEYS)
    assert set(POSITION_POLICIES) == set(config_module.POSITIONS)
    assert set(NEEDS) == set(config_module.SEGMENTERS)
    assert {*REGISTRY, "none"} == set(config_module.OBJECTIVES)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_every_preset_and_variant_is_a_valid_configuration(preset, variant):
    resolved = MemoryConfig.preset(preset, variant=variant).resolve(trained_tokens=32768, num_layers=32)
    assert resolved.local_tokens >= 1
    if variant is not None:
        assert {name: getattr(resolved, name) for name in VARIANTS[variant]} == VARIANTS[variant]


@pytest.mark.parametrize(
    ("model", "views", "window", "gamma", "most", "variant"),
    [
        ("mistral-v0.2", (4096, 2048), 3584, 1.0, 128, "SM+C"),
        ("llama-3", (4096, 4096), 3584, 2.0, 128, "S"),
        ("llama-3.1", (4096, 4096), 3584, 1.0, 128, "SM"),
        ("phi-3", (1024, 3072), 512, 1.0, 128, "S"),
        ("phi-3.5", (1024, 3072), 512, 1.0, 64, "S"),
    ],
)
def test_a_model_preset_is_what_the_authors_ran(model, views, window, gamma, most, variant):
    """Their configuration files, and Table 1 of the paper where it says otherwise (gamma of Llama 3)."""
    config = MemoryConfig.preset(f"em-llm-{model}").resolve(trained_tokens=32768, num_layers=32)
    assert (config.local_tokens, config.recall_tokens) == views
    assert (config.sink_tokens, config.chunk_tokens, config.representatives) == (128, 512, 4)
    assert (config.surprise_window_tokens, config.gamma) == (window, gamma)
    assert (config.min_event_tokens, config.max_event_tokens) == (8, most)
    assert {name: getattr(config, name) for name in VARIANTS[variant]} == VARIANTS[variant]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gama": 1.0}, ["gama", "gamma"]),
        ({"segmenter": "surprize"}, ["segmenter", "surprize"]),
        ({"gamma": float("nan")}, ["gamma"]),
        ({"gamma": True}, ["gamma"]),
        ({"contiguity": 1.0}, ["contiguity", "1.0"]),
        ({"min_event_tokens": 0}, ["min_event_tokens", "0"]),
        ({"min_event_tokens": 100, "max_event_tokens": 128}, ["max_event_tokens", "200", "128"]),
        ({"recall_tokens": 64, "max_event_tokens": 128}, ["recall_tokens", "128", "64"]),
        ({"recall_tokens": "some"}, ["recall_tokens", "some"]),
        ({"local_tokens": 2.5}, ["local_tokens", "2.5"]),
        ({"surprise_window_tokens": 2**63}, ["surprise_window_tokens", "2 ** 62"]),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(settings, words):
    with pytest.raises(ConfigError) as error:
        MemoryConfig.from_settings(settings)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_a_setting_that_contradicts_its_variant_is_refused():
    with pytest.raises(ConfigError, match="refine='modularity' contradicts variant F"):
        MemoryConfig.preset("em-llm", variant="F", refine="modularity")


def test_views_larger_than_the_trained_window_are_refused():
    config = MemoryConfig(local_tokens=4096, recall_tokens=4096)
    with pytest.raises(ConfigError, match=r"<= 8192 .* got \d+"):
        config.resolve(trained_tokens=8192, num_layers=4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"recall_tokens \+ recall_every_tokens must be <= 8192 .* got 8976"),
        ({"positions": "paper"}, r"^local_tokens \+ recall_every_tokens must be <= 8192 .* got 8400"),
        ({"recall_tokens": "all", "recall_every_tokens": 9000}, r"^recall_every_tokens must be <= 8192"),
    ],
)
def test_decoding_too_stays_within_the_trained_window(settings, words):
    config = MemoryConfig(**{"local_tokens": 1200, "recall_every_tokens": 7200, **settings})
    with pytest.raises(ConfigError, match=words):
        config.resolve(trained_tokens=8192, num_layers=4)


def test_views_that_could_not_hold_an_open_event_are_refused():
    config = MemoryConfig(local_tokens=1, recall_tokens=128)
    with pytest.raises(ConfigError, match=r"1\.5 \* max_event_tokens = 192, got 129"):
        config.resolve(trained_tokens=8192, num_layers=4)


@pytest.mark.parametrize(
    ("settings", "trained_tokens"),
    [
        ({"local_tokens": 1400}, 2048),
        ({"local_tokens": 7600}, 8192),
        ({"max_event_tokens": 1024}, 2048),
        ({"sink_tokens": 1000}, 2048),
        ({"chunk_tokens": 1900}, 2048),
    ],
)
def test_lengths_that_leave_nothing_for_recall_are_refused(settings, trained_tokens):
    (name, value), *_ = settings.items()
    said = rf"got the \d+ that {name}={value} leave of the model's {trained_tokens} trained"
    with pytest.raises(ConfigError, match=said):
        MemoryConfig(**settings).resolve(trained_tokens=trained_tokens, num_layers=4)
    nothing = MemoryConfig(**settings, recall_tokens=0)
    assert nothing.resolve(trained_tokens=trained_tokens, num_layers=4).recall_tokens == 0


@pytest.mark.parametrize("max_event_tokens", [512, 513, 1024])
def test_longer_events_are_given_room(max_event_tokens):
    config = MemoryConfig(max_event_tokens=max_event_tokens)
    assert config.resolve(trained_tokens=8192, num_layers=4).recall_tokens == max_event_tokens


def test_a_model_trained_on_very_short_texts_goes_without_recall_unasked():
    assert MemoryConfig().resolve(trained_tokens=64, num_layers=4).recall_tokens == 0


def test_the_papers_positions_hold_the_local_window_and_a_chunk():
    config = MemoryConfig.preset("em-llm-mistral-v0.2")
    with pytest.raises(ConfigError, match=r"local_tokens \+ chunk_tokens must be <= 2048 .* got 4608"):
        config.resolve(trained_tokens=2048, num_layers=32)


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(ConfigError, match="refine_from_layer must be < 4"):
        MemoryConfig(refine_from_layer=20).resolve(trained_tokens=8192, num_layers=4)


@pytest.mark.parametrize("trained_tokens", [64, 512, 2048, 8192, 131072])
def test_the_default_views_fit_every_trained_window(trained_tokens):
    resolved = MemoryConfig().resolve(trained_tokens=trained_tokens, num_layers=4)
    views = resolved.sink_tokens + resolved.local_tokens + resolved.recall_tokens
    assert views + resolved.chunk_tokens <= trained_tokens


@pytest.mark.parametrize(
    ("trained_tokens", "expected"), [(512, 128), (2048, 256), (8192, 256), (32_768, 1024), (131_072, 4096)]
)
def test_more_is_read_again_with_models_trained_on_longer_texts(trained_tokens, expected):
    views = {"local_tokens": min(4096, trained_tokens // 4), "recall_tokens": min(4096, trained_tokens // 4)}
    config = MemoryConfig(**views, sink_tokens=4, chunk_tokens=16, max_event_tokens=32)
    assert config.resolve(trained_tokens=trained_tokens, num_layers=4).recollect_tokens == expected


def test_no_more_is_read_again_than_a_layer_attends_to():
    config = MemoryConfig(local_tokens=64, recall_tokens=64, max_event_tokens=32)
    assert config.resolve(trained_tokens=131_072, num_layers=4).recollect_tokens == 128
