"""What `emllm memory` shows of a memory: the same figures as JSON and for a person.

This module does not know how anything is stored.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emllm.cli.plan import size
from emllm.cli.read import document_json
from emllm.cli.stored import Stored
from emllm.cli.terminal import columns, duration
from emllm.config import UNLIMITED_TOKENS
from emllm.errors import StoreError

#: Columns of a table with a line for each memory, however long the lines are.
UNFOLDED = 10_000


def listing(folder: Path) -> list[dict[str, Any]]:
    """Figures of each memory directly in a folder, by name; of a damaged one what is wrong."""
    from emllm.store.place import is_memory

    paths = [folder] if is_memory(folder) else sorted(p for p in folder.iterdir() if is_memory(p))
    return [_figures(path) for path in paths]


def _figures(path: Path) -> dict[str, Any]:
    from emllm.store.maintenance import describe

    found: dict[str, Any] = {"name": path.name or str(path), "path": str(path)}
    try:
        summary = describe(path)
    except StoreError as error:
        return {**found, "problem": str(error)}
    return {
        **found,
        "tokens": summary.num_tokens,
        "documents": len(summary.documents),
        "bytes": summary.num_bytes,
        "model": summary.header.get("model"),
    }


def tabulated(found: Sequence[dict[str, Any]]) -> str:
    """A line for each memory."""
    rows = [("name", "tokens", "documents", "size", "model")]
    for one in found:
        if "problem" in one:
            rows.append((one["name"], "", "", "", one["problem"]))
        else:
            rows.append(
                (
                    one["name"],
                    f"{one['tokens']:,}",
                    f"{one['documents']:,}",
                    size(one["bytes"]),
                    str(one["model"]),
                )
            )
    return _table(rows, right=(1, 2, 3), width=UNFOLDED)


def description(stored: Stored) -> dict[str, Any]:
    """All that the catalogue tells of a memory."""
    header, contents = stored.header, stored.contents
    kinds = {"segment": 0, "recent": 0, "index": 0}
    for record in contents.all_files:
        kinds[record.kind] += record.num_bytes
    catalogue = sum(path.stat().st_size for path in stored.path.glob("catalogue.sqlite*") if path.is_file())
    begun = stored.unfinished
    settings = dict(header.get("settings") or {})
    if settings.get("recall_tokens") == UNLIMITED_TOKENS:
        settings["recall_tokens"] = "all"
    return {
        "memory": str(stored.path),
        "tokens": contents.num_tokens,
        "events": len(contents.events),
        "files": len(contents.all_files),
        "bytes": {**kinds, "catalogue": catalogue},
        "documents": [document_json(one, read_seconds=one.read_seconds) for one in contents.documents],
        "unfinished": None if begun is None else begun.name,
        "forgotten": contents.state.get("holes", []),
        "is_conversation": stored.is_conversation,
        "settings": settings,
        "header": {name: value for name, value in header.items() if name != "settings"},
    }


def described(found: dict[str, Any]) -> str:
    """The same for a person."""
    header, layers = found["header"], found["header"].get("layers") or [{}]
    sizes = found["bytes"]
    parts = ", ".join(f"{name} {size(num)}" for name, num in sizes.items() if num)
    forgotten = sum(stop - start for start, stop in found["forgotten"])
    rows = [
        ("memory", found["memory"]),
        ("holds", f"{found['tokens']:,} tokens, {found['events']:,} events that may be recalled"),
        ("on disk", f"{size(sum(sizes.values()))} in {found['files']:,} files: {parts}"),
        ("model", f"{header.get('model')}, {layers[0].get('dtype')}, {len(layers)} layers"),
        ("made", f"{header.get('created')}, by emllm {header.get('emllm_version')}"),
        ("identity", f"{header.get('uuid')}, format {header.get('format_version')}"),
    ]
    if "parent" in header:
        rows.append(("parent", str(header["parent"])))
    if forgotten:
        rows.append(("forgotten", f"{forgotten:,} tokens"))
    if found["is_conversation"]:
        rows.append(("dialogue", "questions were answered in it"))
    rows.append(("settings", ", ".join(f"{name}={value}" for name, value in found["settings"].items())))
    return _table(rows) + _documents(found["documents"])


def _documents(documents: Sequence[dict[str, Any]]) -> str:
    if not documents:
        return ""
    rows = [("document", "tokens", "size", "read in", "")]
    for one in documents:
        done = one["stop"] - one["start"]
        state = "" if one["is_whole"] else f"unfinished: {done:,} of {one['tokens']:,} tokens"
        rows.append(
            (
                one["name"],
                f"{one['start']:,} to {one['stop']:,}",
                size(one["bytes"]),
                duration(one["read_seconds"]),
                state,
            )
        )
    return "\n" + _table(rows, right=(1, 2, 3))


def _table(rows: Sequence[tuple[str, ...]], *, right: tuple[int, ...] = (), width: int | None = None) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for number in range(len(rows[0])):
        table.add_column(justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    printed = io.StringIO()
    Console(file=printed, width=width or columns(), color_system=None).print(table)
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
