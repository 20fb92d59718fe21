"""Data from files or the Hub: graded sentence pairs to score on, and sentences to train on."""

import hashlib
import itertools
import logging
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from tqdm.auto import tqdm

from files import (
    MissingColumnError,
    UnreadableDataError,
    explained,
    file_version,
    matching_files,
    read_rows,
    text_of,
)


logger = logging.getLogger(__name__)


# --- Data sets of the Hub --------------------------------------------------------------------------------------------


def load_or_explain(
    name: str, *arguments: Any, split: str = "train", **options: Any
) -> datasets.Dataset | datasets.IterableDataset:
    """`datasets.load_dataset`, its exceptions as one message that names the data set."""
    try:
        return datasets.load_dataset(*arguments, split=split, **options)
    except Exception as error:  # the builders and the Hub's client have a dozen exceptions for bad input
        raise explained(name, error) from error


# --- Graded pairs: every loader returns a data set with the columns sentence1, sentence2, score and maybe subset -----


@dataclass(frozen=True)
class StsTask:
    """One task: its place in a SentEval folder, its data set on the Hub, its scored test pairs, and its subsets."""

    folder: str
    hub_id: str
    pairs: int
    subsets: tuple[str, ...] = ()


# The subsets are those that SentEval evaluates on (senteval/sts.py); SMT of 2013 is not free.
STS_TASKS = {
    "STS12": StsTask(
        "STS/STS12-en-test",
        "mteb/sts12-sts",
        3108,
        ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    ),
    "STS13": StsTask("STS/STS13-en-test", "mteb/sts13-sts", 1500, ("FNWN", "headlines", "OnWN")),
    "STS14": StsTask(
        "STS/STS14-en-test",
        "mteb/sts14-sts",
        3750,
        ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    ),
    "STS15": StsTask(
        "STS/STS15-en-test",
        "mteb/sts15-sts",
        3000,
        ("answers-forums", "answers-students", "belief", "headlines", "images"),
    ),
    "STS16": StsTask(
        "STS/STS16-en-test",
        "mteb/sts16-sts",
        1186,
        ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
    ),
    "STSB": StsTask("STS/STSBenchmark", "mteb/stsbenchmark-sts", 1379),
    "SICKR": StsTask("SICK", "mteb/sickr-sts", 4927),
}
STSB_DEV_PAIRS = 1500

# Columns of the tab-separated files of STSBenchmark (no header) and SICK (with header).
STSB_COLUMNS = {"subset": 0, "score": 4, "sentence1": 5, "sentence2": 6}
SICK_COLUMNS = {"score": 3, "sentence1": 1, "sentence2": 2}


def load_sts(task_name: str, sts_dir: str | None = None, split: str = "test") -> datasets.Dataset:
    """
    Scored sentence pairs of one STS task, all subsets concatenated. Missing subsets are named in a warning.

    Args:
        task_name (`str`): A key of `STS_TASKS`.
        sts_dir (`str`, *optional*): Folder in SentEval's layout. Without it the pairs come from the Hub.
        split (`str`): `"test"`, or `"dev"` for STSB.

    Returns:
        `datasets.Dataset` with the columns `sentence1`, `sentence2`, `score` and, from a folder, `subset` (for STSB
        the genre). Pairs without a score are left out; runs of whitespace are one space, as SentEval reads them.

    Raises:
        ValueError: a file is missing or cannot be read, or the Hub cannot be reached; the message says what to do.
    """
    task = STS_TASKS[task_name]
    if sts_dir is None:
        pairs = _load_from_hub(task, split)
    elif task_name == "STSB":
        pairs = _read_table(Path(sts_dir, task.folder, f"sts-{split}.csv"), STSB_COLUMNS, has_header=False)
    elif task_name == "SICKR":
        pairs = _read_table(Path(sts_dir, task.folder, "SICK_test_annotated.txt"), SICK_COLUMNS, has_header=True)
    else:
        pairs = _read_year(Path(sts_dir, task.folder), task.subsets)
    expected = task.pairs if split == "test" else STSB_DEV_PAIRS
    if len(pairs) != expected:
        logger.warning(
            f"{task_name} {split} has {len(pairs)} scored pairs here, the published task has {expected}: "
            "the score is not comparable with published ones."
        )
    return with_two_scores(pairs, f"{task_name} {split}")


def _load_from_hub(task: StsTask, split: str) -> datasets.Dataset:
    try:
        return load_or_explain(task.hub_id, task.hub_id, split="validation" if split == "dev" else split)
    except ValueError as error:
        raise ValueError(
            f"{error} Give a folder in SentEval's layout with --sts_dir, or try again with a connection."
        ) from error


def _read_table(path: Path, columns: dict[str, int], has_header: bool) -> datasets.Dataset:
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
    Subsets of one year: `STS.input.NAME.txt` with two sentences a line, `STS.gs.NAME.txt` with the gold scores. Other
    files (`STS.gs.ALL.txt` of 2012, `STS.gs.SMT.txt` of 2013) are not SentEval's business and not ours.
    """
    rows, missing = [], []
    for subset in subsets:
        # The archive of 2016 has names of its own, which SentEval's download script changes.
        prefix = "STS2016" if (folder / f"STS2016.gs.{subset}.txt").is_file() else "STS"
        input_file, gold_file = (folder / f"{prefix}.{kind}.{subset}.txt" for kind in ("input", "gs"))
        found = [file.is_file() for file in (input_file, gold_file)]
        if all(found):
            rows += _read_subset(input_file, gold_file, subset)
        elif any(found):
            raise ValueError(f"{gold_file if found[0] else input_file}: no such file, but its other half is there.")
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
        raise ValueError(f"{input_file} has {len(lines)} lines and {gold_file} {len(golds)}: they must be as many.")
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
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason}).") from error
    # Not splitlines(), which also splits at characters that occur in sentences.
    return text.removesuffix("\n").split("\n")


def _split(path: Path, number: int, line: str, at_least: int) -> list[str]:
    cells = line.split("\t")
    if len(cells) < at_least:
        raise ValueError(f"{path}, line {number}: {len(cells)} tab-separated fields, where a pair needs {at_least}.")
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


def load_pairs(path: str) -> datasets.Dataset:
    """
    Scored pairs of one's own: a .tsv, .csv, .jsonl or .parquet file with the columns sentence1, sentence2 and score,
    and, for scores by subset, maybe subset. Pairs without a score are left out, their number is logged.

    Raises:
        ValueError: the file is missing or cannot be read, lacks a column, has a score that is not a number, or not two
            different ones.
    """
    rows, number = [], 0
    for place, pair in read_rows(matching_files(path), ("sentence1", "sentence2", "score"), optional=("subset",)):
        number += 1
        row: dict[str, Any] = {name: text_of(place, name, pair[name]) or "" for name in ("sentence1", "sentence2")}
        row["score"] = _own_score(place, pair["score"])
        if pair.get("subset") is not None:
            row["subset"] = str(pair["subset"])
        if not math.isnan(row["score"]):
            rows.append(row)
    if number > len(rows):
        logger.warning(f"{path}: {number - len(rows)} of {number} pairs have no score and are left out.")
    if any("subset" in row for row in rows):
        rows = [{"subset": "", **row} for row in rows]
    return with_two_scores(_dataset(rows, Path(path)), path)


def _own_score(place: str, value: Any) -> float:
    """A cell of the column score; NaN for none."""
    if value is None or isinstance(value, str) and not value.strip():
        return math.nan
    try:
        score = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.inf
    if math.isinf(score):
        raise UnreadableDataError(f"{place}: the score {value!r} is not a number.")
    return score


def with_two_scores(pairs: datasets.Dataset, name: str | Path) -> datasets.Dataset:
    """
    The pairs, if there is a correlation to measure.

    Raises:
        ValueError: there is one pair, or all have the same score.
    """
    scores = pairs["score"][:]
    if len(set(scores)) < 2:
        raise ValueError(
            f"{name}: a correlation needs two pairs with different scores; "
            + ("there is one pair." if len(scores) == 1 else f"all {len(scores)} have the score {scores[0]:g}.")
        )
    return pairs


def load_tasks(task_names: list[str], sts_dir: str | None, pairs: str | None) -> dict[str, datasets.Dataset]:
    """The test pairs to score on, by task name; those of a file of one's own go by the file's name."""
    if pairs is not None:
        return {Path(pairs).name.split(".")[0]: load_pairs(pairs)}
    return {name: load_sts(name, sts_dir) for name in task_names}


# --- Sentences to train on -------------------------------------------------------------------------------------------

# `hf://` reads a data set's file from the Hub. The file is the one that SimCSE's training script downloads.
WIKI1M = "hf://datasets/princeton-nlp/datasets-for-simcse/wiki1m_for_simcse.txt"


@dataclass
class DataArguments:
    """Where the sentences and the graded pairs come from."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Sentences: .txt with one a line, .jsonl, .csv, .tsv or .parquet (also .gz, .xz, .zst), local or "
            "hf://, or a pattern for several files, 'corpus/*.txt'. Default: SimCSE's million Wikipedia sentences "
            "from the Hub."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set of the Hub instead of a file; its split `train` is used."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    text_column: str = field(default="text", metadata={"help": "The column with the sentences."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many sentences."})
    max_seq_length: int = field(
        default=32, metadata={"help": "Sentences are cut at this many tokens in training, specials included."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the sentences while training, for corpora of any size. Needs --max_steps."},
    )
    token_count_samples: int = field(
        default=100_000, metadata={"help": "Sentences at the beginning of a stream whose tokens are counted."}
    )
    sts_dir: str | None = field(
        default=None, metadata={"help": "STS tasks in SentEval's layout. Default: the Hub's data sets."}
    )
    sts_tasks: list[str] = field(
        default_factory=lambda: list(STS_TASKS),
        metadata={"help": "Tasks of the table before and after training.", "choices": list(STS_TASKS)},
    )
    eval_pairs: str | None = field(
        default=None,
        metadata={
            "help": "A file of graded pairs (sentence1, sentence2, score) that takes the place of all STS data."
        },
    )


def load_sentences(arguments: DataArguments) -> datasets.Dataset | datasets.IterableDataset:
    """
    The training sentences as the only column, named `text_column`, without blank ones (their number is logged); with
    `streaming` they are read when they are asked for.

    Raises:
        ValueError: the file is missing, empty, not UTF-8 (the line is named), or of an unknown kind; the data set
            cannot be loaded; there is no such column, or a row of it is not text. The message says which; of a stream
            only the beginning is looked at, and the rest raises `UnreadableDataError` when it is read.
    """
    if arguments.dataset_name is not None and arguments.train_file is not None:
        raise ValueError("give either --train_file or --dataset_name, not both.")
    name, column = name_of_sentences(arguments), arguments.text_column
    try:
        sentences = (sentences_of_files if arguments.dataset_name is None else sentences_of_dataset)(arguments)
    except MissingColumnError as error:
        raise ValueError(f"{error} --text_column names the one with the sentences.") from error
    if arguments.streaming:
        return sentences.filter(_not_blank, input_columns=column)
    lines = len(sentences)
    sentences = sentences.filter(_not_blank, input_columns=column, desc="Dropping blank lines")
    if lines > len(sentences):
        logger.warning(f"{name}: {lines - len(sentences)} of {lines} lines are blank and skipped.")
    if len(sentences) == 0:
        raise ValueError(f"{name}: no sentence in it.")
    if arguments.max_train_samples is not None:
        sentences = sentences.select(range(min(arguments.max_train_samples, len(sentences))))
    return sentences


def sentences_of_files(arguments: DataArguments) -> datasets.Dataset | datasets.IterableDataset:
    """All rows of the files; in memory they are those of the cache, unless a file has changed since."""
    name, column = name_of_sentences(arguments), arguments.text_column
    files = matching_files(name)
    features = datasets.Features({column: datasets.Value("string")})
    if arguments.streaming:
        next(text_cells(files[:1], column), None)  # its column is there
        # A list is what processes share out among them.
        return datasets.IterableDataset.from_generator(
            text_cells, features=features, gen_kwargs={"files": files, "column": column}
        )
    versions = [file_version(file) for file in files]
    options = {"files": files, "column": column, "versions": versions}
    try:
        return datasets.Dataset.from_generator(text_cells, features=features, gen_kwargs=options)
    except Exception as error:  # `datasets` wraps what its readers raise
        raise explained(name, error) from error


def text_cells(files: list[str], column: str, versions: list[str] | None = None) -> Iterator[dict[str, str | None]]:
    """Rows of one column of text; `versions` tell the cache of `datasets` which content was read."""
    for place, row in read_rows(files, (column,)):
        yield {column: text_of(place, column, row[column])}


def sentences_of_dataset(arguments: DataArguments) -> datasets.Dataset | datasets.IterableDataset:
    """The column of a data set of the Hub. Its types are known or, of a stream of plain files, checked row by row."""
    name, column = arguments.dataset_name, arguments.text_column
    sentences = load_or_explain(name, name, arguments.dataset_config_name, streaming=arguments.streaming)
    features = sentences.features
    if features is None:
        first = next(readable(name, sentences.take(1)), None)
        if first is None:
            raise ValueError(f"{name}: no sentence in it.")
        if column not in first:
            raise MissingColumnError(name, [column], first)
        return sentences.select_columns(column).map(partial(_checked, name=name, column=column))
    if column not in features:
        raise MissingColumnError(name, [column], features)
    if features[column] not in (datasets.Value("string"), datasets.Value("large_string")):
        raise ValueError(f"{name}: column {column!r} holds {features[column]}, not text.")
    return sentences.select_columns(column)


def _checked(row: dict[str, Any], name: str, column: str) -> dict[str, str | None]:
    return {column: text_of(name, column, row[column])}


def readable(name: str, stream: Iterable[Any]) -> Iterator[Any]:
    """
    Raises:
        UnreadableDataError: what the stream's reader raises, as one message that names the file or data set.
    """
    try:
        yield from stream
    except Exception as error:
        raise explained(name, error) from error


# Sentences among which a stream's next one is drawn: enough to mix the articles of a corpus that was not shuffled.
SHUFFLE_BUFFER_SIZE = 10_000


class SentenceStream(torch.utils.data.IterableDataset):
    """
    One process' share of a stream of sentences, without end: every pass is shuffled anew, the order of the files and
    within a buffer, and gives each sentence to one process. If the number of files is a multiple of the number of
    processes, each process reads its own files; else each reads all of them and keeps every n-th sentence.

    Args:
        name (`str`): Of the file or data set, for messages.
        sentences (`datasets.IterableDataset`): From `load_sentences`.
        seed (`int`): Of the shuffling, the same for all processes.
        process_index, num_processes (`int`): Whose share it is, and of how many.
    """

    def __init__(
        self, name: str, sentences: datasets.IterableDataset, seed: int, process_index: int, num_processes: int
    ) -> None:
        self.name, self.sentences, self.seed = name, sentences, seed
        self.process_index, self.num_processes = process_index, num_processes

    def __iter__(self) -> Iterator[str]:
        for number in itertools.count():
            seen = False
            for row in readable(self.name, self.one_pass(number)):
                seen = True
                (sentence,) = row.values()
                yield sentence
            if not seen:
                return  # a worker without a file of its own

    def one_pass(self, number: int) -> datasets.IterableDataset:
        shuffled = self.sentences.shuffle(seed=self.seed + number, buffer_size=SHUFFLE_BUFFER_SIZE)
        return split_dataset_by_node(shuffled, self.process_index, self.num_processes)


def name_of_sentences(arguments: DataArguments) -> str:
    return arguments.dataset_name or arguments.train_file or WIKI1M


def first_part(stream: datasets.IterableDataset, arguments: DataArguments) -> datasets.Dataset:
    """The sentences at the beginning of a stream whose tokens are counted."""
    name, number = name_of_sentences(arguments), arguments.token_count_samples
    rows = list(tqdm(readable(name, stream.take(number)), desc="First part", total=number, leave=False, disable=None))
    if not rows:
        raise ValueError(f"{name}: no sentence in it.")
    logger.warning(f"{name}: tokens are counted in the first {len(rows)} sentences.")
    return datasets.Dataset.from_list(rows)


def describe_sentences(
    arguments: DataArguments, sentences: datasets.Dataset | datasets.IterableDataset
) -> dict[str, Any]:
    """
    For the card: `name` of the file (without its folder, if it is local) or data set, its `hub_id` if it comes from
    the Hub, the number of `sentences` trained on, and the `sha256` of them, each followed by a newline. Instead of the
    last two, which a stream does not know of itself, its `token_count_samples`.
    """
    name = name_of_sentences(arguments)
    in_hub_file = re.match(r"hf://datasets/([^/@]+/[^/@]+)", name)
    is_local = Path(name).exists() or arguments.dataset_name is None and "://" not in name
    description = {
        "name": Path(name).name if is_local else name,
        "hub_id": in_hub_file[1] if in_hub_file else None if is_local else arguments.dataset_name,
    }
    if arguments.streaming:
        return {**description, "token_count_samples": arguments.token_count_samples}
    return {**description, "sentences": len(sentences), "sha256": fingerprint(sentences)}


def fingerprint(rows: datasets.Dataset) -> str:
    """SHA-256 of all cells, row by row, each followed by a newline."""
    digest = hashlib.sha256()
    for batch in rows.iter(batch_size=10_000):
        digest.update("".join(f"{cell}\n" for row in zip(*batch.values()) for cell in row).encode())
    return digest.hexdigest()


def _not_blank(sentence: str | None) -> bool:
    return bool(sentence and sentence.strip())
