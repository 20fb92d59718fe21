"""
training_record.json: what a card tells of a training, written by train.py beside the model at its end.

Nothing in it names this machine: of local files and folders only the last part of their names.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, TrainingArguments
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash


FILE_NAME = "training_record.json"

# What decides, with the data and the model's configuration, which weights come out.
HYPERPARAMETERS = (
    "max_seq_length",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "autoencoder_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "contrastive_temperature",
    "reconstruction_weight",
    "frequency_weighting",
    "frequency_smoothing",
    "bf16",
    "fp16",
    "load_best_model_at_end",
    "metric_for_best_model",
    "eval_strategy",
    "eval_steps",
    "seed",
)
ARCHITECTURE = (
    "pooler",
    "kernel_sizes",
    "channels",
    "integration_kernel_size",
    "activation",
    "pooling",
    "decoder_length",
)
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers")


def training_record(
    model_name: str,
    model_revision: str,
    config: PretrainedConfig,
    max_seq_length: int,
    train_data: dict[str, Any],
    args: TrainingArguments,
) -> dict[str, Any]:
    """
    Args:
        model_name, model_revision (`str`): The encoder or SARCSE model that the training starts from.
        config (`SarcseConfig`): Of the model that is trained.
        max_seq_length (`int`): Tokens at which sentences are cut.
        train_data (`dict`): From `data.describe_sentences`.
        args (`SarcseTrainingArguments`): Of the training.
    """
    values = {"max_seq_length": max_seq_length, **args.to_dict()}
    if values["eval_strategy"] != "steps":
        values["eval_steps"] = None
    return {
        "base_model": {
            "name": Path(model_name).name if Path(model_name).exists() else model_name,
            # None for a local folder: then the name is no repository's.
            "revision": extract_commit_hash(cached_file(model_name, CONFIG_NAME, revision=model_revision), None),
        },
        "architecture": {name: getattr(config, name) for name in ARCHITECTURE},
        "train_data": train_data,
        "hyperparameters": {name: values[name] for name in HYPERPARAMETERS},
        "hardware": hardware(args),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def hardware(args: TrainingArguments) -> str:
    """Processes, and what each ran on."""
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    threads = torch.get_num_threads()
    return f"{args.world_size} x {args.device.type.upper()} ({threads} thread{'s' * (threads > 1)})"
