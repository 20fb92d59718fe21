"""
Rows of a comparison that are the same training with other seeds, as one row: mean, standard deviation, and differences
that are paired by seed.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sarcse.output import RECORD_NAME


def training_of(record: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What determines a training besides its seed, from its record, and the seed."""
    values = dict(record["hyperparameters"])
    seed = values.pop("seed")
    if values.get("data_seed") == seed:  # as by default: each run has its own order of the sentences
        del values["data_seed"]
    others = {name: record[name] for name in ("base_model", "architecture", "train_data")}
    return {**others, "hyperparameters": values}, seed


def groups_of(rows: list[str]) -> dict[str, dict[int, str]]:
    """
    The rows whose folders have records that differ in the seed alone, by the name of the group and the seed; a row
    without others is a group of its own. Empty if no row has another seed.
    """
    trainings: list[tuple[Any, dict[int, str]]] = []
    for number, row in enumerate(rows):
        file = Path(row, RECORD_NAME)
        training, seed = (row, number) if not file.is_file() else training_of(json.loads(file.read_text("utf-8")))
        of_training = next((found for other, found in trainings if other == training and seed not in found), None)
        if of_training is None:
            of_training = {}
            trainings.append((training, of_training))
        of_training[seed] = row
    if len(trainings) == len(rows):
        return {}
    groups: dict[str, dict[int, str]] = {}
    for _, found in trainings:
        name = name_of(list(found.values()))
        groups[name if name not in groups else ", ".join(found.values())] = found
    return groups


def name_of(rows: list[str]) -> str:
    """What the names of folders are without their numbers: `out/a-1` and `out/a-2` are `out/a`."""
    names = {re.sub(r"[-_/]*\d+$", "", row.rstrip("/")) for row in rows}
    return rows[0] if len(rows) == 1 else names.pop() if len(names) == 1 else ", ".join(rows)


def pairs_of(found: dict[int, np.ndarray], baseline: dict[int, np.ndarray]) -> list[np.ndarray]:
    """Differences of the same seed; of all rows if there is one on a side; of the means if no seed is on both."""
    if len(found) == 1 or len(baseline) == 1:
        return [one - other for one in found.values() for other in baseline.values()]
    same = [found[seed] - baseline[seed] for seed in found if seed in baseline]
    return same or [np.mean(list(found.values()), axis=0) - np.mean(list(baseline.values()), axis=0)]


def student(values: np.ndarray) -> tuple[float, list[float] | None]:
    """The mean of differences, `(pairs,)`, and its interval, which a single one does not have."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return mean, [mean - half, mean + half]
