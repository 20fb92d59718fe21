"""From arguments to a trainer: everything that can go wrong for a reason of the user's goes wrong here."""

from pathlib import Path

import datasets
import torch
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from modeling_sarcse import SarcseModel
from sarcse.arguments import (
    HEALTH,
    ModelArguments,
    SarcseTrainingArguments,
    check_metric,
    check_reconstruction,
    metric_name,
)
from sarcse.checkpoints import check_settings, checkpoint_to_resume, checkpoints
from sarcse.embedding import POSITIVE_SCORE
from sarcse.loading import load_model
from sarcse.sentences import DataArguments, load_sentences, source_of_sentences
from sarcse.sts import load_sts, load_tasks
from sarcse.trainer import SarcseTrainer


def check_together(model: ModelArguments, data: DataArguments, training: SarcseTrainingArguments) -> None:
    """
    Raises:
        ValueError: arguments that are possible one by one and not together, or not on this machine.
    """
    check_reconstruction(model.pooler or "", training.reconstruction_weight)
    if data.eval_pairs is not None and training.metric_for_best_model == "stsb_spearman":
        training.metric_for_best_model = "pairs_spearman"
    check_metric(training.metric_for_best_model, eval_name(data))
    if data.streaming:
        training.train_sampling_strategy = "random"  # for the record: nothing can be sorted that was not read
    if data.streaming and training.max_steps <= 0:
        raise ValueError("--streaming does not know where the corpus ends: say how long to train with --max_steps.")
    if data.dataset_config_name is not None and data.dataset_name is None:
        raise ValueError("--dataset_config_name has no effect without --dataset_name.")
    if not data.streaming and training.token_count_samples != SarcseTrainingArguments.token_count_samples:
        raise ValueError("--token_count_samples has no effect without --streaming: all tokens are counted.")
    if data.streaming and data.max_train_samples is not None:
        raise ValueError("--max_train_samples is for a corpus in memory; --max_steps says how long to read a stream.")
    if data.streaming and training.token_count_samples < training.global_batch_size:
        raise ValueError(
            f"--token_count_samples must be at least one batch, {training.global_batch_size}, got "
            f"{training.token_count_samples}."
        )
    if training.resume_from_checkpoint:
        checkpoint = checkpoint_to_resume(training.resume_from_checkpoint, training.output_dir)
        training.resume_from_checkpoint = str(checkpoint)
    elif checkpoints(training.output_dir):
        raise ValueError(
            f"{training.output_dir} holds checkpoints of an earlier run. Go on from the last one with "
            "`--resume_from_checkpoint last`, or choose another --output_dir."
        )


def eval_name(data: DataArguments) -> str:
    """What the pairs of the evaluations are called in the metrics."""
    return "stsb" if data.eval_pairs is None else "pairs"


def load_sts_data(
    data: DataArguments, training: SarcseTrainingArguments
) -> tuple[datasets.Dataset | None, dict[str, datasets.Dataset]]:
    """Pairs for the evaluations during training, and the tasks for the table before and after: none, if not wanted."""
    needed = training.eval_strategy != "no" and training.metric_for_best_model != HEALTH
    if not needed and data.sts_dir is None and data.eval_pairs is None:
        return None, {}
    try:
        tasks = load_tasks(data.sts_tasks, data.sts_dir, data.eval_pairs)
        if data.eval_pairs is not None:
            pairs = next(iter(tasks.values()))
        else:
            pairs = load_sts("STSB", data.sts_dir, split="dev")
    except ValueError as error:
        raise ValueError(f"{error}\nTo train without pairs: --metric_for_best_model {HEALTH}.") from error
    if metric_name(training.metric_for_best_model or "") == "alignment" and max(pairs["score"]) < POSITIVE_SCORE:
        raise ValueError(
            f"--metric_for_best_model alignment: no pair has a score of at least {POSITIVE_SCORE}, which alignment is "
            "measured on."
        )
    return pairs, tasks


def build_model(arguments: ModelArguments) -> tuple[SarcseModel, PreTrainedTokenizerBase]:
    """
    New layers on a pretrained encoder, or a SARCSE model to train further, with its tokenizer.

    Raises:
        ValueError: nothing can be loaded there, or a given field is impossible or not the saved SARCSE model's.
    """
    return load_model(
        arguments.model_name_or_path,
        arguments.model_revision,
        arguments.trust_remote_code,
        dtype=torch.float32,  # not the checkpoint's: half precision weights lose AdamW's small steps
        attn_implementation=arguments.attn_implementation,
        **arguments.sarcse_fields(),
    )


def build_trainer(
    model_arguments: ModelArguments, data: DataArguments, training: SarcseTrainingArguments
) -> SarcseTrainer:
    """
    Everything that can go wrong for a reason of the user's, in the order of its cost: arguments, data, model.

    Raises:
        ValueError: with a message that says what was found and what to do.
    """
    check_together(model_arguments, data, training)
    set_seed(training.seed)
    with training.main_process_first(desc="reading the data"):
        sentences = load_sentences(data)
        eval_pairs, tasks = load_sts_data(data, training)
    model, tokenizer = build_model(model_arguments)
    try:
        trainer = SarcseTrainer(
            model=model,
            args=training,
            train_dataset=sentences,
            eval_dataset=eval_pairs,
            processing_class=tokenizer,
            eval_name=eval_name(data),
            tasks=tasks,
            train_source=source_of_sentences(data),
            model_revision=model_arguments.model_revision,
        )
    except (ImportError, RuntimeError) as error:  # what transformers' reports need is not installed
        raise ValueError(f"--report_to {' '.join(training.report_to)}: {error}") from error
    if training.resume_from_checkpoint:
        check_settings(Path(training.resume_from_checkpoint), trainer.settings())
    trainer.rehearse()
    return trainer
