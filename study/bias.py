"""How a model treats rare and frequent tokens: the study's own measurement."""

from collections.abc import Callable
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
) -> list[float | None]:
    """
    How far the embedding moves (1 - cosine) when one token is replaced by another of its group of `SHARES`, drawn by
    frequency: one value per group, rarest first; None for an empty group. One token per sentence is replaced, and the
    mean is taken over all sentences with such a token.
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
    of_group = np.array([number for _, number, _ in changed])
    members = [changes.numpy()[of_group == number] for number in range(len(SHARES) + 1)]
    return [float(values.mean()) if len(values) > 0 else None for values in members]


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
