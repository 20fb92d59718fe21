"""What a training says of itself, and what it warns of: its losses, its health, a collapse, a contrast in vain."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from sarcse.arguments import HEALTH
from sarcse.checkpoints import last_good_checkpoint


logger = logging.get_logger(__name__)

# Embeddings whose uniformity is above this have collapsed: their mean squared distance is below 0.005, a mean cosine
# similarity above 0.9975. The encoders of the README's results are at -0.6 or below before any training.
COLLAPSED_UNIFORMITY = -0.01

# A health below this share of the best one so far is warned of, and its checkpoint is not kept: hardly any good one of
# the study fell so far (study/results/details.md).
HEALTHY_SHARE = 0.85


class LossWatch:
    """
    The two losses of every batch: their means for the log, and the largest contrastive one since the run began.

    Args:
        trainer (`SarcseTrainer`): Whose losses they are.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.totals: dict[str, torch.Tensor] = {}
        self.batches = 0
        self.largest_contrast: torch.Tensor | None = None
        self.told = False

    def add(self, contrastive: torch.Tensor, reconstruction: torch.Tensor | None) -> None:
        losses = {"contrastive_loss": contrastive.detach()}
        if reconstruction is not None:
            losses["reconstruction_loss"] = reconstruction.detach()
        largest = 0.0 if self.largest_contrast is None else self.largest_contrast
        self.largest_contrast = losses["contrastive_loss"].clamp(min=largest)
        self.totals = {name: value + self.totals.get(name, 0.0) for name, value in losses.items()}
        self.batches += 1

    def means(self) -> dict[str, float]:
        """Of each loss over the batches of all processes since this was asked last."""
        gather, batches = self.trainer.accelerator.gather, self.batches
        means = {name: gather(total / batches).mean().item() for name, total in self.totals.items()}
        self.totals, self.batches = {}, 0
        return means

    def check_contrast(self, last: bool) -> None:
        """Says so, once before the end and at the `last` line, if InfoNCE has had nothing to learn from."""
        if self.largest_contrast is None or (self.told and not last):
            return
        if self.trainer.accelerator.gather(self.largest_contrast).max() > 0:
            return
        self.told = True
        if self.trainer.is_world_process_zero():
            logger.warning(
                f"Step {self.trainer.state.global_step}: the contrastive loss has been exactly 0 since the run began, "
                "and has taught nothing. All sentences of a batch are equal, perhaps cut at --max_seq_length, or "
                f"--contrastive_temperature, now {self.trainer.args.contrastive_temperature:g}, is far too low."
            )


def check_collapse(trainer: Trainer, uniformity: float) -> None:
    """Says so, if an evaluation finds all sentences nearly the same."""
    if uniformity > COLLAPSED_UNIFORMITY and trainer.is_world_process_zero():
        logger.warning(
            f"Step {trainer.state.global_step}: the embeddings have collapsed, all sentences are nearly the same "
            f"(uniformity {uniformity:.4f}, near 0). Lower --learning_rate, now {trainer.args.learning_rate:g}, or "
            f"--reconstruction_weight, now {trainer.args.reconstruction_weight:g}."
        )


class HealthAtStart(TrainerCallback):
    """
    Logs the health before the first step, which says what a training makes of it. Where the health picks the
    checkpoint, the first one is the model before the training, which stays if no evaluation finds a healthy one.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step > 0 or args.eval_strategy == "no":
            return
        (health,) = broadcast_object_list([self.trainer.health(self.trainer.unwrapped)])
        self.trainer.log({f"eval_{HEALTH}": health})
        if (
            args.load_best_model_at_end
            and self.trainer.args.picked_by_health
            and self.trainer.hp_search_backend is None
        ):
            state.best_metric, state.best_global_step = health, 0
            state.best_model_checkpoint = str(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-0"))
            self.trainer._save_checkpoint(self.trainer.model, trial=None)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        best = state.best_model_checkpoint or ""
        if best.endswith(f"{PREFIX_CHECKPOINT_DIR}-0") and state.is_world_process_zero:
            logger.warning(
                f"The model is kept as it was before the training, when its health was {state.best_metric:.1f}: at "
                f"every evaluation it was below {HEALTHY_SHARE} of that. Try a lower --learning_rate_budget or "
                "--learning_rate, or pick the checkpoint by graded pairs (--eval_pairs)."
            )


def fallen_from(trainer: Trainer, health: float) -> dict[str, Any] | None:
    """The line of the log with the best health so far, if this one is so much lower that the model is not healthy."""
    lines = [line for line in trainer.state.log_history if f"eval_{HEALTH}" in line]
    best = max(lines, key=lambda line: line[f"eval_{HEALTH}"], default=None)
    return best if best is not None and health <= HEALTHY_SHARE * best[f"eval_{HEALTH}"] else None


def check_health(trainer: Trainer, health: float) -> None:
    """Says so, if an evaluation finds the health much worse than it was."""
    best = fallen_from(trainer, health)
    if best is None or not trainer.is_world_process_zero():
        return
    logger.warning(
        f"Step {trainer.state.global_step}: the health has fallen from {best[f'eval_{HEALTH}']:.1f} at step "
        f"{best['step']} to {health:.1f}. The embeddings say less of their sentences than before. Train for fewer "
        f"steps, lower --learning_rate, now {trainer.args.learning_rate:g}, or --learning_rate_budget, now "
        f"{trainer.args.rate_budget or 'none'}."
    )


def describe_failure(trainer: Trainer, inputs: dict[str, Any]) -> str:
    """Of a loss that is not finite: which step and sentences, what to go back to. The batch is written to a file."""
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
        f"step {trainer.state.global_step + 1}: the loss is not finite. Its {len(sentences)} sentences, from "
        f"{sentences[0][:60]!r} on, are in {path}. "
        + (f"The last good checkpoint is {checkpoint}. " if checkpoint else "There is no good checkpoint yet. ")
        + "A learning rate that is too high is the usual cause; it was "
        f"{trainer.args.learning_rate:g} (--learning_rate)."
    )
