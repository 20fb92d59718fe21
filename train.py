"""
Train a SARCSE model on plain sentences.

    python train.py [RECIPE.yaml] [--field value ...]
    accelerate launch train.py recipes/roberta-base.yaml

Top to bottom: arguments, the two losses, the Trainer, the command. What a sentence goes through before is in data.py.
"""

import difflib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import accelerate
import datasets
import torch
import yaml
from safetensors import SafetensorError
from torch import distributed
from torch.nn import functional as F
from transformers import (
    AutoModel,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

import figures
from comparison import Measurement, compare, correlations, report, write_results
from configuration_sarcse import SarcseConfig
from data import (
    DataArguments,
    load_sentences,
    load_sts,
    load_tasks,
    token_counts,
    token_weights,
    tokenize,
)
from eval_sts import (
    draw_figures,
    embed_pairs,
    encode,
    encoder_max_length,
    kind_of_model,
    load_config_and_tokenizer,
    load_model,
    measure,
)
from model_card.record import FILE_NAME as RECORD_FILE
from model_card.record import describe_base_model, training_record
from model_card.release import options_of_training, release, write_json, write_sentence_transformers_files
from modeling_sarcse import SarcseModel, SarcseModelOutput


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
    attn_implementation: str | None = field(
        default=None, metadata={"help": "As in AutoModel.from_pretrained, for example flash_attention_2."}
    )
    pooler: Literal["autoencoder", "cls", "mean", "first_last_average"] | None = _architecture(
        "pooler", "autoencoder (SARCSE), cls (SimCSE), mean or first_last_average."
    )
    kernel_sizes: list[int] | None = _architecture("kernel_sizes", "Widths of the TextCNN's convolutions.")
    channels: int | None = _architecture("channels", "Output channels of each of these convolutions.")
    integration_kernel_size: int | None = _architecture(
        "integration_kernel_size", "Width of the convolution that integrates the scales."
    )
    activation: str | None = _architecture("activation", "Activation of the TextCNNs.")
    pooling: Literal["mean", "max"] | None = _architecture("pooling", "Pooling over the content tokens.")
    decoder_length: int | None = _architecture("decoder_length", "Number of tokens that the decoder can reconstruct.")

    def sarcse_fields(self) -> dict[str, Any]:
        """Those fields of `SarcseConfig` that were given."""
        names = {f.name for f in fields(self)} - {"model_name_or_path", "model_revision", "attn_implementation"}
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class SarcseTrainingArguments(TrainingArguments):
    """
    transformers' arguments, with SimCSE's protocol for RoBERTa-base as defaults (arXiv 2104.08821, appendix A), and
    SARCSE's own.
    """

    contrastive_temperature: float = field(default=0.05, metadata={"help": "Temperature of InfoNCE."})
    reconstruction_weight: float = field(
        default=1.0, metadata={"help": "Weight (lambda) of the reconstruction loss; 0 leaves the decoder out."}
    )
    frequency_weighting: Literal["smooth_inverse", "self_information", "uniform"] = field(
        default="smooth_inverse",
        metadata={"help": "Token weights: a / (a + p), -log p, or 1, where p is a token's share of the corpus."},
    )
    frequency_smoothing: float = field(
        default=1e-3, metadata={"help": "The a of smooth_inverse (Arora, Liang and Ma, ICLR 2017)."}
    )
    autoencoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the new layers. Default: learning_rate."}
    )

    push_to_hub: bool = field(
        default=False, metadata={"help": "After training, build a release in OUTPUT_DIR/release, verify and push it."}
    )
    hub_license: str | None = field(default=None, metadata={"help": "Licence for the model's card."})
    hub_language: list[str] = field(
        default_factory=list, metadata={"help": "Languages of the sentences for the model's card, for example en."}
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
    # Without a GPU pinned memory does nothing but warn.
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin the batches in memory. Default: with a GPU."}
    )

    def __post_init__(self) -> None:
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
            self.metric_for_best_model = None
        super().__post_init__()
        for name in ("contrastive_temperature", "frequency_smoothing"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}.")
        if self.hub_token is not None:
            # The Trainer would also save it, in every checkpoint's training_args.bin.
            raise ValueError("--hub_token is seen by every user of this machine: `hf auth login`, or set HF_TOKEN.")
        if self.reconstruction_weight < 0:
            raise ValueError(f"--reconstruction_weight must not be negative, got {self.reconstruction_weight}.")


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
        raise ValueError(unknown_field(unknown[0], [f"--{name}" for name in known]))
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


def unknown_field(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(str(name).split("=")[0], known, n=1)
    return f"unknown field {name}." + (f" Did you mean {nearest[0]}?" if nearest else " --help lists all fields.")


# --- Losses ----------------------------------------------------------------------------------------------------------


def info_nce(first: torch.Tensor, second: torch.Tensor, temperature: float, positive_offset: int = 0) -> torch.Tensor:
    """
    Contrastive loss of SimCSE (arXiv 2104.08821, equation 1), mean over the rows, in float32:

        -log( exp(cos(first_i, second_i) / temperature) / sum_j exp(cos(first_i, second_j) / temperature) )

    Args:
        first (`torch.Tensor` of shape `(B, d)`): Embeddings of the first dropout view.
        second (`torch.Tensor` of shape `(M, d)`, M >= B): Of the second, those of all processes.
        temperature (`float`): Divides the cosine similarities.
        positive_offset (`int`): Row of `second` that belongs to the first row of `first`.
    """
    similarities = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T  # (B, M)
    positives = torch.arange(len(first), device=first.device) + positive_offset  # (B,)
    return F.cross_entropy(similarities / temperature, positives)


def weighted_reconstruction(
    errors: torch.Tensor, weights: torch.Tensor, total_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Weighted mean of the tokens' reconstruction errors, sum(w e) / sum(w).

    Args:
        errors (`torch.Tensor` of shape `(B, T)`): From `SarcseModelOutput.reconstruction_errors`.
        weights (`torch.Tensor` of shape `(B, T)`): Zero where there is no content.
        total_weight (`torch.Tensor`, *optional*): Denominator where the batch is one of several processes' shares.
    """
    total_weight = weights.sum() if total_weight is None else total_weight
    return (weights * errors).sum() / total_weight.clamp(min=torch.finfo(errors.dtype).tiny)


# --- Trainer ---------------------------------------------------------------------------------------------------------


class SarcseTrainer(Trainer):
    """
    transformers' Trainer with SARCSE's loss, and with graded sentence pairs as evaluation data.

    Args:
        token_weights (`torch.Tensor` of shape `(vocabulary_size,)`, *optional*):
            Weights of the reconstruction errors by token id, needed if `reconstruction_weight` > 0.
        eval_name (`str`): What the pairs are called in the metrics: `eval_{eval_name}_spearman`.
        eval_dataset (`datasets.Dataset`): Columns sentence1, sentence2 and score.
    """

    # Each loss is a mean over its batch, for the Trainer to divide by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self, *args: Any, token_weights: torch.Tensor | None = None, eval_name: str = "stsb", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.eval_name = eval_name
        if self.args.reconstruction_weight > 0:
            self.token_weights = token_weights.to(self.args.device)
        elif self.model.config.pooler == "autoencoder":
            # Parameters that get no gradient would stop DistributedDataParallel.
            self.model.sentence_decoder.requires_grad_(False)
        self._losses: dict[str, torch.Tensor] = {}
        self._loss_batches = 0

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, SarcseModelOutput]:
        """InfoNCE + reconstruction_weight * weighted reconstruction: two dropout views in one forward of 2B rows."""
        reconstruct = self.args.reconstruction_weight > 0
        views = {name: tensor.repeat(2, 1) for name, tensor in inputs.items()}  # (B, L) -> (2B, L)
        outputs = model(**views, output_reconstruction=reconstruct)
        first, second = outputs.pooler_output.chunk(2)  # (2B, d) -> two of (B, d)
        if self.args.world_size > 1:
            # Negatives from all processes, with gradient: local rows against all columns is the exact global loss.
            second = torch.cat(distributed.nn.functional.all_gather(second))
        contrastive = info_nce(
            first, second, self.args.contrastive_temperature, positive_offset=self.args.process_index * len(first)
        )
        loss, losses = contrastive, {"contrastive_loss": contrastive.detach()}
        if reconstruct:
            weights = self.token_weights[outputs.content_input_ids] * outputs.content_mask  # (2B, T)
            # One denominator for all processes; times their number, since gradients are averaged over processes.
            total_weight = self.accelerator.reduce(weights.sum(), "sum") / self.args.world_size
            reconstruction = weighted_reconstruction(outputs.reconstruction_errors(), weights, total_weight)
            loss = contrastive + self.args.reconstruction_weight * reconstruction
            losses["reconstruction_loss"] = reconstruction.detach()
        self._losses = {name: value + self._losses.get(name, 0.0) for name, value in losses.items()}
        self._loss_batches += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Puts both losses, as means since the last line, beside the total."""
        if "loss" in logs and self._loss_batches > 0:
            for name, total in self._losses.items():
                logs[name] = self.accelerator.gather(total / self._loss_batches).mean().item()
            self._losses, self._loss_batches = {}, 0
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: datasets.Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Spearman x 100, alignment and uniformity of the pairs; every process returns the same numbers."""
        pairs = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        embedded = embed_pairs(partial(encode, model, self.processing_class), pairs)
        geometry = embedded.geometry()
        metrics = {
            f"{self.eval_name}_spearman": correlations(embedded.similarities(), embedded.scores)["spearman"],
            "alignment": geometry["alignment"],
            "uniformity": geometry["uniformity"],
        }
        # The log has no missing values: what does not exist is not a number.
        metrics = {f"{metric_key_prefix}_{name}": math.nan if v is None else v for name, v in metrics.items()}
        metrics = accelerate.utils.broadcast_object_list([metrics])[0]
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with the new layers' parameters in groups of their own learning rate."""
        optimizer = super().create_optimizer(model)
        if self.args.autoencoder_learning_rate is not None:
            encoder = set(self.accelerator.unwrap_model(self.model).encoder.parameters())
            for group in list(optimizer.param_groups):
                new = [parameter for parameter in group["params"] if parameter not in encoder]
                if new:
                    group["params"] = [parameter for parameter in group["params"] if parameter in encoder]
                    optimizer.add_param_group({**group, "params": new, "lr": self.args.autoencoder_learning_rate})
        return optimizer


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
    if model.pooler not in (None, "autoencoder") and training.reconstruction_weight > 0:
        raise ValueError(f"--pooler {model.pooler} has no decoder: add --reconstruction_weight 0 (SimCSE).")
    if data.eval_pairs is not None and training.metric_for_best_model == "stsb_spearman":
        training.metric_for_best_model = "pairs_spearman"
    has_checkpoints = any(Path(training.output_dir).glob("checkpoint-*"))
    if has_checkpoints and not training.resume_from_checkpoint:
        raise ValueError(
            f"{training.output_dir} holds checkpoints of an earlier run. Go on from the last one with "
            "`--resume_from_checkpoint last`, or choose another --output_dir."
        )
    if training.resume_from_checkpoint == "last" and not has_checkpoints:
        raise ValueError(f"--resume_from_checkpoint last: no checkpoint in {training.output_dir}.")


def load_sts_data(
    data: DataArguments, training: SarcseTrainingArguments
) -> tuple[datasets.Dataset | None, dict[str, datasets.Dataset]]:
    """Pairs for the evaluations during training, and the tasks for the table before and after: none, if not wanted."""
    if training.eval_strategy == "no" and data.sts_dir is None and data.eval_pairs is None:
        return None, {}
    try:
        tasks = load_tasks(data.sts_tasks, data.sts_dir, data.eval_pairs)
        if data.eval_pairs is not None:
            return next(iter(tasks.values())), tasks
        return load_sts("STSB", data.sts_dir, split="dev"), tasks
    except ValueError as error:
        raise ValueError(f"{error}\nTo train without scores: --eval_strategy no.") from error


def build_model(arguments: ModelArguments) -> tuple[SarcseModel, PreTrainedTokenizerBase]:
    """
    New layers on a pretrained encoder, or a SARCSE model to train further, with its tokenizer.

    Raises:
        ValueError: nothing can be loaded there, or a given field is impossible or not the saved SARCSE model's.
    """
    source, revision = arguments.model_name_or_path, arguments.model_revision
    config, tokenizer = load_config_and_tokenizer(source, revision)
    options = {
        "revision": revision,
        "dtype": torch.float32,  # not the checkpoint's: half precision weights lose AdamW's small steps
        "attn_implementation": arguments.attn_implementation,
    }
    if config.model_type == SarcseConfig.model_type:
        for name, value in arguments.sarcse_fields().items():
            if value != getattr(config, name):
                raise ValueError(f"{source} was saved with {name}={getattr(config, name)}: leave --{name} out.")
        model = AutoModel.from_pretrained(source, **options)
    else:
        model = SarcseModel.from_encoder_pretrained(
            source, tokenizer=tokenizer, **options, **arguments.sarcse_fields()
        )
    tokenizer.model_max_length = encoder_max_length(model, tokenizer)
    return model, tokenizer


def build_trainer(
    model_arguments: ModelArguments, data: DataArguments, training: SarcseTrainingArguments
) -> tuple[SarcseTrainer, dict[str, datasets.Dataset], Callable[[], dict[str, Any]]]:
    """
    Everything that can go wrong for a reason of the user's, in the order of its cost: arguments, data, model.

    Returns:
        The trainer, the STS tasks to score before and after training, and what makes the record of the training, for
        one process to call at its end: it reads all sentences.

    Raises:
        ValueError: with a message that says what was found and what to do.
    """
    check_together(model_arguments, data, training)
    set_seed(training.seed)
    with training.main_process_first(desc="reading the data"):
        sentences = load_sentences(data)
        eval_pairs, tasks = load_sts_data(data, training)
    batch = training.per_device_train_batch_size * training.world_size * training.gradient_accumulation_steps
    if len(sentences) < batch:
        raise ValueError(
            f"{len(sentences)} sentences do not fill one batch of {batch}: lower --per_device_train_batch_size."
        )
    model, tokenizer = build_model(model_arguments)
    with training.main_process_first(desc="tokenising"):
        tokens = tokenize(sentences, tokenizer, data)
    weights = None
    if training.reconstruction_weight > 0:
        counts = token_counts(tokens, model.config.encoder_config.vocab_size, model.config.special_token_ids)
        weights = token_weights(counts, training.frequency_weighting, training.frequency_smoothing)
    trainer = SarcseTrainer(
        model=model,
        args=training,
        train_dataset=tokens,
        eval_dataset=eval_pairs,
        eval_name="stsb" if data.eval_pairs is None else "pairs",
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        token_weights=weights,
    )
    base_model = describe_base_model(model_arguments.model_name_or_path, model_arguments.model_revision)
    record = partial(training_record, base_model, model.config, data, sentences, training)
    return trainer, tasks, record


def measure_before(
    source: str, revision: str, device: torch.device, tasks: dict[str, datasets.Dataset]
) -> dict[str, Measurement]:
    """
    What the model that training starts from makes of the tasks: an encoder under both simple poolers. Mean pooling
    comes first, for the differences in sts_results.json are to it: it is the baseline that is hard to beat.
    """
    is_sarcse = kind_of_model(source, revision) == "sarcse"
    measurements = {}
    for pooler in ("mean",) if is_sarcse else ("mean", "cls"):
        model, tokenizer = load_model(source, pooler, revision)
        name = f"before: {source}" + ("" if is_sarcse else f", {pooler}")
        measurements[name] = measure(partial(encode, model.to(device), tokenizer), tasks, model.config.pooler)
    return measurements


def run(
    trainer: SarcseTrainer,
    tasks: dict[str, datasets.Dataset],
    record: Callable[[], dict[str, Any]],
    source: str,
    revision: str,
) -> None:
    """Train, write the output folder, and print the table of scores and the lines that load the model."""
    args = trainer.args
    # Every process has a share in this, as in the evaluations.
    measurements = measure_before(source, revision, args.device, tasks) if tasks else {}
    set_seed(args.seed)  # again, so that a run trains the same model whether it is scored before or not
    resume = args.resume_from_checkpoint
    metrics = trainer.train(resume_from_checkpoint=True if resume == "last" else resume).metrics
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
    print(f"""
The model is in {output_dir}. Load it with

from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{output_dir}", trust_remote_code=True)
model = AutoModel.from_pretrained("{output_dir}", trust_remote_code=True)
embeddings = model(**tokenizer(["A sentence.", "Another."], padding=True, return_tensors="pt")).pooler_output
""")


def how_to_go_on(training: SarcseTrainingArguments) -> str:
    if not any(Path(training.output_dir).glob("checkpoint-*")):
        return ""
    return " `--resume_from_checkpoint last` with the same command goes on from the last checkpoint."


def main() -> None:
    try:
        model_arguments, data, training = parse_arguments(sys.argv[1:])
        to_release = options_of_training(training) if training.push_to_hub else None
        training.push_to_hub = False  # the Trainer's own push uploads checkpoints and pickles, and writes another card
        trainer, tasks, record = build_trainer(model_arguments, data, training)
    except ValueError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        run(trainer, tasks, record, model_arguments.model_name_or_path, model_arguments.model_revision)
    except KeyboardInterrupt:
        print(f"\nInterrupted at step {trainer.state.global_step}.{how_to_go_on(training)}", file=sys.stderr)
        sys.exit(130)
    except (OSError, SafetensorError) as error:  # no room on the disk, for one
        print(f"train.py: error: {error}{how_to_go_on(training)}", file=sys.stderr)
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
