"""
A comparison of models as text: tables in Markdown, LaTeX and CSV, notes, and sentences.

Shapes: M models.
"""

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sarcse.evaluation.comparison import (
    BOOTSTRAP_RESAMPLES,
    PRECISION,
    Difference,
    ModelScores,
    Results,
    incomplete_tasks,
    reference_task,
)
from sarcse.evaluation.seeds import pairs_of, student
from sarcse.options import TABLE_FORMATS


def row_label(name: str, row: ModelScores | Difference) -> str:
    pooler = getattr(row, "pooler", None)  # a difference has none
    return name if pooler is None or name.endswith(f", {pooler}") else f"{name}, {pooler}"


def short_name(name: str) -> str:
    """A row's name without folders: `before: demo/encoder, mean` becomes `before: encoder, mean`."""
    stage, colon, path = name.rpartition(": ")
    return stage + colon + Path(path).name


def markdown_text(text: str) -> str:
    """
    Text that Markdown shows as it is, in one line: a file's or folder's name could hold a link, HTML or a cell's end.
    Common names stay as they are; an underscore within a word has no meaning.
    """
    return re.sub(r"[\\`*\[\]<>&|~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def markdown_code(text: str) -> str:
    """The text as Markdown code, in one line that is not wrapped: a part of it could begin a list."""
    text = "\N{NO-BREAK SPACE}".join(text.split())
    quotes = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " * (text != text.strip("`"))
    return f"{quotes}{space}{text}{space}{quotes}"


def markdown_table(rows: list[list[str]]) -> str:
    """A Markdown table with the first row as its header, aligned to be readable in a terminal too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(
        "| " + " | ".join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]) + " |"
        for row in [rows[0], rule, *rows[1:]]
    )


def latex_table(rows: list[list[str]]) -> str:
    """The same as a LaTeX table with the lines of booktabs."""

    def row(cells: list[str]) -> str:
        plain = [re.sub(r"([%&#_])", r"\\\1", re.sub(r"\\(.)", r"\1", cell)).replace("±", r"$\pm$") for cell in cells]
        return " & ".join(re.sub(r"\*\*(.*?)\*\*", r"\\textbf{\1}", cell) for cell in plain) + r" \\"

    lines = [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", row(rows[0]), r"\midrule"]
    return "\n".join([*lines, *map(row, rows[1:]), r"\bottomrule", r"\end{tabular}"])


def csv_table(rows: list[list[str]]) -> str:
    """The same as comma-separated cells, with nothing in bold."""
    stream = io.StringIO()
    csv.writer(stream).writerows([re.sub(r"\\(.)", r"\1", cell.replace("**", "")) for cell in row] for row in rows)
    return stream.getvalue().replace("\r\n", "\n").rstrip("\n")


def table_in(form: str, results: Results) -> str:
    """The main table of a comparison in one of `TABLE_FORMATS`."""
    write = dict(zip(TABLE_FORMATS, (markdown_table, latex_table, csv_table)))[form]
    return write(seeds_tables(results)[0] if results.groups else results_rows(results.models))


def results_table(models: dict[str, ModelScores]) -> str:
    """
    A Markdown table of Spearman x 100 by task and the scores of other jobs, with the best in bold, and alignment and
    uniformity. The last two are never bold: either one alone is best in a useless model.
    """
    return markdown_table(results_rows(models))


def results_rows(models: dict[str, ModelScores]) -> list[list[str]]:
    rows = models.values()
    cells = [
        [markdown_text(key), *_bold_best([_cell(value) for value in values])]
        for key, values in columns_of(models).items()
    ]
    # A geometry that was not measured, None, has no attributes.
    measured = ("alignment", "uniformity") if next(iter(rows)).tasks else ()
    cells += [[key, *(_cell(getattr(row.geometry, key, None)) for row in rows)] for key in measured]
    labels = ["model", *(markdown_text(row_label(name, row)) for name, row in models.items())]
    return [list(row) for row in zip(labels, *cells)]


def columns_of(models: dict[str, ModelScores]) -> dict[str, list[float | None]]:
    """The scores of all models, by the name of the task or of another job's score, and their average."""
    rows = models.values()
    tasks = list(next(iter(rows)).tasks)
    columns: dict[str, list[float | None]] = {task: [row.tasks[task].spearman for row in rows] for task in tasks}
    if len(tasks) > 1:
        columns["average"] = [row.average for row in rows]
    for job, name in job_columns(models):
        columns[job_label(models, job, name)] = [row.jobs[job].scores[name].value for row in rows]
    return columns


def job_columns(rows: Mapping[str, ModelScores | Difference]) -> list[tuple[str, str]]:
    """Job and score of each column beside those of the tasks."""
    return [(job, name) for job, found in next(iter(rows.values())).jobs.items() for name in found.scores]


def job_label(rows: Mapping[str, ModelScores | Difference], job: str, name: str) -> str:
    """The head of a column; it names the job if there are others, or tasks."""
    row = next(iter(rows.values()))
    return name if len(row.jobs) == 1 and not row.tasks else f"{job}: {name}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _bold_best(cells: list[str]) -> list[str]:
    """Put the best cells in bold, including ties after rounding; a single model gets no bold."""
    best = max((float(cell) for cell in cells if cell != "-"), default=None)
    return [f"**{cell}**" if len(cells) > 1 and cell != "-" and float(cell) == best else cell for cell in cells]


def intervals_table(rows: Mapping[str, ModelScores | Difference], sign: str = "") -> str:
    """
    A Markdown table of scores or differences with their 95% intervals. With a `sign`, those whose interval excludes 0
    are bold.
    """
    tasks = list(next(iter(rows.values())).tasks)
    table = [["model", *map(markdown_text, tasks)] + ["average"] * (len(tasks) > 1)]
    table[0] += [markdown_text(job_label(rows, *column)) for column in job_columns(rows)]
    for name, row in rows.items():
        cells = [(task.spearman, task.interval) for task in row.tasks.values()]
        if len(tasks) > 1:
            cells.append((row.average, row.average_interval))
        found = [row.jobs[job].scores[name] for job, name in job_columns(rows)]
        cells += [(score.value, score.interval) for score in found]
        table.append(
            [markdown_text(row_label(name, row))] + [mark_interval(value, bounds, sign) for value, bounds in cells]
        )
    return markdown_table(table)


def mark_interval(value: float | None, bounds: list[float] | None, sign: str) -> str:
    """A score or difference with its interval; with a `sign`, in bold if the interval excludes 0."""
    if value is None or math.isnan(value):
        return "-"
    if bounds is None:
        return f"{value:{sign}.2f}" if sign else "-"
    low, high = bounds
    cell = f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"
    return f"**{cell}**" if sign and (low > 0 or high < 0) else cell


# --- Seeds -----------------------------------------------------------------------------------------------------------


def seeds_tables(results: Results) -> tuple[list[list[str]], str]:
    """
    The table of all groups, as rows of cells, and in Markdown the differences from the first group with Student's 95%
    intervals, in bold where they exclude 0. Differences are paired by seed; a group of one row is compared with each.
    """
    columns = columns_of(results.models)
    numbers = np.array([*columns.values()], dtype=np.float64).T  # (M, columns); None becomes NaN
    of_row = dict(zip(results.models, numbers))
    scores = {name: {seed: of_row[row] for seed, row in rows.items()} for name, rows in results.groups.items()}
    table = [["model", "seeds", *map(markdown_text, columns)]]
    for name, found in scores.items():
        values = np.stack(list(found.values()))  # (seeds, columns)
        cells = [f"{mean:.2f}" for mean in values.mean(axis=0)]
        if len(found) > 1:
            cells = [f"{cell} ± {deviation:.2f}" for cell, deviation in zip(cells, values.std(axis=0, ddof=1))]
        table.append([markdown_text(name), str(len(found)), *cells])
    (first, baseline), *others = scores.items()
    differences = [["model", "pairs", *map(markdown_text, columns)]]
    for name, found in others:
        paired = np.stack(pairs_of(found, baseline))  # (pairs, columns)
        cells = [mark_interval(*student(values), sign="+") for values in paired.T]
        differences.append([markdown_text(name), str(len(paired)), *cells])
    text = f"Minus {markdown_text(first)}, paired by seed, with Student's 95% intervals; bold where they exclude 0."
    return table, f"{text}\n\n{markdown_table(differences)}" if others else ""


# --- Reports ---------------------------------------------------------------------------------------------------------


def report(results: Results) -> str:
    """The content of results.md: the table, notes on its data, the intervals, and the differences from the first."""
    labels = {name: row_label(name, scores) for name, scores in results.models.items()}
    first = next(iter(results.models.values()))
    how = "" if results.precision == PRECISION else f" Encoded in {results.precision}."
    what = "Spearman x 100" if first.tasks and not first.jobs else "Scores x 100"
    parts = [f"{what}, the best in bold.{how}", results_table(results.models)]
    if results.groups:
        table, differences = seeds_tables(results)
        parts = [f"{what}, mean and standard deviation over seeds.{how}", markdown_table(table)]
    notes = [
        f"{task} has {first.tasks[task].pairs} pairs here, but the published task has {pairs}: not comparable."
        for task, pairs in incomplete_tasks(first).items()
    ]
    notes += [
        f"{markdown_text(labels[name])}: {picked_on_words(scores)} also picked its checkpoint, which makes its score "
        "on them too high."
        for name, scores in results.models.items()
        if scores.picked_on is not None
    ]
    notes += job_notes(first)
    if first.geometry is not None:
        task = markdown_text(str(reference_task(first.tasks)))
        notes.append(
            f"On {task}: alignment of {first.geometry.positive_pairs} pairs with a score above 4, uniformity of "
            f"{first.geometry.sentences} distinct sentences. Lower is better for both together."
        )
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    if results.groups:
        return "\n\n".join([*parts, *([differences] if differences else [])])
    parts += [
        f"With 95% bootstrap intervals ({BOOTSTRAP_RESAMPLES} resamples of the {resampled_items(first)}; training "
        "seeds are not varied).",
        intervals_table(results.models),
    ]
    if results.differences:
        parts += [
            f"Minus {markdown_text(next(iter(labels.values())))}, on the same resamples; bold where the interval "
            "excludes 0.",
            intervals_table({labels[name]: row for name, row in results.differences.items()}, sign="+"),
        ]
    return "\n\n".join(parts)


# What the scores of other jobs mean.
NEIGHBOURS_SCORE = "ten neighbours"
MEANING = {
    "clusters": "Clusters: V-measure of k-means with as many clusters as labels",
    "neighbour": "neighbour: share of nearest neighbours with the text's own label",
    NEIGHBOURS_SCORE: "ten neighbours: the same for the nearest ten",
    "average precision": "Average precision of the similarity in telling duplicates from other pairs",
    "nDCG at 10": "nDCG at 10 of the documents most similar to each query",
}


def job_notes(scores: ModelScores) -> list[str]:
    """A line on each job: how much it was measured on, and what its scores mean."""
    return [
        f"{markdown_text(job)}: {', '.join(f'{number:,} {what}' for what, number in found.sizes.items())}. "
        f"{'; '.join(MEANING[name] for name in found.scores)}."
        for job, found in scores.jobs.items()
    ]


def resampled_items(scores: ModelScores) -> str:
    """What the bootstrap draws: pairs, texts, queries."""
    items = ["pairs"] * bool(scores.tasks) + [next(iter(found.sizes)) for found in scores.jobs.values()]
    return " or ".join(dict.fromkeys(items))


def picked_on_words(scores: ModelScores) -> str:
    """What picked a model's checkpoint."""
    what = "texts" if scores.picked_on in scores.jobs else "pairs"
    return f"the {what} of {markdown_text(str(scores.picked_on))}"


def difference_in_words(results: Results) -> str:
    """
    Whether a trained model, the last row, is better than the one before, the first: on the neighbours of labelled
    texts, if there are any, or else on average over the tasks.
    """
    first, (last, difference) = next(iter(results.models)), list(results.differences.items())[-1]
    encoder = first.removeprefix("before: ").removesuffix(", mean")  # the row of a SARCSE model names no pooling
    before = f"{encoder} with mean pooling" if first.endswith(", mean") else "before"
    tasks, value, interval = list(difference.tasks), difference.average, difference.average_interval
    where = f"on {tasks[0]}" if len(tasks) == 1 else f"on the average of {len(tasks)} tasks"
    for job, found in difference.jobs.items():
        if NEIGHBOURS_SCORE in found.scores:
            score = found.scores[NEIGHBOURS_SCORE]
            value, interval, where = score.value, score.interval, f"on the {NEIGHBOURS_SCORE} of {job}"
            break
    if results.models[last].picked_on is not None:
        where += f"; {picked_on_words(results.models[last])} also picked the checkpoint"
    if value is None or interval is None:
        return f"Unknown whether better than {before}: no interval {where}."
    low, high = interval
    if low > 0:
        return f"Better than {before} by {value:.2f} [{low:.2f}, {high:.2f}] {where}."
    if high < 0:
        return f"Worse than {before} by {-value:.2f} [{-high:.2f}, {-low:.2f}] {where}."
    return f"No better than {before}: {value:.2f} [{low:.2f}, {high:.2f}] {where}."


def write_results(results: Results, json_file: Path) -> None:
    """Write `json_file`, and the report as Markdown beside it."""
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(results.to_json(), indent=2) + "\n", encoding="utf-8")
    json_file.with_suffix(".md").write_text(report(results) + "\n", encoding="utf-8")
