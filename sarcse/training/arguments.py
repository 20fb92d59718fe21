"""The arguments of training: the model to start from, and how it is trained. For the data see sarcse/options.py."""

import math
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments

from configuration_sarcse import SarcseConfig
from modeling_sarcse import POOLERS
from sarcse.data.tokens import FREQUENCY_WEIGHTINGS
from sarcse.loading import ARCHITECTURE
from sarcse.options import AUTO, ENGLISH, HEALTH, LABELLED, ReleaseArguments, metric_name


def _architecture(name: str, help: str, choices: list[str] | None = None) -> Any:
    metadata = {"help": f"{help} Default: {getattr(SarcseConfig(), name)}."}
    return field(default=None, metadata={**metadata, "choices": choices} if choices else metadata)


@dataclass
class ModelArguments:
    """The encoder to start from, and the shape of the layers on top of it (fields of `SarcseConfig`)."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        default="FacebookAI/roberta-base",
        metadata={"help": "Folder or Hub id of a text encoder, or of a SARCSE model to train further."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "As in AutoModel.from_pretrained, for example flash_attention_2."}
    )
    pooler: str | None = _architecture(
        "pooler",
        "How the sentence embedding is made: "
        + "; ".join(f"{name}, {pooler.description}" for name, pooler in POOLERS.items())
        + ". A sentence encoder's own is kept.",
        choices=list(POOLERS),
    )
    kernel_sizes: list[int] | None = _architecture("kernel_sizes", "Widths of the TextCNN's convolutions.")
    channels: int | None = field(
        default=None,
        metadata={
            "help": "Output channels of each TextCNN convolution. Default: an eighth of the encoder's hidden size, 96 "
            "for RoBERTa-base."
        },
    )
    integration_kernel_size: int | None = _architecture(
        "integration_kernel_size", "Width of the convolution that integrates the scales."
    )
    activation: str | None = _architecture("activation", "Activation of the TextCNNs.")
    decoder_length: int | None = _architecture("decoder_length", "Number of tokens that are reconstructed.")

    def sarcse_fields(self) -> dict[str, Any]:
        """The fields of `SarcseConfig` that were given, by name."""
        return {name: getattr(self, name) for name in ARCHITECTURE if getattr(self, name) is not None}


def check_reconstruction(pooler: str, reconstruction_weight: float) -> None:
    """
    Check that the pooler and the weight of the reconstruction loss fit together.

    Raises:
        ValueError: if the weight is above 0 and the pooler has no reconstruction.
    """
    if pooler in POOLERS and POOLERS[pooler].decoder is None and reconstruction_weight > 0:
        raise ValueError(
            f"--pooler {pooler} has no reconstruction: add --reconstruction_weight 0 (SimCSE), or train "
            "with --pooler mean."
        )


# transformers' arguments that would have no effect here, or not the documented one, and why. They are refused.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "InfoNCE has no labels",
    "average_tokens_across_devices": "the losses are means over sentences and weighted means over tokens",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "auto_find_batch_size": "a smaller batch changes InfoNCE's task; try --gradient_cache_mini_batch_size",
    "use_liger_kernel": "it has no kernels for text encoders",
    "use_cache": "encoders have no cache",
    "eval_on_start": "evaluations begin before the first step",
    "debug": "a loss that is not finite stops the run, and its batch is written to a file",
    "remove_unused_columns": "the sentences are the only column",
    "label_names": "there are no labels",
    "length_column_name": "lengths are counted by this program",
    "bf16_full_eval": "evaluations use the precision of the training",
    "fp16_full_eval": "evaluations use the precision of the training",
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


CHOICES = {
    "frequency_weighting": list(FREQUENCY_WEIGHTINGS),
    "train_sampling_strategy": ["group_by_length", "random"],
}

# The range of every number among the arguments, transformers' own included; each must also be finite, or None.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "above 0": (
        lambda value: value > 0,
        "contrastive_temperature frequency_smoothing num_train_epochs eval_steps save_steps logging_steps",
    ),
    "at least 0": (
        lambda value: value >= 0,
        "reconstruction_weight health_sentences learning_rate_budget learning_rate autoencoder_learning_rate "
        "weight_decay adam_epsilon warmup_steps max_grad_norm neftune_noise_alpha eval_delay dataloader_num_workers",
    ),
    "at least 0 and below 1": (lambda value: 0 <= value < 1, "view_dropout adam_beta1 adam_beta2"),
    "at least 0 and below 2^32": (lambda value: 0 <= value < 2**32, "seed data_seed"),  # numpy's seeds
    "at least 1": (
        lambda value: value >= 1,
        "max_seq_length preprocessing_num_workers token_count_samples gradient_cache_mini_batch_size "
        "per_device_train_batch_size gradient_accumulation_steps save_total_limit dataloader_prefetch_factor "
        "torch_empty_cache_steps ddp_bucket_cap_mb ddp_timeout",
    ),
    "at least 1, or -1 for num_train_epochs": (lambda value: value >= 1 or value == -1, "max_steps"),
}

# Fields of accelerator_config with the only value that works here: others change, repeat or leave out batches.
OWN_BATCHES = {
    "split_batches": False,
    "dispatch_batches": False,
    "even_batches": True,
    "use_seedable_sampler": True,
    "gradient_accumulation_kwargs": False,
}


# The share of dimensions that a view of one pass drops, where that is the default. Half of it was no worse than two
# passes in ten seeds on either encoder; under mean pooling the results are mixed (docs/choices.md).
VIEW_DROPOUT = 0.1
ONE_PASS = ("words", "autoencoder")
# The limit on the sum of the learning rates of all steps: less than what ruined an encoder of the study (which ended
# worse than before training), and enough for the best scores (docs/choices.md). SimCSE, which has no
# reconstruction, follows its own paper.
LEARNING_RATE_BUDGET = 0.003
# The same for a sentence encoder, which has more to lose: the whole budget ruined all-MiniLM-L6-v2, and 0.0004 cost it
# two points of its neighbours on Banking77, where this costs nothing (docs/training.md).
SENTENCE_ENCODER_BUDGET = 0.0001
# The learning rate with a reconstruction. The budget scales it down in longer trainings: any rate that uses up the
# budget makes the same training; this one does from 60 steps, and its first steps are not too long in shorter ones.
LEARNING_RATE = 1e-4
# The learning rate of new layers with a reconstruction. No budget limits it: the budget protects pretrained weights.
NEW_LAYERS_LEARNING_RATE = 1e-3
# Without a reconstruction: SimCSE's for batches of 64 (BERT-base, arXiv 2104.08821, appendix A).
SIMCSE_LEARNING_RATE = 3e-5


@dataclass(kw_only=True)
class SarcseArguments(ReleaseArguments):
    """The arguments that SARCSE adds to transformers' own; a separate class, so that `--help` shows them first."""

    # No argument: SarcseTrainer sets it.
    of_sentence_encoder = False

    max_seq_length: int = field(
        default=32,
        metadata={
            "help": "Training texts are cut at this many tokens, special tokens included. With a reconstruction, "
            "fresh layers need as large a --decoder_length."
        },
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes for tokenising."})
    token_count_samples: int = field(
        default=100_000, metadata={"help": "How many of a stream's first sentences the token frequencies come from."}
    )
    contrastive_temperature: float = field(default=0.05, metadata={"help": "Temperature of InfoNCE."})
    reconstruction_weight: float = field(
        default=1.0, metadata={"help": "Weight (lambda) of the reconstruction loss; 0 leaves it out."}
    )
    health_sentences: int = field(
        default=512,
        metadata={
            "help": "Number of training sentences held out to check the model's health without labels at each "
            "evaluation (eval_health). They are also trained on if the data are a stream or fewer than ten times as "
            "many sentences, or the rest would not fill a batch. 0: no such check."
        },
    )
    learning_rate_budget: float | None = field(
        default=None,
        metadata={
            "help": "Limit on the sum of the encoder's learning rates over all steps; beyond it, all rates are scaled "
            "down. It is meant to keep a training that nobody watches from ruining the encoder. 0: no limit. Default "
            f"with a reconstruction: {LEARNING_RATE_BUDGET:g}; {SENTENCE_ENCODER_BUDGET:g} for a sentence encoder; 0 "
            "for others if graded pairs pick the checkpoint. Without a reconstruction: 0."
        },
    )
    view_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Encode each sentence once, half the encoder's work, and make both views from its vectors: each "
            "view drops this share of their dimensions. 0: the encoder's own dropout makes the views, in two passes, "
            f"as in SimCSE. Default: {VIEW_DROPOUT} for {' and '.join(ONE_PASS)} with a reconstruction, else 0."
        },
    )
    token_frequencies: str = field(
        default=ENGLISH,
        metadata={
            "help": "Where tokens are counted for their weights. english: in a sample of Wikipedia, which comes with "
            "this program; corpus: in the training text; or a file of general text in its language, of the kinds of "
            "--train_file. Weights from a small corpus' own counts erase the words that name its topics."
        },
    )
    frequency_weighting: str = field(
        default="smooth_inverse",
        metadata={
            "help": "Token weights: a / (a + p), -log p, or 1, where p is a token's share of the corpus.",
            "choices": CHOICES["frequency_weighting"],
        },
    )
    frequency_smoothing: float = field(
        default=1e-4,
        metadata={
            "help": "The a of smooth_inverse (Arora, Liang and Ma, ICLR 2017). The default was chosen in "
            "docs/choices.md."
        },
    )
    autoencoder_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": f"Learning rate of the new layers. Default: {NEW_LAYERS_LEARNING_RATE:g} with a reconstruction, "
            "else learning_rate."
        },
    )
    gradient_cache_mini_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "For batches that do not fit into memory: the whole batch's gradients, with the activations of "
            "this many rows at a time (arXiv 2101.06983). A sentence is two rows, or one with view_dropout. "
            "gradient_accumulation_steps is no substitute: it adds no negatives."
        },
    )
    hub_license: str | None = field(default=None, metadata={"help": "Licence, for the model card."})
    hub_language: list[str] = field(
        default_factory=list, metadata={"help": "Languages of the sentences, for the model card; for example en."}
    )


@dataclass
class SarcseTrainingArguments(TrainingArguments, SarcseArguments):
    """
    All training arguments: transformers' own, and SARCSE's. Batch size and learning rate are by default those of the
    study (docs/results.md); the other defaults that differ from transformers' follow SimCSE's protocol (arXiv
    2104.08821, appendix A).

    Raises:
        ValueError: if a value is impossible, would have no effect, or does not work on this machine; the message says
            which and what to do.
    """

    _argument_group_name = "training: SARCSE's own options, then those of transformers' TrainingArguments"

    output_dir: str = field(
        default="output/sarcse", metadata={"help": "Where the model and its checkpoints are written."}
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "After training, build a release in OUTPUT_DIR/release, verify and push it."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "choices": CHOICES["train_sampling_strategy"],
            "help": "group_by_length: the sentences of a batch have similar lengths, which saves padding and makes "
            "length useless for matching views. A stream is always random.",
        },
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the sentences."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Sentences per step and device."})
    learning_rate: float = field(  # type: ignore[assignment]  # a number from __post_init__ on
        default=None,
        metadata={
            "help": f"Peak learning rate of AdamW, scaled down by learning_rate_budget in longer trainings. Default: "
            f"{LEARNING_RATE:g}; {SIMCSE_LEARNING_RATE:g} without a reconstruction."
        },
    )
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: steps, epoch or no."})
    eval_steps: float | None = field(
        default=None, metadata={"help": "Steps between two evaluations. Default: save_steps."}
    )
    save_steps: float = field(default=125, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, including the best one."})
    logging_steps: float = field(default=25, metadata={"help": "Steps between two lines of the log."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best checkpoint, not the last."})
    metric_for_best_model: str | None = field(
        default=AUTO,
        metadata={
            "help": f"The metric that picks the best: stsb_spearman, or pairs_spearman with eval_pairs; {LABELLED} "
            "with eval_labelled; health, which needs neither. auto: the correlation with eval_pairs, sts_dir or the "
            "default sentences, the neighbours with eval_labelled, else health."
        },
    )
    # InfoNCE over a smaller last batch would be an easier task with too large a weight.
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, incomplete batch."})
    # The Trainer would ignore such a batch and go on; SarcseTrainer stops.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Has no effect: the run stops."})
    # Every trained parameter gets a gradient in every step; SarcseTrainer detects the exceptions (XLNet).
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in transformers."})
    use_cpu: bool = field(
        # Set explicitly, because accelerate would otherwise treat several processes without a GPU as separate runs of
        # one process each. (Not a default_factory here and below: HfArgumentParser takes that for False.)
        default=not torch.accelerator.is_available(),
        metadata={"help": "Train on the CPU. Default: without a GPU."},
    )
    # Without a GPU pinned memory has no effect other than a warning.
    dataloader_pin_memory: bool = field(
        default=torch.cuda.is_available(), metadata={"help": "Pin the batches in memory. Default: with a GPU."}
    )

    def __post_init__(self) -> None:
        self.check_effect()
        self.check_machine()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"--{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        for wanted, (in_range, names) in RANGES.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"--{name} must be a finite number, got {value}.")
                if value is not None and not in_range(value):
                    raise ValueError(f"--{name} must be {wanted}, got {value}.")
        if "no" in (self.eval_strategy, self.save_strategy):
            self.load_best_model_at_end = False  # no evaluation finds the best one, or no checkpoint has it
        if self.eval_strategy == "no":
            self.metric_for_best_model = None
        if self.metric_for_best_model is not None:
            self.metric_for_best_model = metric_name(self.metric_for_best_model)
        if self.eval_steps is None:
            self.eval_steps = self.save_steps  # so that each checkpoint has a score
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATE if self.reconstruction_weight > 0 else SIMCSE_LEARNING_RATE
        if self.data_seed is None:
            # Each process has its own random numbers, for dropout, but all must agree on the order of the sentences.
            self.data_seed = self.seed
        if self.picked_by_health and self.health_sentences == 0:
            raise ValueError("--metric_for_best_model health needs held-out sentences: raise --health_sentences.")
        self.check_direction()
        try:
            super().__post_init__()
        except (TypeError, OSError) as error:  # an unknown field, or a file that cannot be read
            raise ValueError(f"--accelerator_config {self.accelerator_config}: {error}") from error
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs are visible to one process. Start one process per GPU with `accelerate launch`, "
                "or choose one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        if self.optim.value.startswith("schedule_free"):
            raise ValueError(
                f"--optim {self.optim.value} is not supported: the weights that it steps with are not those to keep."
            )
        for name, value in OWN_BATCHES.items():
            if (getattr(self.accelerator_config, name) or False) != value:
                raise ValueError(
                    f"--accelerator_config {name} is not supported: each process reads its own batches, as "
                    "--data_seed and --gradient_accumulation_steps say. Leave it out."
                )
        if self.per_device_train_batch_size * self.world_size == 1:
            raise ValueError(
                "--per_device_train_batch_size 1 on one process: InfoNCE has no negatives, so nothing is learnt, with "
                "or without --gradient_accumulation_steps. Set it to at least 2. If a batch does not fit into memory, "
                "use --gradient_cache_mini_batch_size 16."
            )
        if self.hub_token is not None:
            # The Trainer would also save it, in every checkpoint's training_args.bin.
            raise ValueError(
                "--hub_token is visible to every user of this machine: use `hf auth login`, or set HF_TOKEN."
            )
        if self.lr_scheduler_type == "greedy" and self.rate_budget > 0:
            raise ValueError(
                "--lr_scheduler_type greedy can raise the learning rate beyond any budget: choose another schedule, "
                "or set --learning_rate_budget 0."
            )

    @property
    def new_layers_learning_rate(self) -> float:
        """`autoencoder_learning_rate` or its default, resolved on use: a search may change what it depends on."""
        if self.autoencoder_learning_rate is not None:
            return self.autoencoder_learning_rate
        return NEW_LAYERS_LEARNING_RATE if self.reconstruction_weight > 0 else self.learning_rate

    @property
    def rate_budget(self) -> float:
        """`learning_rate_budget` or its default, resolved on use: a search may change `reconstruction_weight`."""
        if self.learning_rate_budget is not None:
            return self.learning_rate_budget
        if self.reconstruction_weight == 0:
            return 0.0
        if self.of_sentence_encoder:
            return SENTENCE_ENCODER_BUDGET
        return 0.0 if self.picked_by_pairs else LEARNING_RATE_BUDGET

    @property
    def weighs_tokens(self) -> bool:
        """Whether the training needs the frequencies of tokens."""
        return self.reconstruction_weight > 0 and self.frequency_weighting != "uniform"

    @property
    def picked_by_health(self) -> bool:
        """Whether the health, rather than graded pairs, picks the model to keep."""
        return self.metric_for_best_model == HEALTH

    @property
    def picked_by_pairs(self) -> bool:
        """Whether pairs or labelled texts pick the checkpoint to keep: a fall after the best one costs nothing."""
        return self.load_best_model_at_end and self.metric_for_best_model not in (None, AUTO, HEALTH)

    def view_dropout_of(self, pooler: str) -> float | None:
        """The share of dimensions that a view drops if this pooler is trained in one pass; None for two passes."""
        if self.view_dropout is None:
            return VIEW_DROPOUT if pooler in ONE_PASS and self.reconstruction_weight > 0 else None
        return self.view_dropout or None

    def to_dict(self) -> dict[str, Any]:
        """All arguments, with the new layers' learning rate and the budget resolved, as these affect the result."""
        resolved = {
            "autoencoder_learning_rate": self.new_layers_learning_rate,
            "learning_rate_budget": self.rate_budget,
        }
        return {**super().to_dict(), **resolved}

    @property
    def kept_aside(self) -> int:
        """Number of training sentences held out to check the health: 0 without evaluations."""
        return self.health_sentences if self.eval_strategy != "no" else 0

    @property
    def global_batch_size(self) -> int:
        """Sentences per step of the optimizer, over all processes."""
        return self.per_device_train_batch_size * self.world_size * self.gradient_accumulation_steps

    def check_effect(self) -> None:
        """
        Refuse the arguments in `WITHOUT_EFFECT`.

        Raises:
            ValueError: if one of them is not at its default.
        """
        for argument in fields(self):
            factory = argument.default_factory
            default = argument.default if factory is MISSING else factory()
            value = getattr(self, argument.name)
            # (HfArgumentParser sets an argument that is not given to an empty list or string.)
            if argument.name in WITHOUT_EFFECT and value != default and (value or default):
                raise ValueError(f"--{argument.name} has no effect: {WITHOUT_EFFECT[argument.name]}. Leave it out.")

    def check_direction(self) -> None:
        """
        Set `greater_is_better`, which transformers guesses.

        Raises:
            ValueError: if it is False.
        """
        if self.metric_for_best_model is None:
            return
        if self.greater_is_better is False:
            raise ValueError(
                f"--greater_is_better False is wrong: greater values of {self.metric_for_best_model} are better. "
                "Leave it out."
            )
        self.greater_is_better = True
        if self.lr_scheduler_type == "reduce_lr_on_plateau":
            self.lr_scheduler_kwargs = {"mode": "max", **(self.lr_scheduler_kwargs or {})}

    def resolve_metric(self, measured: str | None) -> None:
        """
        Replace `auto` by the metric that it means, and check that evaluations will measure the metric.

        Args:
            measured (`str`, *optional*): The metric of the graded pairs or labelled texts; None without either.

        Raises:
            ValueError: if no evaluation will have a metric of this name.
        """
        known = (HEALTH,) if measured is None else (measured, HEALTH)
        if self.metric_for_best_model == AUTO:
            self.metric_for_best_model = known[0]
        if self.metric_for_best_model not in (None, *known):
            without = " without graded pairs or labelled texts" if measured is None else ""
            raise ValueError(
                f"--metric_for_best_model {self.metric_for_best_model}: the evaluations measure {', '.join(known)}"
                f"{without}."
            )

    def check_machine(self) -> None:
        """
        Take what `accelerate launch` was asked for, which belongs in the training record too, and check that the
        training can use the machine as requested.

        Raises:
            ValueError: if it cannot, or would silently use it in another way.
        """
        for name in ("FSDP", "DeepSpeed", "Megatron_LM", "Parallelism_Config"):
            asked_of_accelerate = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true"
            if getattr(self, name.lower(), None) or asked_of_accelerate:
                raise ValueError(
                    f"{name} is not supported: a text encoder fits on each GPU, and every GPU trains a copy "
                    "(`accelerate launch --multi_gpu`). If a batch does not fit, use --gradient_cache_mini_batch_size."
                )
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
        if precision == "fp8":
            raise ValueError("accelerate's fp8 is not supported: use --bf16 true.")
        self.bf16 |= precision == "bf16"
        self.fp16 |= precision == "fp16"
        # accelerate itself reads this variable, but the Trainer does not.
        steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
        if steps is not None and self.gradient_accumulation_steps not in (1, int(steps)):
            raise ValueError(
                f"--gradient_accumulation_steps {self.gradient_accumulation_steps}, but accelerate was asked for "
                f"{steps} (ACCELERATE_GRADIENT_ACCUMULATION_STEPS): leave one of them out."
            )
        if steps is not None:
            self.gradient_accumulation_steps = int(steps)
        if self.use_cpu and self.fp16:
            raise ValueError("fp16 needs a GPU. On a CPU, train in bfloat16 (--bf16 true) or float32.")
        # If several processes are requested without MPI, accelerate sets their address but starts only one.
        by_accelerate = "ACCELERATE_USE_CPU" in os.environ  # set to True or False
        if self.use_cpu and by_accelerate and "MASTER_ADDR" in os.environ and not started_with_others():
            raise ValueError(
                "accelerate starts several processes on CPUs only through MPI: add --mpirun_hostfile FILE, or use "
                "`torchrun --nproc-per-node N train.py ...`."
            )


def started_with_others() -> bool:
    """Whether this process was started together with others, according to the variables that accelerate reads."""
    return any(name in os.environ for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"))
