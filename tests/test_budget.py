"""The learning-rate budget: which schedules it scales, by how much, and what it leaves alone."""

import logging

import optuna
import pytest
import torch
from transformers import AutoTokenizer, get_scheduler

from sarcse.data.sts import load_pairs
from sarcse.loading import load_model
from sarcse.training.arguments import LEARNING_RATE, LEARNING_RATE_BUDGET, SarcseTrainingArguments
from sarcse.training.budget import planned_rates, scale_rates
from sarcse.training.trainer import SarcseTrainer

from .conftest import DEMO, SENTENCES
from .test_trainer import TEXTS, fresh_model


STEPS = 40
SCHEDULES = {
    "linear": {},
    "constant": {},
    "constant_with_warmup": {"num_warmup_steps": 5},
    "cosine": {"num_warmup_steps": 10},
    "cosine_with_restarts": {"scheduler_specific_kwargs": {"num_cycles": 2}},
    "polynomial": {},
    "inverse_sqrt": {"num_warmup_steps": 3},
    "cosine_with_min_lr": {"scheduler_specific_kwargs": {"min_lr_rate": 0.1}},
    "warmup_stable_decay": {"num_warmup_steps": 5, "scheduler_specific_kwargs": {"num_decay_steps": 10}},
    "reduce_lr_on_plateau": {},
}


def scheduled(name: str):
    """A schedule over an encoder's weight and a new layer's, with separate learning rates."""
    encoder, layer = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.AdamW([{"params": [encoder], "lr": 1e-3}, {"params": [layer], "lr": 4e-3}])
    fields = {"num_warmup_steps": 0, "num_training_steps": STEPS, **SCHEDULES[name]}
    return get_scheduler(name, optimizer, **fields), encoder, layer


def rates_of_all_steps(scheduler) -> torch.Tensor:
    """The learning rates at each step, `(STEPS, groups)`. The metric always improves, so that it lowers no rate."""
    rates = []
    for step in range(STEPS):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(-step)
        else:
            scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_plan_is_what_the_steps_get_and_the_encoder_s_are_scaled(name):
    asked = rates_of_all_steps(scheduled(name)[0])
    scheduler, encoder, layer = scheduled(name)
    assert planned_rates(scheduler, STEPS, {encoder}) == pytest.approx(asked[:, 0].sum().item())
    assert planned_rates(scheduler, STEPS, {layer}) == pytest.approx(asked[:, 1].sum().item())
    scale_rates(scheduler, 0.25, {encoder})
    torch.testing.assert_close(rates_of_all_steps(scheduler), asked * torch.tensor([0.25, 1]))


def trainer_of(folder, **fields):
    fields = {"learning_rate": 0.01, "max_steps": 4, "per_device_train_batch_size": 4, **fields}
    fields |= {"report_to": "none", "eval_strategy": "no", "save_strategy": "no", "use_cpu": True}
    return SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(folder), **fields), train_dataset=TEXTS)


def rates_of(trainer) -> list[float]:
    return [group["lr"] for group in trainer.optimizer.param_groups]


def test_no_weight_goes_further_than_the_budget(tmp_path):
    """This holds for any learning rate. Without a budget the weights move many times as far."""
    way = {}
    for budget in (0.002, 0):
        trainer = trainer_of(tmp_path, learning_rate_budget=budget, weight_decay=0.0)
        start = {name: p.detach().clone() for name, p in trainer.model.encoder.named_parameters()}
        trainer.train()
        moved = [(p.detach() - start[name]).abs().max().item() for name, p in trainer.model.encoder.named_parameters()]
        way[budget] = max(moved)
    # A step of Adam may be a little longer than its learning rate.
    assert 0 < way[0.002] < 0.0021 < 0.01 < way[0]


def test_the_default_is_told_once_with_its_numbers(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="sarcse.training.budget"):
        trainer_of(tmp_path).train()
    told = [record.getMessage() for record in caplog.records if "add up to" in record.getMessage()]
    assert len(told) == 1
    # Linear from 0.01 to 0 in 4 steps: 0.01, 0.0075, 0.005 and 0.0025.
    assert told[0].startswith("The encoder's learning rates of all 4 steps would add up to 0.025, ")
    assert f"multiplied by {LEARNING_RATE_BUDGET / 0.025:.3g}, to add up to" in told[0]


def test_the_default_learning_rate_is_scaled_down_without_a_warning(tmp_path, caplog):
    """It is there to be scaled down: a warning in every training would say nothing."""
    with caplog.at_level(logging.WARNING, logger="sarcse.training.budget"):
        trainer = trainer_of(tmp_path, learning_rate=LEARNING_RATE)
        trainer.create_optimizer_and_scheduler(num_training_steps=600)
    assert rates_of(trainer)[0] == pytest.approx(LEARNING_RATE_BUDGET / 300.5)  # linear: 600 steps add up to 300.5
    assert "add up to" not in caplog.text


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": LEARNING_RATE_BUDGET / 2.6},  # the steps add up to 2.5 times this: within the budget
        {"learning_rate_budget": 0},
        {"reconstruction_weight": 0},  # SimCSE's loss alone stays as its paper has it
        {"optim": "sgd"},  # the learning rate does not bound its steps
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_needs_no_budget_is_left_as_it_is(tmp_path, fields):
    trainer = trainer_of(tmp_path, logging_steps=1, **fields)
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    rate = trainer.args.learning_rate
    assert rates == pytest.approx([rate, 0.75 * rate, 0.5 * rate, 0.25 * rate])


@pytest.mark.parametrize(
    ("fields", "budget", "rate"),
    [
        ({}, 0, 1e-4),
        ({"metric_for_best_model": "pairs_spearman"}, 0, 1e-4),
        ({"learning_rate_budget": 0.01}, 0.01, 1e-4),
        ({"learning_rate": 2e-5}, 0, 2e-5),
        # Nobody notices a fall where the last model is kept or health picks one.
        ({"load_best_model_at_end": False}, LEARNING_RATE_BUDGET, 1e-4),
        ({"eval_strategy": "no"}, LEARNING_RATE_BUDGET, 1e-4),
        ({"metric_for_best_model": "health", "health_sentences": 50}, LEARNING_RATE_BUDGET, 1e-4),
        # SimCSE's loss alone is as in its paper.
        ({"eval_strategy": "no", "reconstruction_weight": 0}, 0, 3e-5),
    ],
    ids=str,
)
def test_where_graded_pairs_pick_the_checkpoint_there_is_no_budget(tmp_path, fields, budget, rate):
    """Then a fall costs nothing: the best checkpoint is kept."""
    args = {"report_to": "none", "use_cpu": True, "per_device_train_batch_size": 4, "health_sentences": 0, **fields}
    args = SarcseTrainingArguments(str(tmp_path), **args)
    pairs = load_pairs(str(DEMO / "sts.tsv"))
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "encoder")
    data = {"train_dataset": SENTENCES * 40, "eval_dataset": pairs, "processing_class": tokenizer}
    trainer = SarcseTrainer(load_model(str(DEMO / "encoder"))[0], args, **data)
    assert (trainer.args.rate_budget, trainer.args.learning_rate) == (budget, rate)
    assert trainer.args.to_dict()["learning_rate_budget"] == budget


def test_an_encoder_that_is_not_trained_cannot_be_ruined(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.model.encoder.requires_grad_(False)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    assert {*rates_of(trainer)} == {0.01, trainer.args.new_layers_learning_rate}


def test_an_optimizer_of_ones_own_gets_a_schedule_within_the_budget(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1.0)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    assert rates_of(trainer) == pytest.approx([LEARNING_RATE_BUDGET / 2.5])


def test_a_second_training_has_the_same_rates(tmp_path):
    trainer = trainer_of(tmp_path, logging_steps=1)
    trainer.train()
    first = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    trainer.train()
    second = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert len(first) == 4 and second == pytest.approx(first)


def test_each_trial_of_a_search_has_the_whole_budget(tmp_path, tokenizer):
    fields = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none"}
    fields |= {"eval_strategy": "no", "save_strategy": "no", "use_cpu": True}
    trainer = SarcseTrainer(
        args=SarcseTrainingArguments(str(tmp_path), **fields),
        train_dataset=TEXTS,
        eval_dataset=load_pairs(str(DEMO / "sts.tsv")).select(range(8)),
        processing_class=tokenizer,
        model_init=lambda: fresh_model(),
    )
    used = {}
    for rate in (0.1, 1e-6):

        def first_rate(metrics: dict, rate: float = rate) -> float:
            logged = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
            used[rate] = logged[0]
            return 0.0

        sampler = optuna.samplers.GridSampler({"learning_rate": [rate]}, seed=0)
        trainer.hyperparameter_search(
            lambda trial, rate=rate: {"learning_rate": trial.suggest_float("learning_rate", rate, rate)},
            compute_objective=first_rate,
            n_trials=1,
            backend="optuna",
            sampler=sampler,
        )
    assert used == pytest.approx({0.1: LEARNING_RATE_BUDGET / 1.5, 1e-6: 1e-6})


def test_a_schedule_that_raises_its_own_rate_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="greedy can raise the learning rate beyond any budget.*--learning_rate_budget 0"
    ):
        SarcseTrainingArguments(str(tmp_path), lr_scheduler_type="greedy")
