"""Whether results may stand in one table: the settings of two runs held against each other.

Tasks, rows and samples may be added to a run; nothing that an answer depends on may differ. This module does
not know files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emllm.models.fingerprint import difference as model_difference

#: What two starts of one run have in common.
_COMMON = ("dtype", "seed", "lengths", "num_samples", "shards", "shard")


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
            if setting != "num_samples" and before[name].get(setting) != value:
                return f"task {name} had {setting}={before[name].get(setting)!r}, has {value!r}"
    return None


def codes_of(run: Mapping[str, Any]) -> list[str]:
    """The states of the code with which a run was started, in order; older folders do not tell."""
    return list(run.get("code", ["unknown"]))


def other_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """One line where a run goes on with code that it was not started with before."""
    if set(codes_of(now)) <= set(codes_of(before)):
        return None
    return (
        f"begun with other code of emllm (digest {', '.join(codes_of(before))}; now {codes_of(now)[-1]}): "
        "results that are added may differ for that reason"
    )


def combined(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A run with what another start adds to it: its command, tasks, rows and samples."""
    tasks = dict(before["tasks"])
    for name, task in now["tasks"].items():
        most = max(task["num_samples"], tasks.get(name, task)["num_samples"])
        tasks[name] = {**task, "num_samples": most}
    limits = (before.get("limit"), now["limit"])
    return {
        **before,
        "commands": [*before.get("commands", []), *now["commands"]],
        "code": list(dict.fromkeys([*codes_of(before), *codes_of(now)])),
        "limit": None if None in limits else max(limits),
        "rows": {**before["rows"], **now["rows"]},
        "tasks": tasks,
    }
