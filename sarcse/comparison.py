"""
What the similarities that several models give to graded pairs say about the models: scores, bootstrap intervals and
paired differences, as one JSON and as Markdown tables.

Shapes: P pairs, M models, R bootstrap resamples.
"""

import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from tqdm.auto import tqdm

from sarcse.sts import STS_TASKS


BOOTSTRAP_RESAMPLES = 1000


@dataclass
class Measurement:
    """What one model makes of all tasks."""

    pooler: str | None
    similarities: dict[str, np.ndarray] = field(default_factory=dict)  # task -> (P,)
    geometry: dict[str, float | int | None] = field(default_factory=dict)


def reference_task(tasks: dict[str, datasets.Dataset]) -> str | None:
    """The task of alignment, uniformity and densities: STS-B, or the only one."""
    return "STSB" if "STSB" in tasks else next(iter(tasks)) if len(tasks) == 1 else None


# --- Scores ----------------------------------------------------------------------------------------------------------


class StsCorrelation(evaluate.Metric):
    """Spearman and Pearson correlation of similarities with gold scores, through scipy and without a download."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Spearman and Pearson correlation, between -1 and 1.",
            citation="",
            inputs_description="predictions: cosine similarities; references: gold scores.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {
            "spearman": float(stats.spearmanr(predictions, references).statistic),
            "pearson": float(stats.pearsonr(predictions, references).statistic),
        }


def correlations(similarities: np.ndarray, scores: np.ndarray) -> dict[str, float | int | None]:
    """
    `spearman` and `pearson`, times 100, and the number of `pairs`. A correlation that does not exist, since all
    similarities or all scores are equal or there is but one pair, is None.
    """
    values = dict.fromkeys(("spearman", "pearson"), math.nan)
    if len(scores) > 1:
        values = StsCorrelation(keep_in_memory=True).compute(predictions=similarities, references=scores)
    return {**{name: none_if_nan(100 * value) for name, value in values.items()}, "pairs": len(scores)}


def bootstrap_spearman(similarities: np.ndarray, scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """
    Spearman correlations x 100 of resampled pairs, `(M, R)`: each resample draws P pairs with replacement, the same
    ones for all models, so that the difference of two rows is a paired one.

    Args:
        similarities (`np.ndarray` of shape `(M, P)`): Of M models.
        scores (`np.ndarray` of shape `(P,)`): Gold scores.
        generator (`np.random.Generator`): Draws the pairs.
    """

    def correlate(*resampled: np.ndarray, axis: int) -> np.ndarray:
        ranks = stats.rankdata(np.stack(resampled), axis=axis)  # (M + 1, batch, P)
        ranks -= ranks.mean(axis=axis, keepdims=True)
        with np.errstate(invalid="ignore"):  # all similarities of a resample are equal: 0 / 0
            ranks /= np.linalg.norm(ranks, axis=axis, keepdims=True)
        return 100 * (ranks[:-1] * ranks[-1]).sum(axis=axis)  # (M, batch)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # the same: an interval that does not exist
        return stats.bootstrap(
            (*similarities, scores),
            correlate,
            paired=True,
            vectorized=True,
            n_resamples=BOOTSTRAP_RESAMPLES,
            batch=50,  # bounds the memory
            method="percentile",
            rng=generator,
        ).bootstrap_distribution


def interval(distribution: np.ndarray) -> list[float] | None:
    """The middle 95% of a bootstrap distribution, `(R,)`: the percentile interval."""
    return None if np.isnan(distribution).any() else np.percentile(distribution, [2.5, 97.5]).tolist()


def none_if_nan(value: float) -> float | None:
    """JSON has no NaN: a number that does not exist is null."""
    return None if math.isnan(value) else value


# --- Comparison ------------------------------------------------------------------------------------------------------


def compare(measurements: dict[str, Measurement], tasks: dict[str, datasets.Dataset]) -> dict[str, Any]:
    """
    What results.json holds. `models` has, by row name, `pooler`, `tasks` (each with `spearman`, `pearson`, `pairs`,
    a 95% `interval` of the Spearman correlation, and the same scores of its `subsets`), their `average` and its
    `average_interval`, and `alignment`, `positive_pairs`, `uniformity`, `sentences` of the reference task. If there
    are several models, `differences` has, for each but the first, its Spearman correlations minus the first one's,
    with intervals. All correlations are times 100.

    The intervals tell how much the scores depend on the choice of pairs, not how much on the seed of a training.
    """
    names = list(measurements)
    generator = np.random.default_rng(0)  # the same command gives the same intervals
    models: dict[str, Any] = {name: {"pooler": measurements[name].pooler, "tasks": {}} for name in names}
    resampled = {}  # task -> (M, R)
    for task, pairs in tqdm(tasks.items(), desc="Bootstrap", leave=False, disable=None):
        scores = np.array(pairs["score"][:], dtype=np.float64)  # (P,)
        similarities = np.stack([measurements[name].similarities[task] for name in names])  # (M, P)
        resampled[task] = bootstrap_spearman(similarities, scores, generator)
        for name, values in zip(names, similarities):
            models[name]["tasks"][task] = {
                **correlations(values, scores),
                "subsets": subset_correlations(values, pairs),
            }
    for row, name in enumerate(names):
        _add_average_and_intervals(models[name], {task: values[row] for task, values in resampled.items()})
        models[name] |= measurements[name].geometry
    results: dict[str, Any] = {"models": models}
    if len(names) > 1:
        differences: dict[str, Any] = {name: {"tasks": {}} for name in names[1:]}
        for row, name in enumerate(names[1:], start=1):
            for task, scores in models[name]["tasks"].items():
                pair = scores["spearman"], models[names[0]]["tasks"][task]["spearman"]
                differences[name]["tasks"][task] = {"spearman": None if None in pair else pair[0] - pair[1]}
            paired = {task: values[row] - values[0] for task, values in resampled.items()}
            _add_average_and_intervals(differences[name], paired)
        results["differences"] = {"minus": names[0], "models": differences}
    return results


def _add_average_and_intervals(entry: dict[str, Any], resampled: dict[str, np.ndarray]) -> None:
    """Complete an entry of `models` or `differences` from its bootstrap distributions by task, each `(R,)`."""
    for task, scores in entry["tasks"].items():
        scores["interval"] = interval(resampled[task])
    spearman = [scores["spearman"] for scores in entry["tasks"].values()]
    entry["average"] = None if None in spearman else sum(spearman) / len(spearman)
    # Tasks are resampled apart from each other, so their resamples are averaged in the order they come.
    entry["average_interval"] = interval(np.mean(list(resampled.values()), axis=0))


def subset_correlations(similarities: np.ndarray, pairs: datasets.Dataset) -> dict[str, dict[str, float | int | None]]:
    """Scores of each subset for itself, by name; none where the pairs have no column `subset`."""
    if "subset" not in pairs.column_names:
        return {}
    subsets, scores = np.array(pairs["subset"][:]), np.array(pairs["score"][:])
    return {
        str(name): correlations(similarities[subsets == name], scores[subsets == name]) for name in np.unique(subsets)
    }


# --- Reports ---------------------------------------------------------------------------------------------------------


def row_label(name: str, entry: dict[str, Any]) -> str:
    pooler = entry.get("pooler")
    return name if pooler is None or name.endswith(f", {pooler}") else f"{name}, {pooler}"


def short_name(name: str) -> str:
    """A row's name without folders: `before: demo/encoder, mean` is `before: encoder, mean`."""
    stage, colon, path = name.rpartition(": ")
    return stage + colon + Path(path).name


def markdown_table(rows: list[list[str]]) -> str:
    """The first row as the header; aligned, so that it can be read in a terminal too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(
        "| " + " | ".join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]) + " |"
        for row in [rows[0], rule, *rows[1:]]
    )


def results_table(results: dict[str, Any]) -> str:
    """
    Spearman x 100 by task, the best in bold, and alignment and uniformity, as a Markdown table. Of the last two none
    is bold: each alone is best in a model that is of no use.
    """
    models = results["models"].values()
    tasks = list(next(iter(models))["tasks"])
    columns = {task: [model["tasks"][task]["spearman"] for model in models] for task in tasks}
    if len(tasks) > 1:
        columns["average"] = [model["average"] for model in models]
    cells = [[key, *_bold_best([_cell(value) for value in values])] for key, values in columns.items()]
    cells += [[key, *(_cell(model.get(key)) for model in models)] for key in ("alignment", "uniformity")]
    labels = ["model", *(row_label(name, model) for name, model in results["models"].items())]
    return markdown_table([list(row) for row in zip(labels, *cells)])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _bold_best(cells: list[str]) -> list[str]:
    """What reads the same as the best is bold too; one model alone is not."""
    best = max((float(cell) for cell in cells if cell != "-"), default=None)
    return [f"**{cell}**" if len(cells) > 1 and cell != "-" and float(cell) == best else cell for cell in cells]


def intervals_table(models: dict[str, Any], sign: str = "") -> str:
    """Entries of `models` or `differences` with their 95% intervals; differences whose interval excludes 0 in bold."""
    tasks = list(next(iter(models.values()))["tasks"])
    rows = [["model", *tasks] + ["average"] * (len(tasks) > 1)]
    for name, model in models.items():
        cells = [(task["spearman"], task["interval"]) for task in model["tasks"].values()]
        if len(tasks) > 1:
            cells.append((model["average"], model["average_interval"]))
        rows.append([row_label(name, model)] + [_interval_cell(value, bounds, sign) for value, bounds in cells])
    return markdown_table(rows)


def _interval_cell(value: float | None, bounds: list[float] | None, sign: str) -> str:
    if value is None or bounds is None:
        return "-"
    cell = f"{value:{sign}.2f} [{bounds[0]:{sign}.2f}, {bounds[1]:{sign}.2f}]"
    return f"**{cell}**" if sign and (bounds[0] > 0 or bounds[1] < 0) else cell


def report(results: dict[str, Any]) -> str:
    """results.md: the table, what its numbers rest on, the intervals, and the differences to the first model."""
    models = results["models"]
    first = next(iter(models.values()))
    parts = ["Spearman x 100, the best in bold.", results_table(results)]
    notes = [
        f"{task} has {scores['pairs']} pairs here, the published task {STS_TASKS[task].pairs}: not comparable."
        for task, scores in first["tasks"].items()
        if task in STS_TASKS and scores["pairs"] != STS_TASKS[task].pairs
    ]
    if first.get("sentences"):
        task = reference_task(first["tasks"])
        notes.append(
            f"On {task}: alignment of {first['positive_pairs']} pairs with a score of at least 4, uniformity of "
            f"{first['sentences']} distinct sentences. Lower is better, of both together."
        )
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    parts += [
        f"With 95% bootstrap intervals ({BOOTSTRAP_RESAMPLES} resamples of the pairs; no other training seeds).",
        intervals_table(models),
    ]
    if "differences" in results:
        minus = results["differences"]["minus"]
        entries = {row_label(name, models[name]): entry for name, entry in results["differences"]["models"].items()}
        parts += [
            f"Minus {row_label(minus, models[minus])}, on the same resamples; in bold where the interval excludes 0.",
            intervals_table(entries, sign="+"),
        ]
    return "\n\n".join(parts)


def write_results(results: dict[str, Any], json_file: Path) -> None:
    """Write `json_file` and the report as Markdown beside it."""
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    json_file.with_suffix(".md").write_text(report(results) + "\n", encoding="utf-8")
