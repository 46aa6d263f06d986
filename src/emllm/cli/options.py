"""Options that several commands share, so that they are called and explained alike.

This module does not know what a command does with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", "-m", metavar="NAME", help="default, a hub id, a folder or a .gguf file.")
]
StoredModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="default, a hub id, a folder or a .gguf file; left out, the one that the memory was made with.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="float32, bfloat16, float16 or auto: as saved, or float32 if the CPU emulates that.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Length of an answer at most.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option(help="Choose among the likeliest tokens with this probability.")]
Seed = Annotated[int | None, typer.Option(help="Makes choices by chance repeatable.", show_default=False)]
NumEvidence = Annotated[int, typer.Option("--evidence", min=0, help="Recalled events to show.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write to this file.", show_default=False),
]
