"""The curves and grids of one model laid out as a section: each a picture, and a table that says the same.

This module does not know how means are taken or pictures drawn.
"""

from __future__ import annotations

from emllm.errors import MissingExtraError
from emllm.evaluation.report.comparison import Comparison
from emllm.evaluation.report.curves import Curve, Grid, curves, grids
from emllm.evaluation.report.layout import Block, Cell, Section, Table, number, plural
from emllm.evaluation.report.plots import curve_title, draw_curve, draw_grid, grid_title


def curve_section(comparison: Comparison) -> Section:
    """Scores by length and depth, as pictures and tables."""
    found = curves(comparison)
    if not found:
        return Section("By length and depth", ())
    blocks: list[Block] = [
        "Means over all questions of a suite at that length or depth; K is 1,024 tokens. A hollow mark, or ° "
        "in a table, has fewer than another row's there: the two do not rest on the same questions."
    ]
    try:
        for curve in found:
            blocks += [draw_curve(curve, list(comparison.rows)), *_left_out(curve), _curve_table(curve)]
        for grid in grids(comparison):
            blocks += [draw_grid(grid), _grid_table(grid)]
    except MissingExtraError as error:
        blocks.append(str(error))
        for curve in found:
            blocks += [*_left_out(curve), _curve_table(curve)]
        blocks += map(_grid_table, grids(comparison))
    return Section("By length and depth", tuple(blocks))


def _left_out(curve: Curve) -> list[str]:
    """What a curve by depth does not show."""
    if not curve.num_left_out:
        return []
    without = plural(curve.num_left_out, "question")
    return [
        f"{curve_title(curve)}: without {without} whose evidence stands at several places, or is unknown."
    ]


def _curve_table(curve: Curve) -> Table:
    lines = tuple(
        (
            Cell(row),
            *(
                Cell(number(it.mean) + "°" * it.is_thin, f"of {it.num_scores}") if it else Cell("–")
                for it in points
            ),
        )
        for row, points in curve.rows.items()
    )
    return Table(f"{curve_title(curve)}, in numbers", ("row", *curve.labels), lines, is_folded=True)


def _grid_table(grid: Grid) -> Table:
    lines = tuple(
        (Cell(f"{row}, {depth}"), *(Cell(number(mean)) for mean in means))
        for row, cells in grid.rows.items()
        for depth, means in zip(grid.depths, cells, strict=True)
    )
    return Table(f"{grid_title(grid)}, in numbers", ("row, depth", *grid.lengths), lines, is_folded=True)
