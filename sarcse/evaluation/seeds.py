"""
Rows of a comparison that are the same training with other seeds, as one row: mean, standard deviation, and differences
that are paired by seed.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sarcse.output import RECORD_NAME, read_json


PARTS = ("base_model", "architecture", "train_data", "hyperparameters")  # of a record, which determine a training


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs besides the seed between two trainings, by their records."""
    seeds = [
        (record["hyperparameters"]["seed"], record["hyperparameters"].get("data_seed")) for record in (one, other)
    ]
    # By default each run has its own order of the sentences.
    ignored = {"seed", "data_seed"} if all(seed == data_seed for seed, data_seed in seeds) else {"seed"}
    return [
        f"{part}.{name}"
        for part in PARTS
        for name in {**one[part], **other[part]}
        if name not in ignored and one[part].get(name) != other[part].get(name)
    ]


def groups_of(rows: list[str]) -> dict[str, dict[int, str]]:
    """
    The rows whose folders have records that differ in the seed alone, by the name of the group and the seed; a row
    without others is a group of its own. Empty if no row has another seed.
    """
    groups: list[dict[int, str]] = []
    records: dict[str, dict[str, Any]] = {}
    for row in rows:
        if Path(row, RECORD_NAME).is_file():
            records[row] = read_json(Path(row, RECORD_NAME))
            seed = records[row]["hyperparameters"]["seed"]
            same = [g for g in groups if seed not in g and all(is_same(records, row, other) for other in g.values())]
            if same:
                same[0][seed] = row
                continue
            groups.append({seed: row})
        else:
            groups.append({0: row})
    if len(groups) == len(rows):
        return {}
    named: dict[str, dict[int, str]] = {}
    for group in groups:
        name = name_of(list(group.values()))
        named[name if name not in named else ", ".join(group.values())] = group
    return named


def is_same(records: dict[str, dict[str, Any]], row: str, other: str) -> bool:
    return row in records and other in records and not differing(records[row], records[other])


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
