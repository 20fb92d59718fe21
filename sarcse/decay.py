"""
What keeps a long training, or one at a high learning rate, from ruining the encoder: after each step the weights that
make the embedding decay towards those that they had before the training.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import broadcast


# The learning rates of all steps may add up to this before the decay is at its full strength: no training of the study
# was ruined before (study/results/README.md).
FREE_RATES = 0.005


class DecayToStart:
    """
    After each step of an optimizer, `p <- p_start + exp(-learning rate * strength) * (p - p_start)`: the penalty of
    L2-SP (Li, Grandvalet and Davoine 2018, arXiv 1802.01483), decoupled from the gradient as in AdamW (arXiv
    1711.05101). A step of Adam moves a weight by the learning rate at most: none goes further than `1 / strength` from
    its start.

    The strength sets in with the fourth power of the learning rates that a group of the optimizer has had, as long as
    they are below `FREE_RATES`: a short training hardly feels it. Their sum is in the group, and so in checkpoints.

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): As they are before the training; they are copied.
        strength (`float`): The inverse of the distance, in units of the weights.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], strength: float) -> None:
        self.strength = strength
        # All processes begin with the weights of the first one.
        self.start = {p: broadcast(p.detach().clone()) for p in parameters if p.requires_grad}
        self.optimizer: torch.optim.Optimizer | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow every step of this optimizer, or of the one that accelerate has wrapped."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if self.optimizer is not optimizer:
            self.optimizer = optimizer
            optimizer.register_step_post_hook(self.after_step)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            held = [p for p in group["params"] if p in self.start]
            group["rates_so_far"] = group.get("rates_so_far", 0.0) + group["lr"]
            strength = self.strength * min(1.0, (group["rates_so_far"] / FREE_RATES) ** 4)
            if held and strength > 0:
                start = [self.start[p] for p in held]
                # 1 - exp(-x), never the whole way.
                torch._foreach_lerp_(held, start, -math.expm1(-group["lr"] * strength))
