"""
What keeps a long training, or one at a high learning rate, from ruining the encoder: a budget for the learning rates
of all steps together.

A step of Adam moves a weight by about the learning rate at most, so their sum bounds how far any weight goes from what
was pretrained. In the study it is this sum that decides whether embeddings get better or are ruined, and neither the
learning rate nor the number of steps by itself (study/results/details.md).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.utils import logging


logger = logging.get_logger(__name__)


def keep_to_budget(trainer: Trainer, scheduler: Any, steps: int) -> None:
    """Scales all learning rates down, if the encoder's would add up to more than the budget, and says so."""
    budget, encoder = trainer.args.rate_budget, [p for p in trainer.unwrapped.encoder.parameters() if p.requires_grad]
    optimizer = getattr(scheduler.optimizer, "optimizer", scheduler.optimizer)  # accelerate's has the real one
    if not budget or not encoder or isinstance(optimizer, torch.optim.SGD):  # whose learning rates bound no distance
        return
    planned = planned_rates(scheduler, steps, encoder)
    if planned <= budget * (1 + 1e-6):
        return
    scale_rates(scheduler, budget / planned)
    if trainer.is_world_process_zero():
        logger.warning(
            f"The learning rates of all {steps:,} steps would add up to {planned:.4g}, which can ruin an encoder. "
            f"They are multiplied by {budget / planned:.3g}, to add up to --learning_rate_budget {budget:g}; with 0 "
            "the training goes as asked."
        )


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
