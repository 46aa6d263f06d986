"""Whether results may stand in one table: the settings of two runs held against each other.

Tasks, rows and samples may be added to a run; nothing that an answer depends on may differ. This module does
not know files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emllm.models.fingerprint import difference as model_difference

#: What two starts of one run have in common.
_COMMON = ("dtype", "seed", "lengths", "num_samples", "shards", "shard")

#: What run.json says of a task's samples and of what scored them; the rest of a task never changes. Another
#: file has other samples, or the same under another name.
GROWING = ("num_samples", "samples", "files", "libraries")

#: What run.json says of the machines that took part.
MACHINES = ("threads", "hardware")


def first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignoring: tuple[str, ...] = ()
) -> str | None:
    """One line that names what differs, and how; None where results of both may stand together."""
    differs = model_difference(before.get("fingerprint", {}), now["fingerprint"])
    if differs is not None:
        return f"the model differs ({before.get('model')}, now {now['model']}): {differs}"
    kinds = [str(run.get("device", "")).partition(":")[0] for run in (before, now)]
    if kinds[0] != kinds[1]:
        return f"device was {kinds[0]}, is {kinds[1]}"
    templates = [run["chat"] for run in (before, now) if "chat" in run]  # older runs do not tell theirs
    if any(template != templates[0] for template in templates):
        return f"the chat template gave {templates[0]}, gives {templates[1]}"
    for name in _COMMON:
        if name not in ignoring and before.get(name) != now[name]:
            return f"{name} was {before.get(name)!r}, is {now[name]!r}"
    for name, version in now["versions"].items():
        known = before.get("versions", {}).get(name)
        if known != version:
            return f"it was begun with {name} {known}, this is {version}"
    return _of_rows(before["rows"], now["rows"]) or _of_tasks(before["tasks"], now["tasks"])


def _of_rows(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name in (name for name in now if name in before):
        old, new = ({"kind": one[name]["kind"], **one[name]["settings"]} for one in (before, now))
        for setting in {**old, **new}:
            if old.get(setting) != new.get(setting):
                return f"row {name} had {setting}={old.get(setting)!r}, has {new.get(setting)!r}"
    return None


def _of_tasks(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name in (name for name in now if name in before):
        for setting, value in now[name].items():
            if setting not in GROWING and before[name].get(setting) != value:
                return f"task {name} had {setting}={before[name].get(setting)!r}, has {value!r}"
        differs = of_libraries(before[name], now[name]) or _of_samples(before[name], now[name])
        if differs is not None:
            return f"task {name} {differs}"
    return None


def of_libraries(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Scored with another version of a package; older runs do not tell theirs."""
    known = before.get("libraries", {})
    for package, version in now.get("libraries", {}).items():
        if known.get(package, version) != version:
            return f"was scored with {package} {known[package]}, this is {version}"
    return None


def _of_samples(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """One of the samples that both have is another; older runs do not tell theirs."""
    both = zip(samples_of(before), samples_of(now), strict=False)
    for number, (old, new) in enumerate(both):
        if old != new:
            return (
                f"has another sample {number}: the data differ, or another limit numbers samples of several "
                "lengths anew"
            )
    return None


def samples_of(task: Mapping[str, Any]) -> list[str]:
    """The digests of a task's samples; older runs have none."""
    return str(task.get("samples", "")).split()


def codes_of(run: Mapping[str, Any]) -> list[str]:
    """The states of the code with which a run was started, in order; older folders do not tell."""
    return list(run.get("code", ["unknown"]))


def machines_of(run: Mapping[str, Any], name: str) -> list[Any]:
    """What a run's machines were, by `hardware` or `threads`, in order; older folders name one, or none."""
    value = run.get(name, [])
    return value if isinstance(value, list) else [value]


def taking_part(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The code and the machines of all these runs, each once, in order."""
    return {
        "code": list(dict.fromkeys(code for run in runs for code in codes_of(run))),
        **{
            name: list(dict.fromkeys(it for run in runs for it in machines_of(run, name)))
            for name in MACHINES
        },
    }


def other_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """One line where a run goes on with code that it was not started with before."""
    if set(codes_of(now)) <= set(codes_of(before)):
        return None
    return (
        f"begun with other code of emllm (digest {', '.join(codes_of(before))}; now {codes_of(now)[-1]}): "
        "results that are added may differ for that reason"
    )


def combined(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A run with what another start adds to it: its command, code, machine, tasks, rows and samples."""
    tasks = dict(before["tasks"])
    for name, task in now["tasks"].items():
        known = tasks.get(name, task)
        most = max(known, task, key=lambda one: one["num_samples"])
        tasks[name] = {
            **task,
            "num_samples": most["num_samples"],
            "samples": most.get("samples", task["samples"]),
            "libraries": {**known.get("libraries", {}), **task["libraries"]},
        }
    limits = (before.get("limit"), now["limit"])
    return {
        **before,
        "commands": [*before.get("commands", []), *now["commands"]],
        **taking_part([before, now]),
        "limit": None if None in limits else max(limits),
        "rows": {**before["rows"], **now["rows"]},
        "tasks": tasks,
    }
