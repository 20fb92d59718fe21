"""
The whole life of a model on a Hub: the real clients, in separate processes, against the loopback Hub.

The tokens here look real, and may appear only in the requests' headers.
"""

import hashlib
import io
import json
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import datasets
import pyarrow
import pytest
import yaml
from huggingface_hub import ModelCard, constants, parse_eval_result_entries
from huggingface_hub.errors import HTTPError

from sarcse import SarcseTrainer, SarcseTrainingArguments
from sarcse.loading import load_model
from sarcse.options import ReleaseOptions
from sarcse.release import build as release_module
from sarcse.release import hub as hub_module
from sarcse.release.hub import files_of
from sarcse.training.parsing import parse_arguments

from .conftest import DEMO, ENCODER, PROJECT, flags, run_python, start_python
from .loopback_hub import LoopbackHub


MINE, READ_ONLY = "hf_" + "w1" * 17, "hf_" + "r2" * 17
TOKENS = {MINE: ("me", "write"), READ_ONLY: ("me", "read")}


def sts_file(pairs: int) -> bytes:
    """A Parquet file like those of the Hub's STS data sets, with this many pairs."""
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
def hub(monkeypatch, tmp_path):
    """A Hub that the client in this process also uses, without waiting between attempts."""
    with LoopbackHub(TOKENS) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)  # read from the environment when it is imported
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", MINE)
        monkeypatch.setattr(hub_module, "RETRY_AFTER", (0, 0, 0, 0))
        yield hub


@pytest.fixture()
def push(release_folder):
    """Push an existing release, by default to me/x; returns the commit."""

    def push(folder=release_folder, repo_id="me/x", private=False, revision="main", tag="v1") -> str:
        return hub_module.push(folder, repo_id, private, revision, tag)

    return push


def command(hub: LoopbackHub, model_dir: Path, home: Path, token: str | None) -> subprocess.CompletedProcess:
    """`python -m model_card ... --push me/x`; the release is built in `home`, the client's caches are there too."""
    options = ("--release_dir", home / "release", "--push", "me/x", "--tag", "v1")
    return run_python("-m", "model_card", model_dir, *options, cwd=PROJECT, **hub.environment(home, token))


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
            "metric_for_best_model": "stsb_spearman",
            "max_train_samples": 16,
            "hub_model_id": "me/sarcse-test",
            "push_to_hub": "true",
            "with_decoder": "true",  # for the second training
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
            process = run_python(PROJECT / "train.py", *arguments, cwd=tmp_path, **environment)
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
    assert entry.value == pytest.approx(100 * result["metrics"][0]["value"], abs=0.006)


def load_both(hub: LoopbackHub, tmp_path: Path, commits: list[str]) -> None:
    """Without a token, as any user: the card's own code, and both revisions side by side."""
    environment = hub.environment(tmp_path / "stranger")
    files = hub.repositories["models", "me/sarcse-test"].commits[commits[0]]
    card = files["README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    # The others need fastembed and optimum, which are not installed here: tests/compat.py runs them.
    process = run_python("-c", "\n".join(blocks[:3]), cwd=tmp_path, **environment)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout.splitlines()[-1]) <= 1e-5, "the golden embeddings' largest difference"
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
    assert scores["tasks"]["STSB"]["spearman"] == pytest.approx(100 * published, abs=0.005)


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
def test_no_right_to_push(hub, release_folder, monkeypatch, token, repo, message):
    """Ends with a message and the command that finishes the push; nothing is sent."""
    hub.add("models", "other/taken", {"config.json": b"{}"})
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(release_module, "build", lambda *_: (release_folder, "v1"))
    with pytest.raises(ValueError) as error:
        release_module.release(ReleaseOptions("model dir", str(release_folder), push=repo))
    assert str(error.value).splitlines() == [
        next(line for line in str(error.value).splitlines() if line.startswith(message)),
        f"The release is complete in {release_folder}. To finish:",
        f"  python -m model_card 'model dir' --release_dir {release_folder} --push {repo}",
    ]
    assert {method for method, *_ in hub.log} <= {"GET"}, "nothing was sent"


def test_a_token_that_cannot_write_is_known_before_the_training(hub, tmp_path):
    arguments = flags(tmp_path / "model", push_to_hub="true", hub_model_id="me/x")
    environment = hub.environment(tmp_path / "home", READ_ONLY)
    process = run_python(PROJECT / "train.py", *arguments, cwd=tmp_path, **environment)
    assert process.returncode == 2
    assert "train.py: error: --push_to_hub: this access token may not write to me/x" in process.stderr
    assert not (tmp_path / "model").exists()
    assert_tells_no_token(process, tmp_path)


def test_a_licence_that_the_hub_does_not_know_is_told_before_the_work(hub, finished_run, tmp_path):
    """Before a training and before a release: otherwise the Hub would refuse the commit at the end."""
    told = "the Hub does not accept the licence or the language: .*apache"
    args = SarcseTrainingArguments(str(tmp_path / "x"), hub_license="apache", eval_strategy="no", report_to="none")
    with pytest.raises(ValueError, match=told):
        hub_module.repository_of_training(args)
    options = ReleaseOptions(str(finished_run[0]), str(tmp_path / "out"), push="me/x", license="apache")
    with pytest.raises(ValueError, match=told):
        release_module.release(options)
    assert not (tmp_path / "out").exists() and not hub.repositories


def test_a_token_on_the_command_line_is_refused_and_not_repeated(capsys):
    with pytest.raises(ValueError, match="--hub_token is visible to every user of this machine") as error:
        parse_arguments(["--hub_token", MINE])
    assert MINE not in str(error.value) + "".join(capsys.readouterr())


def test_no_network(hub, push, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HTTPError) as error:
        push()
    assert hub_module.explain(error.value, "me/x") == "the connection to the Hub failed (ConnectError)."
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError) as error:
        push()
    assert hub_module.explain(error.value, "me/x").startswith("HF_HUB_OFFLINE is set, so the Hub is out of reach")


@pytest.mark.parametrize(("method", "path"), [("POST", "/commit/"), ("PUT", "/large/"), ("GET", "/whoami-v2")])
def test_three_server_errors_are_waited_out(hub, push, capsys, method, path):
    with hub.fault(method, path, 500, times=3):
        commit = push()
    assert [status for _, where, status in hub.log if re.search(path, where)].count(500) == 3
    repository = hub.repositories["models", "me/x"]
    assert len(repository.commits) == 2 and repository.tags == {"v1": commit}


def test_a_connection_cut_in_the_middle_of_a_large_file(hub, push, release_folder):
    """The client notices and sends it again, so that a complete file arrives."""
    with hub.fault("PUT", "/large/", "cut", times=2):
        commit = push()
    assert [status for method, _, status in hub.log if method == "PUT"].count(0) == 2
    sent = hub.repositories["models", "me/x"].commits[commit]
    assert sent["model.safetensors"] == (release_folder / "model.safetensors").read_bytes()


def test_a_server_that_stays_broken_and_the_command_that_finishes(hub, finished_run, tmp_path):
    with hub.fault("POST", "/commit/", 503):
        process = command(hub, finished_run[0], tmp_path, MINE)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "the Hub answered 503 for me/x" in process.stderr
    assert (tmp_path / "release" / "README.md").is_file()
    assert len(hub.repositories["models", "me/x"].commits) == 1, "no half release"
    uploads = len([entry for entry in hub.log if entry[0] == "PUT"])
    python, *arguments = process.stderr.splitlines()[-1].split()
    finished = run_python(*arguments, cwd=PROJECT, **hub.environment(tmp_path, MINE))
    assert finished.returncode == 0, finished.stderr
    assert "v1" in hub.repositories["models", "me/x"].tags
    assert len([entry for entry in hub.log if entry[0] == "PUT"]) == uploads, "what had arrived is not sent again"
    assert_tells_no_token(process, tmp_path)
    assert_tells_no_token(finished, tmp_path)


def test_interrupting_a_push(hub, finished_run, tmp_path):
    with hub.fault("POST", "/commit/", 503):
        command = ["-c", PATIENT_PUSH, finished_run[0], "--release_dir", tmp_path / "out", "--push", "me/x"]
        process = start_python(*command, cwd=PROJECT, **hub.environment(tmp_path, MINE))
        while not any(status == 503 for *_, status in hub.log):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
    assert process.returncode == 130
    assert "Interrupted. The release is complete in" in output and "Traceback" not in output


PATIENT_PUSH = """
from model_card import __main__
from sarcse.release import hub
hub.RETRY_AFTER = (10**6,)
__main__.main()
"""


def test_a_second_push_of_the_same_content_changes_nothing(hub, push):
    """With the same tag, and with another one, which then names the same commit."""
    commit = push()
    assert push() == commit and push(tag="v1.0") == commit
    repository = hub.repositories["models", "me/x"]
    assert len(repository.commits) == 2 and repository.tags == {"v1": commit, "v1.0": commit}


def test_a_tag_is_not_moved_and_a_release_replaces_the_last_one(hub, push, release_folder, tmp_path):
    """On a branch of a private repository. Files that the new release lacks are deleted."""
    push(private=True, revision="next")
    repository = hub.repositories["models", "me/x"]
    assert repository.private and set(repository.branches) == {"main", "next"}
    assert set(repository.commits[repository.branches["main"]]) == {".gitattributes"}
    repository.commit({**repository.commits[repository.branches["next"]], "stale.bin": b"old"}, branch="next")
    other = shutil.copytree(release_folder, tmp_path / "other")
    (other / "training_curve.png").unlink()
    with pytest.raises(ValueError, match="me/x already has a tag v1 for another release: choose another --tag"):
        push(other, revision="next")
    push(other, revision="next", tag="v2")
    latest = repository.commits[repository.branches["next"]]
    assert set(latest) == set(files_of(other)) | {".gitattributes"}


def test_a_repository_of_something_else_is_left_alone(hub, push):
    commit = hub.add("models", "me/x", {"config.json": b"{}", "adapter_model.safetensors": b"precious"})
    with pytest.raises(ValueError, match=r"not a release \(adapter_model.safetensors, config.json\): choose"):
        push()
    assert list(hub.repositories["models", "me/x"].commits) == [commit]


def test_nothing_private_is_sent_to_a_public_repository(hub, push, tmp_path):
    """The Hub creates no repository that exists, and so leaves it public; the page of a model is as private as it."""
    commits = {kind: hub.add(kind, "me/x", {"README.md": b"soon"}) for kind in ("models", "spaces")}
    public = "me/x exists and is public, but was to be private: make it private in its settings"
    with pytest.raises(ValueError, match=public):
        push(private=True)
    with pytest.raises(ValueError, match=public):
        hub_module.push_space({}, "me/x", private=True, message="a page")
    args = SarcseTrainingArguments(str(tmp_path), hub_model_id="me/x", hub_private_repo=True)
    with pytest.raises(ValueError, match=public):  # before the training
        hub_module.repository_of_training(args)
    assert all(list(hub.repositories[kind, "me/x"].commits) == [commits[kind]] for kind in commits)
    hub.repositories["models", "me/x"].private = True
    assert hub_module.repository_of_training(args) == "me/x" and push(private=True)


# --- An encoder with code of its own ---------------------------------------------------------------------------------


def test_an_encoder_with_code_of_its_own_comes_from_the_hub_with_it(custom_encoder, tmp_path):
    with LoopbackHub(TOKENS) as hub:
        hub.add("models", "org/custom", custom_encoder)
        score = ["org/custom", "--pairs", DEMO / "sts.tsv", "--trust_remote_code"]
        environment = hub.environment(tmp_path / "home", MINE)
        scored = run_python(PROJECT / "eval_sts.py", *score, cwd=tmp_path, **environment)
    assert scored.returncode == 0 and "code of the encoder runs" in scored.stdout, scored.stderr


READ_FILES = """
import json
from sarcse.data.sentences import DataArguments, load_sentences
read = {}
for name in ("data[1].csv", "data?.csv", "more/*.jsonl", "**/*.jsonl", "bad.csv", "none.csv", "cut.txt.zst"):
    for streaming in (False, True):
        try:
            rows = load_sentences(DataArguments(train_file=f"hf://datasets/org/files/{name}", streaming=streaming))
            read[f"{name} {streaming}"] = [row["text"] for row in rows]
        except ValueError as error:
            read[f"{name} {streaming}"] = str(error).split(",")[0]
print(json.dumps(read))
"""


def test_files_of_the_hub_are_found_by_name_and_by_pattern(tmp_path):
    """An existing file's name is never a pattern on the Hub either."""
    files = {"data[1].csv": b"id,text\n1,Of the first.\n", "data1.csv": b"id,text\n1,Of the other.\n"}
    files |= {"bad.csv": b"text\nA, b\n", "more/a.jsonl": b'{"text": "A."}\n', "more/b.jsonl": b'{"text": "B."}\n'}
    files["more/deep/c.jsonl"] = b'{"text": "C."}\n'
    files["cut.txt.zst"] = pyarrow.compress(b"A sentence.\n" * 1_000, "zstd", asbytes=True)[:-3]
    with LoopbackHub(TOKENS) as hub:
        hub.add("datasets", "org/files", files)
        process = run_python("-c", READ_FILES, cwd=PROJECT, **hub.environment(tmp_path))
    assert process.returncode == 0, process.stderr
    read = json.loads(process.stdout.splitlines()[-1])
    for streaming in (False, True):
        assert read[f"data[1].csv {streaming}"] == ["Of the first."]
        assert read[f"data?.csv {streaming}"] == ["Of the other."]
        assert read[f"more/*.jsonl {streaming}"] == ["A.", "B."]
        assert read[f"**/*.jsonl {streaming}"] == ["A.", "B.", "C."]
        assert "cut.txt.zst could not be loaded: OSError: Truncated" in read[f"cut.txt.zst {streaming}"]
        assert read[f"bad.csv {streaming}"] == "hf://datasets/org/files/bad.csv"
        assert read[f"none.csv {streaming}"] == "hf://datasets/org/files/none.csv: no such file."


def test_the_lines_of_the_readme_train_a_model_and_push_a_release(tmp_path):
    """As written, except for the encoder's name and the batch size. The card says what was done."""
    section = (PROJECT / "README.md").read_text().split("## Your own text\n")[1]
    (code,) = re.findall(r"^```python\n(.*?)^```", section.split("\n## ")[0], re.DOTALL | re.MULTILINE)
    sentences = (DEMO / "sentences.txt").read_text().splitlines()[:32]
    (tmp_path / "sentences.txt").write_text("\n".join([*sentences, "", " "]) + "\n")
    code = code.replace("FacebookAI/roberta-base", "org/encoder")
    given = "hub_private_repo=True"
    assert given in code
    code = code.replace(given, f"{given}, max_steps=1, per_device_train_batch_size=8, report_to='none'")
    with LoopbackHub(TOKENS) as hub:
        commit = hub.add("models", "org/encoder", ENCODER)
        environment = hub.environment(tmp_path / "home", MINE)
        process = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(PROJECT), **environment)
        assert process.returncode == 0, process.stderr
        assert_tells_no_token(process, tmp_path / "output")
        repository = hub.repositories["models", "me/mine"]
        assert repository.private
        (tag,) = repository.tags
        files = repository.commits[repository.tags[tag]]
        load = ["-c", LOAD_A_RELEASE, "me/mine", tag]
        process = run_python(*load, cwd=tmp_path, **hub.environment(tmp_path / "user", MINE))
    assert process.returncode == 0, process.stderr
    assert float(process.stdout.splitlines()[-1]) <= 1e-5
    assert not [name for name in files if re.search(r"checkpoint|\.bin$|optimizer", name)]
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "org/encoder" and f"`org/encoder` at commit `{commit}`" in card.text
    text = " ".join(card.text.split())  # on one line
    digest = hashlib.sha256("".join(f"{sentence}\n" for sentence in sentences).encode()).hexdigest()
    assert f"32 unlabelled sentences. SHA-256 of the sentences, each followed by a newline: `{digest}`" in text
    assert "This model has not been evaluated." in text and f'revision="{tag}"' in text


def test_what_a_push_may_say_reaches_the_hub(hub, tmp_path, monkeypatch, capsys):
    """A token that is not in the environment, a branch, a tag and metadata for the card; for a plain release."""
    monkeypatch.delenv("HF_TOKEN")
    sentences = (DEMO / "sentences.txt").read_text().splitlines()[:16]
    arguments = {"per_device_train_batch_size": 8, "max_steps": 1, "report_to": "none", "save_strategy": "no"}
    trainer = SarcseTrainer(
        load_model(str(ENCODER), pooler="mean")[0],
        SarcseTrainingArguments(str(tmp_path / "mine"), plain=True, **arguments),
        train_dataset=sentences,
    )
    trainer.train()
    with pytest.raises(ValueError, match=rf"no access token: log in(.|\n)*python -m model_card {tmp_path / 'mine'} "):
        trainer.push_to_hub()
    address = trainer.push_to_hub("The first", token=MINE, revision="next", tag="v1", language="en", license="mit")
    repository = hub.repositories["models", "me/mine"]
    assert address == f"{hub.endpoint}/me/mine/commit/{repository.branches['next']}"
    assert repository.tags == {"v1": repository.branches["next"]}
    files = repository.commits[repository.tags["v1"]]
    card = ModelCard(files["README.md"].decode())
    assert (card.data.language, card.data.license) == (["en"], "mit")
    assert not [name for name in files if name.endswith(".py")], "a mean needs no code"
    assert re.search(r"- Time: \d+ seconds, including evaluation", card.text)
    assert MINE not in "".join(capsys.readouterr())


LOAD_A_RELEASE = """
import json, sys
import numpy
from huggingface_hub import hf_hub_download
from sentence_transformers import SentenceTransformer
name, revision = sys.argv[1:]
golden = json.load(open(hf_hub_download(name, "golden_embeddings.json", revision=revision)))
embedder = SentenceTransformer(name, revision=revision, trust_remote_code=True, device="cpu")
print(numpy.abs(embedder.encode(golden["sentences"]) - numpy.array(golden["embeddings"])).max())
"""


PUSH_AS_PEOPLE_DO = """
import sys
from sarcse import load_model
model, tokenizer = load_model(sys.argv[1])
model.push_to_hub("me/model")
tokenizer.push_to_hub("me/model")
model.config.push_to_hub("me/configuration")
"""
LOAD_AS_PEOPLE_DO = """
import numpy
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel
sentences = ["A dog runs across the wet grass.", "Why?"]
model = AutoModel.from_pretrained("me/model", trust_remote_code=True)
by_sentence_transformers = SentenceTransformer("me/model", trust_remote_code=True, device="cpu").encode(sentences)
numpy.testing.assert_allclose(model.encode(sentences), by_sentence_transformers, atol=1e-5)
config = AutoConfig.from_pretrained("me/configuration", trust_remote_code=True)
print(type(AutoModel.from_config(config, trust_remote_code=True)).__name__)
"""


def test_what_people_push_themselves_loads_everywhere(tmp_path):
    """A model's and a configuration's own `push_to_hub`, without a release. They load without this project."""
    with LoopbackHub(TOKENS) as hub:
        process = run_python(
            "-c", PUSH_AS_PEOPLE_DO, ENCODER, cwd=PROJECT, **hub.environment(tmp_path / "pusher", MINE)
        )
        assert process.returncode == 0, process.stderr
        process = run_python("-c", LOAD_AS_PEOPLE_DO, cwd=tmp_path, **hub.environment(tmp_path / "user", None))
        assert process.returncode == 0 and process.stdout.strip() == "SarcseModel", process.stderr
