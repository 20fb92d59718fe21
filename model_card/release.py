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
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedTokenizerBase, TrainingArguments

from model_card.card import Facts, eval_result_entries, read_facts, write_card
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

TRANSIENT = (408, 429, 500, 502, 503, 504)
RETRY_AFTER = (1, 2, 4, 8)  # seconds


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


def repository_of_training(args: TrainingArguments, token: str | None = None) -> str:
    """
    Where the arguments of a training want the release, with its owner, if the Hub will have it there: better known
    before the training than after it.

    Raises:
        ValueError: there is no token that can write there, or no Hub to reach.
    """
    name = args.hub_model_id or Path(args.output_dir).name
    validate_repo_id(name)
    try:
        return full_repo_id(name, token)
    except (HTTPError, OSError) as error:
        raise ValueError(f"--push_to_hub: {explain(error, name)}") from error


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


def files_of(folder: Path) -> dict[str, Path]:
    """Every file by its path in the repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def content_tag(folder: Path) -> str:
    """A name for this content: a card can pin it, where it cannot name the commit that it is itself a part of."""
    digest = hashlib.sha256()
    for name, path in files_of(folder).items():
        if name != "README.md":  # which has the tag in it
            digest.update(f"{name} {sha256(path)}\n".encode())
    return f"release-{digest.hexdigest()[:12]}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


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


# --- The Hub ---------------------------------------------------------------------------------------------------------


def full_repo_id(name: str, token: str | None = None) -> str:
    """
    `name` with its owner, who is the user where it has none.

    Raises:
        PermissionError: the token is for reading, or the owner is neither the user nor an organisation of the user's.
        HTTPError, OSError: there is no token, the Hub does not know it, or cannot be reached.
    """
    user = HfApi(token=token).whoami()
    repo_id = name if "/" in name else f"{user['name']}/{name}"
    owners = {user["name"], *(organisation["name"] for organisation in user.get("orgs", []))}
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if repo_id.split("/")[0] not in owners or role == "read":
        raise PermissionError(explain_refusal(repo_id))
    return repo_id


def push(
    folder: Path,
    repo_id: str,
    private: bool,
    revision: str,
    tag: str,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """
    The folder as one commit, tagged; returns the commit. What is on the Hub already is not sent again. Answers that
    pass, and lost connections, are tried again.

    Raises:
        ValueError: the repository or the tag holds something else; nothing has been sent then.
        HTTPError, OSError: the Hub says no, or cannot be reached.
    """
    for seconds in RETRY_AFTER:
        try:
            return push_once(folder, repo_id, private, revision, tag, commit_message, token)
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in TRANSIENT:
                raise
            print(f"{explain(error, repo_id)} Trying again in {seconds} s.", file=sys.stderr)
            time.sleep(seconds)
    return push_once(folder, repo_id, private, revision, tag, commit_message, token)


def push_once(
    folder: Path,
    repo_id: str,
    private: bool,
    revision: str,
    tag: str,
    commit_message: str | None,
    token: str | None,
) -> str:
    api = HfApi(token=token)
    full_repo_id(repo_id, token)  # says best what a token lacks
    api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as the organisation has it
    if revision != "main":
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    files, references = files_of(folder), api.list_repo_refs(repo_id)
    heads, tags = ({ref.name: ref.target_commit for ref in refs} for refs in (references.branches, references.tags))
    if tag in tags:
        if not same_content(files, remote_files(api, repo_id, tag)):
            raise ValueError(f"{repo_id} has a tag {tag} already, of another release: choose another --tag.")
        return tags[tag]
    there = remote_files(api, repo_id, heads[revision])
    if set(there) - {"README.md"} and "golden_embeddings.json" not in there:
        names = ", ".join(sorted(there)[:5])
        raise ValueError(f"{repo_id} holds something that is not a release ({names}): choose another name.")
    # Not upload_folder, which may spread a slow upload over several commits: nobody shall load half a release.
    commit = api.create_commit(
        repo_id,
        operations=[
            *(CommitOperationDelete(name) for name in sorted(set(there) - set(files))),
            *(CommitOperationAdd(name, path) for name, path in files.items()),
        ],
        commit_message=commit_message or f"Release {tag}",
        revision=revision,
        parent_commit=heads[revision],  # refused if somebody else has committed since
    )
    api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit.oid


def remote_files(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {e.path: e for e in entries if isinstance(e, RepoFile) and e.path != ".gitattributes"}


def same_content(files: dict[str, Path], there: dict[str, RepoFile]) -> bool:
    """By the hashes that the Hub keeps: SHA-256 of a large file, git's of another."""
    if set(files) != set(there):
        return False
    hashes = ((path, there[name]) for name, path in files.items())
    return all(sha256(p) == e.lfs.sha256 if e.lfs else git_hash(p.read_bytes()) == e.blob_id for p, e in hashes)


def explain(error: Exception, repo_id: str) -> str:
    """What the user can do about it; never the token."""
    if isinstance(error, PermissionError):
        return str(error)
    if isinstance(error, LocalTokenNotFoundError):
        return "no access token: log in with `hf auth login`, or set HF_TOKEN."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it."
    if not isinstance(error, HfHubHTTPError):
        return f"the connection to the Hub failed ({type(error).__name__})."
    status = error.response.status_code
    if status == 401:
        return "the Hub does not know this access token: log in with `hf auth login`, or set HF_TOKEN to a valid one."
    if status == 403:
        return explain_refusal(repo_id)
    return f"the Hub answered {status} for {repo_id}: {error.server_message or 'no reason given'}."


def explain_refusal(repo_id: str) -> str:
    return (
        f"this access token may not write to {repo_id}: use one with write access from the repository's owner, "
        "or choose a name of your own."
    )
