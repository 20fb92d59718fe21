"""How a model treats rare and frequent tokens: the study's own measurement."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from benchmarks.common import MAX_SEQ_LENGTH
from modeling_sarcse import SarcseModel, SarcseModelOutput


# Boundaries between the groups, as a token's share of the corpus, from rare to frequent.
SHARES = (1e-5, 1e-4, 1e-3, 1e-2)


@torch.no_grad()
def token_bias(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], counts: np.ndarray
) -> dict[str, list[float | None]]:
    """
    How the model treats rare and frequent tokens, on sentences that it was not trained on. Each list has one value per
    group of `SHARES`, rarest first; None for an empty group.

    - `change`: how far the embedding moves (1 - cosine) when one token is replaced by another of its group, drawn by
      frequency. One token per sentence is replaced, and the mean is taken over all sentences with such a token.
    - `error`, with an autoencoder: squared error of the reconstruction, mean over the tokens.
    - `variance`: the `error` of always reconstructing the mean vector of all tokens.
    """
    generator = np.random.default_rng(0)  # every model sees the same replacements
    shares = counts / counts.sum()
    group = np.digitize(shares, SHARES)  # (vocabulary size,)
    texts = tokenizer.convert_ids_to_tokens(range(len(counts)))
    # A token inside a word is replaced by another such one. RoBERTa marks the start of a word (Ġ), BERT the rest (##).
    byte_level = any(text.startswith("Ġ") for text in texts)
    inner = np.array([text.startswith("##") or byte_level and not text.startswith("Ġ") for text in texts])
    special = set(tokenizer.all_special_ids)
    rows = tokenizer(sentences, truncation=True, max_length=MAX_SEQ_LENGTH)["input_ids"]
    changed: list[tuple[int, int, list[int]]] = []  # row, group, new ids
    for index, ids in enumerate(rows):
        for number in range(len(SHARES) + 1):
            places = [place for place, token in enumerate(ids) if group[token] == number and token not in special]
            if not places:
                continue
            place = generator.choice(places)
            others = np.flatnonzero((group == number) & (inner == inner[ids[place]]) & (counts > 0))
            others = others[others != ids[place]]
            if len(others) > 0:
                new = generator.choice(others, p=counts[others] / counts[others].sum())
                changed.append((index, number, [*ids[:place], int(new), *ids[place + 1 :]]))
    embeddings = in_batches(model, tokenizer, rows, lambda output: output.pooler_output)
    replaced = in_batches(model, tokenizer, [ids for _, _, ids in changed], lambda output: output.pooler_output)
    original = torch.stack([embeddings[index] for index, _, _ in changed])
    changes = 1 - F.cosine_similarity(torch.stack(replaced), original, dim=1)
    bias = {"change": group_means(changes.numpy(), np.array([number for _, number, _ in changed]))}
    if model.sentence_encoder.has_layers:
        reconstructed = in_batches(model, tokenizer, rows, tokens_and_errors, output_reconstruction=True)
        ids, errors, targets = (torch.cat(parts).numpy() for parts in zip(*reconstructed))
        bias["error"] = group_means(errors, group[ids])
        bias["variance"] = group_means(((targets - targets.mean(axis=0)) ** 2).mean(axis=1), group[ids])
    return bias


def tokens_and_errors(output: SarcseModelOutput) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each sentence: the content ids `(N,)`, their errors `(N,)` and their vectors `(N, d)`."""
    errors = output.reconstruction_errors()
    for row, mask in enumerate(output.content_mask):
        yield output.content_input_ids[row, mask], errors[row, mask], output.reconstruction_target[row, mask]


def in_batches(
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    of: Callable[[SarcseModelOutput], Any],
    **options: bool,
) -> list[Any]:
    """What `of` extracts from the model's outputs, per sentence, in the order of `rows`."""
    taken = []
    for start in range(0, len(rows), 50):
        batch = tokenizer.pad({"input_ids": rows[start : start + 50]}, return_tensors="pt").to(model.device)
        taken += [*of(model(**batch, **options))]
    return taken


def group_means(values: np.ndarray, groups: np.ndarray) -> list[float | None]:
    """Mean of the values in each group of `SHARES`."""
    members = [values[groups == number] for number in range(len(SHARES) + 1)]
    return [float(group.mean()) if len(group) > 0 else None for group in members]
