"""Reading study.jsonl: which lines belong together, their scores, and the differences of paired runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from study.configurations import ENCODER, FINAL, START, UNTRAINED, Series
from study.run import TASKS


HEALTH_NUMBER = "halves found"  # the health check of that time
HEALTHY_SHARE = 0.85  # of the best so far; below it a checkpoint was not kept
Lines = dict[int, dict[str, Any]]  # seed -> line
Score = Callable[[dict[str, Any]], float]


# --- Lines that belong together --------------------------------------------------------------------------------------


def runs(lines: list[dict[str, Any]], choice: dict[str, Any], encoder: str = ENCODER) -> Lines:
    """The lines of a configuration, given by its differences from START, by seed."""
    wanted = {**START, **choice}
    return {line["seed"]: line for line in lines if line["encoder"] == encoder and line["configuration"] == wanted}


def final_runs(lines: list[dict[str, Any]], choice: dict[str, Any], encoder: str) -> Lines:
    """`runs` of the program as it is: older lines have no health."""
    return {seed: line for seed, line in runs(lines, choice, encoder).items() if "halves_found" in line}


def untrained_line(lines: list[dict[str, Any]], encoder: str) -> dict[str, Any] | None:
    """The encoder under mean pooling."""
    return runs(lines, UNTRAINED, encoder).get(1)


def runs_of_series(lines: list[dict[str, Any]], series: Series) -> dict[tuple[str, str], dict[int, Lines]]:
    """Of each encoder and method, the runs by the value that differs, if there are several values."""
    found = {
        (encoder, method): {
            value: runs(lines, series.choice(encoder, method, value), encoder) for value in series.values
        }
        for encoder in FINAL
        for method in series.methods
    }
    with_runs = {key: {value: of for value, of in by_value.items() if of} for key, by_value in found.items()}
    return {key: by_value for key, by_value in with_runs.items() if len(by_value) > 1}


# --- Scores of a line ------------------------------------------------------------------------------------------------


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


def without_stsb(line: dict[str, Any]) -> float:
    """Mean of the STS test sets whose development set picks no checkpoint."""
    return float(np.mean([of_task(line, task) for task in TASKS if task != "STSB"]))


def development(line: dict[str, Any]) -> float:
    """What the final ladder is chosen by: the mean of STS-B dev and of SICK's train and trial pairs."""
    return (dev(line) + sick(line)) / 2


# --- Means and differences over seeds --------------------------------------------------------------------------------


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


# --- The health of a line --------------------------------------------------------------------------------------------


def health_points(line: dict[str, Any], candidate: str) -> np.ndarray:
    """A candidate beside STS-B dev at each evaluation, `(EVALUATIONS, 2)`."""
    measured = dict(line["health"])
    return np.array([(measured[step][candidate], score) for step, score in line["dev"]])


def is_guarded(line: dict[str, Any]) -> bool:
    """Whether the budget, or the decay of older lines, kept a training from ruin."""
    return "start_decay" in line["configuration"] or line["configuration"]["learning_rate_budget"] > 0


def picked(line: dict[str, Any], candidate: str) -> float:
    """STS-B dev of the checkpoint where the candidate is highest."""
    points = health_points(line, candidate)
    return points[points[:, 0].argmax(), 1]


def kept(line: dict[str, Any], untrained: dict[str, Any], candidate: str = HEALTH_NUMBER) -> float:
    """
    STS-B dev of the last healthy model, the encoder before the training among them. By the program's own number, this
    is what is kept without graded pairs.
    """
    healths, scores = health_points(line, candidate).T  # two of (EVALUATIONS,)
    start = line["health"][0][1][candidate]
    best = np.maximum.accumulate(np.maximum(healths, start))
    healthy = np.flatnonzero(healths > HEALTHY_SHARE * best)
    return scores[healthy[-1]] if len(healthy) > 0 else dev(untrained)


def lost_by_health(line: dict[str, Any], untrained: dict[str, Any], candidate: str) -> float:
    """What the last healthy model loses to the best one, the one before the training among them."""
    return max(dev(line), dev(untrained)) - kept(line, untrained, candidate)
