"""Training sentences from files or the Hub, in memory or read while training."""

import hashlib
import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from tqdm.auto import tqdm

from sarcse.data.cache import Cached
from sarcse.data.files import (
    MANY_BYTES,
    MANY_ROWS,
    MissingColumnError,
    explained,
    file_version,
    load_or_explain,
    matching_files,
    progress_bar,
    read_rows,
    text_of,
)
from sarcse.options import DataArguments


logger = logging.getLogger(__name__)


# `hf://` reads a file of a data set on the Hub. This is the file that SimCSE's training script downloads.
WIKI1M = "hf://datasets/princeton-nlp/datasets-for-simcse/wiki1m_for_simcse.txt"


def load_sentences(arguments: DataArguments) -> datasets.Dataset | datasets.IterableDataset:
    """
    Load the training sentences as a data set with the single column `text_column`. Blank sentences are dropped, and
    their number is logged. With `streaming` the sentences are read on demand.

    Raises:
        ValueError: if the data cannot be loaded, or the column is missing or has a row that is not text. A file may be
            missing, empty, not UTF-8, or of an unknown kind; the message names the line where there is one. Of a
            stream only the beginning is checked: the rest raises `UnreadableDataError` when it is read.
    """
    name = name_of_sentences(arguments)
    try:
        if arguments.dataset_name is None:
            sentences = sentences_of_files(arguments)
        else:
            sentences = sentences_of_dataset(arguments.dataset_name, arguments)
    except MissingColumnError as error:
        raise ValueError(f"{error} --text_column names the one with the sentences.") from error
    sentences = without_blank(sentences, name)
    if arguments.max_train_samples is not None:
        sentences = sentences.select(range(min(arguments.max_train_samples, len(sentences))))
    return sentences


def without_blank(
    sentences: datasets.Dataset | datasets.IterableDataset, name: str
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Drop the blank rows of a data set's only column; for data in memory, log their number.

    Raises:
        ValueError: if the data are in memory and all rows are blank; the message has `name`. A row of a stream that is
            not text raises `UnreadableDataError` when it is read.
    """
    if isinstance(sentences, datasets.IterableDataset):
        return sentences.filter(partial(_has_text, name=name))
    (column,) = sentences.column_names
    with progress_bar(len(sentences) > MANY_ROWS):
        kept = sentences.filter(Cached(_not_blank), input_columns=column, desc="Dropping blank lines")
    if len(kept) < len(sentences):
        logger.warning(f"{name}: {len(sentences) - len(kept)} of {len(sentences)} texts are blank, and are skipped.")
    if len(kept) == 0:
        raise ValueError(f"{name}: no sentence in it.")
    return kept


def sentences_of_files(arguments: DataArguments) -> datasets.Dataset | datasets.IterableDataset:
    """All rows of the files. In memory, they come from the cache of `datasets`, unless a file or this code changed."""
    name, column = name_of_sentences(arguments), arguments.text_column
    files = matching_files(name)
    features = datasets.Features({column: datasets.Value("string")})
    if arguments.streaming:
        next(text_cells(files[:1], column), None)  # raises an error if the column is missing
        # `datasets` distributes the items of a list over the processes.
        return datasets.IterableDataset.from_generator(
            text_cells, features=features, gen_kwargs={"files": files, "column": column}
        )
    versions = [file_version(file) for file in files]
    options = {"files": files, "column": column, "versions": versions}
    are_large = any(not Path(file).is_file() or Path(file).stat().st_size > MANY_BYTES for file in files)
    try:
        with progress_bar(are_large):
            return datasets.Dataset.from_generator(Cached(text_cells), features=features, gen_kwargs=options)
    except Exception as error:  # `datasets` wraps what its readers raise
        raise explained(name, error) from error


def text_cells(files: list[str], column: str, versions: list[str] | None = None) -> Iterator[dict[str, str | None]]:
    """Rows of one column of text; `versions` make the cache of `datasets` depend on the files' content."""
    for place, row in read_rows(files, (column,)):
        yield {column: text_of(place, column, row[column])}


def sentences_of_dataset(name: str, arguments: DataArguments) -> datasets.Dataset | datasets.IterableDataset:
    """The text column of a data set on the Hub."""
    column = arguments.text_column
    sentences = load_or_explain(name, name, arguments.dataset_config_name, streaming=arguments.streaming)
    features = sentences.features
    if features is None:
        first = next(readable(name, sentences.take(1)), None)
        if first is None:
            raise ValueError(f"{name}: no sentence in it.")
        if column not in first:
            raise MissingColumnError.of(name, [column], first)
        return sentences.select_columns(column)
    if column not in features:
        raise MissingColumnError.of(name, [column], features)
    if features[column] not in (datasets.Value("string"), datasets.Value("large_string")):
        raise ValueError(f"{name}: column {column!r} holds {features[column]}, not text.")
    return sentences.select_columns(column)


def readable(name: str, stream: Iterable[Any]) -> Iterator[Any]:
    """
    Yield the items of a stream.

    Raises:
        UnreadableDataError: if the stream's reader fails, in one message that names the file or data set.
    """
    try:
        yield from stream
    except Exception as error:
        raise explained(name, error) from error


# A stream's next sentence is drawn from this many: enough to mix the articles of a corpus that was not shuffled.
SHUFFLE_BUFFER_SIZE = 10_000


class SentenceStream(torch.utils.data.IterableDataset):
    """
    One process' share of a stream of sentences, repeated without end. Every pass shuffles the files, and the sentences
    within a buffer, and gives each sentence to one process. If the number of files is a multiple of the number of
    processes, each process reads its own files; otherwise each reads all files and keeps every n-th sentence.

    Args:
        name (`str`): Name of the file or data set, for messages.
        sentences (`datasets.IterableDataset`): From `load_sentences`.
        seed (`int`): Seed of the shuffling, the same for all processes.
        process_index, num_processes (`int`): This process, and the number of processes.
    """

    def __init__(
        self, name: str, sentences: datasets.IterableDataset, seed: int, process_index: int, num_processes: int
    ) -> None:
        self.name, self.sentences, self.seed = name, sentences, seed
        self.process_index, self.num_processes = process_index, num_processes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            seen = False
            for row in readable(self.name, self.one_pass(number)):
                seen = True
                yield row
            if not seen:
                return  # a worker without a file of its own

    def one_pass(self, number: int) -> datasets.IterableDataset:
        """This process' share of pass `number`, shuffled."""
        shuffled = self.sentences.shuffle(seed=self.seed + number, buffer_size=SHUFFLE_BUFFER_SIZE)
        return split_dataset_by_node(shuffled, self.process_index, self.num_processes)


def name_of_sentences(arguments: DataArguments) -> str:
    """The data set's or the file's name, or the pattern, that the sentences come from."""
    return arguments.dataset_name or arguments.train_file or WIKI1M


def source_of_sentences(arguments: DataArguments) -> dict[str, str | None]:
    """
    The source of the sentences, for the card: the `name` of the file (without its folder, if it is local) or data set,
    and its `hub_id`, which is None if it does not come from the Hub.
    """
    name = name_of_sentences(arguments)
    in_hub_file = re.match(r"hf://datasets/([^/@]+/[^/@]+)", name)
    is_local = Path(name).exists() or arguments.dataset_name is None and "://" not in name
    return {
        "name": Path(name).name if is_local else name,
        "hub_id": in_hub_file[1] if in_hub_file else None if is_local else arguments.dataset_name,
    }


def first_part(stream: datasets.IterableDataset, name: str, number: int) -> datasets.Dataset:
    """
    The first sentences of a stream, at most `number`, which token frequencies come from.

    Raises:
        ValueError: if the stream is empty.
    """
    rows = list(tqdm(readable(name, stream.take(number)), desc="First part", total=number, leave=False, disable=None))
    if not rows:
        raise ValueError(f"{name}: no sentence in it.")
    logger.warning(f"{name}: token frequencies come from the first {len(rows)} sentences.")
    return datasets.Dataset.from_list(rows)


def fingerprint(rows: datasets.Dataset) -> str:
    """The SHA-256 of all cells, row by row, each followed by a newline."""
    digest = hashlib.sha256()
    for batch in rows.iter(batch_size=10_000):
        digest.update("".join(f"{cell}\n" for row in zip(*batch.values()) for cell in row).encode())
    return digest.hexdigest()


def _not_blank(sentence: str | None) -> bool:
    return bool(sentence and sentence.strip())


def _has_text(row: dict[str, Any], name: str) -> bool:
    """Whether no cell of a stream's row is blank. A stream may have no types: each row is checked."""
    return all(_not_blank(text_of(name, column, cell)) for column, cell in row.items())
