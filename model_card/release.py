"""
From a model that train.py wrote to a release: one folder, verified in a process of its own, pushed in one commit.

Every step can be repeated: a release is built in full or not at all, and a push finds what is there already.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from model_card.card import Facts, eval_result_entries, read_facts, write_card
from model_card.hub import explain, files_of, push, sha256
from modeling_sarcse import SarcseModel
from sarcse.loading import kind_of_model, load_model, needs_own_code


# transformers' own limit has changed between its versions; files of this size pass every proxy and can be resumed.
MAX_SHARD_SIZE = "5GB"

# What is not of these kinds does not leave this machine: no pickle, no checkpoint, no optimizer.
RELEASE_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".jinja", ".md", ".yaml", ".png"}
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


@dataclass
class ReleaseOptions:
    """
    What the command and the trainer ask for.

    Args:
        model_dir (`str`): What the trainer wrote.
        release_dir (`str`): Where the release is built; made anew each time.
        push (`str`, *optional*): Repository on the Hub, `you/name`. Without it the release stays here.
        private (`bool`): Make a new repository private.
        revision (`str`): Branch to push to.
        tag (`str`, *optional*): Name of this release. Default: `release-` and a hash of its content.
        commit_message (`str`, *optional*): Default: `Release` and the tag.
        license (`str`, *optional*): Licence of the model, for the card.
        language (`list[str]`): Languages of the training text, for the card.
        results (`str`, *optional*): results.json of eval_sts.py. Default: the scores that train.py wrote.
        seeds (`list[str]`): Folders of the same training with other seeds, for mean and deviation.
    """

    model_dir: str
    release_dir: str
    push: str | None = None
    private: bool = False
    revision: str = "main"
    tag: str | None = None
    commit_message: str | None = None
    license: str | None = None
    language: list[str] = field(default_factory=list)
    results: str | None = None
    seeds: list[str] = field(default_factory=list)

    def command(self) -> str:
        """The command line that does this again."""
        parts = ["python", "-m", "model_card", self.model_dir, "--release_dir", self.release_dir]
        for name in ("push", "tag", "commit_message", "license", "results"):
            if getattr(self, name) is not None:
                parts += [f"--{name}", getattr(self, name)]
        parts += ["--private"] * self.private
        parts += ["--revision", self.revision] if self.revision != "main" else []
        for name in ("language", "seeds"):
            parts += [f"--{name}", *getattr(self, name)] if getattr(self, name) else []
        return shlex.join(parts)


def release(options: ReleaseOptions, token: str | None = None) -> str | None:
    """
    Build, verify and, if asked, push a release; prints what was done, and returns the address of what was pushed.

    Raises:
        ValueError: with what is wrong, where the model is, and the command that finishes the job.
    """
    try:
        folder, tag = build(options)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the release could not be written to {options.release_dir}: {error}\n"
            f"The model in {options.model_dir} is as it was. When that is mended:\n  {options.command()}"
        ) from error
    print(f"Built and verified: {folder}")
    if options.push is None:
        print("To publish it, the same with --push you/name.")
        return None
    to_finish = f"The release is complete in {folder}. To finish:\n  {options.command()}"
    try:
        commit = push(folder, options.push, options.private, options.revision, tag, options.commit_message, token)
    except (HTTPError, OSError) as error:
        raise ValueError(f"{explain(error, options.push)}\n{to_finish}") from error
    except KeyboardInterrupt:
        print(f"\nInterrupted. {to_finish}", file=sys.stderr)
        raise
    print(
        f"Pushed: {HfApi().endpoint}/{options.push}, tag {tag}, commit {commit}\n"
        f'AutoModel.from_pretrained("{options.push}", revision="{commit}", trust_remote_code=True)'
    )
    return f"{HfApi().endpoint}/{options.push}/commit/{commit}"


# --- The folder ------------------------------------------------------------------------------------------------------


def build(options: ReleaseOptions) -> tuple[Path, str]:
    """
    The release folder, complete and verified, and its tag; the folder appears in one move or not at all.

    Raises:
        ValueError: there is no SARCSE model, the folder holds something else, a fact of the card is missing or
            contradicts another, or the release does not give the model's embeddings.
        OSError: nothing can be written there.
    """
    model_dir, release_dir = Path(options.model_dir), Path(options.release_dir)
    check_folders(model_dir, release_dir)
    check_names(options)
    model, tokenizer = load_model(str(model_dir))
    facts = read_facts(model_dir, model, tokenizer, options.results, options.seeds)
    release_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=release_dir.parent, prefix=f".{release_dir.name}-") as temporary:
        folder = Path(temporary, "release")
        write_model(model, tokenizer, folder)
        write_results(facts, folder)
        tag = options.tag or content_tag(folder)
        write_card(
            folder / "README.md",
            facts,
            repo_id=options.push or release_dir.name,
            revision=tag,
            license=options.license,
            language=options.language,
        )
        verify(folder)
        if release_dir.exists():
            shutil.rmtree(release_dir)
        os.replace(folder, release_dir)
    return release_dir, tag


def check_folders(model_dir: Path, release_dir: Path) -> None:
    if not model_dir.is_dir():
        raise ValueError(f"{model_dir}: no such folder.")
    if kind_of_model(str(model_dir)) != "sarcse":
        raise ValueError(f"{model_dir}: no SARCSE model in it. MODEL_DIR is what the training wrote.")
    fields, _ = PretrainedConfig.get_config_dict(str(model_dir))
    check_releasable(str(model_dir), fields["encoder_config"])
    if release_dir.resolve() == model_dir.resolve() or release_dir.resolve() in model_dir.resolve().parents:
        raise ValueError(f"--release_dir {release_dir}: would overwrite the model in {model_dir}.")
    if release_dir.exists() and not release_dir.is_dir():
        raise ValueError(f"--release_dir {release_dir}: is a file.")
    if release_dir.is_dir() and any(release_dir.iterdir()) and not (release_dir / "golden_embeddings.json").is_file():
        raise ValueError(f"--release_dir {release_dir}: holds something that is not a release; choose a new folder.")


def check_releasable(name: str, encoder_fields: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the encoder runs code of its own, which whoever loads the release would need, too.
    """
    if needs_own_code(encoder_fields):
        raise ValueError(
            f"{name}: no release can be made of it. Its encoder runs code of its own "
            f"({encoder_fields['auto_map']['AutoModel']}), which a release does not carry."
        )


def check_names(options: ReleaseOptions) -> None:
    """What the Hub would refuse, before it has a commit."""
    if options.push is not None:
        validate_repo_id(options.push)
        if "/" not in options.push:
            raise ValueError(f"--push {options.push}: with its owner, you/{options.push}; the card names it.")
    if options.tag is not None and (not re.fullmatch(r"\w[\w.-]*", options.tag) or options.tag == options.revision):
        raise ValueError(f"--tag {options.tag}: a tag has letters, digits, _, . and -, and is no branch's name.")


def write_model(model: SarcseModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights, configuration, code, tokenizer, golden embeddings."""
    # Where the encoder was loaded from may be a path of this machine; the card says it better.
    model.config.encoder_config._name_or_path = ""
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    golden = {
        "about": "What AutoModel gives for these sentences, in one padded batch, in float32 on a CPU.",
        "relative_tolerance": GOLDEN_TOLERANCE,
        "sentences": GOLDEN_SENTENCES,
        "embeddings": golden_embeddings(model, tokenizer),
    }
    write_json(folder / "golden_embeddings.json", golden)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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


# --- Verification ----------------------------------------------------------------------------------------------------


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
        content = path.read_bytes() if path.suffix != ".safetensors" else b""
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
        difference, errors = process.stdout.strip(), process.stderr.strip() or f"exit code {process.returncode}"
        reason = f"largest difference {difference}" if difference else errors.splitlines()[-1]
        raise ValueError(f"the release does not give the model's embeddings in a new process: {reason}")
