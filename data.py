"""Training data: sentences from files or the Hub, their token ids, and the weights of tokens by frequency."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from eval_sts import STS_TASKS


logger = logging.getLogger(__name__)

# `hf://` reads a data set's file from the Hub. The file is the one that SimCSE's training script downloads.
WIKI1M = "hf://datasets/princeton-nlp/datasets-for-simcse/wiki1m_for_simcse.txt"


@dataclass
class DataArguments:
    """Where the sentences and the graded pairs come from."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Sentences: .txt with one a line (also .gz, .xz, .zst), .jsonl, .csv or .parquet, local or hf://. "
            "Default: SimCSE's million Wikipedia sentences from the Hub."
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


def load_sentences(arguments: DataArguments) -> datasets.Dataset:
    """
    The training sentences as the only column, named `text_column`, without blank ones (their number is logged).

    Raises:
        ValueError: the file is missing, empty, not UTF-8 (the line is named), or of an unknown kind; the data set
            cannot be loaded; there is no such column. The message says which.
    """
    if arguments.dataset_name is not None:
        if arguments.train_file is not None:
            raise ValueError("give either --train_file or --dataset_name, not both.")
        name = arguments.dataset_name
        sentences = load_or_explain(name, name, arguments.dataset_config_name)
    else:
        name = arguments.train_file or WIKI1M
        builder, _ = file_kind(name)
        if "://" not in name and not Path(name).is_file():
            raise ValueError(f"{name}: no such file.")
        if "://" not in name and Path(name).stat().st_size == 0:
            raise ValueError(f"{name}: the file is empty.")
        options = {} if builder == "parquet" else {"encoding": "utf-8-sig"}
        if builder == "csv":
            options["keep_default_na"] = False  # "NA" and "null" are sentences too
        sentences = load_or_explain(name, builder, data_files=name, **options)
    column = arguments.text_column
    if column not in sentences.column_names:
        raise ValueError(
            f"{name}: no column {column!r}; --text_column must be one of {', '.join(sentences.column_names)}."
        )
    if sentences.features[column] not in (datasets.Value("string"), datasets.Value("large_string")):
        raise ValueError(f"{name}: column {column!r} holds {sentences.features[column]}, not text.")
    sentences = sentences.select_columns(column)
    lines = len(sentences)
    sentences = sentences.filter(_not_blank, input_columns=column, desc="Dropping blank lines")
    if lines > len(sentences):
        logger.warning(f"{name}: {lines - len(sentences)} of {lines} lines are blank and skipped.")
    if len(sentences) == 0:
        raise ValueError(f"{name}: no sentence in it.")
    if arguments.max_train_samples is not None:
        sentences = sentences.select(range(min(arguments.max_train_samples, len(sentences))))
    return sentences


def _not_blank(sentence: str | None) -> bool:
    return bool(sentence and sentence.strip())


def file_kind(name: str) -> tuple[str, str | None]:
    """
    The `datasets` builder that reads a file, and its compression, from the ending of its name.

    Raises:
        ValueError: the ending is unknown.
    """
    builders = {".txt": "text", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
    compressions = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}
    path = Path(name)
    compression = compressions.get(path.suffix)
    suffix = path.with_suffix("").suffix if compression else path.suffix
    if suffix not in builders:
        raise ValueError(
            f"{name}: the name of a train file ends in {', '.join(builders)}, and maybe in {', '.join(compressions)}."
        )
    return builders[suffix], compression


def load_or_explain(name: str, *arguments: Any, **options: Any) -> datasets.Dataset:
    """`datasets.load_dataset(..., split="train")`, its exceptions as one message that names the file or data set."""
    try:
        return datasets.load_dataset(*arguments, split="train", **options)
    except Exception as error:  # the builders and the Hub's client have a dozen exceptions for bad input
        cause = error.__cause__ or error
        if isinstance(cause, UnicodeDecodeError):
            raise ValueError(f"{name}, line {undecodable_line(name)}: not UTF-8 ({cause.reason}).") from error
        raise ValueError(f"{name} could not be loaded: {type(cause).__name__}: {cause}") from error


def undecodable_line(name: str) -> int:
    """Number of the first line, counted from 1, that is not UTF-8."""
    with fsspec.open(name, "rb", compression=file_kind(name)[1]) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    raise ValueError(f"{name}: every line is UTF-8, but not the whole.")


def tokenize(
    sentences: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, arguments: DataArguments
) -> datasets.Dataset:
    """
    `input_ids` of every sentence, cut at `max_seq_length` tokens, unpadded; cached by `datasets`.

    Raises:
        ValueError: `max_seq_length` leaves no token beside the special ones, or is more than the encoder can take.
    """
    shortest, longest = tokenizer.num_special_tokens_to_add() + 1, tokenizer.model_max_length
    if not shortest <= arguments.max_seq_length <= longest:
        raise ValueError(
            f"--max_seq_length must be from {shortest} to {longest} for this encoder, got {arguments.max_seq_length}."
        )
    return sentences.map(
        _encode_batch,
        batched=True,
        # The cache goes by these arguments alone, so that another run's other fields do not miss it.
        fn_kwargs={
            "tokenizer": tokenizer,
            "text_column": arguments.text_column,
            "max_seq_length": arguments.max_seq_length,
        },
        remove_columns=sentences.column_names,
        num_proc=arguments.preprocessing_num_workers,
        desc="Tokenising",
    )


def _encode_batch(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, text_column: str, max_seq_length: int
) -> dict[str, list[list[int]]]:
    return {"input_ids": tokenizer(batch[text_column], truncation=True, max_length=max_seq_length)["input_ids"]}


def token_counts(tokens: datasets.Dataset, vocabulary_size: int, special_token_ids: list[int]) -> np.ndarray:
    """How often each id occurs in the `input_ids` of the data set, `(vocabulary_size,)`; special tokens count zero."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for table in tokens.with_format("arrow").iter(batch_size=10_000):
        counts += np.bincount(table["input_ids"].combine_chunks().flatten().to_numpy(), minlength=vocabulary_size)
    counts[special_token_ids] = 0
    return counts


def token_weights(counts: np.ndarray, frequency_weighting: str, frequency_smoothing: float) -> torch.Tensor:
    """
    Weight of each token's reconstruction error, `(vocabulary_size,)`, float32: the self-adaptive part of the loss. The
    paper says that frequent tokens weigh less and leaves the formula open. With p a token's share of the corpus:

    - `"smooth_inverse"`: a / (a + p), the smooth inverse frequency of Arora, Liang and Ma (ICLR 2017), a being
      `frequency_smoothing`;
    - `"self_information"`: -log p, in nats; a token that never occurs weighs as much as one that occurs once;
    - `"uniform"`: 1, the ablation without self-adaptive weights.
    """
    share = torch.from_numpy(counts) / counts.sum()
    if frequency_weighting == "smooth_inverse":
        weights = frequency_smoothing / (frequency_smoothing + share)
    elif frequency_weighting == "self_information":
        weights = -share.clamp(min=1 / counts.sum()).log()
    else:
        weights = torch.ones_like(share)
    return weights.float()
