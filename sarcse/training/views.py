"""
Two views of each sentence from one pass of the encoder, for the contrastive loss.

Shapes: B sentences of one process, L positions, d dimensions.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import distributed
from torch.nn import functional as F


# A dropped dimension is replaced by this share of the mean of all vectors. With 0 the views of some encoders are too
# far apart: those whose mean is long compared with the differences between sentences. With 1 the views are closer, and
# teach less (docs/choices.md).
TOWARDS_MEAN = 0.75

# The argument `views` of `SarcseModel.forward`: vectors and mask, (B, L, d) and (B, L) -> (2B, L, d).
Views = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def dropping(rate: float | None, mean: torch.Tensor | None = None) -> Views | None:
    """Views that drop this share of the dimensions, see `two_views_of`; None, which is one view, without a rate."""
    return None if rate is None else partial(two_views_of, rate=rate, mean=mean)


def two_views_of(
    vectors: torch.Tensor, mask: torch.Tensor, rate: float, mean: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Two views of each sentence, `(B, L, d)` -> `(2B, L, d)`, the first views first. A view drops a share `rate` of the
    dimensions, the same ones in all its vectors (spatial dropout, arXiv 1411.4280). Different ones in each vector
    would nearly cancel out in the mean over the tokens. `mean`, `(d,)`, is that of the whole batch's vectors, if these
    are only a part of the batch. Default: the mean over the rows of all processes.
    """
    if mean is None:
        mean = mean_of_batch(sum_and_count(vectors, mask))  # (d,)
    towards = TOWARDS_MEAN * mean.to(vectors.dtype)  # (d,)
    views = (vectors - towards) * kept_dimensions(vectors, rate) + towards  # (2, B, L, d)
    return views.flatten(0, 1)  # (2B, L, d)


def sum_and_count(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The sum of the vectors `(B, L, d)` where the mask is True, and after it their number: `(d + 1,)`, float32."""
    counted = mask.unsqueeze(-1).to(vectors.dtype)  # (B, L, 1)
    total = (vectors.detach() * counted).sum(dim=(0, 1), dtype=torch.float32)  # (d,); float16 would overflow
    return torch.cat([total, counted.sum(dtype=torch.float32).unsqueeze(0)])  # (d + 1,)


def mean_of_batch(total: torch.Tensor) -> torch.Tensor:
    """The mean of a batch's vectors over all processes, `(d,)`, from this process' `sum_and_count`."""
    if distributed.is_available() and distributed.is_initialized():
        total = total.clone()
        distributed.all_reduce(total)
    return total[:-1] / total[-1]


def kept_dimensions(vectors: torch.Tensor, rate: float) -> torch.Tensor:
    """0 for the share `rate` of dimensions that a view drops, else 1 / (1 - rate): `(B, L, d)` -> `(2, B, 1, d)`."""
    return F.dropout(vectors.new_ones(2, len(vectors), 1, vectors.shape[2]), rate)
