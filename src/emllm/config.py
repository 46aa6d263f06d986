"""Settings of a memory: one frozen record, the presets and the paper's variants.

The same names are used in Python, on the command line, over HTTP and in TOML; an unknown name is an
error everywhere. `MemoryConfig.resolve` fills in what depends on the model. This module does not know
what the names of segmenters, scorers and position policies stand for beyond their spelling: each room
keeps its own registry, and a test holds the two lists equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emllm.errors import ConfigError

SEGMENTERS = ("surprise", "kl", "fixed", "random", "sentence")
OBJECTIVES = ("none", "modularity", "conductance", "intra_inter")
REFINE_HEADS = ("all", "each")
SCORERS = ("dot", "votes", "attention", "exact")
EVENT_KEYS = ("mass", "logit", "mean", "spread", "outliers")
#: Event keys of which there are `representatives`; of the others there is one.
SEVERAL_KEYS = ("spread", "outliers")
INDEX_PRECISIONS = ("int8", "exact")
CODECS = ("exact", "bf16", "fp8", "int8", "int4")
POSITIONS = ("ordered", "paper")
RECOLLECT = ("never", "always", "auto")

#: Tokens that are read again for a question, unless said otherwise; more for models trained on long texts.
LEAST_RECOLLECTED = 256

#: What each of the paper's variant names sets (EM-LLM, section 4).
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "S": {"segmenter": "surprise", "refine": "none", "contiguity": 0.0},
    "SM": {"segmenter": "surprise", "refine": "modularity", "contiguity": 0.0},
    "SC": {"segmenter": "surprise", "refine": "conductance", "contiguity": 0.0},
    "S+C": {"segmenter": "surprise", "refine": "none", "contiguity": 0.3},
    "SM+C": {"segmenter": "surprise", "refine": "modularity", "contiguity": 0.3},
    "F": {"segmenter": "fixed", "refine": "none", "contiguity": 0.0},
    "FM": {"segmenter": "fixed", "refine": "modularity", "contiguity": 0.0},
    "FC": {"segmenter": "fixed", "refine": "conductance", "contiguity": 0.0},
}

_PAPER: Mapping[str, Any] = {
    "segmenter": "surprise",
    "refine": "modularity",
    "contiguity": 0.3,
    "scorer": "dot",
    "event_key": "mass",
    "representatives": 4,
    "shortlist_events": 0,
    "index_precision": "exact",
    "positions": "paper",
    "min_event_tokens": 8,
    "sink_tokens": 128,
    "recall_every_tokens": 1,
    "recollect": "never",
}

#: The paper gives no window (tau); the released code comes to the local window less a chunk, which is
#: 3584 of 4096 and 512 of 1024 tokens.
_PAPER_4K: Mapping[str, Any] = {
    **_PAPER,
    "local_tokens": 4096,
    "surprise_window_tokens": 3584,
}
_PAPER_1K: Mapping[str, Any] = {
    **_PAPER,
    "local_tokens": 1024,
    "surprise_window_tokens": 512,
}

#: Named settings. `em-llm` is the paper's method (SM+C); the model presets are the rows of its Table 1.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "em-llm": _PAPER,
    "em-llm-mistral-v0.2": {**_PAPER_4K, "recall_tokens": 2048},
    "em-llm-llama-3": {**_PAPER_4K, **VARIANTS["S"], "gamma": 2.0, "recall_tokens": 4096},
    "em-llm-llama-3.1": {**_PAPER_4K, **VARIANTS["SM"], "recall_tokens": 4096},
    "em-llm-phi-3": {**_PAPER_1K, **VARIANTS["S"], "recall_tokens": 3072},
    "em-llm-phi-3.5": {**_PAPER_1K, **VARIANTS["S"], "recall_tokens": 3072, "max_event_tokens": 64},
    "inf-llm": {
        **_PAPER,
        **VARIANTS["F"],
        "max_event_tokens": 128,
        "event_key": "logit",
    },
    "streaming-llm": {
        "recall_tokens": 0,
        "segmenter": "fixed",
        "refine": "none",
        "contiguity": 0.0,
        "recollect": "never",
    },
    "full": {"recall_tokens": "all", "recollect": "never"},
}

#: Settings that say where a memory lies, not what is in it.
PLACEMENT = ("device_budget", "host_budget")

#: Settings that say how questions are answered: a memory keeps them, but may be opened with others.
ASKING = ("recollect", "recollect_tokens", "recollect_every_tokens", "rerank_events")

#: Recall budget that covers any text: `recall_tokens = "all"`.
UNLIMITED_TOKENS = 1 << 62


def keys_per_event(event_key: str, representatives: int) -> int:
    """Keys that stand for an event, by the settings of these names."""
    return representatives if event_key in SEVERAL_KEYS else 1


def variant_settings(variant: str, single: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a variant of the paper sets.

    Args:
        single: settings that are given besides.

    Raises:
        ConfigError: there is no such variant, or a single setting contradicts it.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    for name, value in VARIANTS[variant].items():
        if name in single and single[name] != value:
            raise ConfigError(f"{name}={single[name]!r} contradicts variant {variant} ({name}={value!r})")
    return VARIANTS[variant]


@dataclass(frozen=True)
class MemoryConfig:
    """How a memory segments, what it attends to and how it recalls.

    ``None`` means: chosen by `resolve` from the model. Lengths are tokens per layer.

    Attributes:
        segmenter: what proposes boundaries: `surprise`, `kl`, `fixed`, `random` or `sentence`.
        gamma: a boundary is where surprise exceeds mean + gamma * deviation (EM-LLM, Eq. 1).
        surprise_window_tokens: tokens before t that give the mean and deviation (tau).
        refine: objective that moves boundaries on the key graph: `modularity`, `conductance`, `intra_inter`
            or `none`.
        refine_from_layer: first layer whose keys count in the graph; None is the last third.
        refine_heads: `all` concatenates the heads' keys, `each` averages the heads' objectives.
        contiguity: share of the recall budget for neighbours in time (k_c / k).
        min_event_tokens: no event is shorter, but for the last one of a text.
        max_event_tokens: no event is longer.
        sink_tokens: first tokens of the log, always attended.
        local_tokens: last tokens before the chunk, always attended.
        recall_tokens: budget for recalled events; 0 recalls nothing, "all" everything.
        chunk_tokens: tokens read in one forward pass.
        recall_every_tokens: while decoding, recall anew after that many tokens.
        scorer: how events are ranked against the present queries: `attention`, the share of it that an event
            would get; `votes` of the queries; `dot`, the paper's raw product; `exact`, votes over all keys.
        event_key: which keys stand for an event: the `mean` of all; the mean of those that draw most
            attention, by `mass` (the paper) or `logit`; those farthest from the mean, `spread`; or
            `outliers`, these and the mean of the rest.
        representatives: number of tokens that stand for an event.
        shortlist_events: once there are many events, a layer ranks all of them in turns and so many of the
            best in between; 0 ranks all of them every time.
        index_precision: of the event keys that are ranked: `int8`, or `exact` as the model computed them.
        positions: where recalled tokens stand: `ordered` or `paper`.
        recollect: whether a question is answered from what all layers together recall for it, read again in
            order: `never`, `always`, or `auto`, where not all of the text can be attended to. It
            may differ whenever a memory is opened.
        recollect_tokens: of what is read again before a question: events, the beginning and the end of the
            text, the conversation so far; half at least for events. None is a 32nd of what the model was
            trained on, 256 at least. It may differ likewise.
        recollect_every_tokens: while answering from what was read again, seek and read anew what the question
            and what was said since ask for, where the answer surprises after at least so many tokens; 0
            never does. It may differ likewise.
        rerank_events: so many events of what all layers together recall are read again, each alone with the
            question, as are both ends of the text, and those are left after which it surprises least; 0
            leaves the order of events, and both ends. It may differ likewise.
        codec: how keys and values are stored once they have left the local window: `exact`, `bf16`, `fp8`,
            `int8` or `int4`.
        device_budget: bytes of stored keys and values kept where the layers compute; None is chosen
            from what is free. Not part of a memory: it may differ whenever one is opened.
        host_budget: bytes of encoded keys and values kept in RAM besides; likewise.
    """

    segmenter: str = "surprise"
    gamma: float = 1.0
    surprise_window_tokens: int = 1024
    refine: str = "modularity"
    refine_from_layer: int | None = None
    refine_heads: str = "all"
    contiguity: float = 0.1
    min_event_tokens: int = 16
    max_event_tokens: int = 128
    sink_tokens: int | None = None
    local_tokens: int | None = None
    recall_tokens: int | str | None = None
    chunk_tokens: int | None = None
    recall_every_tokens: int = 16
    scorer: str = "attention"
    event_key: str = "outliers"
    representatives: int = 4
    shortlist_events: int = 1024
    index_precision: str = "int8"
    positions: str = "ordered"
    recollect: str = "auto"
    recollect_tokens: int | None = None
    recollect_every_tokens: int = 0
    rerank_events: int = 8
    codec: str = "exact"
    device_budget: int | None = None
    host_budget: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("segmenter", SEGMENTERS),
            ("refine", OBJECTIVES),
            ("refine_heads", REFINE_HEADS),
            ("scorer", SCORERS),
            ("event_key", EVENT_KEYS),
            ("index_precision", INDEX_PRECISIONS),
            ("positions", POSITIONS),
            ("codec", CODECS),
            ("recollect", RECOLLECT),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, low in (
            ("surprise_window_tokens", 2),
            ("min_event_tokens", 1),
            ("max_event_tokens", 1),
            ("sink_tokens", 0),
            ("local_tokens", 1),
            ("chunk_tokens", 1),
            ("recall_every_tokens", 1),
            ("representatives", 1),
            ("refine_from_layer", 0),
            ("shortlist_events", 0),
            ("recollect_tokens", 1),
            ("recollect_every_tokens", 0),
            ("rerank_events", 0),
            ("device_budget", 0),
            ("host_budget", 0),
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                raise ConfigError(f"{name} must be an integer >= {low}, got {value!r}")
            if value is not None and value >= UNLIMITED_TOKENS:
                raise ConfigError(f"{name} must be < 2 ** 62, got {value}")
        self._check_recall_tokens()
        if (
            isinstance(self.gamma, bool)
            or not isinstance(self.gamma, int | float)
            or self.gamma != self.gamma
        ):
            raise ConfigError(f"gamma must be a number, got {self.gamma!r}")
        if not isinstance(self.contiguity, int | float) or not 0.0 <= self.contiguity < 1.0:
            raise ConfigError(f"contiguity must be in [0, 1), got {self.contiguity!r}")
        if self.max_event_tokens < 2 * self.min_event_tokens:
            raise ConfigError(
                f"max_event_tokens must be >= 2 * min_event_tokens = {2 * self.min_event_tokens}, "
                f"got {self.max_event_tokens}"
            )

    def _check_recall_tokens(self) -> None:
        value = self.recall_tokens
        if value is None or value == "all":
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"recall_tokens must be an integer >= 0 or 'all', got {value!r}")
        if 0 < value < self.max_event_tokens:
            raise ConfigError(
                f"recall_tokens must be 0 or >= max_event_tokens = {self.max_event_tokens}, got {value}"
            )

    @property
    def num_keys(self) -> int:
        """Keys that stand for an event in the index."""
        return keys_per_event(self.event_key, self.representatives)

    def recollects(self, *, is_selective: bool) -> bool:
        """Whether questions are answered from passages that are read again.

        Args:
            is_selective: events have left the local window that cannot all be recalled at once.
        """
        return self.recollect == "always" or (self.recollect == "auto" and is_selective)

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Any] | None = None, *, preset: str = "default", variant: str | None = None
    ) -> MemoryConfig:
        """The preset, then the variant, then the single settings, each overriding what came before.

        Raises:
            ConfigError: an unknown preset, variant or setting, or a setting that contradicts the variant.
        """
        if preset not in PRESETS:
            raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        merged = dict(PRESETS[preset])
        settings = dict(settings or {})
        known = {field.name for field in dataclasses.fields(cls)}
        for name in settings:
            if name not in known:
                raise ConfigError(f"unknown setting {name!r}; the settings are {', '.join(sorted(known))}")
        if variant is not None:
            merged.update(variant_settings(variant, settings))
        merged.update(settings)
        return cls(**merged)

    @classmethod
    def preset(cls, name: str, *, variant: str | None = None, **settings: Any) -> MemoryConfig:
        """A named preset with some settings changed, e.g. ``MemoryConfig.preset("em-llm", gamma=2.0)``."""
        return cls.from_settings(settings, preset=name, variant=variant)

    def resolve(self, *, trained_tokens: int, num_layers: int) -> ResolvedConfig:
        """This configuration with every open choice settled for one model.

        Args:
            trained_tokens: positions that the model was trained on; the three views and a chunk fit in, as do
                the views and what is decoded from one recall to the next.
            num_layers: decoder layers.

        Raises:
            ConfigError: the views and a chunk exceed what the model was trained on, or a layer is named
                that the model does not have.
        """
        from_layer = (
            num_layers - max(1, num_layers // 3) if self.refine_from_layer is None else self.refine_from_layer
        )
        if self.refine != "none" and from_layer >= num_layers:
            raise ConfigError(
                f"refine_from_layer must be < {num_layers} (the model's layers), got {from_layer}"
            )
        if self.recall_every_tokens > trained_tokens:
            raise ConfigError(
                f"recall_every_tokens must be <= {trained_tokens} (the model's trained positions), "
                f"got {self.recall_every_tokens}"
            )
        views = _default_views(trained_tokens, self)
        recall = UNLIMITED_TOKENS if views["recall_tokens"] == "all" else views["recall_tokens"]
        lengths = {**views, "recall_every_tokens": self.recall_every_tokens}
        for grows in ("chunk_tokens", "recall_every_tokens"):  # what is read or decoded from one recall on
            asked = views["sink_tokens"] + views["local_tokens"] + recall + lengths[grows]
            if recall < UNLIMITED_TOKENS and self.positions == "ordered" and asked > trained_tokens:
                raise ConfigError(
                    f"sink_tokens + local_tokens + recall_tokens + {grows} must be <= {trained_tokens} "
                    f"(the model's trained positions), got {asked}"
                )
            if self.positions == "paper" and views["local_tokens"] + lengths[grows] > trained_tokens:
                raise ConfigError(
                    f"local_tokens + {grows} must be <= {trained_tokens} (the model's trained positions), "
                    f"got {views['local_tokens'] + lengths[grows]}"
                )
        longest = self.max_event_tokens * 3 // 2  # an open event, and what its refinement waits for
        if recall > 0 and views["local_tokens"] + recall < longest:
            raise ConfigError(
                f"local_tokens + recall_tokens must be >= 1.5 * max_event_tokens = {longest}, "
                f"got {views['local_tokens'] + recall}"
            )
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values.update(views, recall_tokens=recall, refine_from_layer=from_layer)
        if self.recollect_tokens is None:
            # Small models answer better from less (docs/recall.md); never more than a layer attends to.
            views_tokens = views["local_tokens"] + min(recall, trained_tokens)
            wanted = max(LEAST_RECOLLECTED, trained_tokens // 32)
            values["recollect_tokens"] = max(1, min(views_tokens, wanted, trained_tokens // 4))
        return ResolvedConfig(**values)


@dataclass(frozen=True)
class ResolvedConfig(MemoryConfig):
    """A `MemoryConfig` in which nothing is open: every length is a number."""

    refine_from_layer: int = 0
    sink_tokens: int = 0
    local_tokens: int = 1
    recall_tokens: int = 0
    chunk_tokens: int = 1
    recollect_tokens: int = 1

    def _check_recall_tokens(self) -> None:
        """Checked where the user's value entered."""


def _check_default_room(trained_tokens: int, config: MemoryConfig, room: int) -> None:
    """Let only a model that was trained on very short texts go without recall, unasked.

    Raises:
        ConfigError: the user's own lengths leave no room to recall an event.
    """
    own = ("chunk_tokens", "sink_tokens", "local_tokens")
    given = [f"{name}={getattr(config, name)}" for name in own if getattr(config, name) is not None]
    if config.max_event_tokens != MemoryConfig.max_event_tokens:
        given.append(f"max_event_tokens={config.max_event_tokens}")
    if given:
        raise ConfigError(
            f"recall_tokens must be >= max_event_tokens = {config.max_event_tokens}, got the {room} that "
            f"{', '.join(given)} leave of the model's {trained_tokens} trained positions "
            "(recall_tokens=0 recalls nothing)"
        )


def _default_views(trained_tokens: int, config: MemoryConfig) -> dict[str, Any]:
    """Chunk, sink, local and recall tokens for a model, where the user left them open.

    The sizes that measured best on the default model, less for models trained on short windows, so
    that the views and a chunk always fit.
    """
    chunk = config.chunk_tokens if config.chunk_tokens is not None else max(1, min(512, trained_tokens // 4))
    room = max(trained_tokens - chunk, 4)
    sink = config.sink_tokens if config.sink_tokens is not None else min(64, room // 8)
    local = config.local_tokens if config.local_tokens is not None else max(1, min(512, room // 2))
    recall = config.recall_tokens
    if recall is None:
        recall = max(0, min(max(512, config.max_event_tokens), room - sink - local))
        if recall < config.max_event_tokens:
            _check_default_room(trained_tokens, config, recall)
            recall = 0
    return {"chunk_tokens": chunk, "sink_tokens": sink, "local_tokens": local, "recall_tokens": recall}
