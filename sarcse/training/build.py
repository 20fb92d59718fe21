"""The trainer of the command line: its data, its model, and what only a command has to check."""

from pathlib import Path

import datasets
import torch
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from modeling_sarcse import SarcseModel
from sarcse.data.labelled import load_labelled
from sarcse.data.sentences import load_sentences, source_of_sentences
from sarcse.data.sts import load_sts, load_tasks
from sarcse.loading import load_model
from sarcse.options import AUTO, HEALTH, LABELLED, STS_TASKS, DataArguments
from sarcse.training.arguments import ModelArguments, SarcseTrainingArguments
from sarcse.training.checkpoints import checkpoints
from sarcse.training.trainer import SarcseTrainer


def check_folders(model: ModelArguments, training: SarcseTrainingArguments) -> None:
    """
    Check that a training overwrites nothing.

    Raises:
        ValueError: if the output folder has checkpoints of another run, or the model to start from.
    """
    if not training.resume_from_checkpoint and checkpoints(training.output_dir):
        raise ValueError(
            f"{training.output_dir} has checkpoints of an earlier run. Resume it with `--resume_from_checkpoint "
            "last`, or choose another --output_dir."
        )
    source = Path(model.model_name_or_path)
    if source.is_dir() and source.resolve() == Path(training.output_dir).resolve():
        raise ValueError(
            f"--output_dir {training.output_dir}: would overwrite the model that the training starts from. Choose "
            "another --output_dir."
        )


def evaluated(data: DataArguments, training: SarcseTrainingArguments) -> str | None:
    """
    The metric of the evaluations' labels: those that were given, or STS-B's if it picks the checkpoint, which also
    belongs to the default sentences, SimCSE's. None without labels.
    """
    if data.eval_labelled is not None:
        return LABELLED
    if data.eval_pairs is not None:
        return "pairs_spearman"
    picks, default_sentences = training.metric_for_best_model, data.train_file is None and data.dataset_name is None
    by_stsb = default_sentences if picks == AUTO else picks not in (None, HEALTH)
    return "stsb_spearman" if by_stsb or data.sts_dir is not None else None


def load_evaluation(
    data: DataArguments, training: SarcseTrainingArguments
) -> tuple[datasets.Dataset | None, dict[str, datasets.Dataset]]:
    """
    Load the pairs or labelled texts for evaluations during training, and the tasks to score before and after; None and
    `{}` without labels.

    Raises:
        ValueError: if they cannot be loaded, or tasks were named that will not be scored.
    """
    if evaluated(data, training) is None:
        if data.sts_tasks != list(STS_TASKS):
            raise ValueError(
                "--sts_tasks has no effect without STS data: add --sts_dir or --metric_for_best_model stsb_spearman."
            )
        return None, {}
    if data.eval_labelled is not None:
        rows = load_labelled(data.eval_labelled, data.text_column, data.label_column)
        tasks = load_tasks(data.sts_tasks, data.sts_dir, None) if data.sts_dir is not None else {}
        return rows, {**tasks, Path(data.eval_labelled).name.split(".")[0]: rows}
    try:
        tasks = load_tasks(data.sts_tasks, data.sts_dir, data.eval_pairs)
        if data.eval_pairs is not None:
            return next(iter(tasks.values())), tasks
        return load_sts("STSB", data.sts_dir, split="dev"), tasks
    except ValueError as error:
        given = data.eval_pairs is not None or data.sts_dir is not None
        without = "" if given else f"\nTo train without pairs: --metric_for_best_model {HEALTH}."
        raise ValueError(f"{error}{without}") from error


def build_model(arguments: ModelArguments) -> tuple[SarcseModel, PreTrainedTokenizerBase]:
    """
    Load the model to train and its tokenizer: fresh layers on a pretrained encoder, or a saved SARCSE model.

    Raises:
        ValueError: if nothing can be loaded, or a given field is impossible or differs from the saved SARCSE model's.
    """
    return load_model(
        arguments.model_name_or_path,
        arguments.model_revision,
        dtype=torch.float32,  # not the checkpoint's: weights in half precision would lose AdamW's small steps
        attn_implementation=arguments.attn_implementation,
        **arguments.sarcse_fields(),
    )


def build_trainer(
    model_arguments: ModelArguments, data: DataArguments, training: SarcseTrainingArguments
) -> SarcseTrainer:
    """
    Build the trainer, checking what the user can fix in order of cost: arguments, data, model.

    Raises:
        ValueError: if something does not fit; the message says what was found and what to do.
    """
    check_folders(model_arguments, training)
    set_seed(training.seed)
    if data.eval_pairs is not None and training.metric_for_best_model == "stsb_spearman":
        training.metric_for_best_model = "pairs_spearman"  # a recipe's metric, with your own pairs
    training.resolve_metric(evaluated(data, training))  # before data are loaded for it
    with training.main_process_first(desc="reading the data"):
        sentences = load_sentences(data)
        eval_dataset, tasks = load_evaluation(data, training)
    model, tokenizer = build_model(model_arguments)
    try:
        trainer = SarcseTrainer(
            model=model,
            args=training,
            train_dataset=sentences,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            eval_name="pairs" if data.eval_pairs is not None else "stsb",
            tasks=tasks,
            train_source=source_of_sentences(data),
            model_revision=model_arguments.model_revision,
        )
    except (ImportError, RuntimeError) as error:
        # transformers says "WandbCallback requires wandb to be installed".
        if "requires" not in str(error):
            raise
        raise ValueError(f"--report_to {' '.join(training.report_to)}: {error}") from error
    except OSError as error:
        folder = Path(training.output_dir)  # transformers creates it, after what the Hub has to allow is known
        if error.filename is None or Path(error.filename) not in (folder, *folder.parents):
            raise
        raise ValueError(f"--output_dir {folder}: {error.strerror}.") from error
    trainer.rehearse(training.resume_from_checkpoint)
    return trainer
