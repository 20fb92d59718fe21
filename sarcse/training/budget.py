"""
A budget for the sum of the encoder's learning rates over all steps. It is meant to keep a long training, or one at a
high learning rate, from ruining the encoder: from making its embeddings worse than before training.

A step of Adam moves a weight by about the learning rate at most, so their sum bounds how far any weight moves from its
pretrained value. In the study this sum decides whether embeddings get better or are ruined; neither the learning rate
nor the number of steps does by itself (docs/choices.md).
"""

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.utils import logging

from sarcse.training.arguments import LEARNING_RATE


logger = logging.get_logger(__name__)


def keep_to_budget(trainer: Trainer, scheduler: Any, steps: int) -> None:
    """
    Scale the encoder's learning rates down if they would add up to more than the budget. A warning says so, unless the
    learning rate is the default, which is meant to be scaled down.
    """
    budget, encoder = trainer.args.rate_budget, {p for p in trainer.unwrapped.encoder.parameters() if p.requires_grad}
    optimizer = getattr(scheduler.optimizer, "optimizer", scheduler.optimizer)  # accelerate's has the real one
    if not budget or not encoder or isinstance(optimizer, torch.optim.SGD):  # whose learning rates bound no distance
        return
    planned = planned_rates(scheduler, steps, encoder)
    if planned <= budget * (1 + 1e-6):
        return
    scale_rates(scheduler, budget / planned, encoder)
    if trainer.is_world_process_zero():
        logger.log(
            logging.INFO if trainer.args.learning_rate == LEARNING_RATE else logging.WARNING,
            f"The encoder's learning rates of all {steps:,} steps would add up to {planned:.4g}, which can ruin it. "
            f"They are multiplied by {budget / planned:.3g}, to add up to --learning_rate_budget {budget:g}. A budget "
            "of 0 leaves them unchanged.",
        )


def groups_with(scheduler: Any, parameters: set[torch.nn.Parameter]) -> list[int]:
    """The numbers of the optimizer's groups that have any of the parameters."""
    groups = enumerate(scheduler.optimizer.param_groups)
    return [number for number, group in groups if not parameters.isdisjoint(group["params"])]


def planned_rates(scheduler: Any, steps: int, parameters: set[torch.nn.Parameter]) -> float:
    """
    The sum of the learning rates of all `steps`: the highest of the groups with any of the parameters, or 0.0 without
    such a group.

    For a schedule that follows a metric (`ReduceLROnPlateau`), it is the sum that a constant rate would give.
    """
    sums = [0.0]
    for number in groups_with(scheduler, parameters):
        if isinstance(scheduler, LambdaLR):
            factor = scheduler.lr_lambdas[number]
            sums.append(float(scheduler.base_lrs[number]) * sum(factor(step) for step in range(steps)))
        else:
            sums.append(scheduler.optimizer.param_groups[number]["lr"] * steps)
    return max(sums)


def scale_rates(scheduler: Any, factor: float, parameters: set[torch.nn.Parameter]) -> None:
    """
    Multiply the learning rates, present and future, of the groups with any of the parameters. The schedule must not
    have begun.
    """
    for number in groups_with(scheduler, parameters):
        group = scheduler.optimizer.param_groups[number]
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] *= factor
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs[number] *= factor
    if hasattr(scheduler, "_last_lr"):
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
