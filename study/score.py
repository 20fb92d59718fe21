"""
Scores of the final ladder's models on tasks whose data were not available when the ladder was made.

    python -m study.run final --seeds 3 --keep 3       # and final_small: trains the missing models
    python -m study.score --sts_dir FOLDER [--tasks STS13 STS16 SICKR] [--output_dir output/study]

Prints a row for each rung: Spearman's correlation x 100 of each task, mean and deviation over the seeds.
"""

import argparse
import sys
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import AutoTokenizer

from modeling_sarcse import SarcseModel
from sarcse.data.sts import load_tasks
from sarcse.evaluation.comparison import correlations, gold_scores
from sarcse.evaluation.embedding import encode, measure
from sarcse.evaluation.report import markdown_table
from sarcse.options import STS_TASKS
from study.configurations import FINAL, START
from study.reading import mean_and_deviation
from study.run import TASKS, kept_folder


NOT_AT_HAND = [task for task in STS_TASKS if task not in TASKS]


def scores(folder: Path, tasks: dict[str, datasets.Dataset], bf16: bool) -> dict[str, float]:
    """The score of each task, and their average, in the precision of the run."""
    model = SarcseModel.from_pretrained(folder).eval()
    embed = partial(encode, model, AutoTokenizer.from_pretrained(folder))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        similarities = measure(embed, tasks, model.config.pooler).similarities
    found = {task: correlations(similarities[task], gold_scores(pairs)).spearman for task, pairs in tasks.items()}
    return {**found, "average": float(np.mean(list(found.values())))}


def seeds_of(encoder: str, choice: dict[str, Any], output_dir: Path) -> dict[int, Path]:
    """The folders of a configuration's kept models, by seed."""
    runs = ({"encoder": encoder, "configuration": {**START, **choice}, "seed": seed} for seed in range(1, 11))
    folders = {run["seed"]: kept_folder(run, output_dir) for run in runs}
    return {seed: folder for seed, folder in folders.items() if folder.is_dir()}


def table(tasks: dict[str, datasets.Dataset], output_dir: Path, bf16: bool) -> str:
    """
    Raises:
        ValueError: no model was kept.
    """
    columns = [*tasks, "average"]
    rows = []
    for encoder, rungs in FINAL.items():
        for name, choice in rungs.items():
            of = {seed: scores(path, tasks, bf16) for seed, path in seeds_of(encoder, choice, output_dir).items()}
            if of:
                cells = (mean_and_deviation(of, itemgetter(column)) for column in columns)
                rows.append([encoder, name, str(len(of)), *cells])
    if not rows:
        raise ValueError(f"no models in {output_dir}: train them with `python -m study.run final --seeds 3 --keep 3`.")
    return markdown_table([["encoder", "method", "seeds", *columns], *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--sts_dir", help="Folder with the tasks in SentEval's layout. Default: the Hub's data sets.")
    parser.add_argument("--tasks", nargs="+", choices=STS_TASKS, default=NOT_AT_HAND)
    parser.add_argument("--output_dir", type=Path, default=Path("output/study"), help="The --output_dir of study.run.")
    parser.add_argument("--float32", action="store_true", help="If the models were trained so.")
    arguments = parser.parse_args()
    try:
        print(table(load_tasks(arguments.tasks, arguments.sts_dir, None), arguments.output_dir, not arguments.float32))
    except ValueError as error:
        print(f"study.score: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
