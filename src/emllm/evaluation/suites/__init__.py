"""Where samples come from: one module a family of benchmarks, registered by name.

A samples function takes a task and a `SampleNeeds` and yields samples in an order that is always the same. It
reads from a folder of files where one is given, from the hub otherwise, or makes its samples from a seed.
"""

from __future__ import annotations

from importlib import import_module

from emllm.errors import ConfigError
from emllm.evaluation.suites.needs import SampleNeeds, SamplesFunction

#: ``name -> module:function``; a module is imported when its samples are wanted.
SAMPLES: dict[str, str] = {
    name: f"emllm.evaluation.suites.{module}:{function}"
    for name, module, function in (
        ("longbench", "longbench", "samples"),
        ("longbench-v2", "longbench_v2", "samples"),
        ("leval", "leval", "samples"),
        ("infinitebench", "infinitebench", "samples"),
        ("infinitebench-made", "infinitebench_made", "samples"),
        ("ruler", "ruler", "samples"),
        ("babilong", "babilong", "samples"),
        ("haystack", "haystack", "samples"),
        ("locomo", "locomo", "samples"),
        ("literaryqa", "literaryqa", "samples"),
        ("qmsum", "qmsum", "samples"),
        ("books", "books", "samples"),
        ("shared-text", "shared_text", "samples"),
        ("needles", "needles", "samples"),
    )
}

#: Those whose samples have lengths: they keep to `SampleNeeds.limit` themselves, at each length.
BY_LENGTH = frozenset(
    {"infinitebench-made", "ruler", "babilong", "haystack", "books", "shared-text", "needles"}
)


def samples_function(name: str) -> SamplesFunction:
    """The function of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SAMPLES:
        raise ConfigError(f"samples must be one of {', '.join(sorted(SAMPLES))}, got {name!r}")
    module, _, function = SAMPLES[name].partition(":")
    return getattr(import_module(module), function)


__all__ = ["BY_LENGTH", "SAMPLES", "SampleNeeds", "SamplesFunction", "samples_function"]
