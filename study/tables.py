"""The tables of the README, docs/results.md and docs/tables.md."""

import itertools
import math
from collections.abc import Iterable
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
from scipy import stats

from sarcse.evaluation.report import markdown_table
from study import jobs, own_text
from study.configurations import (
    ADDED,
    BUDGET,
    CHOSEN,
    DIMENSIONS,
    ENCODER,
    FINAL,
    HEALTH_LENGTHS,
    HEALTH_RATES,
    MEAN_RECONSTRUCTED,
    PAPER,
    SARCSE_TWICE,
    SERIES,
    TEXTCNN,
    TEXTCNN_RECONSTRUCTED,
    UNTRAINED_FIRST,
    UNTRAINED_MEAN,
    WATCHED,
    WATCHED_RATES,
    WITH_BUDGET,
    Series,
    final_choices,
    health_run,
    rates_with_budget,
    steps_of,
    watched,
)
from study.lines import read_lines
from study.reading import (
    HEALTH_NUMBER,
    HEALTHY_SHARE,
    Lines,
    Score,
    average,
    dev,
    development,
    difference,
    difference_cell,
    final_runs,
    health_points,
    is_guarded,
    kept,
    last,
    lost_by_health,
    mean_and_deviation,
    of_task,
    picked,
    runs,
    runs_of_series,
    sick,
    untrained_line,
    without_stsb,
)
from study.run import TASKS


# --- The final ladder ------------------------------------------------------------------------------------------------

SCORES: dict[str, Score] = {
    "STS-B dev": dev,
    "SICK, dev": sick,
    **{task: partial(of_task, task=task) for task in TASKS},
    "without STS-B": without_stsb,
    "average": average,
}
HEALTH: dict[str, Score] = {"health": itemgetter("halves_found")}
ALL_SCORES = {**SCORES, **{name: itemgetter(name) for name in ("alignment", "uniformity")}, **HEALTH}
SHORT_SCORES = {name: SCORES[name] for name in ("STS-B dev", "SICK, dev", "without STS-B", "average")}
# The differences that are asked for most.
ASKED_FOR = [
    *(("SARCSE", other) for other in ("SimCSE", "mean pooling", MEAN_RECONSTRUCTED, ADDED, PAPER)),
    (SARCSE_TWICE, "SARCSE"),
    *((one, other) for one, other in itertools.pairwise((PAPER, TEXTCNN_RECONSTRUCTED, TEXTCNN, "SimCSE"))),
]
TO_UNTRAINED = [(name, UNTRAINED_MEAN) for name in FINAL[ENCODER] if name not in (UNTRAINED_MEAN, UNTRAINED_FIRST)]

GAIN = "minus the choice's, same seeds"


def tuning_table(lines: list[dict[str, Any]]) -> str:
    """What each rung of the final ladder is chosen from, and in bold what was. The last column chose nothing."""
    scores = (dev, sick, development, average)
    rows = [["encoder", "method", "settings", "seeds", "STS-B dev", "SICK, dev", "their mean", GAIN, "test average"]]
    for encoder, rungs in FINAL.items():
        for name, choices in final_choices(encoder).items():
            for choice in choices:
                of = final_runs(lines, choice, encoder)
                if of:
                    tuned = CHOSEN[encoder].get(name, {})
                    settings = ", ".join(f"{field} {choice[field]:g}" for field in tuned)
                    *means, mean, tests = (mean_and_deviation(of, score) for score in scores)
                    if tuned and choice == rungs[name]:
                        mean, gain = f"**{mean}**", ""
                    else:
                        gain = gain_cell(of, final_runs(lines, rungs[name], encoder)) if tuned else ""
                    rows.append([encoder, name, settings, str(len(of)), *means, mean, gain, tests])
    return markdown_table(rows)


def gain_cell(of: Lines, chosen: Lines) -> str:
    """The mean of the development scores minus the choice's, over the seeds that both have."""
    both = of.keys() & chosen.keys()
    return f"{np.mean([development(of[seed]) - development(chosen[seed]) for seed in both]):+.2f}" if both else ""


def final_table(lines: list[dict[str, Any]], scores: dict[str, Score]) -> str:
    """The final ladder, reported once its rungs were chosen."""
    rows = [["encoder", "method", "seeds", *scores]]
    for encoder, rungs in FINAL.items():
        for name, choice in rungs.items():
            of = final_runs(lines, choice, encoder)
            if of:
                cells = (mean_and_deviation(of, score) for score in scores.values())
                rows.append([encoder, name, str(len(of)), *cells])
    return markdown_table(rows)


def averages_table(lines: list[dict[str, Any]]) -> str:
    """The averages of the final ladder, a column for each encoder."""
    rows = [["method", *FINAL]]
    for name in FINAL[ENCODER]:
        found = [final_runs(lines, rungs[name], encoder) for encoder, rungs in FINAL.items()]
        if any(found):
            rows.append([name, *(mean_and_deviation(of, average) for of in found)])
    return markdown_table(rows)


def final_differences_table(
    lines: list[dict[str, Any]], scores: dict[str, Score], compared: Iterable[tuple[str, str]]
) -> str:
    """Paired differences of the final ladder; its untrained encoder is the same for all seeds."""
    rows = [["encoder", "difference", "pairs", *scores]]
    for encoder, rungs in FINAL.items():
        found = {name: final_runs(lines, choice, encoder) for name, choice in rungs.items()}
        untrained = found[UNTRAINED_MEAN].get(1)
        for name, other in compared:
            one, two = found[name], found[other]
            if other == UNTRAINED_MEAN and untrained:
                two = dict.fromkeys(one, untrained)
            pairs = len(one.keys() & two.keys())
            if pairs > 2:
                cells = (difference_cell(difference(one, two, score)) for score in scores.values())
                rows.append([encoder, f"{name} minus {other}", str(pairs), *cells])
    return markdown_table(rows)


def watched_table(lines: list[dict[str, Any]]) -> str:
    """What the checkpoint has that STS-B dev picks, with the budget and without it."""
    rows = [["encoder", "method", "budget", "learning rate", "seeds", "STS-B dev, best", "SICK, dev", "average"]]
    for encoder, method in itertools.product(FINAL, WATCHED):
        settings = [(BUDGET["learning_rate_budget"], "any of these", FINAL[encoder][method])]
        settings += [("none", f"{rate:g}", watched(encoder, method, rate)) for rate in WATCHED_RATES]
        for budget, rate, choice in settings:
            of = final_runs(lines, choice, encoder)
            if of:
                cells = (mean_and_deviation(of, score) for score in (dev, sick, average))
                rows.append([encoder, method, str(budget), rate, str(len(of)), *cells])
    return markdown_table(rows)


def without_textcnn_table(lines: list[dict[str, Any]]) -> str:
    """What is left of the scores if the trained encoder is used under mean pooling, without the TextCNN."""
    scores = (sick, average)
    rows = [
        [
            "encoder",
            "method",
            "seeds",
            *(f"{name}, {what}" for name in ("SICK, dev", "average") for what in ("with", "without")),
        ]
    ]
    for encoder, rungs in FINAL.items():
        for name, choice in rungs.items():
            of = {seed: line for seed, line in final_runs(lines, choice, encoder).items() if "mean_pooled" in line}
            if of:
                pooled = {seed: line["mean_pooled"] for seed, line in of.items()}
                cells = [mean_and_deviation(lines_of, score) for score in scores for lines_of in (of, pooled)]
                rows.append([encoder, name, str(len(of)), *cells])
    return markdown_table(rows)


def series_table(lines: list[dict[str, Any]], series: Series) -> str:
    """Scores by the value that differs, a row for each."""
    rows = [["encoder", "method", series.what, "seeds", "STS-B dev, best", "at the end", "SICK, dev", "average"]]
    for (encoder, method), by_value in runs_of_series(lines, series).items():
        for value, of in by_value.items():
            cells = (mean_and_deviation(of, score) for score in (dev, last, sick, average))
            rows.append([encoder, method, f"{value:,}", str(len(of)), *cells])
    return markdown_table(rows)


def short_series_table(lines: list[dict[str, Any]], series: Series) -> str:
    """The average, with a column for each value that has runs."""
    found = runs_of_series(lines, series)
    values = [value for value in series.values if any(value in by_value for by_value in found.values())]
    rows = [["encoder", "method", *(f"{series.what} {value:,}" for value in values)]]
    for (encoder, method), by_value in found.items():
        rows.append([encoder, method, *(mean_and_deviation(by_value.get(value, {}), average) for value in values)])
    return markdown_table(rows)


# --- The sweep of learning rates and lengths -------------------------------------------------------------------------


def sweep(lines: list[dict[str, Any]], encoder: str, budget: bool) -> dict[tuple[str, int, float], dict[str, Any]]:
    """The different trainings, by method, sentences and learning rate."""
    found = {}
    for method, sentences in itertools.product(WITH_BUDGET, HEALTH_LENGTHS):
        for rate in rates_with_budget(sentences) if budget else HEALTH_RATES:
            line = runs(lines, health_run(encoder, method, sentences, rate, budget), encoder).get(1)
            if line:
                found[method, sentences, rate] = line
    return found


def ruined_table(lines: list[dict[str, Any]]) -> str:
    """
    How many trainings of the sweep end more than a point below the untrained encoder on STS-B dev, without the budget
    and with it. The lowest scores are relative to that encoder.
    """
    rows = [["encoder", "budget", "trainings", "ruined", "lowest at the end", "with a health", "lowest kept"]]
    for encoder in DIMENSIONS:
        untrained = untrained_line(lines, encoder)
        for budget, name in ((False, "none"), (True, f"{BUDGET['learning_rate_budget']:g}")):
            found = sweep(lines, encoder, budget).values()
            if untrained is not None and found:
                ends = [last(line) - dev(untrained) for line in found]
                of_kept = [kept(line, untrained) - dev(untrained) for line in found if "health" in line]
                low, low_kept = (f"{min(values):+.2f}" if values else "" for values in (ends, of_kept))
                ruined = sum(end < -1 for end in ends)
                rows.append([encoder, name, str(len(found)), str(ruined), low, str(len(of_kept)), low_kept])
    return markdown_table(rows)


def budget_table(lines: list[dict[str, Any]]) -> str:
    """
    What each different training with the budget makes of the untrained encoder under mean pooling. The test sets were
    scored with the checkpoint that STS-B dev picks.
    """
    scores = ["STS-B dev, kept", "end", "end minus untrained", "tests, best minus untrained"]
    rows = [["encoder", "method", "steps", "learning rate", *scores]]
    for encoder in DIMENSIONS:
        untrained = untrained_line(lines, encoder)
        if untrained is None:
            continue
        for (method, sentences, rate), line in sweep(lines, encoder, budget=True).items():
            what = f"{rate:g}" + " and above" * (rate == rates_with_budget(sentences)[-1])
            added = [last(line) - dev(untrained), average(line) - average(untrained)]
            cells = [*kept_and_last(line, untrained), *(f"{value:+.2f}" for value in added)]
            rows.append([encoder, method, f"{steps_of(sentences)}", what, *cells])
    return markdown_table(rows)


def kept_and_last(line: dict[str, Any] | None, untrained: dict[str, Any]) -> list[str]:
    if line is None:
        return ["", ""]
    return [f"{kept(line, untrained):.2f}" if "health" in line else "", f"{last(line):.2f}"]


def health_table(lines: list[dict[str, Any]]) -> str:
    """
    How well each candidate follows STS-B dev over all evaluations of an encoder, and what is lost to the best
    checkpoint of a run if the candidate picks it: the one with the highest number, or the last healthy one.
    """
    of_encoder = {
        encoder: [line for line in lines if line["encoder"] == encoder and "health" in line] for encoder in DIMENSIONS
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
        [[*header, "loss, highest kept", "the same, with decay or budget", "loss, last healthy kept"], *rows]
    )


def warning_table(lines: list[dict[str, Any]]) -> str:
    """How many evaluations the health check warns about, by their STS-B dev."""
    groups = [
        "more than a point below the untrained encoder",
        "else more than a point below the best so far",
        "the rest",
    ]
    counts = {group: [0, 0] for group in groups}
    for encoder in DIMENSIONS:
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
    return markdown_table([["STS-B dev", "evaluations", "with a warning"], *rows])


TABLES = {
    "averages": averages_table,
    **{f"{name} in short": partial(short_series_table, series=series) for name, series in SERIES.items()},
    "final in short": partial(final_table, scores={**SHORT_SCORES, **HEALTH}),
    "final differences in short": partial(final_differences_table, scores=SHORT_SCORES, compared=ASKED_FOR),
    "ruined": ruined_table,
    **{name: partial(series_table, series=series) for name, series in SERIES.items()},
    "tuning": tuning_table,
    "final": partial(final_table, scores=ALL_SCORES),
    "jobs": lambda _: jobs.jobs_table(read_lines(jobs.LINES)),
    "jobs in short": lambda _: jobs.jobs_table(read_lines(jobs.LINES), **jobs.SHORT),
    "forms": lambda _: own_text.forms_table(read_lines(own_text.LINES)),
    "watched": watched_table,
    "without textcnn": without_textcnn_table,
    "final differences": partial(final_differences_table, scores=SCORES, compared=[*ASKED_FOR, *TO_UNTRAINED]),
    "health": health_table,
    "budget": budget_table,
    "warnings": warning_table,
}
