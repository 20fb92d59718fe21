"""
SARCSE's two losses, which need no Trainer:

    views = two_views(tokenizer(sentences, padding=True, return_tensors="pt"))
    outputs = model(**views, output_reconstruction=True, reconstructed_rows=len(sentences))
    contrast = info_nce(*outputs.pooler_output.chunk(2), temperature=0.05)
    loss = contrast + weighted_reconstruction(outputs, token_weights)

With `view_dropout=0.1` the model takes the batch as it is, and makes the views itself, of one pass of the encoder.

Where `torch.distributed` runs, both are losses of the sentences of all processes: call them in each, and let their
gradients be averaged, as DistributedDataParallel does.

Shapes: B sentences of one process, M of all processes, L positions, R rows and T positions that are reconstructed, d
dimensions.
"""

from typing import Any

import torch
from torch import distributed
from torch.nn import functional as F

from modeling_sarcse import SarcseModelOutput


# --- Several processes -----------------------------------------------------------------------------------------------


def number_of_processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class GatherWithGradient(torch.autograd.Function):
    """
    The rows of all processes, `(B, ...)` -> `(M, ...)`, in the order of the processes; the gradient of a process' rows
    is the sum of those that all processes have for them.

    torch's own such functions are deprecated, from version to version under another name, and with its functional
    collectives a process of four died at its end now and then.
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
    """Every sentence twice, the second views behind the first: dropout gives each row a mask of its own."""
    return {name: tensor.repeat(2, 1) for name, tensor in inputs.items()}  # (B, L) -> (2B, L)


def sentence_keys(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """
    A number for each sentence, `(B, L)` -> `(B,)`, that equal token ids share whatever their padding: the value of a
    polynomial modulo 2^64, so that comparing the sentences of all processes costs M numbers instead of M L.
    """
    factors = torch.full((input_ids.shape[1],), 6364136223846793005, device=input_ids.device)  # Knuth's, for 64 bits
    powers = factors.cumprod(dim=0)[attention_mask.cumsum(dim=1) - 1]  # (L,) -> (B, L), from the first token on
    return ((input_ids + 1) * powers * attention_mask).sum(dim=1)


def info_nce(
    first: torch.Tensor, second: torch.Tensor, temperature: float, keys: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Contrastive loss of SimCSE (arXiv 2104.08821, equation 1), mean over the rows of this process, in float32:

        -log( exp(cos(first_i, second_i) / temperature) / sum_j exp(cos(first_i, second_j) / temperature) )

    The sum is over the sentences of all processes, with gradient: the mean of the processes' losses, and of their
    gradients, is that of one process with all sentences.

    Args:
        first, second (`torch.Tensor` of shape `(B, d)`):
            Embeddings of the two views. All processes have as many.
        temperature (`float`): Divides the cosine similarities.
        keys (`torch.Tensor` of shape `(B,)`, *optional*):
            From `sentence_keys`. Another sentence j with the key of i is left out of i's sum: a sentence is no
            negative of itself.
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
    """The weight of each token's reconstruction error, `(R, T)`, zero behind the last content token."""
    _, _, mask, ids = outputs.reconstructed()
    return token_weights[ids] * mask


def share_of_total(weight: torch.Tensor) -> torch.Tensor:
    """
    The denominator of a weighted mean over all processes, from this process' sum of weights; divided by their number,
    since gradients are averaged over processes.
    """
    if number_of_processes() > 1:
        weight = weight.detach().clone()
        distributed.all_reduce(weight)
    return weight / number_of_processes()


def weighted_reconstruction(
    outputs: SarcseModelOutput, token_weights: torch.Tensor, total_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Weighted mean of the tokens' reconstruction errors, sum(w e) / sum(w), over the tokens of all processes.

    Args:
        outputs (`SarcseModelOutput`): With a reconstruction.
        token_weights (`torch.Tensor` of shape `(vocabulary_size,)`): The weight of a token's error, by its id.
        total_weight (`torch.Tensor`, *optional*):
            From `share_of_total`, where these are some rows of the batch: the losses of the parts add up to the whole.

    Raises:
        ValueError: nothing was reconstructed.
    """
    weights = content_weights(outputs, token_weights)  # (R, T)
    total_weight = share_of_total(weights.sum()) if total_weight is None else total_weight
    errors = outputs.reconstruction_errors()  # (R, T)
    return (weights * errors).sum() / total_weight.clamp(min=torch.finfo(errors.dtype).tiny)
