"""Build a trainer from arguments. All errors that the user can fix are raised here, before training."""

from pathlib import Path

import datasets
import torch
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from modeling_sarcse import SarcseModel
from sarcse.data.general import general_file
from sarcse.data.labelled import load_labelled
from sarcse.data.sentences import load_sentences, source_of_sentences
from sarcse.data.sts import load_sts, load_tasks
from sarcse.loading import load_model
from sarcse.options import AUTO, CORPUS, HEALTH, LABELLED, STS_TASKS, DataArguments
from sarcse.training.arguments import ModelArguments, SarcseTrainingArguments, check_reconstruction
from sarcse.training.checkpoints import check_settings, checkpoint_to_resume, checkpoints
from sarcse.training.trainer import SarcseTrainer


def check_together(model: ModelArguments, data: DataArguments, training: SarcseTrainingArguments) -> None:
    """
    Check the arguments against each other, and resolve the checkpoint to resume from.

    Raises:
        ValueError: if arguments are possible one by one but not together, or not on this machine.
    """
    check_reconstruction(model.pooler or "", training.reconstruction_weight)
    if data.eval_pairs is not None and training.metric_for_best_model == "stsb_spearman":
        training.metric_for_best_model = "pairs_spearman"
    without_labels = training.metric_for_best_model == AUTO and not names_labels(data)
    training.resolve_metric(None if without_labels else eval_metric(data))
    if not needs_pairs(data, training) and data.sts_tasks != list(STS_TASKS):
        raise ValueError(
            "--sts_tasks has no effect without STS data: add --sts_dir or --metric_for_best_model stsb_spearman."
        )
    if data.streaming:
        training.train_sampling_strategy = "random"  # for the record: a stream cannot be sorted
    if data.streaming and training.max_steps <= 0:
        raise ValueError("--streaming needs --max_steps, because the length of the corpus is unknown.")
    if data.eval_labelled is None and data.label_column != DataArguments.label_column:
        raise ValueError("--label_column has no effect without --eval_labelled.")
    if data.eval_pairs is not None and data.eval_labelled is not None:
        raise ValueError("--eval_pairs and --eval_labelled: one of them scores the evaluations, leave the other out.")
    if data.eval_pairs is not None and data.sts_dir is not None:
        raise ValueError("--sts_dir has no effect with --eval_pairs, which replaces the STS data: leave one out.")
    if training.weighs_tokens and training.token_frequencies != CORPUS:
        general_file(training.token_frequencies)  # which must exist
    if data.dataset_config_name is not None and data.dataset_name is None:
        raise ValueError("--dataset_config_name has no effect without --dataset_name.")
    if not data.streaming and training.token_count_samples != SarcseTrainingArguments.token_count_samples:
        raise ValueError("--token_count_samples has no effect without --streaming: all tokens are counted.")
    if data.streaming and data.max_train_samples is not None:
        raise ValueError("--max_train_samples is for a corpus in memory; --max_steps limits how much is streamed.")
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
            f"{training.output_dir} has checkpoints of an earlier run. Resume it with `--resume_from_checkpoint "
            "last`, or choose another --output_dir."
        )
    source = Path(model.model_name_or_path)
    if source.is_dir() and source.resolve() == Path(training.output_dir).resolve():
        raise ValueError(
            f"--output_dir {training.output_dir}: would overwrite the model that the training starts from. Choose "
            "another --output_dir."
        )


def names_labels(data: DataArguments) -> bool:
    """Whether the data have labels of any kind. To the default sentences, SimCSE's, belongs its protocol, on STS-B."""
    own_sentences = data.train_file is not None or data.dataset_name is not None
    return any((data.eval_pairs, data.eval_labelled, data.sts_dir)) or not own_sentences


def needs_pairs(data: DataArguments, training: SarcseTrainingArguments) -> bool:
    """Whether pairs are loaded: to pick the checkpoint by them, or because they were given to be scored."""
    picks = training.metric_for_best_model not in (None, HEALTH)  # None: no evaluations
    return picks or any((data.eval_pairs, data.eval_labelled, data.sts_dir))


def eval_name(data: DataArguments) -> str:
    """The name of the evaluations' pairs in the metrics."""
    return "stsb" if data.eval_pairs is None else "pairs"


def eval_metric(data: DataArguments) -> str:
    """The metric of the evaluations' pairs or labelled texts."""
    return f"{eval_name(data)}_spearman" if data.eval_labelled is None else LABELLED


def load_sts_data(
    data: DataArguments, training: SarcseTrainingArguments
) -> tuple[datasets.Dataset | None, dict[str, datasets.Dataset]]:
    """
    Load the pairs or labelled texts for evaluations during training, and the tasks to score before and after; None and
    `{}` if neither is needed.

    Raises:
        ValueError: if they cannot be loaded.
    """
    if not needs_pairs(data, training):
        return None, {}
    if data.eval_labelled is not None:
        rows = load_labelled(data.eval_labelled, data.text_column, data.label_column)
        tasks = load_tasks(data.sts_tasks, data.sts_dir, None) if data.sts_dir is not None else {}
        return rows, {**tasks, Path(data.eval_labelled).name.split(".")[0]: rows}
    try:
        tasks = load_tasks(data.sts_tasks, data.sts_dir, data.eval_pairs)
        if data.eval_pairs is not None:
            pairs = next(iter(tasks.values()))
        else:
            pairs = load_sts("STSB", data.sts_dir, split="dev")
    except ValueError as error:
        given = data.eval_pairs is not None or data.sts_dir is not None
        without = "" if given else f"\nTo train without pairs: --metric_for_best_model {HEALTH}."
        raise ValueError(f"{error}{without}") from error
    return pairs, tasks


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
    if training.resume_from_checkpoint:
        check_settings(Path(training.resume_from_checkpoint), trainer.settings())
    trainer.rehearse()
    return trainer
