"""Writes a release folder, and verifies that it is complete, reproduces the embeddings, and holds nothing else."""

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

from modeling_sarcse import SarcseModel
from sarcse.loading import tokenizer_errors, without_progress_bars
from sarcse.output import write_json
from sarcse.release.card import eval_result_entries
from sarcse.release.facts import Facts
from sarcse.release.hub import files_of, sha256
from sarcse.release.plain import max_length, write_plain_model, write_pooling


# Fixed, as transformers' default differs between versions. Proxies pass files of this size; transfers can be resumed.
MAX_SHARD_SIZE = "5GB"

# Only these kinds of files leave this machine: no pickle, no checkpoint, no optimizer state.
WEIGHTS = {".safetensors", ".onnx", ".onnx_data"}
RELEASE_SUFFIXES = {*WEIGHTS, ".json", ".txt", ".model", ".jinja", ".md", ".yaml", ".png"}
RELEASE_CODE = {"configuration_sarcse.py", "modeling_sarcse.py"}

# Short, long, empty, rare words, accents, right-to-left, outside the basic plane, and beyond every encoder's limit.
GOLDEN_SENTENCES = [
    "A dog runs across the wet grass.",
    "The committee postponed its vote until the spring, when the new members will have taken their seats.",
    "Why?",
    "",
    "Photosynthesis in cyanobacteria predates the Cambrian.",
    "Le café était fermé; 東京は雨だった. שלום 🙂",
    "A very long sentence goes on " + "and on " * 600,
]
GOLDEN_TOLERANCE = 1e-5  # relative to the largest value; summing float32 in another order changes less


@without_progress_bars()
def write_model(
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    plain: bool,
    with_decoder: bool,
    prompts: dict[str, str] | None = None,
) -> None:
    """Write weights, configuration, tokenizer, golden embeddings, and the code unless `plain`. Changes the model."""
    # This may be a path on this machine; the card names the encoder.
    model.config.encoder_config._name_or_path = ""
    # The encoder's repository may have code that is not needed: whoever trusts the release's code does not trust that.
    for fields in (vars(model.config.encoder_config), tokenizer.init_kwargs):
        for name in ("auto_map", "custom_pipelines"):
            fields.pop(name, None)
    if not with_decoder:
        leave_decoder_out(model)
    if plain:
        write_plain_model(model, tokenizer, folder, MAX_SHARD_SIZE)
    else:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        describe_onnx_outputs(model, tokenizer, folder)
    by_name = {"prompts": prompts or {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", by_name)
    write_tokenizer(tokenizer, folder)
    # transformers 5 puts it only into tokenizer_config.json; fastembed before 0.9 fails without this file.
    write_json(folder / "special_tokens_map.json", tokenizer.special_tokens_map)
    golden = {
        "about": "The embeddings of these sentences, in one padded batch, in float32 on a CPU.",
        "relative_tolerance": GOLDEN_TOLERANCE,
        "sentences": GOLDEN_SENTENCES,
        "embeddings": golden_embeddings(model, tokenizer),
    }
    write_json(folder / "golden_embeddings.json", golden)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """
    Save it so that tokenizer.json alone, as programs without transformers read it, cuts at the model's limit and does
    not pad. Otherwise it has what the last call or another program left there.
    """
    if tokenizer.is_fast:
        backend, limit = tokenizer.backend_tokenizer, max_length(tokenizer)
        backend.no_padding()
        backend.no_truncation()
        if limit is not None:
            backend.enable_truncation(limit, direction=tokenizer.truncation_side)
    with tokenizer_errors():
        tokenizer.save_pretrained(folder)


def describe_onnx_outputs(model: SarcseModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """
    For a model with code, write what text-embeddings-inference requires: the limit in tokens and a pooling. Any
    pooling gives the same result (`onnx_files.Readable`). sentence-transformers ignores it, as modules.json does not
    list it.
    """
    path = folder / "sentence_bert_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**fields, "max_seq_length": max_length(tokenizer)})
    write_pooling(folder, model.config.hidden_size, "cls")


def leave_decoder_out(model: SarcseModel) -> None:
    """Remove it permanently, also for reloading. It holds more than half of the autoencoder's parameters."""
    if model.sentence_decoder is not None and any(True for _ in model.sentence_decoder.parameters()):
        model.sentence_decoder = None
        model.config.with_decoder = False


@torch.no_grad()
def golden_embeddings(model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> list[list[float]]:
    """With nine digits, which identify every float32 value."""
    batch = tokenizer(GOLDEN_SENTENCES, padding=True, truncation=True, return_tensors="pt")
    embeddings = model.float()(**batch).pooler_output  # (len(GOLDEN_SENTENCES), d)
    if not embeddings.isfinite().all():
        raise ValueError("the model's embeddings are not finite numbers, so it cannot be released.")
    return [[float(f"{value:.9g}") for value in row] for row in embeddings.tolist()]


def write_results(facts: Facts, folder: Path) -> None:
    """Write the scores in the format of the Hub's leaderboards, and copy the figures."""
    entries = eval_result_entries(facts)
    if entries:
        (folder / ".eval_results").mkdir()
        text = yaml.safe_dump(entries, sort_keys=False)
        (folder / ".eval_results" / "sts.yaml").write_text(text, encoding="utf-8")
    for figure in facts.figures():
        shutil.copy(figure, folder)


def content_tag(folder: Path) -> str:
    """A tag derived from the content. The card can pin it; it cannot name the commit that it is part of."""
    digest = hashlib.sha256()
    for name, path in files_of(folder).items():
        if name != "README.md":  # contains the tag
            digest.update(f"{name} {sha256(path)}\n".encode())
    return f"release-{digest.hexdigest()[:12]}"


def verify(folder: Path) -> None:
    """
    Check that the folder holds only a release and no access token, and that it reproduces the golden embeddings. That
    happens in a new process without this project on its path and without network.

    Raises:
        ValueError: one of these checks failed; the message says which.
    """
    files = files_of(folder)
    strangers = [n for n, path in files.items() if path.suffix not in RELEASE_SUFFIXES and n not in RELEASE_CODE]
    if strangers:
        raise ValueError(f"{', '.join(strangers)} would be in the release, but does not belong there.")
    token = get_token()
    for name, path in files.items():
        content = path.read_bytes() if path.suffix not in WEIGHTS else b""
        if re.search(rb"hf_[A-Za-z0-9]{30,}", content) or (token and token.encode() in content):
            raise ValueError(f"{name} would be in the release, but contains an access token.")
    with tempfile.TemporaryDirectory() as elsewhere:
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
        process = subprocess.run(
            [sys.executable, "-c", Path(__file__).with_name("check.py").read_text(encoding="utf-8"), folder.resolve()],
            cwd=elsewhere,
            env={
                **environment,
                "HF_HUB_OFFLINE": "1",
                "HF_MODULES_CACHE": elsewhere,
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONIOENCODING": "utf-8",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
        )
    if process.returncode != 0:
        errors = process.stderr.strip() or f"exit code {process.returncode}"
        reason = "; ".join(process.stdout.strip().splitlines()) or errors.splitlines()[-1]
        raise ValueError(f"the release does not reproduce the model's embeddings in a new process: {reason}")
