"""
Candidates for a health check without labels: numbers from a few hundred held-out sentences that might distinguish a
good training from a ruined one. The study records all of them with STS-B dev.

Shapes: S sentences, N content tokens of all of them, d dimensions.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel, SarcseModelOutput, in_evaluation_mode
from sarcse.evaluation.embedding import encode, uniformity
from sarcse.training.health import embed
from sarcse.training.losses import info_nce
from study.bias import in_batches, token_bias


NEIGHBOURS = 10


def halves(token_ids: list[int], special_token_ids: list[int]) -> tuple[list[int], list[int]] | None:
    """The two halves of a sentence, each with the special tokens of the whole; None below four content tokens."""
    special = set(special_token_ids)
    content = [place for place, token in enumerate(token_ids) if token not in special]
    if len(content) < 4:
        return None
    start, end = content[0], content[-1] + 1
    middle = (start + end) // 2
    before, behind = token_ids[:start], token_ids[end:]
    return [*before, *token_ids[start:middle], *behind], [*before, *token_ids[middle:end], *behind]


class Halves:
    """
    The health check of versions before 0.3: how well a model finds the second half of each sentence from its first
    half among the second halves of all sentences, and vice versa. It is the mean reciprocal rank, in percent.

    Args:
        token_ids (`list[list[int]]`): S sentences that the model is not trained on.
        config (`SarcseConfig`): The model's, for its special tokens.

    Raises:
        ValueError: if fewer than two sentences are long enough to be halved.
    """

    def __init__(self, token_ids: list[list[int]], config: SarcseConfig) -> None:
        split = [halves(ids, config.special_token_ids) for ids in token_ids]
        self.halves = list(zip(*(pair for pair in split if pair is not None)))
        if not self.halves or len(self.halves[0]) < 2:
            raise ValueError("fewer than two of the sentences have four tokens, enough for two halves")

    @torch.no_grad()
    def __call__(self, model: SarcseModel) -> float:
        """The health of `model`, in evaluation mode, whatever its mode."""
        model = in_evaluation_mode(model)
        first, second = (F.normalize(embed(model, list(rows)), dim=1) for rows in self.halves)  # (S, d)
        similarities = first @ second.T  # (S, S)
        own = similarities.diagonal()
        # Ties get the last rank, and so does NaN: a model whose embeddings are all equal, or NaN, finds nothing.
        beaten = torch.cat([(similarities < own.unsqueeze(1)).sum(dim=1), (similarities < own).sum(dim=0)])  # (2S,)
        ranks = len(own) - beaten  # from 1
        return 100 * (1 / ranks).mean().item()


class Candidates:
    """
    Args:
        model (`SarcseModel`): The model before its training, the reference of several candidates.
        tokenizer (`PreTrainedTokenizerBase`): The encoder's own.
        sentences (`list[str]`): Held out from the training.
        counts (`np.ndarray` of shape `(vocabulary_size,)`): Token counts in the corpus.
    """

    def __init__(
        self, model: SarcseModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], counts: np.ndarray
    ) -> None:
        self.tokenizer, self.sentences, self.counts = tokenizer, sentences, counts
        self.rows = tokenizer(sentences, truncation=True, max_length=32)["input_ids"]
        self.pairs = np.triu_indices(len(sentences), 1)
        self.words = self.word_similarities()
        self.health = Halves(self.rows, model.config)
        self.start: dict[str, Any] = self.state(model)

    def word_similarities(self) -> np.ndarray:
        """Cosine similarity of each pair's bags of tokens, weighted by inverse document frequency."""
        bags = np.zeros((len(self.rows), len(self.counts)), dtype=np.float32)
        for row, ids in enumerate(self.rows):
            np.add.at(bags[row], ids, 1.0)
        bags[:, self.tokenizer.all_special_ids] = 0
        documents = (bags > 0).sum(axis=0)
        bags *= np.log((1 + len(bags)) / (1 + documents))
        bags /= np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-9)
        return (bags @ bags.T)[self.pairs]

    @torch.no_grad()
    def state(self, model: SarcseModel) -> dict[str, Any]:
        """The numbers that are compared with those before the training."""
        was_training = model.training
        model.eval()
        embeddings = F.normalize(encode(model, self.tokenizer, self.sentences), dim=1)  # (S, d)
        vectors = [
            x[1 : len(ids) - 1]
            for x, ids in zip(in_batches(model, self.tokenizer, self.rows, last_vectors), self.rows)
        ]
        spread = np.mean([(x - x.mean(0)).norm(dim=1).mean().item() for x in vectors])
        norm = torch.cat(vectors).norm(dim=1).mean().item()
        tokens = torch.cat(vectors)
        total = (tokens - tokens.mean(0)).square().sum(1).mean().item()
        within = np.mean([(x - x.mean(0)).square().sum(1).mean().item() for x in vectors])
        model.train(was_training)
        return {"embeddings": embeddings, "spread": spread, "norm": norm, "within": within / total}

    @torch.no_grad()
    def __call__(self, model: SarcseModel) -> dict[str, float]:
        now = self.state(model)
        embeddings: torch.Tensor = now["embeddings"]
        similarities, at_start = embeddings @ embeddings.T, self.start["embeddings"] @ self.start["embeddings"].T
        pairs = similarities.numpy()[self.pairs]
        was_training = model.training
        model.eval()
        change = token_bias(model, self.tokenizer, self.sentences, self.counts)
        views = self.dropout_views(model)
        model.train(was_training)
        first, second = (encode(model, self.tokenizer, half) for half in self.halves())
        odd, even = (encode(model, self.tokenizer, half) for half in self.alternate())
        overlap = [
            len({*a.topk(NEIGHBOURS + 1).indices.tolist()} & {*b.topk(NEIGHBOURS + 1).indices.tolist()}) - 1
            for a, b in zip(similarities, at_start)
        ]
        rare = [value for value in change[:2] if value is not None]
        eigenvalues = torch.linalg.svdvals(embeddings - embeddings.mean(0)).square()
        numbers = {
            "words": spearmanr(pairs, self.words).statistic,
            "words, shared only": spearmanr(pairs[self.words > 0.05], self.words[self.words > 0.05]).statistic,
            "halves found": self.health(model),
            "halves of words found": reciprocal_rank(first, second),
            "halves, loss": -info_nce(first, second, 0.05).item(),
            "alternate words found": reciprocal_rank(odd, even),
            "alternate words, loss": -info_nce(odd, even, 0.05).item(),
            "rare to frequent": np.mean(rare) / change[-1],
            "rare": np.mean(rare),
            "frequent": -change[-1],
            "spread": now["spread"] / now["norm"] / (self.start["spread"] / self.start["norm"]),
            "spread within of all": now["within"] / self.start["within"],
            "alignment of views": -(views[0] - views[1]).square().sum(1).mean().item(),
            "uniformity": -(uniformity(embeddings) or 0.0),
            "contrast of views": -info_nce(*views, 0.05).item(),
            "neighbours of the start": float(np.mean(overlap)) / NEIGHBOURS,
            "similarities of the start": spearmanr(pairs, at_start.numpy()[self.pairs]).statistic,
            "dimensions in use": (eigenvalues.sum().square() / eigenvalues.square().sum()).item(),
        }
        return {name: round(float(value), 5) for name, value in numbers.items()}

    def halves(self) -> Iterator[list[str]]:
        words = [sentence.split() for sentence in self.sentences]
        yield [" ".join(w[: len(w) // 2]) or w[0] for w in words]
        yield [" ".join(w[len(w) // 2 :]) for w in words]

    def alternate(self) -> Iterator[list[str]]:
        words = [sentence.split() for sentence in self.sentences]
        yield [" ".join(w[::2]) for w in words]
        yield [" ".join(w[1::2]) or w[0] for w in words]

    def dropout_views(self, model: SarcseModel) -> list[torch.Tensor]:
        """Two normalised views, as in InfoNCE. The training's random number generator is not affected."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.train()
            embed = partial(in_batches, model, self.tokenizer, self.rows, lambda output: output.pooler_output)
            views = [F.normalize(torch.stack(embed()), dim=1) for _ in range(2)]
            model.eval()
        return views


def last_vectors(output: SarcseModelOutput) -> Iterator[torch.Tensor]:
    """`(L, d)` for each sentence, including special tokens and padding."""
    yield from output.last_hidden_state.float()


def reciprocal_rank(queries: torch.Tensor, answers: torch.Tensor) -> float:
    """Mean reciprocal rank of each query's own answer among all answers."""
    similarities = F.normalize(queries, dim=1) @ F.normalize(answers, dim=1).T  # (S, S)
    ranks = (similarities >= similarities.diagonal().unsqueeze(1)).sum(dim=1)
    return (1 / ranks).mean().item()
