"""The command line: a recipe, the flags that override it, hints for flags that do not exist, and exit codes."""

import argparse
import difflib
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from sarcse.options import DataArguments, in_utf8
from sarcse.training.arguments import WITHOUT_EFFECT, ModelArguments, SarcseTrainingArguments


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """
    Says which flags are refused and why, and omits "(default: None)", because such a help text explains the default
    itself.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.dest in WITHOUT_EFFECT:
            return f"Refused: {WITHOUT_EFFECT[action.dest]}."
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(HfArgumentParser):
    """HfArgumentParser with one-line errors, without the usage and its 150 options."""

    def error(self, message: str) -> NoReturn:
        print(f"train.py: error: {message}", file=sys.stderr)
        sys.exit(2)


def number_of_seeds(arguments: list[str]) -> tuple[int, list[str]]:
    """The value of `--seeds`, which is no field of a training, and the other arguments."""
    parser = ArgumentParser((), add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=1)
    given, others = parser.parse_known_args(arguments)
    if given.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {given.seeds}.")
    return given.seeds, others


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, SarcseTrainingArguments]:
    """
    Parse a recipe, if the first argument is one, and the flags after it, which override it, into the three groups.

    Raises:
        ValueError: if the recipe cannot be read, an argument is not UTF-8, or a field is unknown or has an impossible
            value.
        SystemExit: on `--help`, or if a value has the wrong type (exit code 2).
    """
    groups = (ModelArguments, DataArguments, SarcseTrainingArguments)
    parser = ArgumentParser(
        groups,
        description="Train a SARCSE model. The fields of RECIPE.yaml are these flags without the dashes. "
        "--seeds N trains N times, "
        "into OUTPUT_DIR-1 to OUTPUT_DIR-N, and compares.",
        usage="train.py [RECIPE.yaml] [--field value ...]",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--help_all", action="help", help="Show transformers' options, too, and those refused.")
    show_own_options(parser, "--help_all" in arguments)
    known = [f.name for group in groups for f in fields(group) if f.init]
    recipe = []
    if arguments and not arguments[0].startswith("-"):
        recipe = read_recipe(Path(arguments[0]), known)
        arguments = arguments[1:]
    *parsed, unknown = parser.parse_args_into_dataclasses(in_utf8(recipe + arguments), return_remaining_strings=True)
    if unknown:
        raise ValueError(unknown_field(unknown[0], known))
    return tuple(parsed)


# Of transformers' own options those that many trainings need.
OFTEN_NEEDED = (
    *("output_dir", "resume_from_checkpoint", "max_steps", "seed", "bf16", "gradient_checkpointing", "warmup_steps"),
    *("gradient_accumulation_steps", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo"),
)


def show_own_options(parser: argparse.ArgumentParser, all_options: bool) -> None:
    """
    Let the help list each option once, as `--max_steps` and not as `--max-steps`, too, and without `all_options` only
    those that this project has defined, and those `OFTEN_NEEDED`.
    """
    theirs = {f.name for f in fields(TrainingArguments)} - {*SarcseTrainingArguments.__annotations__, *OFTEN_NEEDED}
    for action in parser._actions:
        action.option_strings = [option for option in action.option_strings if "-" not in option.lstrip("-")]
        if not all_options and action.dest.removeprefix("no_") in theirs:
            action.help = argparse.SUPPRESS


def read_recipe(path: Path, known: list[str]) -> list[str]:
    """
    The recipe's fields as flags, so that argparse checks both in the same way. A null field keeps its default.

    Raises:
        ValueError: if the file cannot be read, is not a YAML mapping, or has an unknown field.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe. A recipe is a YAML file; flags begin with --.")
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text) or {}
        # The values as written: YAML reads `no` as false and 1e-5, which has no point, as a string.
        texts = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe consists of lines `field: value`.")
    flags = []
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path}: {unknown_field(name, known)}")
        if isinstance(value, list):
            flags += [f"--{name}", *texts[name]]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else texts[name]}")
    return flags


# Names in other programs and in earlier versions of transformers -> names here.
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
    "mlp_only_train": "pooler cls, whose extra layer is for training only",
    # sentence-transformers and common sense
    "model": "model_name_or_path",
    "train_data": "train_file",
    "output": "output_dir",
    "temperature": "contrastive_temperature",
    "max_length": "max_seq_length",
    "batch_size": "per_device_train_batch_size",
    "mini_batch_size": "gradient_cache_mini_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
}


def unknown_field(name: str, known: list[str]) -> str:
    """The error message for an unknown flag or field, with the nearest known one, if any."""
    name = str(name).split("=")[0]
    bare = name.lstrip("-")
    dashes = name[: len(name) - len(bare)]
    nearest = [OTHER_NAMES[bare]] if bare in OTHER_NAMES else difflib.get_close_matches(bare, known, n=1)
    return f"unknown field {name}." + (
        f" Did you mean {dashes}{nearest[0]}?" if nearest else " --help lists all fields."
    )
