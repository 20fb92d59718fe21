"""
training_record.json: the facts about a training that a card shows, written beside the model after training.

Nothing in it identifies this machine: local files and folders appear only with the last part of their names.
"""

import json
import platform
import subprocess
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, TrainingArguments
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from configuration_sarcse import __version__
from sarcse.loading import ARCHITECTURE
from sarcse.options import CORPUS, ENGLISH
from sarcse.training.arguments import WITHOUT_EFFECT, SarcseTrainingArguments
from sarcse.training.checkpoints import decides


PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers")


def describe_base_model(name_or_path: str, revision: str) -> dict[str, str | None]:
    """
    The encoder or SARCSE model that a training starts from: its `name`, and its commit as `revision`, which is None if
    it is not on the Hub. Call this before the training, because a branch may move on during it.
    """
    if not name_or_path:
        return {"name": "random weights", "revision": None}
    if Path(name_or_path).exists():
        return {"name": Path(name_or_path).name, "revision": None}
    try:
        commit = extract_commit_hash(cached_file(name_or_path, CONFIG_NAME, revision=revision), None)
    except OSError:  # a name that was set by hand
        commit = None
    return {"name": name_or_path, "revision": commit}


def code_commit() -> str | None:
    """The commit of this code, with `-dirty` if it has been changed since; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # git would find a repository that the environment may be inside
        return None
    git = partial(
        subprocess.run, capture_output=True, encoding="utf-8", check=True, cwd=root, stdin=subprocess.DEVNULL
    )
    try:
        changed = git(["git", "status", "--porcelain", "--", "*.py"]).stdout.strip()
        return git(["git", "rev-parse", "HEAD"]).stdout.strip() + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit yet
        return None


def training_record(
    base_model: dict[str, str | None],
    sentence_encoder: str | None,
    config: PretrainedConfig,
    sentences: dict[str, Any],
    args: SarcseTrainingArguments,
    commit: str | None,
    seconds: float | None,
    picked_on: str | None,
) -> dict[str, Any]:
    """
    The content of training_record.json.

    Args:
        base_model (`dict`): From `describe_base_model`.
        sentence_encoder (`str`, *optional*): What is kept of the base model, if that is a sentence encoder.
        config (`SarcseConfig`): The trained model's.
        sentences (`dict`): The description of a `Corpus`.
        args (`SarcseTrainingArguments`): The training's.
        commit (`str`, *optional*): From `code_commit`, when the training began.
        seconds (`float`, *optional*): Duration of the training; None if it was interrupted.
        picked_on (`str`, *optional*): SHA-256 of the graded pairs that picked the checkpoint; None if none did.
    """
    values = args.to_dict()
    values["view_dropout"] = args.view_dropout_of(config.pooler)
    if sentences.get("token_ids"):
        values["max_seq_length"] = None  # they were cut elsewhere, if at all
    if args.token_frequencies not in (ENGLISH, CORPUS):
        values["token_frequencies"] = Path(args.token_frequencies).name
    if values["eval_strategy"] != "steps":
        values["eval_steps"] = None
    return {
        "base_model": base_model,
        "sentence_encoder": sentence_encoder,
        "architecture": {name: getattr(config, name) for name in [*ARCHITECTURE, "normalize"]},
        "train_data": sentences,
        "picked_on": picked_on,
        # What, with the data and the model's configuration, determines the trained weights, as JSON values.
        "hyperparameters": {
            name: json.loads(json.dumps(value, default=str))
            for name, value in values.items()
            if decides(name) and name not in WITHOUT_EFFECT
        },
        "hardware": hardware(args),
        "seconds": seconds,
        "versions": versions(),
        "commit": commit,
    }


def versions() -> dict[str, str]:
    """Versions of this project, of Python and of `PACKAGES`."""
    packages = {package: version(package) for package in PACKAGES}
    return {"sarcse": __version__, "python": platform.python_version(), **packages}


def hardware(args: TrainingArguments) -> str:
    """The number of processes, and the device of each."""
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    threads = torch.get_num_threads()
    return f"{args.world_size} x {args.device.type.upper()} ({threads} thread{'s' * (threads > 1)})"
