"""
SARCSE's two losses, which need no Trainer:

    views = two_views(tokenizer(sentences, padding=True, return_tensors="pt"))
    outputs = model(**views, output_reconstruction=True, reconstructed_rows=len(sentences))
    contrast = info_nce(*outputs.pooler_output.chunk(2), temperature=0.05)
    loss = contrast + weighted_reconstruction(outputs, token_weights)

With `views=dropping(0.1)`, from `sarcse.training.views`, pass the model the batch without `two_views`: it then makes
the views itself, from one pass of the encoder.

Under `torch.distributed` both losses cover the sentences of all processes: call them in each process, and average the
gradients, as DistributedDataParallel does.

Shapes: B sentences of one process, M of all processes, L positions, R rows and T positions that are reconstructed, d
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.nn import functional as F

from modeling_sarcse import SarcseModelOutput
from sarcse.reconstruction import reconstruction_errors


if TYPE_CHECKING:  # the losses need no Trainer
    from sarcse.training.arguments import SarcseTrainingArguments


# --- Several processes -----------------------------------------------------------------------------------------------


def number_of_processes() -> int:
    """The number of processes of `torch.distributed`; 1 without it."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class GatherWithGradient(torch.autograd.Function):
    """
    Gathers the rows of all processes, `(B, ...)` -> `(M, ...)`, in the order of the processes. The gradient of a
    process' rows is the sum of the gradients that all processes have for them.

    torch's own functions for this are deprecated and change their names between versions. With its functional
    collectives, one of four processes sometimes crashed on exit.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]


# --- The contrastive loss --------------------------------------------------------------------------------------------


def two_views(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Repeat every sentence of a tokenised batch, the second views after the first: each tensor `(B, L)` -> `(2B, L)`.
    In the encoder, dropout gives each row its own mask.
    """
    return {name: tensor.repeat(2, 1) for name, tensor in inputs.items()}  # (B, L) -> (2B, L)


def sentence_keys(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """
    A hash of each sentence, `(B, L)` -> `(B,)`, that is equal for equal token ids, whatever their padding. It is the
    value of a polynomial modulo 2^64. Comparing the sentences of all processes then takes M numbers instead of M L.
    """
    factors = torch.full((input_ids.shape[1],), 6364136223846793005, device=input_ids.device)  # Knuth's, for 64 bits
    powers = factors.cumprod(dim=0)[attention_mask.cumsum(dim=1) - 1]  # (L,) -> (B, L), from the first token on
    return ((input_ids + 1) * powers * attention_mask).sum(dim=1)


def info_nce(
    first: torch.Tensor, second: torch.Tensor, temperature: float, keys: torch.Tensor | None = None
) -> torch.Tensor:
    """
    SimCSE's contrastive loss (arXiv 2104.08821, equation 1), averaged over the rows of this process:

        -log( exp(cos(first_i, second_i) / temperature) / sum_j exp(cos(first_i, second_j) / temperature) )

    The sum is over the sentences of all processes, with gradient. The mean of the processes' losses, and of their
    gradients, equals that of one process with all sentences.

    Args:
        first, second (`torch.Tensor` of shape `(B, d)`):
            Embeddings of the two views. B must be the same in all processes.
        temperature (`float`): Divides the cosine similarities.
        keys (`torch.Tensor` of shape `(B,)`, *optional*):
            From `sentence_keys`. Other sentences with the key of i are left out of i's sum, so that a repeated
            sentence is not a negative of itself.

    Returns:
        `torch.Tensor`, a scalar in float32.
    """
    own = torch.arange(len(first), device=first.device)  # (B,), the rows of `second` that belong to those of `first`
    if number_of_processes() > 1:
        own = own + distributed.get_rank() * len(first)
        second = GatherWithGradient.apply(second)  # (B, d) -> (M, d)
    similarities = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T  # (B, M)
    if keys is not None:
        all_keys: torch.Tensor = GatherWithGradient.apply(keys) if number_of_processes() > 1 else keys  # (M,)
        repeated = keys.unsqueeze(1).eq(all_keys).scatter(1, own.unsqueeze(1), False)  # (B, M)
        similarities = similarities.masked_fill(repeated, float("-inf"))
    return F.cross_entropy(similarities / temperature, own)


# --- The reconstruction loss -----------------------------------------------------------------------------------------


def content_weights(outputs: SarcseModelOutput, token_weights: torch.Tensor) -> torch.Tensor:
    """The weight of each reconstructed token's error, `(R, T)`, zero after the last content token."""
    return token_weights[outputs.content_input_ids] * outputs.content_mask  # type: ignore[index, operator]


def share_of_total(weight: torch.Tensor) -> torch.Tensor:
    """
    The denominator of a weighted mean over all processes, from this process' sum of weights. It is divided by the
    number of processes, because gradients are averaged over them.
    """
    if number_of_processes() > 1:
        weight = weight.detach().clone()
        distributed.all_reduce(weight)
    return weight / number_of_processes()


def weighted_reconstruction(
    outputs: SarcseModelOutput, token_weights: torch.Tensor, total_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """
    SARCSE's reconstruction loss: the weighted mean of the tokens' reconstruction errors, `sum(w e) / sum(w)`, over the
    tokens of all processes.

    Args:
        outputs (`SarcseModelOutput`): Of a model called with `output_reconstruction=True`.
        token_weights (`torch.Tensor` of shape `(vocabulary_size,)`): The weight of a token's error, by its id.
        total_weight (`torch.Tensor`, *optional*):
            From `share_of_total`, if `outputs` are only a part of the batch, so that the parts' losses add up to the
            loss of the whole. Default: `outputs` are the whole batch.

    Returns:
        `torch.Tensor`, a scalar in float32, in squared units of the encoder's vectors.

    Raises:
        ValueError: if nothing was reconstructed.
    """
    errors = reconstruction_errors(outputs)  # (R, T)
    weights = content_weights(outputs, token_weights)  # (R, T)
    total_weight = share_of_total(weights.sum()) if total_weight is None else total_weight
    return (weights * errors).sum() / total_weight.clamp(min=torch.finfo(errors.dtype).tiny)


# --- Together --------------------------------------------------------------------------------------------------------

# The losses of a training, by the names that the log and the figures have for them, with their weights in the sum. A
# loss whose weight is 0 is not computed.
WEIGHTS: dict[str, Callable[[SarcseTrainingArguments], float]] = {
    "contrastive_loss": lambda args: 1.0,
    "reconstruction_loss": lambda args: args.reconstruction_weight,
}


def batch_losses(
    embeddings: torch.Tensor, inputs: dict[str, torch.Tensor], args: SarcseTrainingArguments
) -> dict[str, torch.Tensor]:
    """
    The losses that need the embeddings of a whole batch: of both views, first views first, `(2B, d)`. `inputs` have
    each sentence once, `(B, L)`.
    """
    keys = sentence_keys(inputs["input_ids"], inputs["attention_mask"])  # (B,)
    first, second = embeddings.chunk(2)  # (2B, d) -> two of (B, d)
    return {"contrastive_loss": info_nce(first, second, args.contrastive_temperature, keys)}


def token_losses(
    outputs: SarcseModelOutput, token_weights: torch.Tensor, total_weight: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """
    The losses that are means over tokens; none if nothing was reconstructed. With `total_weight`, as in
    `weighted_reconstruction`, those of a part of the batch, which add up.
    """
    if outputs.reconstruction is None:
        return {}
    return {"reconstruction_loss": weighted_reconstruction(outputs, token_weights, total_weight)}


def weighted_sum(losses: dict[str, torch.Tensor], args: SarcseTrainingArguments) -> torch.Tensor:
    """What is minimised; 0 without losses."""
    return sum((WEIGHTS[name](args) * loss for name, loss in losses.items()), start=torch.zeros(()))
