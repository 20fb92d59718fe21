"""The tables of docs/choices.md: of older runs, from which the defaults were chosen."""

from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from sarcse.comparison import markdown_table
from study.bias import SHARES
from study.older_configurations import (
    ALONE,
    BASELINES,
    BATCHES,
    BESIDE,
    CHOICES,
    EARLIER_BASELINES,
    ENCODER,
    LADDER,
    LESS,
    LONGER,
    MEAN_RECONSTRUCTED,
    MEAN_SLOWER,
    METHODS,
    ON_FIRST_LAST,
    SARCSE,
    SARCSE_BESIDE,
    SECOND_ENCODER,
    SECOND_LADDER,
    SECOND_SETTLED,
    START,
    STEEPER,
    STEEPER_AS_MEAN,
    TWO_PASSES,
    UNTRAINED_POOLERS,
    VIEWS,
    with_batch_size,
)
from study.reading import (
    STARTS,
    Lines,
    Score,
    added,
    average,
    cosines,
    dev,
    difference,
    difference_cell,
    last,
    mean_and_deviation,
    of_task,
    runs,
    start_of,
    with_densities,
)
from study.run import EVALUATIONS, TASKS


def choices_table(lines: list[dict[str, Any]]) -> str:
    """Part one: each starting point, followed by what was added to it and the difference that this made."""
    rows = [["from", "what changes", "seeds", "STS-B dev, best", "at the end", "difference of the best"]]
    for name, start in STARTS.items():
        of_start = runs(lines, start)
        scores = [mean_and_deviation(of_start, score) for score in (dev, last)]
        rows.append([f"**{name}**", "", str(len(of_start)), *scores, ""])
        for choice in CHOICES:
            of = runs(lines, choice)
            if of and start_of(choice) == name:
                scores = [mean_and_deviation(of, score) for score in (dev, last)]
                cell = difference_cell(difference(of, of_start, dev))
                rows.append([name, added(choice, start), str(len(of)), *scores, cell])
    return markdown_table(rows)


def longer_table(lines: list[dict[str, Any]]) -> str:
    """STS-B dev at each evaluation of longer trainings, and the test average of the best checkpoint."""
    evaluations = [f"after {number} of {EVALUATIONS}" for number in range(1, EVALUATIONS + 1)]
    rows = [["sentences", "configuration", "seeds", *evaluations, "test average"]]
    for (sentences, name), choice in LONGER.items():
        of = runs(lines, choice)
        if of:
            curve = np.mean([[score for _, score in line["dev"]] for line in of.values()], axis=0)
            cells = [*(f"{score:.2f}" for score in curve), mean_and_deviation(of, average)]
            rows.append([f"{sentences:,}", name, str(len(of)), *cells])
    return markdown_table(rows)


def ladder_table(lines: list[dict[str, Any]]) -> str:
    """Part two: scores of the baselines and of each rung, all reported once the choices were made."""
    rows = [["model", "seeds", *TASKS, "average", "alignment", "uniformity"]]
    for name, choice in {**UNTRAINED_POOLERS, **LADDER}.items():
        of = runs(lines, choice)
        if of:
            scores = [mean_and_deviation(of, partial(of_task, task=task)) for task in TASKS]
            geometry = [mean_and_deviation(of, itemgetter(key)) for key in ("alignment", "uniformity")]
            rows.append([name, str(len(of)), *scores, mean_and_deviation(of, average), *geometry])
    return markdown_table(rows)


COMPARED = [
    *((SARCSE, name) for name in (*BASELINES, *EARLIER_BASELINES)),
    (SARCSE, STEEPER),
    (STEEPER, "+ self-adaptive weights"),
    (STEEPER, "SimCSE"),
    (STEEPER, "mean pooling"),
    (STEEPER_AS_MEAN, "mean pooling"),
    (STEEPER_AS_MEAN, STEEPER),
    *((name, SARCSE) for name in (*LESS, MEAN_RECONSTRUCTED, ON_FIRST_LAST)),
    (MEAN_RECONSTRUCTED, "SimCSE"),
    (MEAN_RECONSTRUCTED, "mean pooling"),
    ("mean pooling", "mean pooling, at 0.05"),
    ("weighted mean pooling", "mean pooling"),
    ("weighted mean pooling", "mean pooling, at 0.05 and 1e-4"),
    ("TextCNN encoder", "mean pooling, at 0.05 and 1e-4"),
    ("+ reconstruction", "TextCNN encoder"),
    ("+ self-adaptive weights", "+ reconstruction"),
    ("+ self-adaptive weights", "mean pooling"),
    ("+ self-adaptive weights, at 0.02", "+ self-adaptive weights"),
]


def differences_table(lines: list[dict[str, Any]]) -> str:
    """SARCSE minus each of the others, and the steps up to it, by task."""
    return paired_table(lines, LADDER, COMPARED)


def paired_table(
    lines: list[dict[str, Any]],
    models: dict[str, dict[str, Any]],
    compared: list[tuple[str, str]],
    encoder: str = ENCODER,
) -> str:
    """By task, the paired differences of models that are given by their names."""
    rows = [["difference", "pairs", "STS-B dev", *TASKS, "average"]]
    for name, other_name in compared:
        one, other = (runs(lines, models[model], encoder) for model in (name, other_name))
        pairs = len(one.keys() & other.keys())
        if pairs > 2:
            scores = [dev, *(partial(of_task, task=task) for task in TASKS), average]
            cells = [difference_cell(difference(one, other, score)) for score in scores]
            label = f"{name} minus {other_name}".replace(SARCSE, "SARCSE")
            rows.append([label, str(pairs), *cells])
    return markdown_table(rows)


def batch_size_table(lines: list[dict[str, Any]]) -> str:
    """Average by batch size and rule of the learning rates."""
    compared = [("SARCSE", "SimCSE"), ("SARCSE", "mean pooling")]
    rows = [["batch size", "seeds", *METHODS, *(f"{name} minus {other}" for name, other in compared)]]
    for label, batch in BATCHES.items():
        of = {name: runs(lines, with_batch_size(choice, *batch)) for name, choice in METHODS.items()}
        if of["SARCSE"]:
            cells = [mean_and_deviation(found, average) for found in of.values()]
            others = [difference_cell(difference(of[name], of[other], average)) for name, other in compared]
            rows.append([label, str(len(of["SARCSE"])), *cells, *others])
    return markdown_table(rows)


def batch_change_table(lines: list[dict[str, Any]], score: Score) -> str:
    """What another batch size than that of the rest of the study changes in the score of each method."""
    rows = [["batch size", *METHODS]]
    for label, (size, exponent) in BATCHES.items():
        changes = [
            difference(runs(lines, with_batch_size(choice, size, exponent)), runs(lines, choice), score)
            for choice in METHODS.values()
        ]
        if size != START["per_device_train_batch_size"]:
            rows.append([label, *map(difference_cell, changes)])
    return markdown_table(rows)


# Trainings that went on for too long, without an anchor and with one.
TOO_LONG = {
    f"{name}, 100,032 sentences": LONGER[100_032, name] for name in ("SARCSE at 3e-5", "SARCSE at 3e-5, anchor 0.5")
}
GROUPS = [
    f"under {SHARES[0]:g}",
    *(f"{low:g} to {high:g}" for low, high in zip(SHARES, SHARES[1:])),
    f"over {SHARES[-1]:g}",
]


def bias_table(lines: list[dict[str, Any]]) -> str:
    """How far an embedding moves when a token of a group is replaced, relative to the mean over all groups."""
    rows = [["share of the corpus", *GROUPS, "rarest / most frequent"]]
    for name, choice in {**UNTRAINED_POOLERS, **LADDER, **TOO_LONG}.items():
        changes = np.array([line["bias"]["change"] for line in runs(lines, choice).values()])  # (seeds, groups)
        if len(changes) > 0:
            relative = changes / changes.mean(axis=1, keepdims=True)
            ratio = changes[:, 0] / changes[:, -1]
            deviation = f" ± {ratio.std(ddof=1):.2f}" if len(ratio) > 1 else ""
            rows.append([name, *(f"{value:.2f}" for value in relative.mean(axis=0)), f"{ratio.mean():.2f}{deviation}"])
    return markdown_table(rows)


def error_table(lines: list[dict[str, Any]]) -> str:
    """Reconstruction errors by group, over what the mean vector of all tokens would leave there."""
    rows = [["share of the corpus", *GROUPS]]
    models = {
        "START, a decoder that starts at random": START,
        **{n: LADDER[n] for n in ("+ reconstruction", "+ self-adaptive weights", STEEPER, SARCSE)},
        **TOO_LONG,
    }
    for name, choice in models.items():
        biases = [line["bias"] for line in runs(lines, choice).values()]
        if biases:
            shares = np.array([np.divide(bias["error"], bias["variance"]) for bias in biases])  # (seeds, groups)
            rows.append([name, *(f"{value:.3f}" for value in shares.mean(axis=0))])
    return markdown_table(rows)


def median_table(lines: list[dict[str, Any]]) -> str:
    """The medians in the figure of the densities, all seeds together, from the highest rating to the lowest."""
    found = with_densities(lines)
    groups = list(found["SARCSE"][0]["densities"]) if found["SARCSE"] else []
    rows = [["median cosine", "seeds", *groups, "highest minus lowest"]]
    for name, of in found.items():
        medians = [np.median(np.concatenate([cosines(line["densities"][group]) for line in of])) for group in groups]
        if medians:
            values = [*medians, medians[0] - medians[-1]]
            rows.append([name, str(len(of)), *(f"{value:.2f}" for value in values)])
    return markdown_table(rows)


def second_encoder_table(lines: list[dict[str, Any]]) -> str:
    """On the second encoder each method at each learning rate, and what the encoder scores untrained."""
    rows = [["model", "seeds", "STS-B dev, best", "at the end", *TASKS, "average"]]
    for name, choice in SECOND_LADDER.items():
        of = runs(lines, choice, SECOND_ENCODER)
        if of:
            scores = [dev, last, *(partial(of_task, task=task) for task in TASKS), average]
            rows.append([name, str(len(of)), *(mean_and_deviation(of, score) for score in scores)])
    return markdown_table(rows)


def second_differences_table(lines: list[dict[str, Any]]) -> str:
    """On the second encoder, SARCSE minus the others, each as development data prefer it there."""
    models = {name: SECOND_LADDER[settled] for name, settled in SECOND_SETTLED.items()}
    compared = [("SARCSE", "SimCSE"), *((name, "mean pooling") for name in ("SARCSE", MEAN_RECONSTRUCTED))]
    compared.append((SARCSE_BESIDE, MEAN_SLOWER))
    return paired_table(lines, models, compared, SECOND_ENCODER)


SCORES_BESIDE = ["seeds", "STS-B dev", "average", "dev, difference", "average, difference"]


def scores_beside(of: Lines, other: Lines | None) -> list[str]:
    """Seeds and scores of a configuration, and their paired differences to another one's, empty for None."""
    scores = (dev, average)
    compared = ["" if other is None else difference_cell(difference(of, other, score)) for score in scores]
    return [str(len(of)), *(mean_and_deviation(of, score) for score in scores), *compared]


def one_pass_table(lines: list[dict[str, Any]]) -> str:
    """On each encoder each method with each kind of views, and the paired difference to two passes."""
    rows = [["encoder", "method", "views", *SCORES_BESIDE]]
    for encoder, methods in TWO_PASSES.items():
        for method, choice in methods.items():
            two_passes = runs(lines, choice, encoder)
            for name, view in VIEWS.items():
                of = runs(lines, {**choice, **view}, encoder)
                if of:
                    rows.append([encoder, method, name, *scores_beside(of, two_passes if view else None)])
    return markdown_table(rows)


def beside_table(lines: list[dict[str, Any]]) -> str:
    """On each encoder a TextCNN beside the mean, and the paired difference to the TextCNN alone."""
    rows = [["encoder", "TextCNN", *SCORES_BESIDE]]
    for encoder, choices in BESIDE.items():
        alone = runs(lines, choices[ALONE], encoder)
        for name, choice in choices.items():
            of = runs(lines, choice, encoder)
            if of:
                rows.append([encoder, name, *scores_beside(of, None if name == ALONE else alone)])
    return markdown_table(rows)


OLDER_TABLES = {
    "choices": choices_table,
    "longer": longer_table,
    "ladder": ladder_table,
    "differences": differences_table,
    "medians": median_table,
    "batch sizes": batch_size_table,
    "batch changes": partial(batch_change_table, score=average),
    "batch changes on dev": partial(batch_change_table, score=dev),
    "bias": bias_table,
    "errors": error_table,
    "second encoder": second_encoder_table,
    "second differences": second_differences_table,
    "beside": beside_table,
    "one pass": one_pass_table,
}
