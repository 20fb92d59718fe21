"""What a training logs and warns about: its losses, its health, collapsed embeddings, a contrastive loss of zero."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from sarcse.evaluation.report import difference_in_words
from sarcse.options import HEALTH
from sarcse.training.checkpoints import last_good_checkpoint


logger = logging.get_logger(__name__)

# Embeddings whose uniformity is above this have collapsed: their mean squared distance is below 0.005, and their mean
# cosine similarity above 0.9975. Before training, the encoders of the README's results are at -0.6 or below.
COLLAPSED_UNIFORMITY = -0.01

# Trainings of a sentence encoder that changed nothing ended at 1.007 and 1.011 times the health before them, trainings
# that gained something at 1.03 or more (docs/training.md).
CLEARLY_MORE = 1.02


class LossWatch:
    """
    Collects the losses of every batch: their means for the log, and the largest contrastive loss of the run.

    Args:
        trainer (`SarcseTrainer`): The trainer whose losses these are.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.totals: dict[str, torch.Tensor] = {}
        self.batches = 0
        self.largest_contrast: torch.Tensor | None = None
        self.told = False

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        losses = {name: loss.detach() for name, loss in losses.items()}
        largest = 0.0 if self.largest_contrast is None else self.largest_contrast
        self.largest_contrast = losses["contrastive_loss"].clamp(min=largest)
        self.totals = {name: value + self.totals.get(name, 0.0) for name, value in losses.items()}
        self.batches += 1

    def means(self) -> dict[str, float]:
        """The mean of each loss over the batches of all processes since the last call."""
        gather, batches = self.trainer.accelerator.gather, self.batches
        means = {name: gather(total / batches).mean().item() for name, total in self.totals.items()}
        self.totals, self.batches = {}, 0
        return means

    def check_contrast(self, last: bool) -> None:
        """Warn if InfoNCE has had nothing to learn from: once during the run, and at the `last` line of the log."""
        if self.largest_contrast is None or (self.told and not last):
            return
        if self.trainer.accelerator.gather(self.largest_contrast).max() > 0:
            return
        self.told = True
        if self.trainer.is_world_process_zero():
            logger.warning(
                f"Step {self.trainer.state.global_step}: the contrastive loss has been exactly 0 since the run began, "
                "so the model learns nothing from it. Either all sentences of a batch are equal, perhaps cut at "
                "--max_seq_length, or --contrastive_temperature, now "
                f"{self.trainer.args.contrastive_temperature:g}, is far too low."
            )


def check_collapse(trainer: Trainer, uniformity: float) -> None:
    """Warn if the embeddings of an evaluation have collapsed to nearly the same vector."""
    if uniformity > COLLAPSED_UNIFORMITY and trainer.is_world_process_zero():
        logger.warning(
            f"Step {trainer.state.global_step}: the embeddings have collapsed to nearly the same vector "
            f"(uniformity {uniformity:.4f}, near 0). Lower --learning_rate, now {trainer.args.learning_rate:g}, or "
            f"--reconstruction_weight, now {trainer.args.reconstruction_weight:g}."
        )


# The checkpoint of the model before its training.
START = f"{PREFIX_CHECKPOINT_DIR}-0"


class EvaluationAtStart(TrainerCallback):
    """
    Evaluates the model before the first step, for comparison. If the best checkpoint is to be kept, this is the first
    one: a training that makes nothing better changes nothing.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step > 0 or state.log_history or args.eval_strategy == "no":  # a log: resumed from this
            return
        trainer = self.trainer
        metrics = trainer.measured(trainer.eval_dataset)
        trainer.log(dict(metrics))
        is_candidate = args.load_best_model_at_end and trainer.hp_search_backend is None
        if is_candidate and trainer._determine_best_metric(metrics, trial=None):
            state.best_model_checkpoint = str(Path(args.output_dir, START))
            trainer._save_checkpoint(trainer.model, trial=None)


def was_evaluated(trainer: Trainer) -> bool:
    """Whether an evaluation after the first step, before or after the run was resumed, could pick a checkpoint."""
    metric = f"eval_{trainer.args.metric_for_best_model}"
    return any(metric in line and line["step"] > 0 for line in trainer.state.log_history)


def check_choice(trainer: Trainer) -> None:
    """Warn if the last model is kept, though the best one was to be."""
    if not trainer.args.load_best_model_at_end or trainer.state.best_model_checkpoint is not None:
        return
    if trainer.is_world_process_zero():
        reason = f"no evaluation has picked a checkpoint by its {trainer.args.metric_for_best_model}"
        if not was_evaluated(trainer):
            reason = f"there was no evaluation (--eval_delay {trainer.args.eval_delay:g})"
        logger.warning(f"The model is kept as it was after the last step: {reason}.")


def verdict(trainer: Trainer) -> str:
    """Whether the trained model is better than the one before, as far as that was measured, in one sentence."""
    state, metric, results = trainer.state, trainer.args.metric_for_best_model, trainer.results
    before = health_before(trainer)
    if Path(state.best_model_checkpoint or "").name == START:
        if metric != HEALTH:
            return f"Kept as it was before the training: no checkpoint was better (by its {metric})."
        return (
            f"Kept as it was before the training, with a health of {before:.2f}: at every evaluation it was lower. "
            "Try a lower --learning_rate_budget or --learning_rate, or pick the checkpoint by graded pairs "
            "(--eval_pairs)."
        )
    if results is not None:
        return difference_in_words(results)
    if (health := kept_health(trainer)) is not None and before is not None:
        return health_in_words(health, before)
    labels = "No labels" if trainer.eval_dataset is None else "No tasks"
    return (
        f"{labels}: nothing measured says whether it is better. --eval_pairs FILE with a few hundred pairs would, or "
        "--eval_labelled FILE."
    )


def kept_health(trainer: Trainer) -> float | None:
    """The health of the model that is kept, if it was measured."""
    state = trainer.state
    step = state.global_step if state.best_model_checkpoint is None else state.best_global_step
    found = [line[f"eval_{HEALTH}"] for line in state.log_history if line["step"] == step and f"eval_{HEALTH}" in line]
    return found[-1] if found and step > 0 else None


def health_in_words(health: float, before: float) -> str:
    """What the health, and that before the training, say about the model, in one sentence."""
    change = "as much" if before <= health < CLEARLY_MORE * before else "more" if health > before else "less"
    judgement = {"more": "Probably better", "as much": "About as before", "less": "Probably worse"}[change]
    return (
        f"{judgement}: texts have {change} in common with their nearest neighbours (health {health:.2f}, before "
        f"{before:.2f}). Only labels prove it: categories (--eval_labelled FILE) or graded pairs (--eval_pairs FILE)."
    )


def health_before(trainer: Trainer) -> float | None:
    """The health before the first step."""
    return next((line[f"eval_{HEALTH}"] for line in trainer.state.log_history if f"eval_{HEALTH}" in line), None)


def is_healthy(trainer: Trainer, health: float) -> bool:
    """
    Whether texts have at least as much in common with their neighbours as before the training. What that number found
    and missed in the study is in docs/training.md.
    """
    before = health_before(trainer)
    return before is None or health >= before


def check_health(trainer: Trainer, health: float) -> None:
    """Warn if the health of an evaluation is lower than before the training."""
    if is_healthy(trainer, health) or not trainer.is_world_process_zero():
        return
    logger.warning(
        f"Step {trainer.state.global_step}: the health has fallen from {health_before(trainer):.2f} before the "
        f"training to {health:.2f}: texts have less in common with their neighbours. Train for fewer steps, or lower "
        f"--learning_rate, now {trainer.args.learning_rate:g}, or --learning_rate_budget, now "
        f"{trainer.args.rate_budget or 'none'}."
    )


def describe_failure(trainer: Trainer, inputs: dict[str, Any]) -> str:
    """
    The message for a loss that is not finite: its step and sentences, and the checkpoint to go back to. The batch is
    written to a file.
    """
    tokenizer = trainer.processing_class
    if tokenizer is None:
        mine = [str(ids) for ids in inputs["input_ids"].tolist()]
    else:
        mine = tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    sentences = gather_object(mine)
    path = Path(trainer.args.output_dir, "non_finite_batch.txt")
    if trainer.is_world_process_zero():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
    checkpoint = last_good_checkpoint(trainer.args.output_dir)
    return (
        f"step {trainer.state.global_step + 1}: the loss is not finite. The batch of {len(sentences)} sentences, "
        f"beginning with {sentences[0][:60]!r}, is in {path}. "
        + (f"The last good checkpoint is {checkpoint}. " if checkpoint else "There is no good checkpoint yet. ")
        + "A learning rate that is too high is the usual cause; it was "
        f"{trainer.args.learning_rate:g} (--learning_rate)."
    )
