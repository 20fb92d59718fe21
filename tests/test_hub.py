"""
The whole life of a model on a Hub: the real clients, in processes of their own, against the loopback Hub.

Tokens here look like real ones and must turn up nowhere but in the requests' headers.
"""

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from .conftest import DEMO, ENCODER, PROJECT, flags, run_python
from .loopback_hub import LoopbackHub


MINE, READ_ONLY = "hf_" + "w1" * 17, "hf_" + "r2" * 17
TOKENS = {MINE: ("me", "write"), READ_ONLY: ("me", "read")}


def sts_file(pairs: int) -> bytes:
    """A Parquet file as the Hub's STS data sets have them, with as many pairs as the published task."""
    generator = random.Random(pairs)
    sentences = (DEMO / "sentences.txt").read_text().splitlines()[:120]
    rows = [
        {"sentence1": generator.choice(sentences), "sentence2": generator.choice(sentences), "score": index % 6 * 1.0}
        for index in range(pairs)
    ]
    buffer = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture()
def hub():
    with LoopbackHub(TOKENS) as hub:
        yield hub


def push(hub: LoopbackHub, model_dir: Path, home: Path, *options: object, token: str | None = MINE, **variables: str):
    """`python -m model_card ... --push me/x`; the release is built in `home`, the client's caches are there too."""
    return run_python(
        *("-m", "model_card", model_dir, "--release_dir", home / "release", "--push", "me/x", *options),
        cwd=PROJECT,
        **{**hub.environment(home, token), **variables},
    )


def assert_tells_no_token(process: subprocess.CompletedProcess, *folders: Path) -> None:
    for token in TOKENS:
        assert token not in process.stdout + process.stderr
        for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
            assert token.encode() not in path.read_bytes(), path


# --- The whole life --------------------------------------------------------------------------------------------------


def test_the_whole_life_of_a_model(tmp_path):
    """Encoder and data downloaded, trained, pushed, loaded as the card says, trained further, pushed again."""
    with LoopbackHub(TOKENS) as hub:
        encoder = hub.add("models", "org/encoder", ENCODER)
        hub.add("datasets", "org/wiki", {"sentences.txt": (DEMO / "sentences.txt").read_bytes()})
        splits = {"test": 1379, "validation": 1500}
        files = {f"data/{split}-00000-of-00001.parquet": sts_file(pairs) for split, pairs in splits.items()}
        hub.add("datasets", "mteb/stsbenchmark-sts", files)
        common = {
            "train_file": "hf://datasets/org/wiki/sentences.txt",
            "eval_pairs": None,
            "sts_tasks": "STSB",
            "max_train_samples": 16,
            "hub_model_id": "me/sarcse-test",
            "push_to_hub": "true",
        }
        commits = []
        for name, options in {
            "first": {"model_name_or_path": "org/encoder", "hub_license": "apache-2.0", "hub_language": "en"},
            "second": {"model_name_or_path": "me/sarcse-test", "channels": None, "seed": 7},
        }.items():
            if commits:
                options["model_revision"] = commits[0]
            arguments = flags(tmp_path / name, **common, **options)
            environment = hub.environment(tmp_path / "home", MINE)
            process = run_python(PROJECT / "train.py", *arguments, cwd=tmp_path, timeout=600, **environment)
            assert process.returncode == 0, process.stderr
            assert_tells_no_token(process, tmp_path / name)
            commits.append(re.search(r"Pushed: \S+/me/sarcse-test, tag \S+, commit (\w{40})", process.stdout)[1])
        repository = hub.repositories["models", "me/sarcse-test"]
        assert list(repository.commits)[1:] == commits, "one commit a release, after the Hub's own first one"
        assert list(repository.tags.values()) == commits
        assert ("POST", "/api/validate-yaml", 200) in hub.log, "the client has the Hub validate the card's metadata"
        check_card(repository.commits[commits[0]], encoder)
        assert "README.md" in repository.commits[commits[1]]
        load_both(hub, tmp_path, commits)


def check_card(files: dict[str, bytes], encoder: str) -> None:
    names = set(files) - {".gitattributes"}
    assert {".eval_results/sts.yaml", "model.safetensors", "README.md", "golden_embeddings.json"} <= names
    assert not [name for name in names if re.search(r"\.(bin|pt|pth|pkl|ckpt)$|checkpoint|optimizer|_args", name)]
    card = ModelCard(files["README.md"].decode())
    metadata = card.data.to_dict()
    assert metadata["base_model"] == "org/encoder" and metadata["datasets"] == ["org/wiki"]
    assert f"`org/encoder` at commit `{encoder}`" in card.content
    result = metadata["model-index"][0]["results"][0]
    entry = parse_eval_result_entries(yaml.safe_load(files[".eval_results/sts.yaml"]))[0]
    assert entry.dataset_id == result["dataset"]["type"] == "mteb/stsbenchmark-sts"
    assert entry.value == result["metrics"][0]["value"]


def load_both(hub: LoopbackHub, tmp_path: Path, commits: list[str]) -> None:
    """Without a token, as a stranger: the card's own lines, and both revisions beside each other."""
    environment = hub.environment(tmp_path / "stranger")
    files = hub.repositories["models", "me/sarcse-test"].commits[commits[0]]
    card = files["README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 4
    process = run_python("-c", "\n".join(blocks), cwd=tmp_path, **environment)
    assert process.returncode == 0, process.stderr
    last = process.stdout.splitlines()[-1]  # tensor(2.4e-07): the golden embeddings' largest difference
    assert float(last.removeprefix("tensor(").removesuffix(")")) <= 1e-5
    code = """
import json, sys, torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoTokenizer
found = []
for revision in sys.argv[1:]:
    model = AutoModel.from_pretrained("me/sarcse-test", revision=revision, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained("me/sarcse-test", revision=revision, trust_remote_code=True)
    golden = json.load(open(hf_hub_download("me/sarcse-test", "golden_embeddings.json", revision=revision)))
    with torch.no_grad():
        batch = tokenizer(golden["sentences"], padding=True, truncation=True, return_tensors="pt")
        found.append(model(**batch).pooler_output)
    torch.testing.assert_close(found[-1], torch.tensor(golden["embeddings"]), atol=1e-5, rtol=0)
assert (found[0] - found[1]).abs().max() > 1e-3
"""
    process = run_python("-c", code, *commits, cwd=tmp_path, **environment)
    assert process.returncode == 0, process.stderr
    process = run_python(
        *(PROJECT / "eval_sts.py", "me/sarcse-test", "--revision", commits[0], "--tasks", "STSB"),
        *("--output_dir", tmp_path / "scores"),
        cwd=tmp_path,
        **environment,
    )
    assert process.returncode == 0, process.stderr
    scores = json.loads((tmp_path / "scores" / "results.json").read_text())["models"]["me/sarcse-test"]
    published = ModelCard(card).data.eval_results[0].metric_value
    assert scores["tasks"]["STSB"]["spearman"] == pytest.approx(published, abs=0.005)


# --- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, "me/x", "no access token: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_" + "x9" * 17, "me/x", "the Hub does not know this access token"),
        (READ_ONLY, "me/x", "this access token may not write to me/x: use one with write access"),
        (MINE, "other/taken", "this access token may not write to other/taken: use one with write access"),
    ],
)
def test_no_right_to_push(hub, finished_run, tmp_path, token, repo, message):
    """Before a training (see below) and after it: a message, the release intact, and the command that finishes."""
    hub.add("models", "other/taken", {"config.json": b"{}"})
    process = push(hub, finished_run[0], tmp_path, "--push", repo, token=token)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert message in process.stderr
    command = f"python -m model_card {finished_run[0]} --release_dir {tmp_path / 'release'} --push {repo}"
    assert f"The release is complete in {tmp_path / 'release'}. To finish:\n  {command}\n" in process.stderr
    assert (tmp_path / "release" / "README.md").is_file()
    assert_tells_no_token(process, tmp_path)
    assert not [entry for entry in hub.log if entry[0] == "PUT"], "nothing was sent"
    trained = run_python(
        PROJECT / "train.py",
        *flags(tmp_path / "model", push_to_hub="true", hub_model_id=repo),
        cwd=tmp_path,
        **hub.environment(tmp_path, token),
    )
    assert trained.returncode == 2 and message in trained.stderr
    assert not (tmp_path / "model").exists(), "known before the training"
    assert_tells_no_token(trained, tmp_path)


def test_a_token_on_the_command_line_is_refused_and_not_repeated(tmp_path):
    process = run_python(PROJECT / "train.py", *flags(tmp_path / "model", hub_token=MINE), cwd=tmp_path)
    assert process.returncode == 2
    assert "--hub_token is seen by every user of this machine" in process.stderr
    assert_tells_no_token(process, tmp_path)


def test_no_network(finished_run, hub, tmp_path):
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    process = push(hub, finished_run[0], tmp_path, **nobody)
    assert process.returncode == 2 and "the connection to the Hub failed (ConnectError)." in process.stderr
    process = push(hub, finished_run[0], tmp_path, HF_HUB_OFFLINE="1")
    assert process.returncode == 2 and "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it." in process.stderr
    assert "To finish:" in process.stderr and "Traceback" not in process.stderr


@pytest.mark.parametrize(("method", "path"), [("POST", "/commit/"), ("PUT", "/large/"), ("POST", "/repos/create")])
def test_three_server_errors_are_waited_out(hub, finished_run, tmp_path, method, path):
    with hub.fault(method, path, 500, times=3):
        process = push(hub, finished_run[0], tmp_path)
    assert process.returncode == 0, process.stderr
    assert [status for _, where, status in hub.log if re.search(path, where)].count(500) == 3
    assert len(hub.repositories["models", "me/x"].commits) == 2


def test_a_connection_cut_in_the_middle_of_a_large_file(hub, finished_run, tmp_path):
    with hub.fault("PUT", "/large/", "cut", times=1):  # once: the client notices and sends it again
        process = push(hub, finished_run[0], tmp_path, "--tag", "v1")
    assert process.returncode == 0, process.stderr
    sent = hub.repositories["models", "me/x"].commits[hub.repositories["models", "me/x"].tags["v1"]]
    assert sent["model.safetensors"] == (tmp_path / "release" / "model.safetensors").read_bytes()


def test_a_server_that_stays_broken_and_the_command_that_finishes(hub, finished_run, tmp_path):
    with hub.fault("POST", "/commit/", 503):
        process = push(hub, finished_run[0], tmp_path, "--tag", "v1")
    assert process.returncode == 2 and "the Hub answered 503 for me/x" in process.stderr
    assert len(hub.repositories["models", "me/x"].commits) == 1, "no half release"
    uploads = len([entry for entry in hub.log if entry[0] == "PUT"])
    command = process.stderr.splitlines()[-1].split()
    assert command[:3] == ["python", "-m", "model_card"]
    finished = run_python(*command[1:], cwd=PROJECT, **hub.environment(tmp_path, MINE))
    assert finished.returncode == 0, finished.stderr
    assert "v1" in hub.repositories["models", "me/x"].tags
    assert len([entry for entry in hub.log if entry[0] == "PUT"]) == uploads, "what had arrived is not sent again"


def test_interrupting_a_push(hub, finished_run, tmp_path):
    with hub.fault("POST", "/commit/", 503):
        process = subprocess.Popen(
            [sys.executable, "-m", "model_card", finished_run[0], "--release_dir", tmp_path / "out", "--push", "me/x"],
            cwd=PROJECT,
            env={**os.environ, **hub.environment(tmp_path, MINE)},
            stderr=subprocess.PIPE,
            text=True,
        )
        while not any(status == 503 for *_, status in hub.log):
            time.sleep(0.1)
        process.send_signal(2)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted. The release is complete in" in errors and "Traceback" not in errors


def test_a_second_push_of_the_same_content_changes_nothing(hub, finished_run, tmp_path):
    for _ in range(2):
        process = push(hub, finished_run[0], tmp_path)
        assert process.returncode == 0, process.stderr
        shutil.rmtree(tmp_path / "release")
    repository = hub.repositories["models", "me/x"]
    assert len(repository.commits) == 2 and len(repository.tags) == 1
    assert repository.tags.popitem()[1] in process.stdout


def test_a_tag_is_not_moved_and_a_release_replaces_the_last_one(hub, finished_run, tmp_path):
    """To a branch, in a private repository; files that the new release lacks are gone with it."""
    options = ["--private", "--revision", "next"]
    assert push(hub, finished_run[0], tmp_path, "--tag", "v1", *options).returncode == 0
    repository = hub.repositories["models", "me/x"]
    assert repository.private and set(repository.branches) == {"main", "next"}
    assert set(repository.commits[repository.branches["main"]]) == {".gitattributes"}
    repository.commit({**repository.commits[repository.branches["next"]], "stale.bin": b"old"}, branch="next")
    other = shutil.copytree(finished_run[0], tmp_path / "other")
    (other / "sts_results.json").unlink()
    refused = push(hub, other, tmp_path, "--tag", "v1", *options)
    assert (
        refused.returncode == 2 and "me/x has a tag v1 already, of another release: choose another" in refused.stderr
    )
    assert push(hub, other, tmp_path, "--tag", "v2", *options).returncode == 0
    latest = repository.commits[repository.branches["next"]]
    here = {path.relative_to(tmp_path / "release").as_posix() for path in (tmp_path / "release").rglob("*.*")}
    assert set(latest) == here | {".gitattributes"} and "stale.bin" not in latest


def test_a_repository_of_something_else_is_left_alone(hub, finished_run, tmp_path):
    hub.add("models", "me/x", {"config.json": b"{}", "adapter_model.safetensors": b"precious"})
    process = push(hub, finished_run[0], tmp_path)
    assert process.returncode == 2
    assert "me/x holds something that is not a release (adapter_model.safetensors, config.json)" in process.stderr
    assert len(hub.repositories["models", "me/x"].commits) == 1
