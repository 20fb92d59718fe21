"""Shared fixtures: the embedded encoder, random encoders of other families, and the folder of real data."""

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from .commands import Command


# Before any Hugging Face library is imported:
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_HUB_DOWNLOAD_TIMEOUT"] = os.environ["HF_HUB_ETAG_TIMEOUT"] = "86400"  # a machine may be busy
# For the server of `run_command`. torch reads the first on import. Our modules ask on import whether there is a GPU;
# without the second, that would keep every forked process from using it.
os.environ["OMP_NUM_THREADS"] = os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
torch.set_num_threads(1)

PROJECT = Path(__file__).parent.parent
DEMO = PROJECT / "demo"
ENCODER = DEMO / "encoder"
SENTENCES = [
    "A dog runs across the wet grass.",
    "The committee postponed its vote until the spring, when the new members will have taken their seats.",
    "Why?",
    "Heat flows from the warmer body to the colder one.",
]

# A run of 4 steps of 8 sentences, gentle enough that both of its checkpoints are better than the encoder.
TINY_RUN = {
    "model_name_or_path": ENCODER,
    "train_file": DEMO / "sentences.txt",
    "eval_pairs": DEMO / "sts.tsv",
    "max_train_samples": 32,
    "per_device_train_batch_size": 8,
    "channels": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 0.0002,
    "contrastive_temperature": 0.01,
}


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("SARCSE_DATA") or PROJECT.parent / "shared")
    if not (folder / "data" / "senteval").is_dir():
        pytest.skip(f"no real data at {folder}: set SARCSE_DATA")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ENCODER)


def whole_model(encoder, **options):
    """A model in which every layer has an effect; in a fresh one the TextCNN and the decoder would add zero."""
    from sarcse import load_model

    return with_whole_layers(load_model(encoder, **options)[0])


def with_whole_layers(model):
    """The model, with random weights where a fresh one has zeros."""
    for part in (model.sentence_encoder, model.sentence_decoder):
        if hasattr(part, "zero_at_first"):
            torch.nn.init.normal_(part.get_submodule(part.zero_at_first).weight, std=0.1)
    return model


@pytest.fixture(scope="session")
def trained_like_model():
    """The embedded encoder under a fresh autoencoder, in evaluation mode: for reading only."""
    torch.manual_seed(0)
    return whole_model(str(ENCODER), channels=16)


@pytest.fixture(scope="session")
def saved_model(trained_like_model, tokenizer, tmp_path_factory) -> Path:
    """The same as a folder, with its tokenizer."""
    folder = tmp_path_factory.mktemp("saved") / "sarcse-test"
    trained_like_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CUSTOM_CONFIGURATION = """
from transformers import BertConfig

print("code of the encoder runs")

class CustomConfig(BertConfig):
    model_type = "custom_bert"
"""
CUSTOM_MODEL = """
from transformers import BertModel
from .configuration_custom import CustomConfig

class CustomModel(BertModel):
    config_class = CustomConfig
"""


@pytest.fixture(scope="session")
def custom_encoder(tmp_path_factory, tokenizer) -> Path:
    """An encoder with its own code, which prints a line when it runs."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("custom") / "encoder"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_custom.CustomConfig", "AutoModel": "modeling_custom.CustomModel"}
    (folder / "config.json").write_text(json.dumps({**fields, "model_type": "custom_bert", "auto_map": auto_map}))
    (folder / "configuration_custom.py").write_text(CUSTOM_CONFIGURATION)
    (folder / "modeling_custom.py").write_text(CUSTOM_MODEL)
    return folder


def run_python(
    *arguments: object, cwd: Path, largest_file: int | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """
    A real Python process, offline, with this interpreter and without the project on its path. Files of more than
    `largest_file` bytes cannot be written, as on a full disk. There is no timeout, since the machine may be busy.
    """
    limit = None if largest_file is None else partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest_file,) * 2)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=offline(environment),
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )


def run_command(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess:
    """
    As `run_python`, but with all imports done. For the project's commands, unless a test is about the start of the
    process, or sets environment variables that libraries read on import.
    """
    return start_command(*arguments, cwd=cwd, **options).wait()


def start_command(*arguments: object, cwd: Path, largest_file: int | None = None, **environment: str) -> Command:
    """As `run_command`, but continuing in the background."""
    return Command([*map(str, arguments)], cwd, offline(environment), largest_file)


def start_python(*arguments: object, cwd: Path, **environment: str) -> subprocess.Popen:
    """As `run_python`, but continuing in the background, with both streams merged, line by line."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=offline(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # the carriage returns of a progress bar end lines too
        # A shell starts what runs in its background with SIGINT ignored, and its children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def offline(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a process, on one thread, without the network and without a path to the project."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**clean, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}


def flags(output_dir: Path, **fields) -> list[str]:
    """The tiny run's flags for train.py; a field that is None is left out."""
    fields = {**TINY_RUN, "output_dir": output_dir, **fields}
    return [f"--{name}={value}" for name, value in fields.items() if value is not None]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The tiny run, started by the command outside the project's folder: (output folder, process)."""
    folder = tmp_path_factory.mktemp("run")
    process = run_python(PROJECT / "train.py", *flags(folder / "model"), cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder / "model", process


@pytest.fixture(scope="session")
def release_folder(finished_run, tmp_path_factory) -> Path:
    """A release of the tiny run, made by the command."""
    model_dir, _ = finished_run
    folder = tmp_path_factory.mktemp("release") / "sarcse-tiny"
    options = ["--license", "apache-2.0", "--language", "en", "--tag", "v1"]
    process = run_python("-m", "model_card", model_dir, "--release_dir", folder, *options, cwd=PROJECT)
    assert process.returncode == 0, process.stderr
    assert f"Built and verified: {folder}" in process.stdout
    return folder


# --- Small encoders, files and messages ------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def random_encoder(folder: Path, encoder, tokenizer) -> str:
    encoder.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def refusal(folder: Path, **fields) -> str:
    """The error message of train.py for the tiny run with these fields; empty if it would train."""
    from sarcse.training.build import build_trainer
    from sarcse.training.parsing import parse_arguments

    try:
        build_trainer(*parse_arguments(flags(folder / "out", **fields)))
    except ValueError as error:
        return str(error)
    return ""


def assert_same_weights(folder: Path, other: Path) -> None:
    from safetensors.torch import load_file

    one, two = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
