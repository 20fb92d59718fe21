"""What is in a release folder, and that it is whole, gives the model's embeddings, and holds nothing else."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from huggingface_hub import get_token
from transformers import PreTrainedTokenizerBase

from model_card.card import eval_result_entries
from model_card.facts import Facts
from model_card.hub import files_of, sha256
from model_card.plain import max_length, write_plain_model, write_pooling
from modeling_sarcse import SarcseModel
from sarcse.record import write_json


# transformers' own limit has changed between its versions; files of this size pass every proxy and can be resumed.
MAX_SHARD_SIZE = "5GB"

# What is not of these kinds does not leave this machine: no pickle, no checkpoint, no optimizer.
WEIGHTS = {".safetensors", ".onnx", ".onnx_data"}
RELEASE_SUFFIXES = {*WEIGHTS, ".json", ".txt", ".model", ".jinja", ".md", ".yaml", ".png"}
RELEASE_CODE = {"configuration_sarcse.py", "modeling_sarcse.py"}

# Short, long, empty, rare, accented, right to left, outside the basic plane, and past every encoder's limit.
GOLDEN_SENTENCES = [
    "A dog runs across the wet grass.",
    "The committee postponed its vote until the spring, when the new members will have taken their seats.",
    "Why?",
    "",
    "Photosynthesis in cyanobacteria predates the Cambrian.",
    "Le café était fermé; 東京は雨だった. שלום 🙂",
    "A very long sentence goes on " + "and on " * 600,
]
GOLDEN_TOLERANCE = 1e-5  # relative to the largest value: float32 sums in another order stay below it


def write_model(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, folder: Path, plain: bool, with_decoder: bool
) -> None:
    """Weights, configuration, tokenizer, golden embeddings, and the code if not `plain`; changes the model to that."""
    # Where the encoder was loaded from may be a path of this machine; the card says it better.
    model.config.encoder_config._name_or_path = ""
    if not with_decoder:
        leave_decoder_out(model)
    if plain:
        write_plain_model(model, tokenizer, folder, MAX_SHARD_SIZE)
    else:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        describe_onnx_outputs(model, tokenizer, folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 has it in tokenizer_config.json alone; fastembed before 0.9 stops without it.
    write_json(folder / "special_tokens_map.json", tokenizer.special_tokens_map)
    golden = {
        "about": "The embeddings of these sentences, in one padded batch, in float32 on a CPU.",
        "relative_tolerance": GOLDEN_TOLERANCE,
        "sentences": GOLDEN_SENTENCES,
        "embeddings": golden_embeddings(model, tokenizer),
    }
    write_json(folder / "golden_embeddings.json", golden)


def describe_onnx_outputs(model: SarcseModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """
    Beside a model with code, what text-embeddings-inference stops without: the limit in tokens, and a pooling, which
    any would do for (`onnx_files.Readable`). sentence-transformers reads modules.json, where the second is
    not named.
    """
    path = folder / "sentence_bert_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**fields, "max_seq_length": max_length(tokenizer)})
    write_pooling(folder, model.config.hidden_size, "cls")


def leave_decoder_out(model: SarcseModel) -> None:
    """For good, also when the model is loaded again: half of the parameters that the autoencoder adds and more."""
    if model.sentence_decoder is not None and any(True for _ in model.sentence_decoder.parameters()):
        model.sentence_decoder = None
        model.config.with_decoder = False


@torch.no_grad()
def golden_embeddings(model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> list[list[float]]:
    """Nine digits tell every float32 from its neighbours."""
    batch = tokenizer(GOLDEN_SENTENCES, padding=True, truncation=True, return_tensors="pt")
    embeddings = model.float()(**batch).pooler_output  # (len(GOLDEN_SENTENCES), d)
    if not embeddings.isfinite().all():
        raise ValueError("the model's embeddings are not finite numbers: it is not fit for a release.")
    return [[float(f"{value:.9g}") for value in row] for row in embeddings.tolist()]


def write_results(facts: Facts, folder: Path) -> None:
    """The scores as the Hub's leaderboards read them, and the figures."""
    entries = eval_result_entries(facts)
    if entries:
        (folder / ".eval_results").mkdir()
        text = yaml.safe_dump(entries, sort_keys=False)
        (folder / ".eval_results" / "sts.yaml").write_text(text, encoding="utf-8")
    for figure in facts.figures():
        shutil.copy(figure, folder)


def content_tag(folder: Path) -> str:
    """A name for this content: a card can pin it, where it cannot name the commit that it is itself a part of."""
    digest = hashlib.sha256()
    for name, path in files_of(folder).items():
        if name != "README.md":  # which has the tag in it
            digest.update(f"{name} {sha256(path)}\n".encode())
    return f"release-{digest.hexdigest()[:12]}"


def verify(folder: Path) -> None:
    """
    Nothing in the folder but a release, no token in its texts, and the golden embeddings come out of a new process
    that has no project on its path and no network.

    Raises:
        ValueError: says which of these fails.
    """
    files = files_of(folder)
    strangers = [n for n, path in files.items() if path.suffix not in RELEASE_SUFFIXES and n not in RELEASE_CODE]
    if strangers:
        raise ValueError(f"{', '.join(strangers)} would be in the release, and does not belong there.")
    token = get_token()
    for name, path in files.items():
        content = path.read_bytes() if path.suffix not in WEIGHTS else b""
        if re.search(rb"hf_[A-Za-z0-9]{30,}", content) or (token and token.encode() in content):
            raise ValueError(f"{name} would be in the release, and has an access token in it.")
    with tempfile.TemporaryDirectory() as elsewhere:
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
        process = subprocess.run(
            [sys.executable, "-c", Path(__file__).with_name("check.py").read_text(encoding="utf-8"), folder.resolve()],
            cwd=elsewhere,
            env={**environment, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": elsewhere, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if process.returncode != 0:
        # What it got to say, and what it failed with.
        differences, errors = process.stdout.strip(), process.stderr.strip() or f"exit code {process.returncode}"
        reason = f"largest difference, {differences.splitlines()[-1]}" if differences else errors.splitlines()[-1]
        raise ValueError(f"the release does not give the model's embeddings in a new process: {reason}")
