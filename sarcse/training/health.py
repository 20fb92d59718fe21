"""
A health check that needs no labels: what texts have in common with their nearest neighbours. Of all candidates this
number follows best whether a training made clusters and neighbours better or worse (`python -m study.own_text`).

Shapes: S texts, d dimensions.
"""

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel, in_evaluation_mode, rows_by_length
from sarcse.data.tokens import token_weights


BATCH_SIZE = 64
NEIGHBOURS = 10
# The weights of words that are frequent in general text, as in a/(a + p). Their frequencies in the training text would
# not do: a training that erases the words which name its topics would look healthy.
SMOOTHING = 3e-4


def token_vectors(token_ids: list[list[int]], weights: np.ndarray) -> sparse.csr_matrix:
    """
    The texts as vectors of length 1, by their tokens: `(S, vocabulary_size)`. An entry is 1 + log(count), times the
    inverse document frequency, times the token's weight in `weights`, `(vocabulary_size,)`.
    """
    rows = np.repeat(np.arange(len(token_ids)), [len(ids) for ids in token_ids])
    columns = np.array([token for ids in token_ids for token in ids], dtype=np.int64)
    counts = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(token_ids), len(weights)))
    counts.sum_duplicates()
    documents = np.bincount(counts.indices, minlength=len(weights))
    inverse = np.log((1 + len(token_ids)) / (1 + documents)) + 1  # (vocabulary_size,)
    counts.data = (1 + np.log(counts.data)) * (inverse * weights)[counts.indices]
    lengths = np.sqrt(counts.multiply(counts).sum(axis=1)).A1  # (S,)
    return sparse.csr_matrix(sparse.diags(1 / np.where(lengths > 0, lengths, 1)) @ counts)


def embed(model: SarcseModel, token_ids: list[list[int]]) -> torch.Tensor:
    """Embeddings of texts given as token ids, `(S, d)`, float32 on the CPU."""
    pad_token_id = getattr(model.config.encoder_config, "pad_token_id", None) or 0
    embeddings = torch.empty(len(token_ids), model.config.hidden_size, dtype=torch.float32)
    for batch in rows_by_length(token_ids, BATCH_SIZE):
        ids = [torch.tensor(token_ids[row]) for row in batch]
        inputs = pad_sequence(ids, batch_first=True, padding_value=pad_token_id)  # (BATCH_SIZE, L)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)  # (BATCH_SIZE, L)
        output = model(inputs.to(model.device), mask.to(model.device))
        embeddings[batch] = output.pooler_output.float().cpu()
    return embeddings


class HealthCheck:
    """
    The health of a model: what each text has in common with its ten nearest neighbours by their embeddings. It is the
    mean cosine similarity of the texts' tokens (`token_vectors`), in percent. Compare it only with that of the same
    texts under the same tokenizer.

    Args:
        token_ids (`list[list[int]]`): S texts.
        config (`SarcseConfig`): The model's, for its special tokens.
        counts (`np.ndarray` of shape `(vocabulary_size,)`): How often each token occurs in general text.

    Raises:
        ValueError: if there are too few texts for neighbours.
    """

    def __init__(self, token_ids: list[list[int]], config: SarcseConfig, counts: np.ndarray) -> None:
        if len(token_ids) <= NEIGHBOURS + 1:
            raise ValueError(f"{len(token_ids)} held-out texts are too few for {NEIGHBOURS} neighbours")
        self.rows = token_ids
        weights = token_weights(counts, "smooth_inverse", SMOOTHING).numpy()
        weights[config.special_token_ids] = 0
        self.vectors = token_vectors(token_ids, weights)

    @torch.no_grad()
    def __call__(self, model: SarcseModel) -> float:
        """The health of `model` in evaluation mode, whatever its mode; 0 if an embedding is not finite."""
        embeddings = F.normalize(embed(in_evaluation_mode(model), self.rows), dim=1)  # (S, d)
        return self.in_common(embeddings)

    def in_common(self, embeddings: torch.Tensor) -> float:
        """The health of a model with these embeddings of the texts, `(S, d)`, each of length 1."""
        if not embeddings.isfinite().all():
            return 0.0
        similarities = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf)  # (S, S)
        near = similarities.topk(NEIGHBOURS).indices.numpy()  # (S, NEIGHBOURS)
        in_common = sum(self.vectors[column].multiply(self.vectors).sum() for column in near.T)
        return 100 * float(in_common) / near.size
