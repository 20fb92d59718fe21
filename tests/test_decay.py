"""The decay to the start: what it does to the weights after each step, and that it goes on with a checkpoint."""

import math

import pytest
import torch

from sarcse.decay import FREE_RATES, DecayToStart
from sarcse.parsing import parse_arguments
from sarcse.training import build_trainer

from .conftest import flags


def trained(folder, **fields):
    trainer = build_trainer(*parse_arguments(flags(folder, report_to="none", eval_strategy="no", **fields)))
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.tasks = {}
    trainer.train()
    return {name: (p.detach() - start[name]).abs().max().item() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("rates_before", [0.0, 0.002, 1.0])
def test_after_a_step_weights_go_back_in_proportion_to_the_learning_rate_and_the_way_so_far(rates_before):
    """Computed weight by weight, for two groups of different learning rates and a parameter that is left alone."""
    torch.manual_seed(0)
    held = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    free = torch.nn.Parameter(torch.randn(2))
    start = [p.detach().clone() for p in held]
    rates = (0.001, 0.002)
    groups = [{"params": [held[0], free], "lr": rates[0]}, {"params": [held[1]], "lr": rates[1]}]
    optimizer = torch.optim.SGD(groups)
    for group in optimizer.param_groups:
        group["rates_so_far"] = rates_before
    DecayToStart(held, strength=100.0).attach(optimizer)
    gradients = [torch.randn_like(p) for p in (*held, free)]
    for parameter, gradient in zip((*held, free), gradients):
        parameter.grad = gradient.clone()
    before_free = free.detach().clone()
    optimizer.step()
    for parameter, begun, gradient, rate in zip(held, start, gradients, rates):
        stepped = begun - rate * gradient
        sets_in = min(1.0, ((rates_before + rate) / FREE_RATES) ** 4)
        left = math.exp(-rate * sets_in * 100.0)
        torch.testing.assert_close(parameter.detach(), begun + left * (stepped - begun))
    torch.testing.assert_close(free.detach(), before_free - rates[0] * gradients[2])


def test_an_optimizer_is_followed_once():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    decay = DecayToStart([parameter], strength=10.0)
    decay.attach(optimizer)
    decay.attach(optimizer)
    parameter.grad = torch.ones(1)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([1 - 0.01 * math.exp(-0.01 * 10.0)]))


def test_no_weight_of_the_encoder_goes_further_than_the_inverse_of_the_strength(tmp_path):
    """... whatever the learning rate is; without the decay they go many times as far. The new layers are free."""
    fields = {"learning_rate": 0.01, "autoencoder_learning_rate": 0.01, "lr_scheduler_type": "constant"}
    fields |= {"weight_decay": 0.0, "num_train_epochs": 4}
    held = trained(tmp_path / "held", start_decay=50, **fields)
    free = trained(tmp_path / "free", start_decay=0, **fields)
    assert all(way <= 0.02 for name, way in held.items() if name.startswith("encoder."))
    assert max(way for name, way in free.items() if name.startswith("encoder.")) > 0.02
    assert max(way for name, way in held.items() if not name.startswith("encoder.")) > 0.01
