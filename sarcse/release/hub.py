"""Pushes releases and Spaces to the Hub: checks permissions, makes one commit, and explains errors."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session, hf_raise_for_status, validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from transformers import TrainingArguments


TRANSIENT = (408, 429, 500, 502, 503, 504)
RETRY_AFTER = (1, 2, 4, 8)  # seconds

# Files that identify a release and a Space of this project, in a folder and on the Hub.
RELEASE_MARK, SPACE_MARK = "golden_embeddings.json", "space.json"


def repository_of_training(args: TrainingArguments, token: str | None = None) -> str:
    """
    The repository, with its owner, that a training will push its release to. Called before the training, so that
    missing permissions are reported early.

    Raises:
        ValueError: no token can write there, it is public with `hub_private_repo`, or the Hub cannot be reached.
    """
    name = args.hub_model_id or Path(args.output_dir).name
    validate_repo_id(name)
    try:
        repo_id = full_repo_id(name, token)
        if args.hub_private_repo and HfApi(token=token).repo_exists(repo_id):
            check_private(HfApi(token=token), repo_id, "model")
        check_metadata(args.hub_license, args.hub_language)
        return repo_id
    except (HTTPError, OSError) as error:
        raise ValueError(f"--push_to_hub: {explain(error, name)}") from error


def check_metadata(license: str | None, language: list[str]) -> None:
    """
    Have the Hub validate the user's metadata for the card. With an invalid value it would reject the final commit.

    Raises:
        ValueError: the Hub does not know this licence or language.
        HTTPError, OSError: the Hub cannot be reached.
    """
    data = ModelCardData(license=license, language=language or None)
    if not data.to_dict():
        return
    # Not `ModelCard.validate`: before huggingface_hub 2 it ignored HF_ENDPOINT and asked huggingface.co.
    card = {"repoType": "model", "content": f"---\n{data}\n---\n"}
    try:
        hf_raise_for_status(get_session().post(f"{HfApi().endpoint}/api/validate-yaml", json=card))
    except HfHubHTTPError as error:
        if error.response.status_code != 400:
            raise
        reason = " ".join(str(error.server_message or error).split())
        raise ValueError(f"the Hub does not accept the licence or the language: {reason}") from error


def files_of(folder: Path) -> dict[str, Path]:
    """Every file by its path in the repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def full_repo_id(name: str, token: str | None = None) -> str:
    """
    `name` with its owner, by default the user.

    Raises:
        PermissionError: the token is read-only, or the owner is neither the user nor one of the user's organisations.
        HTTPError, OSError: there is no token, the Hub does not know it, or the Hub cannot be reached.
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
    Push the folder as one tagged commit; returns the commit. Files that are already on the Hub are not sent again.
    Temporary errors and lost connections are retried.

    Raises:
        ValueError: the repository or the tag holds something else, or is public and was to be private; nothing was
            sent.
        HTTPError, OSError: the Hub refuses, or cannot be reached.
    """
    return patiently(
        partial(push_once, folder, repo_id, private, revision, tag, commit_message, token),
        repo_id,
    )


def patiently(send: Callable[[], str], repo_id: str) -> str:
    for seconds in RETRY_AFTER:
        try:
            return send()
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in TRANSIENT:
                raise
            print(f"{explain(error, repo_id)} Trying again in {seconds} s.", file=sys.stderr)
            time.sleep(seconds)
    return send()


def make_repository(api: HfApi, repo_id: str, private: bool, kind: str, **of_space: str) -> None:
    """
    Create a repository unless it exists.

    Raises:
        ValueError: it exists and is public, but was to be private. The Hub's own call would go on without a word.
    """
    # None: the organisation's default
    api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True, **of_space)
    if private:
        check_private(api, repo_id, kind)


def check_private(api: HfApi, repo_id: str, kind: str) -> None:
    """
    Raises:
        ValueError: the repository is public.
    """
    if not api.repo_info(repo_id, repo_type=kind).private:
        raise ValueError(
            f"{repo_id} exists and is public, but was to be private: make it private in its settings on the Hub, "
            f"{'add --public_space, ' * (kind == 'space')}or choose another name. Nothing was sent."
        )


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
    full_repo_id(repo_id, token)  # gives the clearest error for a token without permission
    make_repository(api, repo_id, private, "model")
    if revision != "main":
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    files, references = files_of(folder), api.list_repo_refs(repo_id)
    heads, tags = ({ref.name: ref.target_commit for ref in refs} for refs in (references.branches, references.tags))
    if tag in tags:
        if not same_content(files, remote_files(api, repo_id, tag)):
            raise ValueError(f"{repo_id} already has a tag {tag} for another release: choose another --tag.")
        return tags[tag]
    there = remote_files(api, repo_id, heads[revision])
    if set(there) - {"README.md"} and RELEASE_MARK not in there:
        names = ", ".join(sorted(there)[:5])
        raise ValueError(f"{repo_id} holds something that is not a release ({names}): choose another name.")
    # Not upload_folder, which may split a slow upload into several commits: nobody should load half a release.
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


def push_space(files: dict[str, Path], repo_id: str, private: bool, message: str, token: str | None = None) -> str:
    """
    Push the files of a Space as one commit, which is returned. Other files stay. Retries like `push`.

    Raises:
        ValueError: the repository holds something else, or is public and was to be private; nothing was sent.
        HTTPError, OSError: the Hub refuses, or cannot be reached.
    """
    return patiently(partial(push_space_once, files, repo_id, private, message, token), repo_id)


def push_space_once(files: dict[str, Path], repo_id: str, private: bool, message: str, token: str | None) -> str:
    api = HfApi(token=token)
    full_repo_id(repo_id, token)
    make_repository(api, repo_id, private, "space", space_sdk="gradio")
    there = set(api.list_repo_files(repo_id, repo_type="space"))
    if there - {".gitattributes", "README.md"} and SPACE_MARK not in there:
        names = ", ".join(sorted(there)[:5])
        raise ValueError(f"{repo_id} holds another Space ({names}): choose another name.")
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    return api.create_commit(repo_id, operations, commit_message=message, repo_type="space").oid


def remote_files(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {e.path: e for e in entries if isinstance(e, RepoFile) and e.path != ".gitattributes"}


def same_content(files: dict[str, Path], there: dict[str, RepoFile]) -> bool:
    """Compares the hashes that the Hub keeps: SHA-256 for large files, git's hash for others."""
    if set(files) != set(there):
        return False
    hashes = ((path, there[name]) for name, path in files.items())
    return all(sha256(p) == e.lfs.sha256 if e.lfs else git_hash(p.read_bytes()) == e.blob_id for p, e in hashes)


def explain(error: Exception, repo_id: str) -> str:
    """The error in one line, with what the user can do about it. Never contains the token."""
    if isinstance(error, PermissionError):
        return str(error)
    if isinstance(error, LocalTokenNotFoundError):
        return "no access token: log in with `hf auth login`, or set HF_TOKEN."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is out of reach: unset it."
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
