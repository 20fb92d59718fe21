"""
Train a SARCSE model on plain sentences.

    python train.py [RECIPE.yaml] [--field value ...]
    accelerate launch train.py recipes/roberta-base.yaml

Top to bottom: arguments, what can be wrong with them, the run. What a sentence goes through before is in data.py and
tokens.py, the losses and the Trainer are in trainer.py.
"""

import difflib
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

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
    TrainingArguments,
)

import figures
from checkpoints import check_saving, check_settings, checkpoint_to_resume, checkpoints, run_settings
from comparison import Measurement, compare, report, write_results
from configuration_sarcse import SarcseConfig
from data import (
    DataArguments,
    SentenceStream,
    describe_sentences,
    fingerprint,
    first_part,
    load_sentences,
    load_sts,
    load_tasks,
    name_of_sentences,
)
from eval_sts import POSITIVE_SCORE, draw_figures, encode, measure
from files import UnreadableDataError
from loading import kind_of_model, load_model, needs_own_code
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
from tokens import check_length, check_readable, token_counts, token_weights, tokenize, tokenize_batch
from trainer import LOWER_IS_BETTER, SarcseTrainer, check_metric, metric_name


DEMO_RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"


# --- Arguments -------------------------------------------------------------------------------------------------------


def _architecture(name: str, help: str) -> Any:
    return field(default=None, metadata={"help": f"{help} Default: {getattr(SarcseConfig(), name)}."})


@dataclass
class ModelArguments:
    """The encoder to start from, and the shape of the layers on top of it (fields of `SarcseConfig`)."""

    model_name_or_path: str = field(
        default="FacebookAI/roberta-base",
        metadata={"help": "Folder or Hub id of a text encoder, or of a SARCSE model to train further."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run the code that the encoder brings. Needed if transformers has none for it; read it first. No "
            "release can be made of such a model."
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "As in AutoModel.from_pretrained, for example flash_attention_2."}
    )
    pooler: Literal["autoencoder", "cls", "mean", "first_last_average"] | None = _architecture(
        "pooler",
        "autoencoder (SARCSE), mean (also with a reconstruction, benchmarks/results/README.md), cls (SimCSE) or "
        "first_last_average.",
    )
    kernel_sizes: list[int] | None = _architecture("kernel_sizes", "Widths of the TextCNN's convolutions.")
    channels: int | None = field(
        default=None,
        metadata={
            "help": "Output channels of each of these convolutions. Default: as few as pass on all of a vector of the "
            "encoder, 512 for RoBERTa-base."
        },
    )
    integration_kernel_size: int | None = _architecture(
        "integration_kernel_size", "Width of the convolution that integrates the scales."
    )
    activation: str | None = _architecture("activation", "Activation of the TextCNNs.")
    pooling: Literal["mean", "max"] | None = _architecture("pooling", "Pooling over the content tokens.")
    decoder_length: int | None = _architecture("decoder_length", "Number of tokens that are reconstructed.")
    decoder_initialization: Literal["copy", "random"] | None = _architecture(
        "decoder_initialization", "What a fresh decoder gives: the sentence embedding at every position, or noise."
    )

    def sarcse_fields(self) -> dict[str, Any]:
        """Those fields of `SarcseConfig` that were given."""
        names = [f.name for f in fields(self) if f.name in inspect.signature(SarcseConfig).parameters]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


# transformers' arguments that would change nothing here, or not what they say: given, they are refused.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "InfoNCE has no labels",
    "average_tokens_across_devices": "the losses are means over sentences and over weights of tokens",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "auto_find_batch_size": "a smaller batch is another task for InfoNCE; try --gradient_cache_mini_batch_size",
    "use_liger_kernel": "it has no kernels for text encoders",
    "use_cache": "encoders have no cache",
    "debug": "a loss that is not finite stops the run, and its batch is kept",
    "remove_unused_columns": "the sentences are the only column",
    "label_names": "there are no labels",
    "length_column_name": "lengths are counted by this program",
    "bf16_full_eval": "evaluations are as precise as the training",
    "fp16_full_eval": "evaluations are as precise as the training",
    **dict.fromkeys(
        (
            "per_device_eval_batch_size",
            "eval_accumulation_steps",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "batch_eval_metrics",
            "include_for_metrics",
            "prediction_loss_only",
            "do_predict",
        ),
        "graded pairs are scored, 64 sentences at a time",
    ),
    **dict.fromkeys(
        ("hub_strategy", "hub_always_push"), "a release is pushed once, after the training (--push_to_hub)"
    ),
}


@dataclass
class SarcseTrainingArguments(TrainingArguments):
    """
    transformers' arguments, with SimCSE's protocol for RoBERTa-base as defaults (arXiv 2104.08821, appendix A), and
    SARCSE's own.
    """

    contrastive_temperature: float = field(default=0.05, metadata={"help": "Temperature of InfoNCE."})
    reconstruction_weight: float = field(
        default=1.0, metadata={"help": "Weight (lambda) of the reconstruction loss; 0 leaves it out."}
    )
    reconstructed_views: Literal[1, 2] = field(
        default=1,
        metadata={
            "help": "Dropout views of each sentence whose tokens are reconstructed. Two cost more and were no better "
            "(benchmarks/results/speed.md)."
        },
    )
    reconstruction_anchor: float = field(
        default=0.0,
        metadata={
            "help": "Share of the encoder's vectors as they were before the training in those that are reconstructed, "
            "from 0 to 1: against a training that goes on for too long (benchmarks/results/README.md). Above 0 it "
            "costs another forward pass."
        },
    )
    frequency_weighting: Literal["smooth_inverse", "self_information", "uniform"] = field(
        default="smooth_inverse",
        metadata={"help": "Token weights: a / (a + p), -log p, or 1, where p is a token's share of the corpus."},
    )
    frequency_smoothing: float = field(
        default=1e-4,
        metadata={
            "help": "The a of smooth_inverse (Arora, Liang and Ma, ICLR 2017); its value is from "
            "benchmarks/results/README.md."
        },
    )
    autoencoder_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the new layers. Default: three times learning_rate with a reconstruction "
            "(benchmarks/results/README.md), else learning_rate."
        },
    )
    gradient_cache_mini_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Gradients of the whole batch with the activations of this many rows (two to a sentence) in "
            "memory at a time, for batches that do not fit (arXiv 2101.06983). gradient_accumulation_steps is no "
            "substitute: it adds no negatives."
        },
    )

    push_to_hub: bool = field(
        default=False, metadata={"help": "After training, build a release in OUTPUT_DIR/release, verify and push it."}
    )
    hub_license: str | None = field(default=None, metadata={"help": "Licence for the model's card."})
    hub_language: list[str] = field(
        default_factory=list, metadata={"help": "Languages of the sentences for the model's card, for example en."}
    )

    train_sampling_strategy: Literal["group_by_length", "random"] = field(
        default="group_by_length",
        metadata={
            "help": "group_by_length: the sentences of a batch are of like length, which saves padding and keeps the "
            "length from telling them apart. A stream is always random."
        },
    )
    output_dir: str = field(default="output/sarcse-roberta-base", metadata={"help": "Where the model is written."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the sentences."})
    per_device_train_batch_size: int = field(default=512, metadata={"help": "Sentences a step and device."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to score STS-B dev: steps, epoch or no."})
    eval_steps: float | None = field(default=125, metadata={"help": "Steps between two evaluations."})
    save_steps: float = field(default=125, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best one among them."})
    logging_steps: float = field(default=25, metadata={"help": "Steps between two lines of the log."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best checkpoint, not the last."})
    metric_for_best_model: str | None = field(default="stsb_spearman", metadata={"help": "What best means."})
    # InfoNCE over a ragged last batch would be an easier task with a wrong weight.
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, incomplete batch."})
    # The Trainer would go on as if such a batch had not been; SarcseTrainer stops.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Has no effect: the run stops."})
    # Every parameter that is trained gets a gradient in every step.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in transformers."})
    use_cpu: bool = field(
        # Said of itself, since accelerate would take processes that find no GPU for so many runs of one process.
        # (Not a default_factory here and below: HfArgumentParser takes that for False.)
        default=not torch.accelerator.is_available(),
        metadata={"help": "Train on the CPU. Default: without a GPU."},
    )
    # Without a GPU pinned memory does nothing but warn.
    dataloader_pin_memory: bool = field(
        default=torch.cuda.is_available(), metadata={"help": "Pin the batches in memory. Default: with a GPU."}
    )

    def __post_init__(self) -> None:
        self.check_effect()
        for name, least in (
            ("per_device_train_batch_size", 1),
            ("gradient_accumulation_steps", 1),
            ("dataloader_num_workers", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise ValueError(f"--num_train_epochs must be above 0, got {self.num_train_epochs}.")
        # `accelerate launch --mixed_precision` counts too, and the record of the training shall say so.
        self.bf16 |= os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
        self.fp16 |= os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16"
        self.check_machine()
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
            self.metric_for_best_model = None
        if self.data_seed is None:
            # Processes have random numbers of their own, for dropout, but must agree on the order of the sentences.
            self.data_seed = self.seed
        self.check_direction()
        super().__post_init__()
        if self.accelerator_config.split_batches:
            raise ValueError("--accelerator_config split_batches: each process reads a batch of its own.")
        if self.per_device_train_batch_size * self.world_size == 1:
            raise ValueError(
                "--per_device_train_batch_size 1 on one process: InfoNCE has no other sentence to tell the first "
                "from, and nothing is learnt, with --gradient_accumulation_steps or without. Give at least 2. If a "
                "batch does not fit into memory: --gradient_cache_mini_batch_size 2."
            )
        for name in ("contrastive_temperature", "frequency_smoothing"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}.")
        if self.hub_token is not None:
            # The Trainer would also save it, in every checkpoint's training_args.bin.
            raise ValueError("--hub_token is seen by every user of this machine: `hf auth login`, or set HF_TOKEN.")
        if self.reconstruction_weight < 0:
            raise ValueError(f"--reconstruction_weight must not be negative, got {self.reconstruction_weight}.")
        if not 0 <= self.reconstruction_anchor <= 1:
            raise ValueError(f"--reconstruction_anchor must be from 0 to 1, got {self.reconstruction_anchor}.")
        if self.autoencoder_learning_rate is None:
            rate = self.learning_rate * (3 if self.reconstruction_weight > 0 else 1)
            self.autoencoder_learning_rate = float(f"{rate:.10g}")  # 3e-05, and not 3.0000000000000004e-05
        size = self.gradient_cache_mini_batch_size
        if size is not None and size < 1:
            raise ValueError(f"--gradient_cache_mini_batch_size must be at least 1, got {size}.")

    @property
    def global_batch_size(self) -> int:
        """Sentences that one step of the optimizer needs, of all processes."""
        return self.per_device_train_batch_size * self.world_size * self.gradient_accumulation_steps

    def check_effect(self) -> None:
        """
        Raises:
            ValueError: an argument that would have no effect has another value than its default.
        """
        for argument in fields(self):
            default = argument.default if argument.default is not MISSING else argument.default_factory()
            value = getattr(self, argument.name)
            # (HfArgumentParser gives an empty list or string for what is not given.)
            if argument.name in WITHOUT_EFFECT and value != default and (value or default):
                raise ValueError(f"--{argument.name} has no effect: {WITHOUT_EFFECT[argument.name]}. Leave it out.")

    def check_direction(self) -> None:
        """
        Which values of `metric_for_best_model` are better, as its name says.

        Raises:
            ValueError: `greater_is_better` says something else.
        """
        if self.metric_for_best_model is None:
            return
        greater_is_better = metric_name(self.metric_for_best_model) not in LOWER_IS_BETTER
        if self.greater_is_better not in (None, greater_is_better):
            better = "greater" if greater_is_better else "lower"
            raise ValueError(
                f"--greater_is_better {self.greater_is_better}: of {self.metric_for_best_model} {better} values are "
                "better. Leave it out."
            )
        self.greater_is_better = greater_is_better
        if self.lr_scheduler_type == "reduce_lr_on_plateau":
            mode = {"mode": "max" if greater_is_better else "min"}
            self.lr_scheduler_kwargs = {**mode, **(self.lr_scheduler_kwargs or {})}

    def check_machine(self) -> None:
        """
        Raises:
            ValueError: a way to use the machine that does not work, or that would silently not be what was asked for.
        """
        for name in ("FSDP", "DeepSpeed"):
            asked_of_accelerate = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true"
            if getattr(self, name.lower()) or asked_of_accelerate:
                raise ValueError(
                    f"{name} is not supported: a text encoder fits on each GPU, and every GPU trains a copy "
                    "(`accelerate launch --multi_gpu`). If a batch does not fit: --gradient_cache_mini_batch_size."
                )
        if self.use_cpu and self.fp16:
            raise ValueError("fp16 needs a GPU. On a CPU train in bfloat16 (--bf16 true), or in float32.")
        # With several processes but no MPI, accelerate sets their meeting point and starts one.
        by_accelerate = "ACCELERATE_USE_CPU" in os.environ  # set to True or False
        if self.use_cpu and by_accelerate and "MASTER_ADDR" in os.environ and not started_with_others():
            raise ValueError(
                "accelerate starts several processes on CPUs through MPI only: add --mpirun_hostfile FILE, or use "
                "`torchrun --nproc-per-node N train.py ...`."
            )


class ArgumentParser(HfArgumentParser):
    """HfArgumentParser whose errors are one line, without the 150 options of the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"train.py: error: {message}\n")


def started_with_others() -> bool:
    """Whether this process was started together with others, by the variables that accelerate looks for."""
    return any(name in os.environ for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"))


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
