"""
Turns a model that train.py wrote into a release: one folder, verified in a separate process, pushed in one commit.

Every step can be repeated: a release is built completely or not at all, and a push skips what is already there.
"""

import os
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from modeling_sarcse import SarcseModel
from sarcse.data.sts import load_tasks
from sarcse.loading import changed_in_sentence_transformers, kind_of_model, load_model, needs_own_code
from sarcse.options import ReleaseArguments, ReleaseOptions
from sarcse.release.card import placeholder, write_card
from sarcse.release.facts import read_facts
from sarcse.release.folder import content_tag, verify, write_model, write_results
from sarcse.release.hub import RELEASE_MARK, check_metadata, explain, push
from sarcse.release.plain import why_not_plain
from sarcse.release.space import make_space


def release(
    options: ReleaseOptions, token: str | None = None, tasks: dict[str, datasets.Dataset] | None = None
) -> str | None:
    """
    Build, verify and, if requested, push a release and its Space. Prints what was done, and returns the URL of the
    pushed commit. `tasks` is passed to `build`.

    Raises:
        ValueError: says what is wrong and, if something is left to do, where the model is and which command to run.
    """
    if options.push is not None:
        with suppress(HTTPError, OSError):  # the push reports them; the folder is useful without the Hub
            check_metadata(options.license, options.language)
    try:
        folder, tag = build(options, tasks)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the release could not be written to {options.release_dir}: {error}\n"
            f"The model in {options.model_dir} is unchanged. Once that is fixed, run:\n  {options.command()}"
        ) from error
    print(f"Built and verified: {folder}")
    trust = ", trust_remote_code=True" if any(folder.glob("*.py")) else ""
    if options.push is None:
        print(
            f'Load it with SentenceTransformer("{folder}"{trust}). To publish it, add --push you/name to the command.'
        )
        if options.space is not None:
            make_space(str(folder), "main", options.space, options.private, token)
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
        f'SentenceTransformer("{options.push}", revision="{commit}"{trust})'
    )
    if options.space is not None:
        make_space(options.push, commit, options.space, options.private, token)
    return f"{HfApi().endpoint}/{options.push}/commit/{commit}"


# --- The folder ------------------------------------------------------------------------------------------------------


def build(options: ReleaseOptions, tasks: dict[str, datasets.Dataset] | None = None) -> tuple[Path, str]:
    """
    Build and verify the release folder; returns it and its tag. The folder appears in one move or not at all.

    Args:
        options (`ReleaseOptions`): What to build.
        tasks (`dict[str, datasets.Dataset]`, *optional*):
            Graded pairs to score int8 on. Default: those that the options name.

    Raises:
        ValueError: there is no SARCSE model, it cannot be released in the requested form, or the folder holds
            something else. Or: a fact for the card is missing or contradicts another, or the release does not
            reproduce the model's embeddings.
        OSError: the folder cannot be written.
    """
    from sarcse.release import onnx_files  # imported here, since a training loads this module but needs no ONNX

    model_dir, release_dir = Path(options.model_dir), Path(options.release_dir)
    check_folders(model_dir, release_dir)
    release_dir = release_dir.resolve()  # a link stays, and the folder that it leads to is replaced
    check_names(options)
    prompts = prompts_of(options)
    model, tokenizer = load_model(str(model_dir))
    plain = is_plain(options, model, tokenizer)
    if options.onnx_int8 and not tasks:
        tasks = pairs_for_int8(options)
    release_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=release_dir.parent, prefix=f".{release_dir.name}-") as temporary:
        folder = Path(temporary, "release")
        write_model(model, tokenizer, folder, plain, options.with_decoder, prompts)
        facts = read_facts(model_dir, model, tokenizer, options.results, options.seeds)
        facts.plain = plain
        facts.onnx = onnx_files.write(model, tokenizer, folder, plain, tasks if options.onnx_int8 else None)
        write_results(facts, folder)
        tag = options.tag or content_tag(folder)
        write_card(
            folder / "README.md",
            facts,
            repo_id=options.push or placeholder(Path(options.release_dir).name),
            revision=tag,
            license=options.license,
            language=options.language,
        )
        verify(folder)
        if release_dir.exists():
            shutil.rmtree(release_dir)
        os.replace(folder, release_dir)
    return Path(options.release_dir), tag


def is_plain(options: ReleaseArguments, model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """
    Whether to release a plain encoder: as requested, by default wherever possible.

    Raises:
        ValueError: the options contradict each other, or the model cannot be released in that form.
    """
    if options.plain and (options.with_code or options.with_decoder):
        raise ValueError(f"--plain and --{'with_code' if options.with_code else 'with_decoder'} exclude each other.")
    reason = why_not_plain(model, tokenizer)
    if options.plain and reason is not None:
        raise ValueError(f"--plain: {reason}. Leave --plain out to release it with the code.")
    return reason is None and not (options.with_code or options.with_decoder)


def pairs_for_int8(options: ReleaseOptions) -> dict[str, datasets.Dataset]:
    """
    Raises:
        ValueError: the pairs cannot be read.
    """
    try:
        return load_tasks(["STSB"], options.sts_dir, options.pairs)
    except ValueError as error:
        raise ValueError(
            f"--onnx_int8 scores int8 on STS-B: give its folder with --sts_dir, or --pairs FILE. {error}"
        ) from error


def check_folders(model_dir: Path, release_dir: Path) -> None:
    if not model_dir.is_dir():
        raise ValueError(f"{model_dir}: no such folder.")
    kind = kind_of_model(str(model_dir))
    if kind == "sentence-transformers":
        raise ValueError(
            f"{model_dir}: no SARCSE model in it, or sentence-transformers' files beside it change its embeddings, "
            f"which a release would not keep: {changed_in_sentence_transformers(str(model_dir))}. Give the output "
            "folder of a training."
        )
    if kind != "sarcse":
        raise ValueError(f"{model_dir}: no SARCSE model in it. Give the output folder of a training.")
    fields, _ = PretrainedConfig.get_config_dict(str(model_dir))
    check_releasable(str(model_dir), fields.get("encoder_config", fields))
    if release_dir.resolve() == model_dir.resolve() or release_dir.resolve() in model_dir.resolve().parents:
        raise ValueError(f"--release_dir {release_dir}: would overwrite the model in {model_dir}.")
    if release_dir.exists() and not release_dir.is_dir():
        raise ValueError(f"--release_dir {release_dir}: is a file, not a folder.")
    if release_dir.is_dir() and any(release_dir.iterdir()) and not (release_dir / RELEASE_MARK).is_file():
        raise ValueError(f"--release_dir {release_dir}: holds something that is not a release; choose a new folder.")


def check_releasable(name: str, encoder_fields: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the encoder needs its own code, which a release does not include.
    """
    if needs_own_code(encoder_fields):
        raise ValueError(
            f"{name}: cannot be released. Its encoder needs its own code "
            f"({encoder_fields['auto_map']['AutoModel']}), which a release does not include."
        )


def prompts_of(options: ReleaseOptions) -> dict[str, str]:
    """
    Raises:
        ValueError: a prompt has no name or no text.
    """
    pairs = [prompt.partition("=") for prompt in options.prompt]
    for name, _, text in pairs:
        if not name or not text:
            raise ValueError(f"--prompt {name}: write NAME=TEXT, for example query='query: '.")
    return {name: text for name, _, text in pairs}


def check_names(options: ReleaseOptions) -> None:
    """Check names before anything is pushed: the Hub would reject invalid ones."""
    if options.push is not None:
        validate_repo_id(options.push)
        if "/" not in options.push:
            raise ValueError(f"--push {options.push}: add the owner, you/{options.push}; the card needs it.")
    if options.tag is not None and (not re.fullmatch(r"\w[\w.-]*", options.tag) or options.tag == options.revision):
        raise ValueError(
            f"--tag {options.tag}: use letters, digits, _, . and -, and not the name of the branch to push to."
        )
