"""
What keeps a long training, or one at a high learning rate, from ruining the encoder: a budget for the learning rates
of all steps together.

A step of Adam moves a weight by about the learning rate at most, so their sum bounds how far any weight goes from what
was pretrained. In the study it is this sum that decides whether embeddings get better or are ruined, and neither the
learning rate nor the number of steps by itself (study/results/README.md).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


def planned_rates(scheduler: Any, steps: int, parameters: Iterable[torch.nn.Parameter]) -> float:
    """
    The sum of the learning rates of all `steps`, of the group of parameters with the highest one among those that have
    any of `parameters`; 0.0 if none has.

    Of a schedule that follows a metric (`ReduceLROnPlateau`) it is what a constant rate would add up to.
    """
    wanted = set(parameters)
    sums = [0.0]
    for index, group in enumerate(scheduler.optimizer.param_groups):
        if wanted.isdisjoint(group["params"]):
            continue
        if isinstance(scheduler, LambdaLR):
            factor = scheduler.lr_lambdas[index]
            sums.append(float(scheduler.base_lrs[index]) * sum(factor(step) for step in range(steps)))
        else:
            sums.append(group["lr"] * steps)
    return max(sums)


def scale_rates(scheduler: Any, factor: float) -> None:
    """Multiply all learning rates of a schedule that has not begun, those to come included."""
    for group in scheduler.optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] *= factor
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    if hasattr(scheduler, "_last_lr"):
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
