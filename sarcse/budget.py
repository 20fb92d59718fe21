"""
A budget for the sum of the encoder's learning rates over all steps. It is meant to keep a long training, or one at a
high learning rate, from ruining the encoder: from making its embeddings worse than before training.

A step of Adam moves a weight by about the learning rate at most, so their sum bounds how far any weight moves from its
pretrained value. In the study this sum decides whether embeddings get better or are ruined; neither the learning rate
nor the number of steps does by itself (docs/choices.md).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.utils import logging

from sarcse.arguments import LEARNING_RATE


logger = logging.get_logger(__name__)


def keep_to_budget(trainer: Trainer, scheduler: Any, steps: int) -> None:
    """
    Scale all learning rates down if the encoder's would add up to more than the budget. A warning says so, unless the
    learning rate is the default, which is meant to be scaled down.
    """
    budget, encoder = trainer.args.rate_budget, [p for p in trainer.unwrapped.encoder.parameters() if p.requires_grad]
    optimizer = getattr(scheduler.optimizer, "optimizer", scheduler.optimizer)  # accelerate's has the real one
    if not budget or not encoder or isinstance(optimizer, torch.optim.SGD):  # whose learning rates bound no distance
        return
    planned = planned_rates(scheduler, steps, encoder)
    if planned <= budget * (1 + 1e-6):
        return
    scale_rates(scheduler, budget / planned)
    if trainer.is_world_process_zero():
        logger.log(
            logging.INFO if trainer.args.learning_rate == LEARNING_RATE else logging.WARNING,
            f"The learning rates of all {steps:,} steps would add up to {planned:.4g}, which can ruin an encoder. "
            f"They are multiplied by {budget / planned:.3g}, to add up to --learning_rate_budget {budget:g}. A budget "
            "of 0 leaves them unchanged.",
        )


def planned_rates(scheduler: Any, steps: int, parameters: Iterable[torch.nn.Parameter]) -> float:
    """
    The sum of the learning rates of all `steps`. Only parameter groups with any of `parameters` count, and the highest
    sum is returned; 0.0 without such a group.

    For a schedule that follows a metric (`ReduceLROnPlateau`), it is the sum that a constant rate would give.
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
    """Multiply all learning rates, present and future, of a schedule that has not begun."""
    for group in scheduler.optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] *= factor
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    if hasattr(scheduler, "_last_lr"):
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
