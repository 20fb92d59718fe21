"""
A Space of a release: a page that demonstrates the model and shows its card, on the Hub or on this machine.

The page is `app.py`, copied unchanged. `space.json` beside it names the models; the README.md has the Hub's metadata.
"""

import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, SpaceCard, SpaceCardData
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers import PretrainedConfig
from transformers.utils import ADAPTER_CONFIG_NAME as ADAPTER
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

import configuration_sarcse
from configuration_sarcse import AUTO_MAP
from sarcse.evaluation.report import markdown_text
from sarcse.loading import kind_of_model, loadable, plain_poolers, released_pooler
from sarcse.options import MODEL_CARD, RELEASE_COMMAND, SpaceOptions
from sarcse.output import write_json
from sarcse.release.card import WIDGET
from sarcse.release.folder import RELEASE_CODE
from sarcse.release.hub import RELEASE_MARK, SPACE_MARK, explain, files_of, push_space


# The versions that the page is tested with, and that the Hub runs.
GRADIO_VERSION, PYTHON_VERSION = "6.31.0", "3.11"

# The same ranges as in requirements.txt and, for Gradio and sentence-transformers, pyproject.toml.
REQUIREMENTS = ("gradio>=6.31,<7", "sentence-transformers>=6,<7", "torch>=2.6,<2.14", "transformers>=5.5,<6")

APP = MODEL_CARD / "app.py"
TEMPLATE = MODEL_CARD / "space.md"

# How a card names the encoder that a training started from, if it is on the Hub.
STARTED_FROM = re.compile(r"Started\s+from\s+`([^`]+)`\s+at\s+commit\s+`([0-9a-f]{40})`")
NO_SECOND_MODEL = (
    "No second model is shown: this model's card names no encoder on the Hub that the training started from."
)


@dataclass
class Shown:
    """
    A model on the page.

    Args:
        name (`str`): Its id on the Hub, or its folder relative to the Space.
        revision (`str`, *optional*): Commit on the Hub; None for a folder.
        pooling (`str`, *optional*): "mean" or "cls"; None if the model's own code or its modules of
            sentence-transformers make the embedding.
        code (`bool`): The model's own code makes the embedding, and may run.
        source (`str`): Hub id or folder to load it from on this machine.
        files (`list[str]`): The files in its folder or repository.
        private (`bool`): Its repository on the Hub is private.
    """

    name: str
    revision: str | None
    pooling: str | None
    code: bool
    source: str
    files: list[str] = field(default_factory=list)
    private: bool = False

    def settings(self) -> dict[str, str | bool | None]:
        return {
            "name": self.name,
            "revision": self.revision,
            "pooling": self.pooling,
            "code": self.code,
        }


def make_space(model: str, revision: str, options: SpaceOptions, private: bool, token: str | None = None) -> None:
    """
    Write and, if requested, push the Space of a release; prints what was done.

    Args:
        model (`str`): Folder or Hub id of the release.
        revision (`str`): Branch, tag or commit on the Hub. The Space pins the commit that it points to now.
        options (`SpaceOptions`): Options of the command.
        private (`bool`): Make a new Space private. One of a private model is private without it.
        token (`str`, *optional*): Default: the token from `hf auth login` or HF_TOKEN.

    Raises:
        ValueError: says what is wrong and, if something is left to do, which command to run.
    """
    folder = Path(options.space)
    first = find_release(model, revision, folder, options.trust_remote_code)
    card = read_card(first)
    second = second_model(options, card, folder)
    try:
        files = write_space(folder, first, second, card)
    except OSError as error:
        raise ValueError(f"the Space could not be written to {folder}: {error}") from error
    print(
        f"Written: {folder}\n"
        f"To run it on this machine: `pip install -r {folder}/requirements.txt`, then `python {folder / APP.name}`."
    )
    if options.push_space is None:
        return
    message = f"Space of {first.name} at {first.revision}"
    needs_token = first.private or second is not None and second.private
    hidden = (private or needs_token) and not options.public_space
    try:
        push_space(files, options.push_space, hidden, message, token)
    except (HTTPError, OSError) as error:
        parts = [*RELEASE_COMMAND, first.name, "--revision", str(first.revision), *options.flags()]
        command = shlex.join(parts + ["--private"] * private)
        raise ValueError(
            f"{explain(error, options.push_space)}\nThe Space is complete in {folder}. To finish:\n  {command}"
        ) from error
    print(f"Pushed: {HfApi().endpoint}/spaces/{options.push_space}")
    if needs_token:
        print("The model is private: add a secret HF_TOKEN to the Space, with a token that can read the model.")


# --- The models ------------------------------------------------------------------------------------------------------


def find_release(name_or_path: str, revision: str, folder: Path, trust_remote_code: bool) -> Shown:
    """
    Raises:
        ValueError: there is no release under this name or path, or its code is not trusted.
    """
    found = find(name_or_path, revision, folder, trust_remote_code)
    if RELEASE_MARK not in found.files:
        raise ValueError(
            f"{name_or_path}: not a release. Add --release_dir OUT to build one from a training's output, or give a "
            "release as MODEL."
        )
    return found


def find(name_or_path: str, revision: str, folder: Path, trust_remote_code: bool = False) -> Shown:
    """
    A model, with its name relative to `folder`, where the Space will be.

    Raises:
        ValueError: it is neither a folder here nor on a reachable Hub, it holds no model, or it needs code that is not
            trusted.
    """
    path, commit, private = Path(name_or_path), None, False
    if path.is_dir():
        name, files = os.path.relpath(path.resolve(), folder.resolve()), list(files_of(path))
    else:
        name = name_or_path
        commit, files, private = look_up(name, revision)
    kind = kind_of_model(name_or_path, commit or "main")
    if kind == "sentence-transformers":
        check_modules(name_or_path, commit)
        return Shown(name, commit, None, False, name_or_path, files, private)
    if CONFIG_NAME not in files:
        raise ValueError(f"{name_or_path}: no model in it (no {CONFIG_NAME}).")
    with loadable(name_or_path):
        config, _ = PretrainedConfig.get_config_dict(name_or_path, revision=commit or "main")
    # A plain release names its pooler, and any other release has code. An encoder gets mean pooling.
    pooler = released_pooler(name_or_path, config)
    pooling = "mean" if kind == "encoder" else plain_poolers()[pooler] if pooler is not None else None
    if pooling is None and not trust_remote_code:
        check_code(name_or_path, commit, config)
    return Shown(name, commit, pooling, pooling is None, name_or_path, files, private)


def check_modules(name_or_path: str, commit: str | None) -> None:
    """
    Raises:
        ValueError: a model of sentence-transformers has modules of its own.
    """
    modules = json.loads(Path(cached_file(name_or_path, "modules.json", revision=commit)).read_text(encoding="utf-8"))
    own = [module["type"] for module in modules if not module["type"].startswith("sentence_transformers.")]
    if own:
        raise ValueError(
            f"{name_or_path}: modules.json names code of its own ({', '.join(own)}), which a Space does not run. Give "
            "a model whose modules are all of sentence-transformers, an encoder, or a release of this project."
        )


def check_code(name_or_path: str, commit: str | None, config: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the code that a model's page would run is not this installation's, byte for byte.
    """
    foreign, own = [], Path(configuration_sarcse.__file__).parent
    for file in sorted(RELEASE_CODE):
        there = cached_file(name_or_path, file, revision=commit, _raise_exceptions_for_missing_entries=False)
        if there is None or Path(there).read_bytes() != (own / file).read_bytes():
            foreign.append(file)
    if config.get("auto_map") != AUTO_MAP:
        foreign = [f"auto_map {config.get('auto_map')} of {CONFIG_NAME}"]
    if cached_file(name_or_path, ADAPTER, revision=commit, _raise_exceptions_for_missing_entries=False):
        foreign.append(f"of the model that {ADAPTER} names")
    if foreign:
        where = f"{name_or_path} at commit {commit}" if commit else name_or_path
        raise ValueError(
            f"{where}: its page would run Python code that is not this installation's ({', '.join(foreign)}). That "
            "code can do on the page's machine whatever its user can. If you have read it and trust it, add "
            "--trust_remote_code."
        )


def look_up(name: str, revision: str) -> tuple[str, list[str], bool]:
    """The commit of a model on the Hub, its files, and whether it is private."""
    try:
        validate_repo_id(name)
        about = HfApi().model_info(name, revision=revision)
    except HFValidationError as error:
        raise ValueError(f"{name}: no such folder, and not the name of a model on the Hub.") from error
    except (HTTPError, OSError) as error:
        raise ValueError(f"{name}: no such folder, and {explain(error, name)}") from error
    return str(about.sha), [file.rfilename for file in about.siblings or []], bool(about.private)


def read_card(model: Shown) -> ModelCard:
    with loadable(model.source):
        path = Path(cached_file(model.source, "README.md", revision=model.revision))
        return ModelCard(path.read_text(encoding="utf-8"))


def second_model(options: SpaceOptions, card: ModelCard, folder: Path) -> Shown | None:
    """
    The requested model. Default: the encoder on the Hub that the training started from, under mean pooling.

    The card is a stranger's text. So the encoder is pinned to the commit that the card names, and nothing in its
    repository can make the page run code or read a folder.
    """
    if options.beside is not None:
        return find(options.beside, "main", folder, options.trust_remote_code)
    started_from = STARTED_FROM.search(card.text)
    if started_from is None:
        return None
    name, commit = started_from.groups()
    try:
        validate_repo_id(name)
    except HFValidationError:  # a path, for example
        return None
    return Shown(name, commit, pooling="mean", code=False, source=name)


# --- The folder ------------------------------------------------------------------------------------------------------


def check_space(options: SpaceOptions, model: str, release_dir: str | None = None, push: str | None = None) -> None:
    """
    Early checks, before anything is written: for the Space of `model`, or of a release that will be built from it and
    perhaps pushed.

    Raises:
        ValueError: the folder holds something else or would be inside the model's, the second model does not exist,
            or the Hub would reject the Space.
    """
    folder = Path(options.space)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--space {folder}: is a file, not a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SPACE_MARK).is_file():
        raise ValueError(f"--space {folder}: holds something that is not a Space; choose a new folder.")
    for other in filter(None, (model, release_dir)):
        if Path(other).resolve() in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"--space {folder}: would be inside the model's folder {other}; choose another folder.")
    if options.beside is not None:
        find(options.beside, "main", folder, options.trust_remote_code)
    if options.push_space is not None:
        at_hub = push is not None if release_dir is not None else not Path(model).is_dir()
        check_push(options.push_space, at_hub, options.beside)


def check_push(repo_id: str, at_hub: bool, beside: str | None) -> None:
    """
    Raises:
        ValueError: the repository has no name, or a model of the Space is on this machine only.
    """
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"--push_space {repo_id}: add the owner, you/{repo_id}.")
    if not at_hub:
        raise ValueError(
            f"--push_space {repo_id}: its model is only on this machine. Push the release with --release_dir OUT "
            "--push you/name, or give the name of a release on the Hub as MODEL."
        )
    if beside is not None and Path(beside).is_dir():
        raise ValueError(
            f"--beside {beside}: is only on this machine. A Space on the Hub needs a model that is there too."
        )


def write_space(folder: Path, first: Shown, second: Shown | None, card: ModelCard) -> dict[str, Path]:
    """Write the files of a Space, replacing those of an earlier one; returns them by name."""
    name = Path(first.source).resolve().name if first.revision is None else first.name.split("/")[-1]
    link = f"{HfApi().endpoint}/{first.name}/tree/{first.revision}"
    what = f"[{markdown_text(first.name)}]({link})" if first.revision else "this model"
    about = f"Sentence embeddings: compare and search sentences with {what}."
    models = [shown for shown in (first, second) if shown is not None]
    settings = {
        "title": name,
        "about": f"# {markdown_text(name)}\n\n{about}",
        "models": [shown.settings() for shown in models],
        "no_second_model": None if second else NO_SECOND_MODEL,
        "examples": [[item["source_sentence"], *item["sentences"]] for item in WIDGET],
    }
    data = SpaceCardData(
        title=name,
        emoji="🔎",
        colorFrom="blue",
        colorTo="green",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version=PYTHON_VERSION,
        app_file=APP.name,
        short_description="Compare and search sentences, read the scores",
        license=card.data.license,
        models=[shown.name for shown in models if shown.revision] or None,
        preload_from_hub=[preloaded(first)] if first.revision else None,
    )
    folder = folder.resolve()  # the folder that a link will lead to, if there is none yet
    files = {name: folder / name for name in (APP.name, SPACE_MARK, "requirements.txt", "README.md")}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(APP, files[APP.name])
    write_json(files[SPACE_MARK], settings)
    files["requirements.txt"].write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    pinned = f", at commit `{first.revision}`" if first.revision else ""
    text = SpaceCard.from_template(data, str(TEMPLATE), title=markdown_text(name), what=what, pinned=pinned)
    text.save(files["README.md"])
    return files


def preloaded(model: Shown) -> str:
    """What the Hub downloads while it builds the Space, in its syntax: repository, files, commit."""
    names = [name for name in model.files if not name.startswith((".", "onnx/"))]
    return f"{model.name} {','.join(names)} {model.revision}"
