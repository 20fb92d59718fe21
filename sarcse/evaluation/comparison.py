"""
Compare models by the similarities that they give to graded pairs, and by other jobs: scores, bootstrap intervals and
paired differences.

Shapes: P pairs, T tasks, M models, R bootstrap resamples.
"""

import math
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import datasets
import evaluate
import numpy as np
from huggingface_hub.dataclasses import strict
from scipy import stats
from tqdm.auto import tqdm

from sarcse.data.sts import loaded_as
from sarcse.evaluation.jobs import Job
from sarcse.options import STS_TASKS


BOOTSTRAP_RESAMPLES = 1000

# The precision of published scores; `eval_sts.py --bf16` has another.
PRECISION = "float32"


# --- Results ---------------------------------------------------------------------------------------------------------

# Correlations are times 100, and intervals are 95% bootstrap intervals. A missing value is None: JSON has no NaN.
# `strict` checks the types of what is read from a file.


@strict
@dataclass
class Correlation:
    """Spearman's and Pearson's correlation, times 100, over a number of pairs."""

    spearman: float | None
    pearson: float | None
    pairs: int


@strict
@dataclass
class TaskScores(Correlation):
    """The scores of a model on one task and on each of its subsets."""

    subsets: dict[str, Correlation]
    interval: list[float] | None  # of the Spearman correlation
    loaded_as: str | None = None  # the key of STS_TASKS, if these are pairs of a published task


@strict
@dataclass
class Score:
    """A score, times 100, with its interval."""

    value: float
    interval: list[float]


@strict
@dataclass
class JobScores:
    """The scores of a model on labelled texts, duplicates or a retrieval, by name; `sizes` says how many there are."""

    sizes: dict[str, int]
    scores: dict[str, Score]


@strict
@dataclass
class Geometry:
    """Alignment and uniformity of a model's embeddings; lower is better for both together."""

    alignment: float | None
    positive_pairs: int  # the alignment is measured on these
    uniformity: float | None
    sentences: int  # the uniformity is measured on these


@strict
@dataclass
class ModelScores:
    """One row: the scores of a model, their average, and its geometry on the reference task, if there is one."""

    pooler: str | None
    tasks: dict[str, TaskScores]
    average: float | None
    average_interval: list[float] | None
    geometry: Geometry | None
    picked_on: str | None = None  # the task whose pairs picked the model's checkpoint
    jobs: dict[str, JobScores] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        entry = asdict(self)
        geometry, jobs = entry.pop("geometry") or {}, entry.pop("jobs")
        return entry | geometry | ({"jobs": jobs} if jobs else {})

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "ModelScores":
        """
        The inverse of `to_json`. An entry of another shape raises AttributeError, KeyError, TypeError or strict's own
        error.
        """
        tasks = {}
        for task, scores in entry["tasks"].items():
            subsets = {name: Correlation(**subset) for name, subset in scores["subsets"].items()}
            tasks[task] = TaskScores(**{**scores, "subsets": subsets})
        geometry = {part.name: entry[part.name] for part in fields(Geometry) if part.name in entry}
        jobs = {}
        for job, found in entry.get("jobs", {}).items():
            jobs[job] = JobScores(found["sizes"], {name: Score(**score) for name, score in found["scores"].items()})
        own = entry["pooler"], tasks, entry["average"], entry["average_interval"]
        return cls(*own, Geometry(**geometry) if geometry else None, entry.get("picked_on"), jobs)


@dataclass
class TaskDifference:
    """The difference of two models' Spearman correlations x 100 on one task, with its 95% interval."""

    spearman: float | None
    interval: list[float] | None


@dataclass
class Difference:
    """The scores of one model minus those of another."""

    tasks: dict[str, TaskDifference]
    average: float | None
    average_interval: list[float] | None
    jobs: dict[str, JobScores] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        entry = asdict(self)
        return entry if self.jobs else {name: value for name, value in entry.items() if name != "jobs"}


@dataclass
class Results:
    """A comparison of models: their scores, and the differences of all others from the first."""

    models: dict[str, ModelScores]
    differences: dict[str, Difference]  # each model except the first, minus the first
    precision: str = PRECISION  # of the encoding
    groups: dict[str, dict[int, str]] = field(default_factory=dict)  # rows of the same training, by name and seed

    def __str__(self) -> str:
        """The content of results.md, which notebooks show as its tables."""
        from sarcse.evaluation.report import report  # which imports this module

        return report(self)

    _repr_markdown_ = __str__

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        results: dict[str, Any] = {"precision": self.precision}
        results["models"] = {name: scores.to_json() for name, scores in self.models.items()}
        if self.differences:
            rows = {name: difference.to_json() for name, difference in self.differences.items()}
            results["differences"] = {"minus": next(iter(self.models)), "models": rows}
        if self.groups:
            results["groups"] = self.groups
        return results


@dataclass
class Measurement:
    """One model's similarities for the pairs of all tasks, its geometry on the reference task, and its other jobs."""

    pooler: str | None
    similarities: dict[str, np.ndarray] = field(default_factory=dict)  # task -> (P,)
    geometry: Geometry | None = None
    picked_on: str | None = None  # the task whose pairs picked the model's checkpoint
    jobs: dict[str, Job] = field(default_factory=dict)


def reference_task(tasks: Collection[str]) -> str | None:
    """The task that alignment, uniformity and densities are measured on: STS-B, or the only task; else None."""
    return "STSB" if "STSB" in tasks else next(iter(tasks)) if len(tasks) == 1 else None


# --- Scores ----------------------------------------------------------------------------------------------------------


class StsCorrelation(evaluate.Metric):
    """Spearman and Pearson correlation of similarities with gold scores, through scipy and without a download."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("float64")))
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=features)

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        measures = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}
        return {name: float(measure(predictions, references).statistic) for name, measure in measures.items()}


def correlations(similarities: np.ndarray, scores: np.ndarray) -> Correlation:
    """
    Spearman's and Pearson's correlation, times 100, of `(P,)` similarities and `(P,)` gold scores. Both are None if
    all similarities or all scores are equal, or there is only one pair.
    """
    values = dict.fromkeys(("spearman", "pearson"), math.nan)
    if len(scores) > 1:
        values = StsCorrelation(keep_in_memory=True).compute(predictions=similarities, references=scores)
    return Correlation(**{name: none_if_nan(100 * value) for name, value in values.items()}, pairs=len(scores))


def bootstrap_spearman(similarities: np.ndarray, scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """
    Spearman correlations x 100 of resampled pairs, `(M, R)`. Each resample draws P pairs with replacement, the same
    pairs for all models, so that the difference of two rows is paired.

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
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # for the same reason: no interval exists
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
    return None if np.isnan(distribution).any() else percentiles(distribution)


def percentiles(distribution: np.ndarray) -> list[float]:
    return np.percentile(distribution, [2.5, 97.5]).tolist()


def none_if_nan(value: float) -> float | None:
    """The value, or None for NaN, which JSON lacks."""
    return None if math.isnan(value) else value


# --- Comparison ------------------------------------------------------------------------------------------------------


def compare(
    measurements: dict[str, Measurement], tasks: dict[str, datasets.Dataset], precision: str = PRECISION
) -> Results:
    """
    Scores of all models, and the differences of all but the first from the first. The intervals show how much the
    scores depend on the choice of pairs, not on the training seed.
    """
    generator = np.random.default_rng(0)  # the same command gives the same intervals
    distributions = []
    for task, pairs in tqdm(tasks.items(), desc="Bootstrap", leave=False, disable=None):
        similarities = np.stack([measurement.similarities[task] for measurement in measurements.values()])  # (M, P)
        distributions.append(bootstrap_spearman(similarities, gold_scores(pairs), generator))
    resampled = np.zeros((len(measurements), 0, BOOTSTRAP_RESAMPLES))
    if distributions:
        resampled = np.stack(distributions, axis=1)  # (M, T, R)
    models = {name: model_scores(measurements[name], tasks, own) for name, own in zip(measurements, resampled)}
    first, *others = models
    paired = zip(others, resampled[1:] - resampled[0])
    differences = {name: difference(models[name], models[first], own) for name, own in paired}
    compare_jobs({name: measurement.jobs for name, measurement in measurements.items()}, models, differences)
    return Results(models, differences, precision)


def compare_jobs(
    jobs: dict[str, dict[str, Job]], models: dict[str, ModelScores], differences: dict[str, Difference]
) -> None:
    """Add the scores of other jobs than graded pairs, by model and job, to what is known of models and differences."""
    first, *others = jobs
    for job, baseline in jobs[first].items():
        resampled = {}  # by model and score, (R,)
        for model in tqdm(jobs, desc=f"Bootstrap, {job}", leave=False, disable=None):
            scores = jobs[model][job].scores
            resampled[model] = {name: score.resampled(BOOTSTRAP_RESAMPLES) for name, score in scores.items()}
            found = {name: Score(score.value(), percentiles(resampled[model][name])) for name, score in scores.items()}
            models[model].jobs[job] = JobScores(baseline.sizes, found)
        for model in others:
            found = {
                name: Score(
                    score.value - models[first].jobs[job].scores[name].value,
                    percentiles(resampled[model][name] - resampled[first][name]),
                )
                for name, score in models[model].jobs[job].scores.items()
            }
            differences[model].jobs[job] = JobScores(baseline.sizes, found)


def model_scores(measurement: Measurement, tasks: dict[str, datasets.Dataset], resampled: np.ndarray) -> ModelScores:
    """One model's scores; `resampled` are its Spearman correlations x 100, `(T, R)`."""
    scores = {}
    for (task, pairs), distribution in zip(tasks.items(), resampled):
        own = correlations(measurement.similarities[task], gold_scores(pairs))
        subsets = subset_correlations(measurement.similarities[task], pairs)
        scores[task] = TaskScores(
            **asdict(own), subsets=subsets, interval=interval(distribution), loaded_as=loaded_as(pairs)
        )
    average = mean_and_interval([task.spearman for task in scores.values()], resampled)
    return ModelScores(measurement.pooler, scores, *average, measurement.geometry, measurement.picked_on)


def incomplete_tasks(scores: ModelScores) -> dict[str, int]:
    """The tasks of which only some published pairs were scored, or more, with the number that was published."""
    published = {name: STS_TASKS[task.loaded_as].pairs for name, task in scores.tasks.items() if task.loaded_as}
    return {name: pairs for name, pairs in published.items() if scores.tasks[name].pairs != pairs}


def difference(scores: ModelScores, baseline: ModelScores, resampled: np.ndarray) -> Difference:
    """`scores` minus `baseline`; `resampled` are differences of Spearman correlations x 100, `(T, R)`."""
    tasks = {}
    for task, distribution in zip(scores.tasks, resampled):
        own, other = scores.tasks[task].spearman, baseline.tasks[task].spearman
        less = None if own is None or other is None else own - other
        tasks[task] = TaskDifference(less, interval(distribution))
    return Difference(tasks, *mean_and_interval([task.spearman for task in tasks.values()], resampled))


def mean_and_interval(spearman: list[float | None], resampled: np.ndarray) -> tuple[float | None, list[float] | None]:
    if not spearman:
        return None, None
    existing = [value for value in spearman if value is not None]
    mean = sum(existing) / len(spearman) if len(existing) == len(spearman) else None
    # Tasks are resampled independently, so the resamples can be averaged in any order.
    return mean, interval(resampled.mean(axis=0))


def gold_scores(pairs: datasets.Dataset) -> np.ndarray:
    return np.array(pairs["score"][:], dtype=np.float64)  # (P,)


def subset_correlations(similarities: np.ndarray, pairs: datasets.Dataset) -> dict[str, Correlation]:
    """The scores of each subset, by name; empty if the pairs have no column `subset`."""
    if "subset" not in pairs.column_names:
        return {}
    subsets, scores = np.array(pairs["subset"][:]), gold_scores(pairs)
    return {
        str(name): correlations(similarities[subsets == name], scores[subsets == name]) for name in np.unique(subsets)
    }
