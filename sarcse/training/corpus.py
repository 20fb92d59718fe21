"""
Prepare training data, given as text or token ids, in memory or as a stream: token ids for the batches, the frequencies
of the tokens, and a description for checkpoints and cards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.utils import logging

from configuration_sarcse import SarcseConfig
from sarcse.data.files import text_of
from sarcse.data.sentences import SentenceStream, fingerprint, first_part, without_blank
from sarcse.data.tokens import (
    check_ids,
    check_length,
    check_readable,
    evenly_spaced,
    text_lengths,
    token_counts,
    token_lengths,
    tokenize,
    tokenize_batch,
)
from sarcse.training.arguments import SarcseTrainingArguments


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Corpus:
    """
    Training data, ready to be batched.

    Args:
        rows (`datasets.Dataset` or `SentenceStream`): What batches are made of.
        collator (`Callable`): Turns a list of rows into `input_ids` and `attention_mask`, `(B, L)`.
        aside (`list[list[int]]`): Token ids of the sentences that the health is checked on.
        longest (`int`): The most tokens that a text has in training, special tokens included.
        counts (`np.ndarray` of shape `(vocabulary_size,)`): How often each token id occurs; zero for special tokens.
        description (`dict`): For the card: `name`, `hub_id`, the number of `sentences`, and the `sha256` of these,
            each followed by a newline. A stream has `token_count_samples` instead of the last two.
        identity (`str`): Recorded in checkpoints, so that a run resumes only with the data it began with.
    """

    rows: datasets.Dataset | SentenceStream
    collator: Callable[..., Any]
    aside: list[list[int]]
    longest: int
    counts: np.ndarray
    description: dict[str, Any]
    identity: str


def read_corpus(
    given: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    config: SarcseConfig,
    args: SarcseTrainingArguments,
    source: dict[str, str | None] | None = None,
) -> Corpus:
    """
    The `Corpus` of some training data.

    Args:
        given: Sentences in a list, or sentences or `input_ids` in a data set or stream of `datasets`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The encoder's own. Only needed for text or for padding.
        config (`SarcseConfig`): The model's, for its vocabulary size and special tokens.
        args (`SarcseTrainingArguments`): The training's.
        source (`dict`, *optional*): `name` and `hub_id` of the data. Default: the name stored in the data set.

    Raises:
        ValueError: if it is unclear which column holds the sentences, there are too few of them, or no tokenizer is
            given that can read them.
    """
    rows, is_text = one_column(given)
    source = source or {"name": name_of_rows(rows), "hub_id": None}
    name = str(source["name"])
    if is_text:
        if tokenizer is None:
            raise ValueError("train_dataset has sentences: pass the tokenizer as `processing_class`.")
        check_length(tokenizer, args.max_seq_length)
        with args.main_process_first(desc="reading the data"):
            rows = without_blank(rows, name)
    is_stream = isinstance(rows, datasets.IterableDataset)
    first = first_part(rows, name, args.token_count_samples) if is_stream else rows
    if not is_stream and args.token_count_samples != SarcseTrainingArguments.token_count_samples:
        raise ValueError("--token_count_samples has no effect without a stream: all tokens are counted.")
    if len(first) < args.global_batch_size:
        raised = " or raise --token_count_samples" if len(first) == args.token_count_samples else ""
        raise ValueError(
            f"{len(first)} sentences do not fill one batch of {args.global_batch_size}: lower "
            f"--per_device_train_batch_size{raised}."
        )
    tokens = first
    if is_text:
        if args.process_index == 0:
            tell_cut(first, tokenizer, args.max_seq_length, args.reconstruction_weight > 0)
        with args.main_process_first(desc="tokenising"):
            tokens = tokenize(first, tokenizer, args.max_seq_length, args.preprocessing_num_workers)
    vocabulary_size = getattr(config.encoder_config, "vocab_size", None)
    if vocabulary_size is None:  # CANINE's
        vocabulary_size = len(tokenizer or ())
    if not is_text:
        check_ids(tokens, vocabulary_size, None if tokenizer is None else tokenizer.model_max_length)
    counts = token_counts(tokens, vocabulary_size, config.special_token_ids)
    if tokenizer is not None:
        check_readable(counts, tokenizer, name)
    aside, trained = keep_aside(tokens, args.kept_aside, args.global_batch_size)
    digest = fingerprint(first)
    known = {"sentences": len(first), "sha256": digest, **({} if is_text else {"token_ids": True})}
    return Corpus(
        rows=SentenceStream(name, rows, args.data_seed, args.process_index, args.world_size) if is_stream else trained,
        collator=collator_for(tokenizer, args.max_seq_length if is_stream and is_text else None),
        aside=aside,
        longest=args.max_seq_length if is_text else longest_of(tokens),
        counts=counts,
        description={**source, **({"token_count_samples": args.token_count_samples} if is_stream else known)},
        identity=f"{name}, {len(first)} sentences with SHA-256 {digest}",
    )


def longest_of(tokens: datasets.Dataset) -> int:
    """The most tokens of a row, without padding."""
    if "attention_mask" not in tokens.column_names:
        return int(token_lengths(tokens).max())
    return max(int(np.sum(mask)) for mask in tokens.with_format("numpy")["attention_mask"])


def tell_cut(
    texts: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, reconstruct: bool
) -> None:
    """Warn if more than one text in twenty is cut, with the length that would cut as few."""
    lengths, limit = text_lengths(texts, tokenizer), tokenizer.model_max_length
    cut = int((lengths > max_seq_length).sum())
    if cut <= len(lengths) / 20:
        return
    looked_at = "" if len(lengths) == len(texts) else f" (a sample of all {len(texts):,})"
    fitting = min(8 * math.ceil(np.percentile(lengths, 95) / 8), limit)
    advice = "the encoder reads no more"
    if fitting > max_seq_length:
        decoder = f" --decoder_length {fitting}" if reconstruct else ""
        advice = f"--max_seq_length {fitting}{decoder} would cut one in twenty"
    logger.warning(f"{cut:,} of {len(lengths):,} texts{looked_at} are cut at {max_seq_length} tokens: {advice}.")


# A corpus with fewer than this many times the sentences to be held out is too small to train without them.
SHARE_ASIDE = 10


def keep_aside(tokens: datasets.Dataset, number: int, batch_size: int) -> tuple[list[list[int]], datasets.Dataset]:
    """
    Hold out `number` sentences, evenly spaced because a corpus may be sorted: their token ids without padding, and the
    remaining rows. If there are too few rows, or the rest does not fill a batch, all remain. So do those of a stream,
    where `tokens` are only its first sentences.
    """
    places = evenly_spaced(len(tokens), number)
    number = len(places)
    chosen = tokens.select(places).with_format(None)  # lists, whatever format the caller's data set has
    aside = chosen["input_ids"][:]
    if "attention_mask" in chosen.column_names:
        masks = chosen["attention_mask"][:]
        aside = [[token for token, kept in zip(*row) if kept] for row in zip(aside, masks)]
    if number == 0 or len(tokens) < max(SHARE_ASIDE * number, number + batch_size):
        return aside, tokens
    return aside, tokens.select(np.delete(np.arange(len(tokens)), places))


def one_column(given: Any) -> tuple[datasets.Dataset | datasets.IterableDataset, bool]:
    """
    The rows reduced to `input_ids` (with the mask, if there is one) or to the sentences in `text` or the only column;
    and whether they are sentences.

    Raises:
        ValueError: if there are no rows, it is unclear which column holds the sentences, or they are not text.
    """
    if isinstance(given, tuple | datasets.Column):
        given = list(given)
    if isinstance(given, list):
        texts = [text_of(f"train_dataset, row {row}", "text", text) for row, text in enumerate(given)]
        given = datasets.Dataset.from_dict({"text": texts}, datasets.Features({"text": datasets.Value("string")}))
    rows = given
    if not isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        raise ValueError(
            "train_dataset must be a list of sentences, or one split of a data set or stream of `datasets`, not "
            f"{type(given).__name__}."
        )
    rows = rows.with_format(None)  # a format for other libraries would not hold Python's strings and lists
    columns = rows.column_names if rows.column_names is not None else list(next(iter(rows), ()))
    if not columns or isinstance(rows, datasets.Dataset) and len(rows) == 0:
        raise ValueError("train_dataset is empty.")
    if "input_ids" in columns:
        return rows.select_columns([name for name in ("input_ids", "attention_mask") if name in columns]), False
    if "text" not in columns and len(columns) != 1:
        raise ValueError(
            f"train_dataset has the columns {', '.join(columns)}: the sentences must be in `text`, in the "
            "only column, or as `input_ids`."
        )
    column = "text" if "text" in columns else columns[0]
    kind = (rows.features or {}).get(column, datasets.Value("string"))  # unknown for some streams
    if kind not in map(datasets.Value, ("string", "large_string", "null")):  # the last, if all sentences are None
        raise ValueError(f"train_dataset: column {column!r} holds {kind}, not text.")
    return rows.select_columns([column]), True


def name_of_rows(rows: datasets.Dataset | datasets.IterableDataset) -> str:
    """The name of a data set, if it has one; files are read by builders such as `text`, which give no name."""
    name = rows.info.dataset_name
    return name if name and name != rows.info.builder_name else "a data set without a name"


def collator_for(tokenizer: PreTrainedTokenizerBase | None, max_seq_length: int | None) -> Callable[..., Any]:
    """A collator that pads token ids or, with `max_seq_length`, tokenises sentences."""
    if tokenizer is None:
        return collate_without_padding
    if max_seq_length is None:
        return DataCollatorWithPadding(tokenizer)
    return partial(tokenize_batch, tokenizer=tokenizer, max_seq_length=max_seq_length)


def collate_without_padding(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """
    Batch token ids of equal length, which needs no tokenizer.

    Raises:
        ValueError: if the rows need padding.
    """
    lengths = {len(row["input_ids"]) for row in rows}
    if len(lengths) > 1:
        raise ValueError("token ids of different lengths need padding: pass the tokenizer as `processing_class`.")
    input_ids = torch.tensor([row["input_ids"] for row in rows])  # (B, L)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
