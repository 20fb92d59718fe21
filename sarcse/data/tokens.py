"""
Prepare sentences for training: token ids, batches of similar length, and frequency-based token weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sarcse.data.cache import Cached


if TYPE_CHECKING:  # `train.py --help` needs the names of the weightings, but not this slow import
    import datasets

logger = logging.getLogger(__name__)


def check_length(tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> None:
    """
    Check a maximum number of tokens per sentence.

    Raises:
        ValueError: if `max_seq_length` leaves no room beside the special tokens, or is above the encoder's limit.
    """
    shortest, longest = tokenizer.num_special_tokens_to_add() + 1, tokenizer.model_max_length
    if not shortest <= max_seq_length <= longest:
        raise ValueError(
            f"--max_seq_length must be between {shortest} and {longest} for this encoder, got {max_seq_length}."
        )


# How many texts are measured to see how long texts are; each at most this many tokens.
MEASURED_TEXTS, LONGEST = 10_000, 512


def evenly_spaced(number: int, at_most: int) -> np.ndarray:
    """Up to `at_most` of the rows, evenly spaced because they may be sorted."""
    chosen = min(number, at_most)
    return np.arange(chosen) * number // max(chosen, 1)


def text_lengths(texts: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The numbers of tokens of up to 10,000 evenly spaced texts, special tokens included; 512 for longer texts."""
    some = texts.select(evenly_spaced(len(texts), MEASURED_TEXTS))
    return token_lengths(tokenize(some, tokenizer, LONGEST)).numpy()


def tokenize(
    sentences: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    num_proc: int | None = None,
) -> datasets.Dataset:
    """Tokenise a data set's only column: `input_ids`, cut at `max_seq_length` and unpadded; cached by `datasets`."""
    from sarcse.data.files import MANY_ROWS, progress_bar  # needs `datasets`, which `--help` does not

    (column,) = sentences.column_names
    # The cache depends only on these arguments and our code, so that runs with other options can use it.
    arguments = {"tokenizer": tokenizer, "text_column": column, "max_seq_length": max_seq_length}
    options = {"num_proc": num_proc, "desc": "Tokenising", "remove_columns": column}
    with progress_bar(len(sentences) > MANY_ROWS):
        return sentences.map(Cached(_encode_batch), batched=True, fn_kwargs=arguments, **options)


def _encode_batch(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, text_column: str, max_seq_length: int
) -> dict[str, list[list[int]]]:
    return {"input_ids": tokenizer(batch[text_column], truncation=True, max_length=max_seq_length)["input_ids"]}


def tokenize_batch(
    rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, max_seq_length: int
) -> dict[str, torch.Tensor]:
    """A stream's collator: `input_ids` and `attention_mask`, `(B, L)`, equal to those of `tokenize` and padding."""
    sentences = [sentence for row in rows for sentence in row.values()]
    batch = tokenizer(sentences, truncation=True, max_length=max_seq_length, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def arrow_rows(tokens: datasets.Dataset) -> Iterator[Any]:
    """The `input_ids` of 10,000 sentences at a time, as arrow's arrays of lists."""
    for table in tokens.with_format("arrow").iter(batch_size=10_000):
        yield table["input_ids"].combine_chunks()


def token_lengths(tokens: datasets.Dataset) -> torch.Tensor:
    """The number of tokens of each sentence, special tokens included: `(len(tokens),)`."""
    lengths = [rows.value_lengths().to_numpy() for rows in arrow_rows(tokens)]
    return torch.from_numpy(np.concatenate(lengths))


def check_ids(tokens: datasets.Dataset, vocabulary_size: int, longest: int | None) -> None:
    """
    Check the `input_ids` of a data set that was tokenised elsewhere.

    Args:
        tokens (`datasets.Dataset`): Not empty.
        vocabulary_size (`int`): The encoder's.
        longest (`int`, *optional*): The largest number of tokens that the encoder reads, if that is known.

    Raises:
        ValueError: if an id is not in the vocabulary, or a sentence is too long or has no ids.
    """
    for rows in arrow_rows(tokens):
        if rows.null_count > 0:
            raise ValueError("train_dataset has a row whose `input_ids` are None.")
        ids = rows.flatten().to_numpy()
        if len(ids) > 0 and not 0 <= ids.min() <= ids.max() < vocabulary_size:
            wrong = ids[(ids < 0) | (ids >= vocabulary_size)][0]
            raise ValueError(
                f"train_dataset has the token id {wrong}, but the encoder's vocabulary has {vocabulary_size:,}. Are "
                "the `input_ids` of another tokenizer?"
            )
    if longest is not None and (found := int(token_lengths(tokens).max())) > longest:
        raise ValueError(
            f"train_dataset has a sentence of {found} tokens, but the encoder reads {longest} at most: cut the "
            "`input_ids`, or pass the sentences as text."
        )


def token_counts(tokens: datasets.Dataset, vocabulary_size: int, special_token_ids: list[int]) -> np.ndarray:
    """How often each id occurs in the `input_ids` of the data set, `(vocabulary_size,)`; special tokens count zero."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for rows in arrow_rows(tokens):
        counts += np.bincount(rows.flatten().to_numpy(), minlength=vocabulary_size)
    counts[special_token_ids] = 0
    return counts


def check_readable(counts: np.ndarray, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """
    Check that a tokenizer can read a text, with a warning if more than a tenth of the tokens are unknown to it.

    Args:
        counts (`np.ndarray` of shape `(vocabulary_size,)`): From `token_counts`.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer they come from.
        name (`str`): Name of the text, for messages.

    Raises:
        ValueError: if more than half of the tokens are unknown to the tokenizer, or there are none.
    """
    unknown = 0 if tokenizer.unk_token_id is None else counts[tokenizer.unk_token_id]
    share = unknown / counts.sum() if counts.any() else 1.0
    if share > 0.5:
        raise ValueError(
            f"{name}: {share:.0%} of the tokens are unknown to the encoder's tokenizer, so it cannot read the text. "
            "Is it the encoder's own, and does the encoder know the language?"
        )
    if share > 0.1:
        logger.warning(f"{name}: {share:.0%} of the tokens are unknown to the encoder's tokenizer.")


def unknown_share(token_ids: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> float:
    """The share of unknown tokens, without special tokens; 1 if there are no tokens at all."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    content = [token_id for ids in token_ids for token_id in ids if token_id not in special]
    return content.count(tokenizer.unk_token_id) / len(content) if content else 1.0


# Token weights as functions of each token's share of the corpus, `(vocabulary_size,)`, the smoothing a, and the share
# of a token that occurs once. The paper says that frequent tokens weigh less; the formula is not stated in the parts
# that we had.
FREQUENCY_WEIGHTINGS: dict[str, Callable[[torch.Tensor, float, float], torch.Tensor]] = {
    # The smooth inverse frequency of Arora, Liang and Ma (ICLR 2017).
    "smooth_inverse": lambda share, a, once: a / (a + share),
    # In nats; a token that never occurs has the weight of one that occurs once.
    "self_information": lambda share, a, once: -share.clamp(min=once).log(),
    # The ablation without self-adaptive weights.
    "uniform": lambda share, a, once: torch.ones_like(share),
}


def token_weights(counts: np.ndarray, frequency_weighting: str, frequency_smoothing: float) -> torch.Tensor:
    """
    The weight of each token's reconstruction error, `(vocabulary_size,)`, float32: the self-adaptive part of the loss.

    Raises:
        ValueError: if `frequency_weighting` is not a key of `FREQUENCY_WEIGHTINGS`.
    """
    if frequency_weighting not in FREQUENCY_WEIGHTINGS:
        raise ValueError(
            f"frequency_weighting must be one of {', '.join(FREQUENCY_WEIGHTINGS)}, got {frequency_weighting!r}."
        )
    share = torch.from_numpy(counts) / counts.sum()
    return FREQUENCY_WEIGHTINGS[frequency_weighting](share, frequency_smoothing, 1 / counts.sum()).float()


# Sentences are sorted by length within this many batches, as in transformers: more would make batches less random.
MEGA_BATCH = 50


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """
    Samples batches of sentences of similar length in random order, so that there is little padding. transformers'
    sampler of this name would use another order in each process. It would also put the longest sentences of each
    mega-batch first.

    Args:
        lengths (`torch.Tensor` of shape `(number of sentences,)`): Lengths in tokens.
        batch_size (`int`): Sentences per step of the optimizer, over all processes.
        seed (`int`): The same for all processes.
        epoch (`Callable`): Returns the number of the pass that begins; each pass has its own order.
    """

    def __init__(self, lengths: torch.Tensor, batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        order = torch.randperm(len(self.lengths), generator=generator)
        number = len(order) // self.batch_size
        # The incomplete last batch is split off before sorting; otherwise it would always have the longest sentences.
        in_batches, rest = order.tensor_split([number * self.batch_size])
        mega_batch = self.batch_size * min(MEGA_BATCH, max(1, number // 4))
        parts = [part[self.lengths[part].argsort(stable=True)] for part in in_batches.split(mega_batch)]
        batches = torch.cat(parts).view(number, self.batch_size)
        yield from batches[torch.randperm(number, generator=generator)].flatten().tolist()
        yield from rest.tolist()
