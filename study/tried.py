"""Poolers that were tried before the default was chosen. `python -m study.own_text --pooler NAME` trains them."""

import torch

from configuration_sarcse import SarcseConfig
from modeling_sarcse import POOLERS, SameConv1d, WeightedWords, token_mean


class OneWeight(WeightedWords):
    """One weight for each word vector, instead of one for each of its dimensions."""

    def __init__(self, config: SarcseConfig) -> None:
        super().__init__(config)
        scales = config.channels * len(config.kernel_sizes)
        self.integration = SameConv1d(scales, 1, config.integration_kernel_size)


class EqualWeights(WeightedWords):
    """The mean of the contextual vectors plus the mean of the word vectors, without a TextCNN."""

    def weighted_mean(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return token_mean(words, mask)


class WeightedContext(WeightedWords):
    """The mean of the contextual vectors, weighted by a TextCNN that reads them; no word vectors."""

    with_words = False

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor, content: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.weighted_mean(hidden_states, mask)


class OneWeightContext(WeightedContext, OneWeight):
    """The same with one weight for each token."""


TRIED = {
    "one_weight": OneWeight,
    "equal_weights": EqualWeights,
    "weighted_context": WeightedContext,
    "one_weight_context": OneWeightContext,
}
POOLERS.update(TRIED)
