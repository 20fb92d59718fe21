"""
A health check that needs no labels: how well a model matches the two halves of a sentence. Of all candidates
(study/candidates.py), this kind of number is best at detecting ruined models: those with worse embeddings than before
training (docs/choices.md).

Shapes: S sentences, d dimensions.
"""

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel, evaluation_mode, rows_by_length


BATCH_SIZE = 64


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


class HealthCheck:
    """
    The health of a model: how well it finds the second half of each sentence from its first half among the second
    halves of all sentences, and vice versa. It is the mean reciprocal rank, in percent.

    Args:
        token_ids (`list[list[int]]`): S sentences that the model is not trained on.
        config (`SarcseConfig`): The model's, for its special tokens and padding.

    Raises:
        ValueError: if fewer than two sentences are long enough to be halved.
    """

    def __init__(self, token_ids: list[list[int]], config: SarcseConfig) -> None:
        split = [halves(ids, config.special_token_ids) for ids in token_ids]
        self.halves = list(zip(*(pair for pair in split if pair is not None)))
        if not self.halves or len(self.halves[0]) < 2:
            raise ValueError("fewer than two of the held-out sentences have four tokens, enough for two halves")
        self.pad_token_id = getattr(config.encoder_config, "pad_token_id", None) or 0

    @torch.no_grad()
    def __call__(self, model: SarcseModel) -> float:
        """The health of `model`, in evaluation mode; the model's mode is restored afterwards."""
        with evaluation_mode(model):
            first, second = (F.normalize(self.embed(model, list(rows)), dim=1) for rows in self.halves)  # (S, d)
        similarities = first @ second.T  # (S, S)
        own = similarities.diagonal()
        # Ties get the last rank, and so does NaN: a model whose embeddings are all equal, or NaN, finds nothing.
        beaten = torch.cat([(similarities < own.unsqueeze(1)).sum(dim=1), (similarities < own).sum(dim=0)])  # (2S,)
        ranks = len(own) - beaten  # from 1
        return 100 * (1 / ranks).mean().item()

    def embed(self, model: SarcseModel, rows: list[list[int]]) -> torch.Tensor:
        """Embeddings of token ids, `(len(rows), d)`, float32 on the CPU."""
        embeddings = torch.empty(len(rows), model.config.hidden_size, dtype=torch.float32)
        for batch in rows_by_length(rows, BATCH_SIZE):
            ids = [torch.tensor(rows[row]) for row in batch]
            inputs = pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id)  # (BATCH_SIZE, L)
            mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)  # (BATCH_SIZE, L)
            output = model(inputs.to(model.device), mask.to(model.device))
            embeddings[batch] = output.pooler_output.float().cpu()
        return embeddings
