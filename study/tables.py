"""What the lines of study.jsonl say: differences of paired runs, and the tables that are made of them."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from operator import itemgetter
from typing import Any

import numpy as np
from scipy import stats

from sarcse.comparison import markdown_table
from sarcse.watch import HEALTHY_SHARE
from study.bias import SHARES
from study.configurations import (
    ALONE,
    APART,
    BASELINES,
    BATCHES,
    BESIDE,
    CHOICES,
    CHOSEN,
    COPY,
    DIRECT,
    EARLIER_BASELINES,
    ENCODER,
    FAST,
    FINAL,
    GUARDS,
    HEALTH_LENGTHS,
    HEALTH_RATES,
    LADDER,
    LESS,
    LONGER,
    MEAN,
    MEAN_RECONSTRUCTED,
    METHODS,
    ON_FIRST_LAST,
    SARCSE,
    SECOND_ENCODER,
    SECOND_LADDER,
    SECOND_SETTLED,
    SERIES,
    SIMCSE,
    START,
    STEEP,
    STEEPER,
    STEEPER_AS_MEAN,
    SWEPT,
    TWO_PASSES,
    UNTRAINED_MEAN,
    UNTRAINED_POOLERS,
    VIEWS,
    WIDE,
    WITH_BUDGET,
    Series,
    final_choices,
    health_run,
    rates_with_budget,
    steps_of,
    with_batch_size,
)
from study.run import BINS, EVALUATIONS, TASKS


HEALTH_NUMBER = "halves found"  # the candidate that became sarcse/health.py
Lines = dict[int, dict[str, Any]]  # seed -> line
Score = Callable[[dict[str, Any]], float]


# --- What the lines say ----------------------------------------------------------------------------------------------


def runs(lines: list[dict[str, Any]], choice: dict[str, Any], encoder: str = ENCODER) -> Lines:
    """The lines of a configuration, given by its differences from START, by seed."""
    wanted = {**START, **choice}
    return {
        line["seed"]: line
        for line in lines
        if line["encoder"] == encoder and {**START, **line["configuration"]} == wanted
    }


def dev(line: dict[str, Any]) -> float:
    """STS-B dev of the checkpoint that was picked."""
    return max(score for _, score in line["dev"])


def last(line: dict[str, Any]) -> float:
    """STS-B dev at the end of the training."""
    return line["dev"][-1][1]


def of_task(line: dict[str, Any], task: str) -> float:
    return line["sts"][task]


def sick(line: dict[str, Any]) -> float:
    """SICK's train and trial pairs."""
    return line["sick"]


def average(line: dict[str, Any]) -> float:
    """Mean of the STS test sets at hand."""
    return float(np.mean([of_task(line, task) for task in TASKS]))


def mean_and_deviation(of: Lines, score: Score) -> str:
    values = [score(line) for line in of.values()]
    if not values:
        return ""
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def difference(one: Lines, other: Lines, score: Score) -> tuple[float, float, float] | None:
    """Mean of the paired differences, and their 95% interval; None with fewer than three pairs, which say nothing."""
    values = [score(one[seed]) - score(other[seed]) for seed in one if seed in other]
    if len(values) < 3:
        return None
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    return float(np.mean(values)), float(interval.low), float(interval.high)


def difference_cell(values: tuple[float, float, float] | None) -> str:
    """In bold where the interval excludes 0."""
    if values is None:
        return ""
    cell = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*values)
    return f"**{cell}**" if values[1] > 0 or values[2] < 0 else cell


# What choices are measured from, the first starting point of each method and those on the way to the last.
STARTS = {
    "START": {},
    "COPY": COPY,
    "FAST": FAST,
    "WIDE": WIDE,
    "STEEP": STEEP,
    "APART": APART,
    "SimCSE": SIMCSE,
    "mean pooling": MEAN,
    "DIRECT": DIRECT,
}


def start_of(choice: dict[str, Any]) -> str | None:
    """Name of the starting point that a choice differs least from, the first of several; None for a method's first."""
    earlier = list(takewhile(lambda name: STARTS[name] != choice, STARTS))
    names = [name for name in earlier if STARTS[name].get("pooler") == choice.get("pooler")]
    return min(names, key=lambda name: len(differences(choice, STARTS[name])), default=None)


def differences(choice: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """What a choice has otherwise than its starting point."""
    wanted, given = {**START, **choice}, {**START, **start}
    return {name: value for name, value in wanted.items() if value != given[name]}


def added(choice: dict[str, Any], start: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in differences(choice, start).items())


# --- Tables ----------------------------------------------------------------------------------------------------------


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
    """Reconstruction errors over the variance of the vectors, by group: 1 is what their mean would reach."""
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


def with_densities(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The lines of each method, of those seeds whose lines have the densities of cosines in all of them."""
    found = {name: runs(lines, choice) for name, choice in METHODS.items()}
    seeds = [seed for seed in found["SARCSE"] if all("densities" in of.get(seed, {}) for of in found.values())]
    return {name: [of[seed] for seed in seeds] for name, of in found.items()}


def cosines(counts: list[int]) -> np.ndarray:
    """As many cosines as were counted in each of `BINS` parts of [-1, 1], each in the middle of its part."""
    middles = (np.arange(BINS) + 0.5) * 2 / BINS - 1
    return np.repeat(middles, counts)


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
    """On the second encoder, SARCSE minus the others, each as STS-B dev prefers it there."""
    models = {name: SECOND_LADDER[settled] for name, settled in SECOND_SETTLED.items()}
    compared = [("SARCSE", "SimCSE"), *((name, "mean pooling") for name in ("SARCSE", MEAN_RECONSTRUCTED))]
    return paired_table(lines, models, compared, SECOND_ENCODER)


def scores_beside(of: Lines, other: Lines | None) -> list[str]:
    """Seeds and scores of a configuration, and their paired differences to another one's, empty for None."""
    scores = (dev, average)
    compared = ["" if other is None else difference_cell(difference(of, other, score)) for score in scores]
    return [str(len(of)), *(mean_and_deviation(of, score) for score in scores), *compared]


SCORES_BESIDE = ["seeds", "STS-B dev", "average", "dev, difference", "average, difference"]


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


def health_points(line: dict[str, Any], candidate: str) -> np.ndarray:
    """A candidate beside STS-B dev at each evaluation, `(EVALUATIONS, 2)`."""
    measured = dict(line["health"])
    return np.array([(measured[step][candidate], score) for step, score in line["dev"]])


def health_table(lines: list[dict[str, Any]]) -> str:
    """
    How well each candidate follows STS-B dev: over all evaluations of an encoder; and as what picks the checkpoint, by
    what that loses to the best one of a run, whether it takes the one with the highest number or the last healthy one.
    """
    of_encoder = {
        encoder: [line for line in lines if line["encoder"] == encoder and "health" in line] for encoder in SWEPT
    }
    of_encoder = {encoder: found for encoder, found in of_encoder.items() if found}
    if not of_encoder:
        return ""
    whole = [line for found in of_encoder.values() for line in found]
    guarded = [line for line in whole if is_guarded(line)]
    starts = {encoder: untrained_line(lines, encoder) for encoder in of_encoder}
    rows = []
    for candidate in whole[0]["health"][0][1]:
        ranks = []
        for found in of_encoder.values():
            points = np.concatenate([health_points(line, candidate) for line in found])
            ranks.append(stats.spearmanr(points[:, 0], points[:, 1]).statistic)
        lost, lost_guarded = ([dev(line) - picked(line, candidate) for line in of] for of in (whole, guarded))
        # A share of the best so far is nothing where a number is negative.
        shares = all(numbers[candidate] > 0 for line in whole for _, numbers in line["health"])
        by_share = [lost_by_health(line, starts[line["encoder"]], candidate) for line in whole] if shares else []
        means = [f"{np.mean(values):.2f}" if values else "" for values in (lost, lost_guarded, by_share)]
        rows.append([candidate, *(f"{rank:+.2f}" for rank in ranks), *means])
    rows.sort(key=lambda row: float(row[-1] or "inf"))
    lost_by_last = [f"{np.mean([dev(line) - last(line) for line in of]):.2f}" for of in (whole, guarded)]
    rows.append(["the last checkpoint", *[""] * len(of_encoder), *lost_by_last, ""])
    header = ["number", *(f"{encoder}, {len(found)} runs" for encoder, found in of_encoder.items())]
    return markdown_table(
        [[*header, "lost by the highest", "with decay or budget", "lost by the last healthy"], *rows]
    )


def is_guarded(line: dict[str, Any]) -> bool:
    """Whether the decay or the budget kept a training from ruin."""
    configuration = {**START, **line["configuration"]}
    return configuration["start_decay"] > 0 or configuration["learning_rate_budget"] > 0


def picked(line: dict[str, Any], candidate: str) -> float:
    """STS-B dev of the checkpoint where the candidate is highest."""
    points = health_points(line, candidate)
    return points[points[:, 0].argmax(), 1]


def untrained_line(lines: list[dict[str, Any]], encoder: str) -> dict[str, Any] | None:
    """The encoder under mean pooling."""
    return runs(lines, UNTRAINED_POOLERS["untrained, mean"], encoder).get(1)


def ruin_table(lines: list[dict[str, Any]]) -> str:
    """
    STS-B dev of each training of the sweep without a guard, with the decay and with the budget: of the model that is
    kept by its health, which is empty for lines that are older than it, and at the end.
    """
    heads = [f"{guard}, {which}" for guard in ("no guard", "decay", "budget") for which in ("kept", "end")]
    rows = [["encoder", "method", "steps", "learning rate", *heads]]
    for encoder, methods in SWEPT.items():
        untrained = untrained_line(lines, encoder)
        if untrained is None:
            continue
        rows.append([encoder, UNTRAINED_MEAN, "0", "", "", f"{dev(untrained):.2f}", *[""] * 4])
        for method, sentences, rate in itertools.product(methods, HEALTH_LENGTHS, HEALTH_RATES):
            rates = {guard: rate for guard in GUARDS}
            rates["budget"] = min(rate, rates_with_budget(sentences)[-1])
            of_guards = [
                runs(lines, health_run(encoder, method, guard, sentences, rates[guard]), encoder).get(1)
                for guard in GUARDS
            ]
            if any(of_guards[:2]):
                cells = [cell for line in of_guards for cell in kept_and_last(line, untrained)]
                rows.append([encoder, method, f"{steps_of(sentences)}", f"{rate:g}", *cells])
    return markdown_table(rows)


def budget_table(lines: list[dict[str, Any]]) -> str:
    """What each different training with the budget makes of the untrained encoder under mean pooling."""
    scores = ["STS-B dev, kept", "end", "end minus untrained", "tests, end minus untrained"]
    rows = [["encoder", "method", "steps", "learning rate", *scores]]
    for encoder, methods in SWEPT.items():
        untrained = untrained_line(lines, encoder)
        if untrained is None:
            continue
        for method, sentences in itertools.product(methods, HEALTH_LENGTHS):
            rates = rates_with_budget(sentences)
            for rate in rates:
                line = runs(lines, health_run(encoder, method, "budget", sentences, rate), encoder).get(1)
                if line:
                    what = f"{rate:g}" + " and above" * (rate == rates[-1])
                    added = [last(line) - dev(untrained), average(line) - average(untrained)]
                    cells = [*kept_and_last(line, untrained), *(f"{value:+.2f}" for value in added)]
                    rows.append([encoder, method, f"{steps_of(sentences)}", what, *cells])
    return markdown_table(rows)


def kept(line: dict[str, Any], untrained: dict[str, Any], candidate: str = HEALTH_NUMBER) -> float:
    """
    STS-B dev of the last healthy model, of all evaluations and of the encoder before the training; by the program's
    own number it is what is kept where there are no pairs.
    """
    healths, scores = health_points(line, candidate).T  # two of (EVALUATIONS,)
    start = line["health"][0][1][candidate]
    best = np.maximum.accumulate(np.maximum(healths, start))
    healthy = np.flatnonzero(healths > HEALTHY_SHARE * best)
    return scores[healthy[-1]] if len(healthy) > 0 else dev(untrained)


def lost_by_health(line: dict[str, Any], untrained: dict[str, Any], candidate: str) -> float:
    """What the last healthy model loses to the best one, the one before the training among them."""
    return max(dev(line), dev(untrained)) - kept(line, untrained, candidate)


def kept_and_last(line: dict[str, Any] | None, untrained: dict[str, Any]) -> list[str]:
    if line is None:
        return ["", ""]
    return [f"{kept(line, untrained):.2f}" if "health" in line else "", f"{last(line):.2f}"]


def warning_table(lines: list[dict[str, Any]]) -> str:
    """How many evaluations would be warned of, by what STS-B dev says of them."""
    groups = [
        "more than a point below the untrained encoder",
        "else more than a point below the best before",
        "the rest",
    ]
    counts = {group: [0, 0] for group in groups}
    for encoder in SWEPT:
        untrained = untrained_line(lines, encoder)
        for line in lines:
            if line["encoder"] != encoder or "health" not in line or untrained is None:
                continue
            healthiest, best = line["health"][0][1][HEALTH_NUMBER], -math.inf
            for health, score in health_points(line, HEALTH_NUMBER):
                best = max(best, score)
                bad = [score < dev(untrained) - 1, score < best - 1, True]
                count = counts[groups[bad.index(True)]]
                count[0] += 1
                count[1] += health <= HEALTHY_SHARE * healthiest
                healthiest = max(healthiest, health)
    rows = [[group, str(number), str(warned)] for group, (number, warned) in counts.items()]
    return markdown_table([["STS-B dev", "evaluations", "warned of"], *rows])


def development(line: dict[str, Any]) -> float:
    """What the final ladder is chosen by: the mean of STS-B dev and of SICK's train and trial pairs."""
    return (dev(line) + sick(line)) / 2


def final_runs(lines: list[dict[str, Any]], choice: dict[str, Any], encoder: str) -> Lines:
    """`runs` of the program as it is: older lines have no health."""
    return {seed: line for seed, line in runs(lines, choice, encoder).items() if "halves_found" in line}


def tuning_table(lines: list[dict[str, Any]]) -> str:
    """What each rung of the final ladder is chosen from, and in bold what was."""
    rows = [["encoder", "method", "settings", "seeds", "STS-B dev", "SICK, dev", "their mean"]]
    for encoder, rungs in FINAL.items():
        for name, choices in final_choices(encoder).items():
            for choice in choices:
                of = final_runs(lines, choice, encoder)
                if of:
                    tuned = CHOSEN[encoder].get(name, {})
                    settings = ", ".join(f"{field} {choice[field]:g}" for field in tuned)
                    *means, mean = (mean_and_deviation(of, score) for score in (dev, sick, development))
                    mean = f"**{mean}**" if tuned and choice == rungs[name] else mean
                    rows.append([encoder, name, settings, str(len(of)), *means, mean])
    return markdown_table(rows)


def final_table(lines: list[dict[str, Any]]) -> str:
    """The final ladder, reported once its rungs were chosen."""
    scores: dict[str, Score] = {
        "STS-B dev": dev,
        "SICK, dev": sick,
        **{task: partial(of_task, task=task) for task in TASKS},
        "average": average,
        "alignment": itemgetter("alignment"),
        "uniformity": itemgetter("uniformity"),
        "health": itemgetter("halves_found"),
    }
    rows = [["encoder", "method", "seeds", *scores]]
    for encoder, rungs in FINAL.items():
        for name, choice in rungs.items():
            of = final_runs(lines, choice, encoder)
            if of:
                rows.append(
                    [encoder, name, str(len(of)), *(mean_and_deviation(of, score) for score in scores.values())]
                )
    return markdown_table(rows)


def final_differences_table(lines: list[dict[str, Any]]) -> str:
    """Paired differences of the final ladder; its untrained encoder is the same for all seeds."""
    rows = [["encoder", "difference", "pairs", "STS-B dev", "SICK, dev", *TASKS, "average"]]
    scores: list[Score] = [dev, sick, *(partial(of_task, task=task) for task in TASKS), average]
    for encoder, rungs in FINAL.items():
        found = {name: final_runs(lines, choice, encoder) for name, choice in rungs.items()}
        untrained = found[UNTRAINED_MEAN].get(1)
        for name, other in itertools.combinations(reversed(found), 2):
            one, two = found[name], found[other]
            if other == UNTRAINED_MEAN and untrained:
                two = dict.fromkeys(one, untrained)
            pairs = len(one.keys() & two.keys())
            if pairs > 2:
                cells = (difference_cell(difference(one, two, score)) for score in scores)
                rows.append([encoder, f"{name} minus {other}", str(pairs), *cells])
    return markdown_table(rows)


def runs_of_series(lines: list[dict[str, Any]], series: Series) -> dict[tuple[str, str], dict[int, Lines]]:
    """Of each encoder and method, the runs by the value that differs."""
    found = {
        (encoder, method): {
            value: runs(lines, series.choice(encoder, method, value), encoder) for value in series.values
        }
        for encoder in FINAL
        for method in WITH_BUDGET
    }
    return {key: {value: of for value, of in by_value.items() if of} for key, by_value in found.items()}


def series_table(lines: list[dict[str, Any]], series: Series) -> str:
    """Scores by the value that differs."""
    rows = [["encoder", "method", series.what, "seeds", "STS-B dev, best", "at the end", "SICK, dev", "average"]]
    for (encoder, method), by_value in runs_of_series(lines, series).items():
        for value, of in by_value.items():
            cells = (mean_and_deviation(of, score) for score in (dev, last, sick, average))
            rows.append([encoder, method, f"{value:,}", str(len(of)), *cells])
    return markdown_table(rows)


TABLES = {
    **{name: partial(series_table, series=series) for name, series in SERIES.items()},
    "tuning": tuning_table,
    "final": final_table,
    "final differences": final_differences_table,
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
    "health": health_table,
    "ruin": ruin_table,
    "budget": budget_table,
    "warnings": warning_table,
}
