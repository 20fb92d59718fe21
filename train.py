"""
Train a SARCSE model on plain sentences.

    python train.py [RECIPE.yaml] [--field value ...]
    accelerate launch train.py recipes/roberta-base.yaml

Top to bottom: flags and recipes, what can be wrong with them, the run. All that it is made of is in sarcse/.
"""

import argparse
import difflib
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import set_seed
from safetensors import SafetensorError
from transformers import (
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    ProgressCallback,
)

from configuration_sarcse import SarcseConfig
from model_card.record import ARCHITECTURE, describe_base_model, training_record
from model_card.record import FILE_NAME as RECORD_FILE
from model_card.release import (
    check_releasable,
    options_of_training,
    release,
    write_json,
    write_sentence_transformers_files,
)
from modeling_sarcse import SarcseModel
from sarcse import figures
from sarcse.arguments import ModelArguments, SarcseTrainingArguments, check_metric, metric_name
from sarcse.checkpoints import check_saving, check_settings, checkpoint_to_resume, checkpoints, run_settings
from sarcse.comparison import Measurement, compare, report, write_results
from sarcse.embedding import POSITIVE_SCORE, draw_figures, encode, measure
from sarcse.files import UnreadableDataError
from sarcse.loading import kind_of_model, load_model, needs_own_code
from sarcse.sentences import (
    DataArguments,
    SentenceStream,
    describe_sentences,
    fingerprint,
    first_part,
    load_sentences,
    name_of_sentences,
)
from sarcse.sts import load_sts, load_tasks
from sarcse.tokens import check_length, check_readable, token_counts, token_weights, tokenize, tokenize_batch
from sarcse.trainer import SarcseTrainer


DEMO_RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"


# --- Arguments -------------------------------------------------------------------------------------------------------


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Without "(default: None)" behind a text that says what the default is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(HfArgumentParser):
    """HfArgumentParser whose errors are one line, without the 150 options of the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"train.py: error: {message}\n")


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, SarcseTrainingArguments]:
    """
    The three argument groups from a recipe, if the first argument is one, and the flags after it, which win.

    Raises:
        ValueError: the recipe cannot be read, or a field is unknown or has an impossible value.
        SystemExit: `--help`, or a value of the wrong type (exit code 2).
    """
    groups = (ModelArguments, DataArguments, SarcseTrainingArguments)
    parser = ArgumentParser(
        groups,
        description="Train a SARCSE model. The fields of RECIPE.yaml are these flags without the dashes.",
        usage="train.py [RECIPE.yaml] [--field value ...]",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    known = [f.name for group in groups for f in fields(group) if f.init]
    recipe = []
    if not arguments:
        recipe = read_recipe(DEMO_RECIPE, known)
    elif not arguments[0].startswith("-"):
        recipe = read_recipe(Path(arguments[0]), known)
        arguments = arguments[1:]
    *parsed, unknown = parser.parse_args_into_dataclasses(recipe + arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(unknown_field(unknown[0], known))
    return tuple(parsed)


def read_recipe(path: Path, known: list[str]) -> list[str]:
    """The recipe's fields as flags, so that argparse checks both alike; a field that is null keeps its default."""
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe. A recipe is a YAML file; flags begin with --.")
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text) or {}
        # As they stand in the file: YAML takes `no` for false and 1e-5, which has no point, for a word.
        texts = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is made of lines `field: value`.")
    flags = []
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path}: {unknown_field(name, known)}")
        if isinstance(value, list):
            flags += [f"--{name}", *texts[name]]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else texts[name]}")
    return flags


# What other programs, and transformers of before, call what is meant.
OTHER_NAMES = {
    # transformers
    "group_by_length": "train_sampling_strategy group_by_length",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps, a share of the steps if it is below 1",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "overwrite_output_dir": "output_dir with the name of a new folder",
    "validation_file": "eval_pairs",
    # The SimCSE repository
    "temp": "contrastive_temperature",
    "pooler_type": "pooler",
    "mlp_only_train": "pooler cls, whose layer is for training only",
    # sentence-transformers and common sense
    "temperature": "contrastive_temperature",
    "max_length": "max_seq_length",
    "batch_size": "per_device_train_batch_size",
    "mini_batch_size": "gradient_cache_mini_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
}


def unknown_field(name: str, known: list[str]) -> str:
    name = str(name).split("=")[0]
    bare = name.lstrip("-")
    dashes = name[: len(name) - len(bare)]
    nearest = [OTHER_NAMES[bare]] if bare in OTHER_NAMES else difflib.get_close_matches(bare, known, n=1)
    return f"unknown field {name}." + (
        f" Did you mean {dashes}{nearest[0]}?" if nearest else " --help lists all fields."
    )


# --- The command -----------------------------------------------------------------------------------------------------


def check_together(model: ModelArguments, data: DataArguments, training: SarcseTrainingArguments) -> None:
    """
    Raises:
        ValueError: arguments that are possible one by one and not together, or not on this machine.
    """
    if training.n_gpu > 1:
        raise ValueError(
            f"{training.n_gpu} GPUs are visible to one process. Start one process for each: "
            "`accelerate launch train.py ...`, or choose one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    if model.pooler in ("cls", "first_last_average") and training.reconstruction_weight > 0:
        raise ValueError(f"--pooler {model.pooler} has no reconstruction: add --reconstruction_weight 0 (SimCSE).")
    if data.eval_pairs is not None and training.metric_for_best_model == "stsb_spearman":
        training.metric_for_best_model = "pairs_spearman"
    check_metric(training.metric_for_best_model, eval_name(data))
    if data.streaming:
        training.train_sampling_strategy = "random"  # for the record: nothing can be sorted that was not read
    if data.streaming and training.max_steps <= 0:
        raise ValueError("--streaming does not know where the corpus ends: say how long to train with --max_steps.")
    if data.dataset_config_name is not None and data.dataset_name is None:
        raise ValueError("--dataset_config_name has no effect without --dataset_name.")
    if not data.streaming and data.token_count_samples != DataArguments.token_count_samples:
        raise ValueError("--token_count_samples has no effect without --streaming: all tokens are counted.")
    if data.streaming and data.max_train_samples is not None:
        raise ValueError("--max_train_samples is for a corpus in memory; --max_steps says how long to read a stream.")
    if data.streaming and data.token_count_samples < training.global_batch_size:
        raise ValueError(
            f"--token_count_samples must be at least one batch, {training.global_batch_size}, got "
            f"{data.token_count_samples}."
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
    if training.eval_strategy == "no" and data.sts_dir is None and data.eval_pairs is None:
        return None, {}
    try:
        tasks = load_tasks(data.sts_tasks, data.sts_dir, data.eval_pairs)
        if data.eval_pairs is not None:
            pairs = next(iter(tasks.values()))
        else:
            pairs = load_sts("STSB", data.sts_dir, split="dev")
    except ValueError as error:
        raise ValueError(f"{error}\nTo train without scores: --eval_strategy no.") from error
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
) -> tuple[SarcseTrainer, dict[str, datasets.Dataset], Callable[[], dict[str, Any]]]:
    """
    Everything that can go wrong for a reason of the user's, in the order of its cost: arguments, data, model.

    Returns:
        The trainer, the STS tasks to score before and after training, and what makes the record of the training.

    Raises:
        ValueError: with a message that says what was found and what to do.
    """
    check_together(model_arguments, data, training)
    set_seed(training.seed)
    with training.main_process_first(desc="reading the data"):
        sentences = load_sentences(data)
        eval_pairs, tasks = load_sts_data(data, training)
    # Of a stream, those whose tokens are counted.
    first_sentences = first_part(sentences, data) if data.streaming else sentences
    if len(first_sentences) < training.global_batch_size:
        raise ValueError(
            f"{len(first_sentences)} sentences do not fill one batch of {training.global_batch_size}: lower "
            "--per_device_train_batch_size."
        )
    model, tokenizer = build_model(model_arguments)
    check_length(tokenizer, data)
    with training.main_process_first(desc="tokenising"):
        tokens = tokenize(first_sentences, tokenizer, data)
    weights = weights_of_tokens(tokens, model, tokenizer, data, training)
    train_dataset, collator = tokens, DataCollatorWithPadding(tokenizer)
    if data.streaming:
        train_dataset = SentenceStream(
            name_of_sentences(data), sentences, training.data_seed, training.process_index, training.world_size
        )
        collator = partial(tokenize_batch, tokenizer=tokenizer, max_seq_length=data.max_seq_length)
    base_model = describe_base_model(model_arguments.model_name_or_path, model_arguments.model_revision)
    described = describe_sentences(data, sentences)
    digest = described.get("sha256") or fingerprint(first_sentences)  # of a stream all that can be known
    settings = run_settings(
        training,
        **{name: getattr(model.config, name) for name in ARCHITECTURE},
        model_name_or_path=" at ".join(filter(None, base_model.values())),
        train_data=f"{described['name']}, {len(first_sentences)} sentences with SHA-256 {digest}",
        eval_data=eval_pairs and f"{len(eval_pairs)} pairs with SHA-256 {fingerprint(eval_pairs)}",
        max_seq_length=data.max_seq_length,
    )
    if training.resume_from_checkpoint:
        check_settings(Path(training.resume_from_checkpoint), settings)
    try:
        trainer = SarcseTrainer(
            model=model,
            args=training,
            train_dataset=train_dataset,
            eval_dataset=eval_pairs,
            eval_name=eval_name(data),
            processing_class=tokenizer,
            data_collator=collator,
            token_weights=weights,
            settings=settings,
        )
    except (ImportError, RuntimeError) as error:  # what transformers' reports need is not installed
        raise ValueError(f"--report_to {' '.join(training.report_to)}: {error}") from error
    check_optimizer(trainer)
    if training.local_process_index == 0:
        check_saving(model, Path(training.output_dir))
    record = partial(training_record, base_model, model.config, data, described, training)
    return trainer, tasks, record


def weights_of_tokens(
    tokens: datasets.Dataset,
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    data: DataArguments,
    training: SarcseTrainingArguments,
) -> torch.Tensor | None:
    """
    The reconstruction's weights, `(vocabulary_size,)`; None if nothing is reconstructed.

    Raises:
        ValueError: the tokenizer cannot read the sentences.
    """
    vocabulary_size = getattr(model.config.encoder_config, "vocab_size", len(tokenizer))  # CANINE's has none
    counts = token_counts(tokens, vocabulary_size, model.config.special_token_ids)
    check_readable(counts, tokenizer, name_of_sentences(data))
    if training.reconstruction_weight == 0:
        return None
    return token_weights(counts, training.frequency_weighting, training.frequency_smoothing)


def check_optimizer(trainer: SarcseTrainer) -> None:
    """
    Raises:
        ValueError: there can be no such optimizer, with what is installed, or no such scheduler.
    """
    args = trainer.args
    try:
        trainer.create_optimizer()  # the one that is used
        rehearsal = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
        trainer.create_scheduler(num_training_steps=10, optimizer=rehearsal)
    except (ImportError, ValueError, TypeError, RuntimeError) as error:
        what = f"--optim {args.optim.value}, --lr_scheduler_type {args.lr_scheduler_type.value}"
        raise ValueError(f"{what}: {error}") from error
    trainer.lr_scheduler = None


def measure_before(
    arguments: ModelArguments, device: torch.device, tasks: dict[str, datasets.Dataset]
) -> dict[str, Measurement]:
    """
    What the model that training starts from makes of the tasks: an encoder under both simple poolers. Mean pooling
    comes first, for the differences in sts_results.json are to it: it is the baseline that is hard to beat.
    """
    source, revision = arguments.model_name_or_path, arguments.model_revision
    measurements = {}
    for pooler in [None] if kind_of_model(source, revision) == "sarcse" else ["mean", "cls"]:
        options = {"pooler": pooler} if pooler else {}
        model, tokenizer = load_model(source, revision, arguments.trust_remote_code, **options)
        name = f"before: {source}" + (f", {pooler}" if pooler else "")
        measurements[name] = measure(partial(encode, model.to(device), tokenizer), tasks, model.config.pooler)
    return measurements


def run(
    trainer: SarcseTrainer,
    tasks: dict[str, datasets.Dataset],
    record: Callable[[], dict[str, Any]],
    model_arguments: ModelArguments,
) -> None:
    """Train, write the output folder, and print the table of scores and the lines that load the model."""
    args = trainer.args
    # Every process has a share in this, as in the evaluations.
    measurements = measure_before(model_arguments, args.device, tasks) if tasks else {}
    # Again, so that a run trains the same model whether it is scored before or not; now each process has a seed of its
    # own, so that no two draw the same dropout masks.
    set_seed(args.seed, device_specific=True)
    try:
        metrics = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    finally:
        progress = trainer.pop_callback(ProgressCallback)
        if progress is not None and progress.training_bar is not None:
            progress.training_bar.close()  # or it would draw itself once more, behind the message
    output_dir = Path(args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if tasks:
        embed = partial(encode, model, trainer.processing_class)
        measurements[f"after: {output_dir}"] = measure(embed, tasks, model.config.pooler)
    if not trainer.is_world_process_zero():
        return
    # Not trainer.save_model, which adds a pickle of the arguments.
    model.save_pretrained(output_dir)
    trainer.processing_class.save_pretrained(output_dir)
    write_sentence_transformers_files(output_dir)
    trainer.save_metrics("train", metrics, combined=False)
    trainer.save_state()
    write_json(output_dir / RECORD_FILE, record())
    figures.training_curve({output_dir.name: trainer.state.log_history}, output_dir / "training_curve")
    if tasks:
        results = compare(measurements, tasks)
        write_results(results, output_dir / "sts_results.json")
        draw_figures(results, measurements, tasks, output_dir)
        print(f"\n{report(results)}")
    print(how_to_load(output_dir, model.config))


def how_to_load(output_dir: Path, config: SarcseConfig) -> str:
    if needs_own_code(config.encoder_config.to_dict()):
        return f"""
The model is in {output_dir}. Its encoder brings code of its own, and the model works only with it:

python eval_sts.py {output_dir} --trust_remote_code
"""
    return f"""
The model is in {output_dir}. Load it with

from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{output_dir}", trust_remote_code=True)
model = AutoModel.from_pretrained("{output_dir}", trust_remote_code=True)
embeddings = model(**tokenizer(["A sentence.", "Another."], padding=True, return_tensors="pt")).pooler_output
"""


def how_to_go_on(training: SarcseTrainingArguments) -> str:
    if not checkpoints(training.output_dir):
        return ""
    return " `--resume_from_checkpoint last` with the same command goes on from the last checkpoint."


def main() -> None:
    try:
        model_arguments, data, training = parse_arguments(sys.argv[1:])
        to_release = options_of_training(training) if training.push_to_hub else None
        training.push_to_hub = False  # the Trainer's own push uploads checkpoints and pickles, and writes another card
        trainer, tasks, record = build_trainer(model_arguments, data, training)
        if to_release is not None:
            check_releasable(model_arguments.model_name_or_path, trainer.model.config.encoder_config.to_dict())
    except ValueError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before the training
        sys.exit(128 + signal.SIGINT)
    try:
        run(trainer, tasks, record, model_arguments)
    except KeyboardInterrupt as interrupt:
        if trainer.is_world_process_zero():
            print(f"\nInterrupted at step {trainer.state.global_step}.{how_to_go_on(training)}", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except FloatingPointError as error:  # in all processes
        if trainer.is_world_process_zero():
            print(f"\ntrain.py: error: {error}", file=sys.stderr)
        sys.exit(1)
    except UnreadableDataError as error:
        print(f"\ntrain.py: error: {error}{how_to_go_on(training)}", file=sys.stderr)
        sys.exit(1)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        # torch.save tells of its container only where the disk is full.
        message = f"could not write or read, is the disk full? {error}.{how_to_go_on(training)}"
        print(f"\ntrain.py: error: {message}", file=sys.stderr)
        sys.exit(1)
    if to_release is not None and trainer.is_world_process_zero():
        try:
            release(to_release)
        except ValueError as error:
            print(f"train.py: error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
    # Threads of its own that outlive the interpreter would abort it (github.com/pytorch/pytorch/issues/190489).
    PartialState().destroy_process_group()
