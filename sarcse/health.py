"""
Whether a model still tells sentences apart by what they say, without labels: how well it finds the other half of a
sentence. Of all numbers that were tried (study/candidates.py) this kind tells ruined models best
(study/results/details.md).

Shapes: S sentences, d dimensions.
"""

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel, rows_by_length


BATCH_SIZE = 64


def halves(token_ids: list[int], special_token_ids: list[int]) -> tuple[list[int], list[int]] | None:
    """A sentence's first and second half, each between the special tokens of the whole; None below four tokens."""
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
    Mean reciprocal rank x 100 at which a model finds the second half of a sentence by its first half, and the other
    way round, among those of all sentences; from 0 to 100.

    Args:
        token_ids (`list[list[int]]`): S sentences that the model is not trained on.
        config (`SarcseConfig`): Of the model, which knows special tokens and padding.

    Raises:
        ValueError: fewer than two sentences have halves.
    """

    def __init__(self, token_ids: list[list[int]], config: SarcseConfig) -> None:
        split = [halves(ids, config.special_token_ids) for ids in token_ids]
        self.halves = list(zip(*(pair for pair in split if pair is not None)))
        if not self.halves or len(self.halves[0]) < 2:
            raise ValueError("fewer than two of the sentences that are kept aside have four tokens, for two halves")
        self.pad_token_id = getattr(config.encoder_config, "pad_token_id", None) or 0

    @torch.no_grad()
    def __call__(self, model: SarcseModel) -> float:
        """The model is used in evaluation mode and left in the mode it came in."""
        training = model.training
        model.eval()
        try:
            first, second = (F.normalize(self.embed(model, list(rows)), dim=1) for rows in self.halves)  # (S, d)
        finally:
            model.train(training)
        similarities = first @ second.T  # (S, S)
        own = similarities.diagonal()
        # Of equal ones the last: embeddings that are all the same find nothing.
        ranks = torch.cat([(similarities >= own.unsqueeze(1)).sum(dim=1), (similarities >= own).sum(dim=0)])  # (2S,)
        return 100 * (1 / ranks).mean().item()

    def embed(self, model: SarcseModel, rows: list[list[int]]) -> torch.Tensor:
        """`(len(rows), d)`, float32 on the CPU."""
        embeddings = torch.empty(len(rows), model.config.hidden_size)
        for batch in rows_by_length(rows, BATCH_SIZE):
            ids = [torch.tensor(rows[row]) for row in batch]
            inputs = pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id)  # (BATCH_SIZE, L)
            mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)  # (BATCH_SIZE, L)
            output = model(inputs.to(model.device), mask.to(model.device))
            embeddings[batch] = output.pooler_output.float().cpu()
        return embeddings
