"""
The Space of a release: what is written, what is refused, and how it is pushed to the Hub. In a browser, the page's
numbers must be those of the model.
"""

import ast
import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gradio_client import Client
from huggingface_hub import ModelCard, SpaceCard, constants
from packaging.requirements import Requirement
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoModel, AutoTokenizer, T5Config, T5Model

from model_card.__main__ import main
from modeling_sarcse import SarcseModel
from sarcse.evaluation.figures import FIGURES
from sarcse.loading import load_model
from sarcse.options import SpaceOptions
from sarcse.reconstruction import token_importance
from sarcse.release.folder import write_model
from sarcse.release.hub import files_of, push_space
from sarcse.release.space import GRADIO_VERSION, NO_SECOND_MODEL, REQUIREMENTS, find, second_model

from . import hub_rules
from .conftest import ENCODER, PROJECT, SENTENCES, random_encoder, run_command, run_python, start_python
from .loopback_hub import LoopbackHub


FILES = {"app.py", "space.json", "requirements.txt", "README.md"}
MINE = "hf_" + "w1" * 17
PATIENCE = 600_000  # milliseconds; a machine may be busy


# --- What is written -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space(release_folder, finished_run) -> Path:
    """The Space of the tiny release, which has no decoder, beside the training's output, which has one."""
    folder = release_folder.parent / "space"
    command = ["-m", "model_card", release_folder, "--space", folder, "--beside", finished_run[0]]
    process = run_command(*command, cwd=PROJECT)
    assert process.returncode == 0, process.stderr
    assert f"To run it on this machine: `pip install -r {folder}/requirements.txt`" in process.stdout
    assert f"`python {folder}/app.py`" in process.stdout
    return folder


def test_a_space_holds_the_page_and_names_its_models(space, release_folder, finished_run):
    assert {path.name for path in space.iterdir()} == FILES
    assert (space / "app.py").read_text() == (PROJECT / "model_card" / "app.py").read_text()
    settings = json.loads((space / "space.json").read_text())
    assert [model["revision"] for model in settings["models"]] == [None, None]
    folders = [(space / model["name"]).resolve() for model in settings["models"]]
    assert folders == [release_folder.resolve(), finished_run[0].resolve()]
    for path in space.iterdir():
        assert str(PROJECT) not in path.read_text() and str(release_folder.parent) not in path.read_text(), path


def test_the_hub_takes_the_metadata_of_a_space(space):
    text = (space / "README.md").read_text()
    assert hub_rules.errors(text, "space") == []
    data = SpaceCard(text).data.to_dict()
    assert (data["title"], data["sdk"], data["app_file"]) == ("sarcse-tiny", "gradio", "app.py")
    assert data["license"] == "apache-2.0" and "models" not in data
    for good, bad in [
        ("sdk: gradio", "sdk: flask"),
        ("colorFrom: blue", "colorFrom: #0072B2"),
        ("license: apache-2.0", "license: apache"),
        ("title: sarcse-tiny\n", ""),
    ]:
        assert good in text and hub_rules.errors(text.replace(good, bad, 1), "space"), bad


def test_what_a_space_needs_is_what_the_tests_have():
    """The same ranges as in the project's own files, and a version of Gradio within its range."""
    own = (PROJECT / "requirements.txt").read_text().splitlines()
    extras = re.findall(r'"((?:gradio|sentence-transformers)[><=][^"]+)"', (PROJECT / "pyproject.toml").read_text())
    assert len(extras) == 2 and {*extras} < {*REQUIREMENTS} <= {*own, *extras}
    assert {*extras} <= {*(PROJECT / "requirements-dev.txt").read_text().splitlines()}
    assert Requirement(min(extras)).specifier.contains(GRADIO_VERSION)


def test_the_page_imports_what_a_space_installs_and_nothing_else():
    """Torch has a range of its own, since sentence-transformers sets no upper bound."""
    tree = ast.parse((PROJECT / "model_card" / "app.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    installed = {Requirement(requirement).name.replace("-", "_") for requirement in REQUIREMENTS}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == installed - {"torch"}


def test_a_space_is_written_over_an_earlier_one_and_leaves_what_else_is_there(space, release_folder, tmp_path):
    """For example over a clone of its repository. Without a second model it says why there is none."""
    folder = shutil.copytree(space, tmp_path / "space")
    (folder / ".git").mkdir()
    (folder / "app.py").write_text("of an earlier version")
    process = run_command("-m", "model_card", release_folder, "--space", folder, cwd=PROJECT)
    assert process.returncode == 0, process.stderr
    assert {path.name for path in folder.iterdir()} == {*FILES, ".git"}
    assert (folder / "app.py").read_text() == (space / "app.py").read_text()
    settings = json.loads((folder / "space.json").read_text())
    assert len(settings["models"]) == 1 and settings["no_second_model"] == NO_SECOND_MODEL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{release}"], "/release to build a release, --space DIR to write a Space, or both"),
        (["{model}", "--space", "{tmp}/out"], "{model}: not a release. Add --release_dir OUT"),
        (["{tmp}/none", "--space", "{tmp}/out"], "{tmp}/none: no such folder, and not the name of a model on the Hub"),
        (["no/where", "--space", "{tmp}/out"], "no/where: no such folder, and HF_HUB_OFFLINE is set"),
        (["{release}", "--space", "{tmp}/full"], "--space {tmp}/full: holds something that is not a Space"),
        (["{release}", "--space", "{tmp}/full/note.txt"], "note.txt: is a file"),
        (["{release}", "--space", "{release}"], "holds something that is not a Space"),
        (["{release}", "--space", "{release}/space"], "would be inside the model's folder {release}"),
        (
            ["{model}", "--release_dir", "{tmp}/out", "--space", "{tmp}/out/space"],
            "inside the model's folder {tmp}/out;",
        ),
        (["{release}", "--push_space", "me/x"], "--push_space needs --space DIR"),
        (["{release}", "--beside", "{model}"], "--beside needs --space DIR"),
        (["{release}", "--space", "{tmp}/out", "--push_space", "x"], "--push_space x: add the owner, you/x"),
        (["{release}", "--space", "{tmp}/out", "--push_space", "a/b/c"], "a/b/c"),
        (["{release}", "--space", "{tmp}/out", "--push_space", "me/x"], "its model is only on this machine. Push the"),
        (
            ["{model}", "--release_dir", "{tmp}/out", "--space", "{tmp}/space", "--push_space", "me/x"],
            "--push_space me/x: its model is only on this machine",
        ),
        (
            ["me/model", "--space", "{tmp}/out", "--push_space", "me/x", "--beside", "{model}"],
            "--beside {model}: is only on this machine. A Space on the Hub needs a model that is there",
        ),
        (["{release}", "--space", "{tmp}/out", "--beside", "{tmp}/full"], "{tmp}/full: no model in it"),
        (["{release}", "--space", "{tmp}/out", "--beside", "{tmp}/broken"], "{tmp}/broken: the model cannot be"),
        (
            ["{release}", "--space", "{tmp}/out", "--beside", "no/where"],
            "no/where: no such folder, and HF_HUB_OFFLINE",
        ),
        (
            ["{release}", "--space", "{tmp}/out", "--push", "me/x"],
            "--push applies to a new release: add --release_dir OUT",
        ),
        (["{release}", "--space", "{tmp}/out", "--seeds", "{model}"], "--seeds applies to a new release"),
        (["{release}", "--space", "{tmp}/out", "--plain"], "--plain applies to a new release"),
    ],
)
def test_user_errors_end_in_one_line(release_folder, finished_run, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{{")
    names = {"tmp": tmp_path, "model": finished_run[0], "release": release_folder}
    monkeypatch.setattr("sys.argv", ["model_card", *(argument.format(**names) for argument in arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("model_card: error: ") and message.format(**names) in line
    assert not (tmp_path / "out").exists() and not (release_folder / "space").exists()


# --- At the Hub ------------------------------------------------------------------------------------------------------


def started(app: Path, **environment: str) -> tuple[subprocess.Popen, str]:
    """Starts `python app.py` outside the project; returns the process and its URL."""
    process = start_python(app, cwd=app.parent, **environment)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"Running on local URL: *(\S+)", line):
            return process, found[1]
    raise AssertionError("".join(lines))


# The command with an existing release instead of building one, and without retries.
PUSH_BOTH = """
from pathlib import Path
from model_card import __main__
from sarcse.release import hub
from sarcse.release import build as release
hub.RETRY_AFTER = ()
release.build = lambda options, tasks: (Path(options.release_dir), "v1")
__main__.main()
"""


def test_a_release_is_pushed_with_its_space_which_keeps_to_the_commit(finished_run, release_folder, tmp_path):
    """
    One command pushes both. The Hub fails in the middle, and the command named in the error message finishes. A later
    commit to the model's repository does not change what a clone of the Space shows.
    """
    with LoopbackHub({MINE: ("me", "write")}) as hub:
        options = ["--push", "me/model", "--space", tmp_path / "space", "--push_space", "me/page", "--private"]
        command = ["-c", PUSH_BOTH, finished_run[0], "--release_dir", release_folder, *options]
        with hub.fault("POST", "/api/spaces/me/page/commit/", 503):
            process = run_python(*command, cwd=PROJECT, **hub.environment(tmp_path / "home", MINE))
        assert process.returncode == 2 and "Traceback" not in process.stderr
        *_, told, _, command = process.stderr.splitlines()
        assert told == "model_card: error: the Hub answered 503 for me/page: Internal Error."
        process = run_python(*command.split()[1:], cwd=PROJECT, **hub.environment(tmp_path / "home", MINE))
        assert process.returncode == 0, process.stderr
        assert f"Pushed: {hub.endpoint}/spaces/me/page" in process.stdout
        model, page = hub.repositories["models", "me/model"], hub.repositories["spaces", "me/page"]
        commit = model.branches["main"]
        files = page.commits[page.branches["main"]]
        assert page.private and set(files) == {*FILES, ".gitattributes"}
        assert all(files[name] == (tmp_path / "space" / name).read_bytes() for name in FILES)
        data = SpaceCard(files["README.md"].decode()).data.to_dict()
        assert data["models"] == ["me/model"]
        repository, names, pinned = data["preload_from_hub"][0].split()
        assert (repository, pinned) == ("me/model", commit)
        assert {"config.json", "model.safetensors", "README.md"} < {*names.split(",")} < {*model.commits[commit]}
        model.commit({"config.json": b"{}"})
        clone = tmp_path / "clone"
        clone.mkdir()
        for name, content in files.items():
            (clone / name).write_bytes(content)
        process, address = started(clone / "app.py", **hub.environment(tmp_path / "home", MINE))
        try:
            page = Client(address, verbose=False).predict("\n".join(SENTENCES), api_name="/compare")
        finally:
            process.kill()
    note, table = page
    assert note["value"] == "" and matrix(table["value"]) == similarities(release_folder, SENTENCES)


def test_a_space_of_somebody_elses_is_left_alone(space, monkeypatch):
    with LoopbackHub({MINE: ("me", "write")}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", MINE)
        commit = hub.add("spaces", "me/page", {"app.py": b"precious", "README.md": b"---\nsdk: gradio\n---\n"})
        with pytest.raises(
            ValueError, match=r"me/page holds another Space \(README.md, app.py\): choose another name"
        ):
            push_space(files_of(space), "me/page", False, "Space")
        assert list(hub.repositories["spaces", "me/page"].commits) == [commit]


SPACES = """
from pathlib import Path
from model_card import __main__
from sarcse.release import hub
hub.push(Path({release!r}), "me/hidden", True, "main", "v1")
hub.push(Path({release!r}), "me/open", False, "main", "v1")
for name, model, *flags in {spaces!r}:
    space = ["--space", {folder!r}, "--push_space", f"me/{{name}}"]
    __main__.run([f"me/{{model}}", *space, *flags])
"""


def test_a_space_is_as_private_as_what_it_shows(release_folder, tmp_path):
    """Unless the user asks for another; of a public model too. The Hub needs a token to read a private model."""
    spaces = {
        ("of-hidden", "hidden"): True,
        ("of-open", "open"): False,
        ("asked-hidden", "open", "--private"): True,
        ("asked-open", "hidden", "--public_space"): False,
        ("beside-hidden", "open", "--beside", "me/hidden"): True,
    }
    names = {"release": str(release_folder), "folder": str(tmp_path / "space"), "spaces": list(spaces)}
    with LoopbackHub({MINE: ("me", "write")}) as hub:
        hub.add("spaces", "me/taken", {"space.json": b"{}"})
        environment = hub.environment(tmp_path / "home", MINE)
        process = run_python("-c", SPACES.format(**names), cwd=PROJECT, **environment)
        assert process.returncode == 0, process.stderr
        found = {name: hub.repositories["spaces", f"me/{name[0]}"].private for name in spaces}
        command = ["-m", "model_card", "me/hidden", "--space", tmp_path / "space", "--push_space", "me/taken"]
        refused = run_python(*command, cwd=PROJECT, **environment)
    assert found == spaces
    assert process.stdout.count("add a secret HF_TOKEN to the Space") == 3
    assert refused.returncode == 2
    assert "me/taken exists and is public, but was to be private" in refused.stderr
    assert "add --public_space, or choose another name. Nothing was sent" in refused.stderr


def test_a_space_is_written_through_a_link(release_folder, tmp_path):
    """Even if it leads to a folder that does not exist yet."""
    for target in (tmp_path / "empty", tmp_path / "none" / "yet"):
        link = tmp_path / f"to-{target.name}"
        link.symlink_to(target)
        (tmp_path / "empty").mkdir(exist_ok=True)
        process = run_command("-m", "model_card", release_folder, "--space", link, cwd=PROJECT)
        assert process.returncode == 0, process.stderr
        assert link.is_symlink() and {path.name for path in target.iterdir()} == FILES
        (model,) = json.loads((target / "space.json").read_text(encoding="utf-8"))["models"]
        assert (target / model["name"]).resolve() == release_folder.resolve()


@pytest.mark.parametrize(
    "line", ["Started from `org/encoder` at commit `{}`.", "Started from\n  `a/b`\n  at commit `{}`."]
)
def test_the_second_model_is_the_encoder_that_the_card_names(tmp_path, line):
    """With its commit, even if the Hub cannot be reached."""
    card = ModelCard(f"---\nlicense: mit\n---\n- {line.format('c' * 40)}\n")
    second = second_model(SpaceOptions(str(tmp_path)), card, tmp_path)
    name = re.search("`(.+?)`", line)[1]
    assert second.settings() == {"name": name, "revision": "c" * 40, "pooling": "mean", "code": False}


# --- The page, without a browser -------------------------------------------------------------------------------------


def similarities(folder: Path, sentences: list[str]) -> list[list[str]]:
    """Formatted as on the page, from the model's own `encode`."""
    embeddings = SarcseModel.from_pretrained(folder).encode(sentences, normalize=True)
    return [[f"{value:.3f}" for value in row] for row in embeddings @ embeddings.T]


def matrix(table: dict) -> list[list[str]]:
    """The similarities in a table of the page, without the numbers of the sentences and without the sentences."""
    return [row[1:-1] for row in table["data"]]


@pytest.fixture(scope="module")
def app(space) -> SimpleNamespace:
    """The page's functions, in this process."""
    return SimpleNamespace(**runpy.run_path(str(space / "app.py")))


SHORT = "Type at least two sentences, one per line, to see a similarity."
CUT = "Sentence 1 is longer than the 128 tokens that {} reads; the rest is ignored."


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("", SHORT),
        (" \n\t\n\u2028", SHORT),
        ("Why?", SHORT),
        ("word " * 2000, "\n".join((SHORT, CUT.format("sarcse-tiny"), CUT.format("model")))),
        ("x" * 10_000 + "\nWhy?", "\n".join((CUT.format("sarcse-tiny"), CUT.format("model")))),
        ("Why?\n" * 50, "There are 50 lines; only the first 20 are compared."),
        ("🙂 👩‍👩‍👧\n東京は雨だった。", ""),
        ("שלום עולם\nمرحبا", ""),
        ("a\0b \ud83d\x1b[31m", SHORT),
        ("<script>alert(1)</script>\n<b title='\">", ""),
        ("</s><s><pad>\n<mask>", ""),
    ],
)
def test_whatever_is_typed_has_an_answer(app, text, note):
    """A note in plain sentences if something is missing or left out, and otherwise numbers."""
    said, *panels = app.compare(text)
    assert (said.value, said.visible) == (note, bool(note))
    sentences = [" ".join(line.split()) for line in text.encode("utf-8", "replace").decode().splitlines()]
    sentences = [sentence for sentence in sentences if sentence][:20]
    tables = [part.value for part in panels if (part.label or "").endswith("cosine similarities")]
    assert len(tables) == 2
    for table in tables:
        assert [row[-1] for row in table["data"]] == sentences
        assert [row[n] for n, row in enumerate(table["data"], 1)] == ["1.000"] * len(sentences)
    said, found = app.search(text, "Why?\n" + text, None, None)
    assert found.visible == bool(sentences) and (sentences or said.value == "Type a query.")


def test_tokens_have_the_errors_of_the_model_that_can_reconstruct(app, finished_run, tokenizer):
    """The smallest error has the strongest colour, the largest none. A model without a decoder shows no tokens."""
    _, first, second, shaded, errors = app.compare("\n".join(SENTENCES))
    labels = [part.label.partition(":")[0] for part in (first, second, shaded, errors)]
    assert labels == ["sarcse-tiny", "model", "model", "model"]
    model = SarcseModel.from_pretrained(finished_run[0])
    expected = [
        (sentence, token, error)
        for sentence, pairs in enumerate(token_importance(model, SENTENCES, tokenizer), 1)
        for token, error in pairs
    ]
    assert [(row[0], row[1]) for row in errors.value["data"]] == [(n, token.strip()) for n, token, _ in expected]
    numbers = [error for *_, error in expected]
    assert [float(row[2]) for row in errors.value["data"]] == pytest.approx(numbers, abs=6e-5)
    spans = [(span["token"], span["class_or_confidence"]) for span in shaded.value]
    assert [token for token, share in spans if share is None] == ["1", "2", "3", "4"]
    shares = [share for _, share in spans if share is not None]
    assert [token for token, share in spans if share is not None] == [token for _, token, _ in expected]
    scaled = [(max(numbers) - number) / (max(numbers) - min(numbers)) for number in numbers]
    assert [share / max(shares) for share in shares] == pytest.approx(scaled, abs=1e-4) and 0 < max(shares) < 1


UNREADABLE = "cannot be read: upload UTF-8 text with one sentence per line, or a CSV file with a header."


def test_a_file_is_read_as_text_or_refused_in_one_sentence(app, tmp_path):
    (tmp_path / "with a mark.txt").write_bytes("\ufeffWhy?\r\n\r\nHow so?\r\n".encode())
    assert app.columns(str(tmp_path / "with a mark.txt")) == {"text": ["Why?", "How so?"]}
    for name, content in {
        "picture.png": (PROJECT / "docs" / "token_importance.png").read_bytes(),
        "latin.txt": "Das Café".encode("latin-1"),
        "wide.csv": "text\nWhy?".encode("utf-16"),
        "empty.csv": b"",
        "<b>.tsv": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        said, found = app.search("Why?", "", str(tmp_path / name), None)
        assert said.value == f"{name} {UNREADABLE}" and not found.visible
        assert not app.choice(str(tmp_path / name)).visible, "only the search reports it"
    for name, content in {"empty.txt": "\n", "header.csv": "id,text\n", "blank.csv": "id,text\n1,\n2, \n3\n"}.items():
        (tmp_path / name).write_text(content)
        said, _ = app.search("Why?", " ", str(tmp_path / name), "text")
        assert said.value == "There are no sentences: paste some, one per line, or upload a file."


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_column_of_a_table_is_searched(app, tmp_path, delimiter):
    """Quoted cells have the delimiter and line breaks; the first choice is the column with the longest texts."""
    rows = [("id", "the text", "by"), ("1", "A dog runs.", "me"), ("2", "Cats, or; dogs\tand\nbirds.", "you"), ("3",)]
    path = tmp_path / ("table.tsv" if delimiter == "\t" else "table.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    choice = app.choice(str(path))
    assert choice.visible and choice.value == "the text"
    assert [value for _, value in choice.choices] == ["id", "the text", "by"]
    for column, texts in {"the text": {"A dog runs.", "Cats, or; dogs and birds."}, "by": {"me", "you"}}.items():
        said, found = app.search("dogs", "Pasted.", str(path), column)
        assert not said.visible and {text for _, text in found.value["data"]} == {"Pasted.", *texts}
    for missing in ("cost", None):
        said, found = app.search("dogs", "Pasted.", str(path), missing)
        assert said.value == f"{path.name} has no column {missing!r}: choose one of id, the text, by."
        assert not found.visible


def test_ten_thousand_sentences_are_searched_and_embedded_once(app, monkeypatch):
    """For the next query only the query is embedded."""
    (_, model), rows = app.MODELS[0], []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda texts, **options: rows.extend(texts) or encode(texts, **options))
    pasted = "\n".join(f"Number {number}." for number in range(10_001))
    said, found = app.search("Number 7.", pasted, None, None)
    assert said.value == "There are 10,001 sentences; only the first 10,000 are searched."
    assert found.label == "The nearest 10 of 10,000 sentences, by cosine similarity"
    assert found.value["data"][0] == ["1.000", "Number 7."] and len(found.value["data"]) == 10
    assert sorted(rows) == sorted([*(f"Number {number}." for number in range(10_000)), "Number 7."])
    _, again = app.search("Number 8.", pasted, None, None)
    assert again.value["data"][0] == ["1.000", "Number 8."] and rows[10_001:] == ["Number 8."]


def test_something_is_shown_before_anything_is_typed(app):
    """Both examples are computed when the page starts, from the sentences that its text boxes hold."""
    said, *panels = app.compare(app.text.value)
    assert [part.value for part in app.compared[1:]] == [part.value for part in panels] and not said.visible
    assert len(panels[0].value["data"]) == 4
    _, found = app.search(app.query.value, app.pasted.value, None, None)
    assert app.found[1].value == found.value and len(found.value["data"]) > 3


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_is_pooled_as_it_should_be(app, space, pooling):
    """As for the default second model and a plain release; padding is ignored."""
    embeddings = app.load(os.path.relpath(ENCODER, space), None, pooling, False).encode(SENTENCES)
    encoder, tokenizer = AutoModel.from_pretrained(ENCODER).eval(), AutoTokenizer.from_pretrained(ENCODER)
    for sentence, embedding in zip(SENTENCES, embeddings, strict=True):
        with torch.no_grad():
            vectors = encoder(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
        expected = vectors.mean(dim=0) if pooling == "mean" else vectors[0]
        torch.testing.assert_close(torch.from_numpy(embedding), expected, atol=1e-5, rtol=0)


def test_a_plain_release_is_pooled_as_it_says(app, space, tokenizer, tmp_path):
    """It has no code, and its folder names the pooler."""
    model, _ = load_model(str(ENCODER), pooler="cls")
    expected = model.encode(SENTENCES, tokenizer)
    write_model(model, tokenizer, tmp_path / "plain", plain=True, with_decoder=False)
    shown = find(str(tmp_path / "plain"), "main", space)
    assert shown.settings()["pooling"] == "cls" and not shown.settings()["code"]
    embeddings = app.load(**shown.settings()).encode(SENTENCES)
    assert embeddings == pytest.approx(expected, abs=1e-5)


def test_a_model_of_sentence_transformers_is_embedded_by_its_own_modules(app, space, tmp_path):
    """As a second model. Modules that are not of that library are refused."""
    peer = SentenceTransformer(modules=[Transformer(str(ENCODER)), Pooling(128, "max"), Normalize()], device="cpu")
    peer.save(str(tmp_path / "peer"))
    shown = find(str(tmp_path / "peer"), "main", space)
    settings = shown.settings()
    assert (settings["pooling"], settings["code"]) == (None, False)
    assert app.load(**settings).encode(SENTENCES) == pytest.approx(peer.encode(SENTENCES), abs=1e-5)
    modules = json.loads((tmp_path / "peer" / "modules.json").read_text())
    modules[0]["type"] = "evil.Module"
    (tmp_path / "peer" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"peer: modules.json names code of its own \(evil.Module\)"):
        find(str(tmp_path / "peer"), "main", space)


def test_of_an_encoder_and_decoder_the_encoder_is_shown(app, tokenizer, tmp_path):
    """T5: the full model would need a second input, and its tokenizer has no limit."""
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    folder = random_encoder(tmp_path / "t5", T5Model(config), None)
    AutoTokenizer.from_pretrained(ENCODER, model_max_length=10**30).save_pretrained(folder)
    model = app.load(folder, None, "mean", False)
    assert model.encode(["word " * 1000]).shape == (1, 32)
    assert app.cut("It", "word " * 1000, "t5", model) == []


def test_an_encoder_whose_tokenizer_has_no_limit_is_cut_at_its_positions(app, tmp_path):
    """RoBERTa cannot use two of its positions."""
    folder = shutil.copytree(ENCODER, tmp_path / "encoder")
    AutoTokenizer.from_pretrained(ENCODER, model_max_length=10**30).save_pretrained(folder)
    model = app.load(str(folder), None, "mean", False)
    assert model.max_seq_length == AutoModel.from_pretrained(folder).config.max_position_embeddings - 2
    assert np.isfinite(model.encode(["word " * 1000])).all()


def test_a_second_model_that_cannot_be_loaded_is_left_out_and_a_first_one_ends_in_a_line(space, tmp_path):
    for index in (1, 0):
        folder = shutil.copytree(space, tmp_path / f"space{index}")
        settings = json.loads((space / "space.json").read_text())
        for model in settings["models"]:
            model["name"] = str((space / model["name"]).resolve())
        settings["models"][index]["name"] = "nowhere"
        (folder / "space.json").write_text(json.dumps(settings))
    page = SimpleNamespace(**runpy.run_path(str(tmp_path / "space1" / "app.py")))
    assert len(page.MODELS) == 1 and len(page.compared) == 2
    reason = "No second model is shown: nowhere could not be loaded."
    (note,) = (part for part in page.demo.blocks.values() if getattr(part, "value", None) == reason)
    assert note.visible
    with pytest.raises(SystemExit, match="app.py: nowhere, which space.json names, could not be loaded"):
        runpy.run_path(str(tmp_path / "space0" / "app.py"))


# --- The page in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("no browser: `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(space) -> Iterator[str]:
    process, address = started(space / "app.py")
    yield address
    process.kill()


@pytest.fixture()
def open_page(browser, address) -> Iterator[Callable[..., Page]]:
    """Opens the page with options of playwright's context; afterwards checks that no request left this machine."""
    contexts, requested = [], []

    def open_page(**options) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        expect(page.get_by_role("grid")).to_have_count(3, timeout=PATIENCE)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert {url for url in requested if not url.startswith((address, "data:", "blob:"))} == set()


def rows_of(page: Page, name: str | re.Pattern) -> list[list[str]]:
    """The cells of a table, which are drawn after it, without its header."""
    grid = page.get_by_role("grid", name=name)
    expect(grid.get_by_role("gridcell").first).to_be_visible(timeout=PATIENCE)
    rows = [row.get_by_role("gridcell").all_inner_texts() for row in grid.get_by_role("row").all()]
    return [[cell.strip() for cell in row] for row in rows if row]


def compare(page: Page, sentences: list[str]) -> None:
    page.get_by_label("Sentences, one per line (Shift").fill("\n".join(sentences))
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("gridcell", name=sentences[-1], exact=True)).to_have_count(2, timeout=PATIENCE)


def search(page: Page, wanted: str, number: int) -> list[list[str]]:
    page.get_by_label("Query").fill(wanted)
    page.keyboard.press("Enter")
    heading = re.compile(rf"of {number} sentences, by cosine similarity")
    return rows_of(page, heading)


def test_what_is_compared_has_the_numbers_of_the_models(open_page, release_folder, finished_run, tokenizer):
    """The similarities of both models, and the tokens of the one that can reconstruct: small errors are strong."""
    page = open_page()
    compare(page, SENTENCES)
    for folder in (release_folder, finished_run[0]):
        rows = rows_of(page, f"{folder.name}: cosine similarities")
        assert [row[-1] for row in rows] == SENTENCES
        assert [row[1:-1] for row in rows] == similarities(folder, SENTENCES)
    errors = token_importance(SarcseModel.from_pretrained(finished_run[0]), SENTENCES, tokenizer)
    pairs = [pair for row in errors for pair in row]
    tokens = page.locator(".tokens .highlighted")
    expect(tokens).to_have_text([token.strip() for token, _ in pairs], timeout=PATIENCE)
    shades = tokens.evaluate_all("all => all.map(token => Number(token.style.backgroundColor.match(/[\\d.]+/g)[3]))")
    first = page.get_by_role("grid", name="model: errors").get_by_role("gridcell")
    expect(first.nth(2)).to_have_text(f"{pairs[0][1]:.4f}", timeout=PATIENCE)
    by_error = [shades[place] for place in np.argsort([error for _, error in pairs])]
    assert by_error == sorted(shades, reverse=True) and by_error[0] > 0.6 and by_error[-1] == 0


def test_what_is_typed_is_text_to_the_page(open_page):
    """Not as markup and not as a Gradio template, in any writing direction. Empty input gives a one-sentence note."""
    page = open_page()
    texts = ["<b>bold</b> & <img src=x onerror=alert(1)>", "${1 + 1} {{value}} @children", "שלום 🙂"]
    compare(page, texts)
    assert [row[-1] for row in rows_of(page, "sarcse-tiny: cosine similarities")] == texts
    read = "".join("".join(page.locator(".tokens .highlighted").all_inner_texts()).split())
    assert read == "".join("".join(texts).split())
    assert page.locator("[role=gridcell] b, .tokens b, .block img").count() == 0
    page.get_by_label("Sentences, one per line (Shift").fill(" ")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("textbox", name="Note")).to_have_value(SHORT, timeout=PATIENCE)
    assert page.locator(".error, .toast-body").count() == 0


def test_a_search_finds_what_the_model_holds_for_nearest(open_page, release_folder, tmp_path):
    """Among pasted sentences and those of a table's column. A file that cannot be read gives a one-sentence note."""
    page = open_page()
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Sentences to search, one").fill("\n".join(SENTENCES))
    more = [f"{sentence.rstrip('.')}, and {other.lower()}" for sentence in SENTENCES for other in SENTENCES[:3]]
    with (tmp_path / "more.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("number", "text"), *enumerate(more)])
    page.locator("input[type=file]:not([accept])").set_input_files(tmp_path / "more.csv")
    column = page.get_by_label("Column to search in")
    expect(column).to_have_value("text", timeout=PATIENCE)
    found = search(page, "A cat runs.", 16)
    sentences = [*SENTENCES, *more]
    scores = SarcseModel.from_pretrained(release_folder).encode([*sentences, "A cat runs."], normalize=True)
    scores = scores[:-1] @ scores[-1]  # (16, d) @ (d,) -> (16,)
    best = scores.argsort()[::-1][:10]
    assert found == [[f"{scores[row]:.3f}", sentences[row]] for row in best]
    column.fill("nowhere")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Search").click()
    missing = "more.csv has no column 'nowhere': choose one of number, text."
    expect(page.get_by_role("textbox", name="Note")).to_have_value(missing, timeout=PATIENCE)
    page.get_by_role("button", name="Clear").click()
    page.locator("input[type=file]:not([accept])").set_input_files(PROJECT / "docs" / "token_importance.png")
    expect(page.get_by_role("cell").first).to_contain_text("token_importance", timeout=PATIENCE)
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("textbox", name="Note")).to_have_value(
        f"token_importance.png {UNREADABLE}", timeout=PATIENCE
    )
    assert page.locator(".error, .toast-body").count() == 0


def test_the_model_is_shown_with_its_scores_and_figures(open_page, finished_run):
    page = open_page()
    page.get_by_role("tab", name="The model").click()
    card = page.locator(".prose.card")
    results = json.loads((finished_run[0] / "sts_results.json").read_text())["models"][f"after: {finished_run[0]}"]
    low, high = results["average_interval"]
    expect(card).to_contain_text(f"{results['average']:.2f} [{low:.2f}, {high:.2f}]", timeout=PATIENCE)
    pictures = card.locator("img").evaluate_all("images => images.map(image => [image.alt, image.naturalWidth > 0])")
    drawn = [name for name in FIGURES if (finished_run[0] / f"{name}.png").is_file()]
    assert pictures == [[FIGURES[name], True] for name in drawn] and len(drawn) == 3


# The lowest contrast between text and background over all the elements, as defined by WCAG 2.
LEAST_CONTRAST = """
elements => {
    const parts = color => {
        const numbers = color.match(/[\\d.]+/g).map(Number);
        const scale = color.startsWith("color(") ? 1 : 255;
        return [...numbers.slice(0, 3).map(value => value / scale), numbers[3] ?? 1];
    };
    const behind = element => {
        const [r, g, b, alpha] = parts(getComputedStyle(element).backgroundColor);
        if (alpha === 1 || !element.parentElement) return [r, g, b];
        return behind(element.parentElement).map((under, i) => alpha * [r, g, b][i] + (1 - alpha) * under);
    };
    const luminance = color => {
        const [r, g, b] = color.map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return Math.min(...elements.map(element => {
        const text = luminance(parts(getComputedStyle(element).color).slice(0, 3)), page = luminance(behind(element));
        return (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05);
    }));
}
"""


@pytest.mark.parametrize(
    "options",
    [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}],
    ids=["light", "dark", "narrow"],
)
def test_everything_is_readable_in_light_dark_and_on_a_telephone(open_page, options):
    """Text has the contrast that WCAG requires, shaded or not, and no page is wider than the window."""
    page = open_page(**options)
    assert page.locator("body.dark").count() == (options.get("color_scheme") == "dark")
    compare(page, [*SENTENCES, "Antidisestablishmentarianism" * 9])

    def width() -> int:
        return page.evaluate("document.scrollingElement.scrollWidth - innerWidth")

    assert (
        page.locator("[role=gridcell], [role=tab], .tokens .text, button.primary").evaluate_all(LEAST_CONTRAST) >= 4.5
    )
    assert width() <= 0
    page.get_by_role("tab", name="Search").click()
    number = page.get_by_label("Sentences to search, one").input_value().count("\n") + 1
    search(page, "Why?", number)
    assert page.locator("[role=gridcell]").evaluate_all(LEAST_CONTRAST) >= 4.5 and width() <= 0
    page.get_by_role("tab", name="The model").click()
    expect(page.locator(".card img").first).to_be_visible(timeout=PATIENCE)
    assert page.locator(".card p, .card td").evaluate_all(LEAST_CONTRAST) >= 4.5 and width() <= 0


def test_the_keyboard_is_enough(open_page, release_folder):
    page = open_page()

    def go_to(role: str, name: str) -> None:
        wanted = page.get_by_role(role, name=name)
        for _ in range(30):
            if wanted.evaluate("element => element === document.activeElement"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"no way to {name}")

    go_to("textbox", "Sentences, one per line (Shift+Enter to compare)")
    page.keyboard.press("Control+A")
    page.keyboard.type("Why?\nHow so?")
    page.keyboard.press("Shift+Enter")
    expect(page.get_by_role("gridcell", name="How so?", exact=True)).to_have_count(2, timeout=PATIENCE)
    rows = rows_of(page, "sarcse-tiny: cosine similarities")
    assert [row[1:-1] for row in rows] == similarities(release_folder, ["Why?", "How so?"])
    go_to("tab", "Search")
    page.keyboard.press("Enter")
    go_to("textbox", "Query")
    page.keyboard.press("Control+A")
    page.keyboard.type("birds")
    before = rows_of(page, re.compile("The nearest"))
    go_to("button", "Search")
    page.keyboard.press("Enter")
    first = page.get_by_role("grid", name=re.compile("The nearest")).get_by_role("gridcell").first
    expect(first).not_to_have_text(before[0][0], timeout=PATIENCE)
