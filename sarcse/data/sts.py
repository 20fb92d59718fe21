"""Graded sentence pairs for scoring, from files or the Hub."""

import logging
import math
from pathlib import Path
from typing import Any

import datasets

from sarcse.data.files import UnreadableDataError, load_or_explain, matching_files, not_utf8, read_rows, text_of
from sarcse.options import STS_TASKS, StsTask


logger = logging.getLogger(__name__)


# Every loader returns a data set with the columns sentence1, sentence2, score and sometimes subset.


STSB_DEV_PAIRS = 1500

# Columns of the tab-separated files of STSBenchmark (no header) and SICK (with header).
STSB_COLUMNS = {"subset": 0, "score": 4, "sentence1": 5, "sentence2": 6}
SICK_COLUMNS = {"score": 3, "sentence1": 1, "sentence2": 2}


def load_sts(task_name: str, sts_dir: str | None = None, split: str = "test") -> datasets.Dataset:
    """
    Load the scored sentence pairs of one STS task, all subsets concatenated. A warning names missing subsets.

    Args:
        task_name (`str`): A key of `STS_TASKS`.
        sts_dir (`str`, *optional*): Folder in SentEval's layout. Default: the pairs come from the Hub.
        split (`str`): `"test"`, or `"dev"` for STSB.

    Returns:
        `datasets.Dataset` with the columns `sentence1`, `sentence2`, `score` and, from a folder, `subset` (for STSB
        the genre). Pairs without a score are left out; runs of whitespace become one space, as in SentEval.

    Raises:
        ValueError: if a file is missing or cannot be read, or the Hub cannot be reached; the message says what to do.
    """
    task = STS_TASKS[task_name]
    if sts_dir is None:
        pairs = _load_from_hub(task, split)
    elif task_name == "STSB":
        pairs = read_table(Path(sts_dir, task.folder, f"sts-{split}.csv"), STSB_COLUMNS, has_header=False)
    elif task_name == "SICKR":
        pairs = read_table(Path(sts_dir, task.folder, "SICK_test_annotated.txt"), SICK_COLUMNS, has_header=True)
    else:
        pairs = _read_year(Path(sts_dir, task.folder), task.subsets)
    expected = task.pairs if split == "test" else STSB_DEV_PAIRS
    if len(pairs) != expected:
        logger.warning(
            f"{task_name} {split} has {len(pairs)} scored pairs here, but the published task has {expected}: "
            "the score is not comparable with published ones."
        )
    pairs.info.dataset_name = f"{task_name} {split}"
    return with_two_scores(pairs, pairs.info.dataset_name)


def loaded_as(pairs: datasets.Dataset) -> str | None:
    """The key of `STS_TASKS` whose test pairs `load_sts` loaded. None for any other pairs, whatever their name."""
    task, _, split = (pairs.info.dataset_name or "").partition(" ")
    return task if split == "test" else None


def _load_from_hub(task: StsTask, split: str) -> datasets.Dataset:
    try:
        return load_or_explain(task.hub_id, task.hub_id, split="validation" if split == "dev" else split)
    except ValueError as error:
        what = str(error).rstrip(".")
        advice = "Set --sts_dir to a folder in SentEval's layout, or try again with a connection."
        raise ValueError(f"{what}. {advice}") from error


def read_table(path: Path, columns: dict[str, int], has_header: bool) -> datasets.Dataset:
    """
    Read the scored pairs of a tab-separated file, whose columns are given by their positions.

    Raises:
        ValueError: if the file is missing or not UTF-8, or a line has too few fields or a score that is not a number.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Leave the task out with --tasks, or add the file.")
    rows = []
    for number, line in enumerate(_read_lines(path)[has_header:], start=1 + has_header):
        cells = _split(path, number, line, at_least=max(columns.values()) + 1)
        row = {name: cells[column] for name, column in columns.items()}
        if row["score"]:
            rows.append({**row, "score": _score(path, number, row["score"])})
    return _dataset(rows, path)


def _read_year(folder: Path, subsets: tuple[str, ...]) -> datasets.Dataset:
    """
    Read the subsets of one year: `STS.input.NAME.txt` with two sentences per line, and `STS.gs.NAME.txt` with the gold
    scores. Other files (`STS.gs.ALL.txt` of 2012, `STS.gs.SMT.txt` of 2013) are ignored, as in SentEval.
    """
    rows, missing = [], []
    for subset in subsets:
        # The archive of 2016 has other names, which SentEval's download script changes.
        prefix = "STS2016" if (folder / f"STS2016.gs.{subset}.txt").is_file() else "STS"
        input_file, gold_file = (folder / f"{prefix}.{kind}.{subset}.txt" for kind in ("input", "gs"))
        found = [file.is_file() for file in (input_file, gold_file)]
        if all(found):
            rows += _read_subset(input_file, gold_file, subset)
        elif any(found):
            raise ValueError(f"{gold_file if found[0] else input_file}: no such file, though its counterpart exists.")
        else:
            missing.append(subset)
    if len(missing) == len(subsets):
        raise ValueError(
            f"{folder}: no such folder, or none of STS.gs.{{{','.join(subsets)}}}.txt in it. "
            "Leave the task out with --tasks, or add the files."
        )
    if missing:
        logger.warning(f"{folder} lacks the subset{'s' * (len(missing) > 1)} {', '.join(missing)}.")
    return _dataset(rows, folder)


def _read_subset(input_file: Path, gold_file: Path, subset: str) -> list[dict[str, Any]]:
    lines, golds = _read_lines(input_file), _read_lines(gold_file)
    if len(lines) != len(golds):
        raise ValueError(
            f"{input_file} has {len(lines)} lines, but {gold_file} has {len(golds)}: both files need the same number "
            "of lines."
        )
    rows = []
    for number, (line, gold) in enumerate(zip(lines, golds), start=1):
        if gold.strip():  # most pairs of 2015 and 2016 were never scored
            sentence1, sentence2 = _split(input_file, number, line, at_least=2)[:2]
            score = _score(gold_file, number, gold)
            rows.append({"sentence1": sentence1, "sentence2": sentence2, "score": score, "subset": subset})
    return rows


def _read_lines(path: Path) -> list[str]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise not_utf8(f"{path}, line {line}", error) from error
    # Not splitlines(), which also splits at characters that occur in sentences.
    return text.removesuffix("\n").split("\n")


def _split(path: Path, number: int, line: str, at_least: int) -> list[str]:
    cells = line.split("\t")
    if len(cells) < at_least:
        raise ValueError(f"{path}, line {number}: {len(cells)} tab-separated fields, but a pair needs {at_least}.")
    return [" ".join(cell.split()) for cell in cells]


def _score(path: Path, number: int, text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{path}, line {number}: {text.strip()!r} is not a number.")
    return score


def _dataset(rows: list[dict[str, Any]], path: Path) -> datasets.Dataset:
    if not rows:
        raise ValueError(f"{path}: no scored pair in it.")
    return datasets.Dataset.from_list(rows)


def check_pairs(name: str, pairs: Any) -> None:
    """
    Check that `pairs` are a data set of graded sentence pairs; `name` is for the message.

    Raises:
        ValueError: if they are not.
    """
    columns = pairs.column_names if isinstance(pairs, datasets.Dataset) else type(pairs).__name__
    if isinstance(columns, str) or not {"sentence1", "sentence2", "score"} <= {*columns}:
        raise ValueError(
            f"{name} must be a data set with the columns sentence1, sentence2 and score (from 0 to 5), or text and "
            f"label, not {columns}."
        )
    rows = pairs.with_format(None)
    for column in ("sentence1", "sentence2"):
        for row, sentence in enumerate(rows[column][:]):
            if not isinstance(sentence, str):
                raise ValueError(f"{name}, row {row}: {column} must be text, not {sentence!r}.")
    for row, score in enumerate(rows["score"][:]):
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"{name}, row {row}: the score must be a number, not {score!r}.")


def load_pairs(path: str) -> datasets.Dataset:
    """
    Load your own scored pairs from a .tsv, .csv, .jsonl or .parquet file with the columns sentence1, sentence2 and
    score, and optionally subset, for scores by subset. Pairs without a score are left out, and their number is logged.

    Raises:
        ValueError: if the file is missing or cannot be read, lacks a column, has a score that is not a number, or does
            not have two different scores.
    """
    rows, number = [], 0
    for place, pair in read_rows(matching_files(path), ("sentence1", "sentence2", "score"), optional=("subset",)):
        number += 1
        row: dict[str, Any] = {name: text_of(place, name, pair[name]) or "" for name in ("sentence1", "sentence2")}
        row["score"] = _own_score(place, pair["score"])
        if pair.get("subset") is not None:
            row["subset"] = text_of(place, "subset", str(pair["subset"]))
        if not math.isnan(row["score"]):
            rows.append(row)
    if number > len(rows):
        logger.warning(f"{path}: {number - len(rows)} of {number} pairs have no score, and are left out.")
    if any("subset" in row for row in rows):
        rows = [{"subset": "", **row} for row in rows]
    return with_two_scores(_dataset(rows, Path(path)), path)


def _own_score(place: str, value: Any) -> float:
    """A cell of the column score as a number; NaN if it is empty."""
    if value is None or isinstance(value, str) and not value.strip():
        return math.nan
    try:
        score = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.inf
    if math.isinf(score):
        raise UnreadableDataError(f"{place}: the score {value!r} is not a number.")
    return score


def with_two_scores(pairs: datasets.Dataset, name: str | Path) -> datasets.Dataset:
    """
    Return the pairs unchanged, after checking that a correlation can be measured on them.

    Raises:
        ValueError: if there is no more than one pair, or all have the same score.
    """
    scores = pairs.with_format(None)["score"][:]
    if len(set(scores)) < 2:
        few = "there is only one" if scores else "there is none"
        found = f"all {len(scores)} have the score {scores[0]:g}" if len(scores) > 1 else few
        raise ValueError(f"{name}: a correlation needs two pairs with different scores; {found}.")
    return pairs


def load_tasks(task_names: list[str], sts_dir: str | None, pairs: str | None) -> dict[str, datasets.Dataset]:
    """Load the test pairs to score on, by task name; the pairs of your own file get the file's name."""
    if pairs is not None:
        file = Path(pairs).name
        name = file.split(".")[0]
        return {file if name in STS_TASKS else name: load_pairs(pairs)}
    return {name: load_sts(name, sts_dir) for name in task_names}
