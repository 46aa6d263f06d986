"""The figures of one model laid out as sections: averages, scores, differences, costs, published rows.

This module does not know how figures are computed or which format they are written in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from emllm.evaluation.agreement import machines_of
from emllm.evaluation.report.comparison import Comparison
from emllm.evaluation.report.costs import row_costs
from emllm.evaluation.report.layout import Block, Cell, Section, Table, interval, number, plural, signed, span
from emllm.evaluation.report.published import Published, published_for
from emllm.evaluation.report.tables import (
    MAX_P,
    MIN_PAIRS,
    Average,
    Figures,
    RowDifference,
    TaskScore,
    left_out,
)

COPIED = (
    "Copied from the papers named, not measured here: samples and budgets may differ, prompts and scorers do "
    "where that is said, and the papers print no intervals. They are context, not rows of this comparison; "
    "docs/published-numbers.md says what lies behind each."
)


def score_sections(comparison: Comparison, figures: Figures) -> list[Section]:
    """Averages and scores, with failures beside them."""
    scores = {(score.task, score.row): score for score in figures.scores}
    scored = [task for task in comparison.tasks if not comparison.is_perplexity(task)]
    surprised = [task for task in comparison.tasks if comparison.is_perplexity(task)]
    sections = [_averages(comparison, figures.averages)]
    for title, tasks in (("Scores", scored), ("Perplexity, lower is better", surprised)):
        if tasks:
            sections.append(Section(title, tuple(_score_blocks(comparison, scores, tasks))))
    return [section for section in sections if section.blocks]


def _averages(comparison: Comparison, averages: Iterable[Average]) -> Section:
    found = {(it.suite, it.category, it.row): it for it in averages}
    if not found:
        return Section("Averages", ())
    rows = [row for row in comparison.rows if any(row == it for _, _, it in found)]
    lines = []
    for suite, category in dict.fromkeys((suite, category) for suite, category, _ in found):
        averaged = [found.get((suite, category, row)) for row in rows]
        num_tasks = max(len(it.tasks) for it in averaged if it)
        cells = (Cell(number(it.mean), interval(it.low, it.high)) if it else Cell("–") for it in averaged)
        lines.append((Cell(suite, category), *cells, Cell(str(num_tasks))))
    blocks: list[Block] = [
        "Plain mean of the tasks' scores; the interval draws texts again within each task."
    ]
    for suite in dict.fromkeys(suite for suite, _, _ in found):
        missing = left_out(comparison, suite)
        if missing:
            blocks.append(f"{suite}: without {', '.join(missing)}, which not every row has a score for.")
        blocks += _on_fewer_samples(comparison, [it for it in found.values() if it.suite == suite])
    table = Table("Averages", ("average", *_headings(comparison, rows), "tasks"), tuple(lines))
    return Section("Averages", (*blocks, table))


def _on_fewer_samples(comparison: Comparison, averages: Iterable[Average]) -> list[Block]:
    """Which rows of a suite's averages answered fewer samples than there are."""
    tasks: dict[str, set[str]] = {}
    for average in averages:
        tasks.setdefault(average.row, set()).update(average.tasks)
    fewer = []
    for row, averaged in tasks.items():
        asked = sum(comparison.num_samples(task) for task in averaged)
        answered = sum(len({sample for sample, _ in comparison.scores(task, row)}) for task in averaged)
        if answered < asked:
            fewer.append(f"{row} ({answered} of {asked})")
    if not fewer:
        return []
    return [
        f"On fewer samples than there are rest {', '.join(fewer)}: to be judged by their differences to "
        "another row, which are over what both answered."
    ]


def _score_blocks(
    comparison: Comparison, scores: dict[tuple[str, str], TaskScore], tasks: list[str]
) -> Iterable[Block]:
    if any(scores[key].num_failed for key in scores if key[0] in tasks):
        yield (
            "A failed sample has no score and is in no mean: a row that fails has its mean over fewer "
            "samples, and is to be judged by its difference on what both rows answered."
        )
    for suite in comparison.suites():
        of_suite = [task for task in tasks if comparison.suite(task) == suite]
        rows = [row for row in comparison.rows if any((task, row) in scores for task in of_suite)]
        lines = []
        for task in of_suite:
            found = [scores[task, row] for row in rows if (task, row) in scores]
            asked = comparison.num_samples(task)
            questions = span([score.num_questions for score in found])
            shared = len(comparison.shared_samples(task))
            counts = (str(asked), str(shared), questions)
            cells = (_score_cell(scores.get((task, row)), asked) for row in rows)
            lines.append((Cell(task.removeprefix(f"{suite}/")), *cells, *map(Cell, counts)))
        if lines:
            head = ("task", *_headings(comparison, rows), "samples", "answered by all", "questions")
            yield Table(suite, head, tuple(lines))


def _score_cell(score: TaskScore | None, asked: int) -> Cell:
    if score is None:
        return Cell("–", "not asked")
    details = [interval(score.low, score.high)]
    if score.num_failed:
        details.append(f"{score.num_failed} failed")
    if score.num_samples + score.num_failed < asked:
        details.append(f"{score.num_samples + score.num_failed} asked")
    if score.num_truncated:
        details.append(f"{score.num_truncated} read in part")
    return Cell(number(score.mean), "; ".join(detail for detail in details if detail))


def _headings(comparison: Comparison, rows: Iterable[str]) -> list[str]:
    return [f"{row} (reference)" if row == comparison.reference else row for row in rows]


def difference_section(comparison: Comparison, figures: Figures) -> Section:
    """Every row minus the reference, on the questions that both answered."""
    title = f"Differences to {comparison.reference}"
    found = figures.differences
    if not found:
        why = "no row to compare with" if comparison.reference is None else "no sample that two rows answered"
        return Section("Differences", (f"There are no differences: {why}.",))
    marked = sum(bool(it.verdict) for it in found)
    open_to_marks = sum(it.can_be_marked for it in found)
    plain = (
        "Points, row minus reference, over the questions that both answered, with the interval of a paired "
        "bootstrap that draws texts (pairs; of one text alone, its questions). "
        "▲ better and ▼ worse: the interval leaves out 0, and less than "
        f"{MAX_P:.0%} of all ways to flip the signs of pairs give as much (p; of tasks in report.csv), "
        f"which takes {MIN_PAIRS} pairs that differ; an average with a task of one pair is never marked. "
        f"{marked} of {plural(len(found), 'difference')} marked; {open_to_marks} could be, and without any "
        f"true difference chance would mark {round(MAX_P * open_to_marks, 1):g} of them at most."
    )
    tasks = {it.name for it in found if it.name in comparison.tasks}
    surprised = {task for task in tasks if comparison.is_perplexity(task)}
    rows = [row for row in comparison.rows if any(it.row == row for it in found)]
    names = {
        "Averages": [it for it in found if it.name not in tasks],
        "Tasks": [it for it in found if it.name in tasks - surprised],
        "Surprise in nats per token, lower is better": [it for it in found if it.name in surprised],
    }
    tables = (_differences(name, chosen, rows, name.startswith("Sur")) for name, chosen in names.items())
    return Section(title, (plain, *(table for table in tables if table.lines)))


def _differences(title: str, found: list[RowDifference], rows: list[str], is_nats: bool) -> Table:
    by_key = {(it.name, it.row): it for it in found}
    decimals = 3 if is_nats else 1
    lines = []
    for name in dict.fromkeys(it.name for it in found):
        chosen = [by_key.get((name, row)) for row in rows]
        cells = (_difference_cell(it, decimals) if it else Cell("–") for it in chosen)
        lines.append((Cell(name), *cells, Cell(span([it.num_pairs for it in chosen if it]))))
    return Table(title, ("difference", *rows, "pairs"), tuple(lines))


def _difference_cell(it: RowDifference, decimals: int) -> Cell:
    ends = [signed(end, decimals=decimals) for end in (it.low, it.high) if end is not None]
    return Cell(signed(it.mean, decimals=decimals), " to ".join(ends), it.verdict)


def cost_section(comparison: Comparison) -> Section:
    """Speed, memory and budget of each row."""
    costs = row_costs(comparison)
    has_device = any(cost.peak_device_bytes is not None for cost in costs)
    head = (
        "row",
        "prompt read",
        "recalled tokens per layer",
        "reading, tokens/s",
        "answer, s",
        "first token, s",
        "peak RAM, GB",
        *(("peak device memory, GB",) if has_device else ()),
    )
    lines = [
        (
            Cell(cost.row),
            Cell(_or_dash(cost.read_share, "{:.0%}")),
            Cell(_or_dash(cost.recalled_tokens, "{:,.0f}")),
            Cell(_or_dash(cost.read_tokens_per_second, "{:,.0f}")),
            Cell(_or_dash(cost.answer_seconds, "{:.2f}")),
            Cell(_or_dash(cost.first_token_seconds, "{:.2f}")),
            Cell(_gigabytes(cost.peak_rss_bytes)),
            *((Cell(_gigabytes(cost.peak_device_bytes)),) if has_device else ()),
        )
        for cost in costs
    ]
    memory = (
        "RAM is the process's highest while a sample was read and answered, with the model's weights"
        if all(cost.is_own_peak for cost in costs)
        else "RAM is the process's highest so far, which an earlier row may have set"
    )
    hardware = dict.fromkeys(
        str(name) for run in comparison.runs for name in machines_of(run.about, "hardware") or ("unknown",)
    )
    plain = (
        f"Measured while the samples were answered, on: {'; '.join(hardware)}. Speed is all tokens over all "
        f"seconds; the first token is the median over samples; {memory}."
    )
    return Section("Costs", (plain, Table("Costs", head, tuple(lines)))) if lines else Section("Costs", ())


def _gigabytes(num_bytes: float | None) -> str:
    return "–" if num_bytes is None else f"{num_bytes / 1e9:.1f}"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def published_section(comparison: Comparison, figures: Figures) -> Section:
    """What papers printed for the same model, beside our rows."""
    means = {(score.task, score.row): score.mean for score in figures.scores}
    blocks: list[Block] = []
    for table in published_for(comparison.model, comparison.tasks):
        rows = [row for row in comparison.rows if any((task, row) in means for task in table.scores)]
        lines = [
            (
                Cell(task),
                *(Cell(number(means.get((task, row)))) for row in rows),
                *(Cell(f"{score:g}") for score in printed),
            )
            for task, printed in table.scores.items()
        ]
        head = ("task", *(f"{row} (here)" for row in rows), *table.rows)
        title = f"{table.source}: {table.model}, {table.budget}"
        blocks += [
            f"{title}. Prompts: {table.prompts}. Scorers: {table.scorers}.",
            Table(title, head, (*lines, *_published_means(table, rows, means))),
        ]
    return Section("Published numbers", (COPIED, *blocks) if blocks else ())


def _published_means(
    table: Published, rows: Iterable[str], means: Mapping[tuple[str, str], float | None]
) -> Iterator[tuple[Cell, ...]]:
    """Of each suite the plain mean over the tasks that stand in the table, ours and theirs."""
    for suite, num_tasks in table.num_tasks.items():
        tasks = [task for task in table.scores if task.startswith(f"{suite}/")]
        if len(tasks) < 2:
            continue
        whole = f"of the paper's {num_tasks} tasks" if len(tasks) == num_tasks else f"of these {len(tasks)}"
        ours = ([means.get((task, row)) for task in tasks] for row in rows)
        theirs = zip(*(table.scores[task] for task in tasks), strict=True)
        yield (
            Cell(f"{suite}, mean", whole),
            *(Cell(number(_mean(it))) for it in ours),
            *(Cell(f"{fmean(it):.2f}") for it in theirs),
        )


def _mean(scores: Sequence[float | None]) -> float | None:
    """Mean of scores that are all known."""
    known = [score for score in scores if score is not None]
    return fmean(known) if len(known) == len(scores) else None
