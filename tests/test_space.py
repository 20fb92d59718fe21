"""
The Space of a release: what is written, what is refused, and how it is pushed to the Hub. In a browser, the page's
numbers must be those of the model.
"""

import ast
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

import pytest
import torch
from gradio_client import Client
from huggingface_hub import ModelCard, SpaceCard, constants
from packaging.requirements import Requirement
from playwright.sync_api import Browser, Page, expect, sync_playwright
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, T5Config, T5Model

from model_card.__main__ import main
from model_card.folder import write_model
from model_card.hub import files_of, push_space
from model_card.space import GRADIO_VERSION, NO_SECOND_MODEL, REQUIREMENTS, SpaceOptions, find, second_model
from modeling_sarcse import SarcseModel
from sarcse.embedding import token_importance
from sarcse.figures import COLORS, FIGURES
from sarcse.loading import load_model

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
    assert settings["colors"] == list(COLORS), "the figures' palette"
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
    extra = re.search(r'^space = \["(gradio[^"]+)"\]', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert extra in REQUIREMENTS and set(REQUIREMENTS) <= {*own, extra}
    assert extra in (PROJECT / "requirements-dev.txt").read_text().splitlines()
    assert Requirement(extra).specifier.contains(GRADIO_VERSION)


def test_the_page_imports_what_a_space_installs_and_nothing_else():
    tree = ast.parse((PROJECT / "model_card" / "app.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    installed = {re.match(r"\w+", requirement)[0] for requirement in REQUIREMENTS}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == installed


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
        (["{release}"], "give --release_dir OUT to build a release, --space DIR to write a Space, or both"),
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
from model_card import __main__, hub, release
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
    assert matrices(page) == [similarities(release_folder, SENTENCES)]


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
from model_card import __main__, hub
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


def matrices(page: str) -> list[list[list[str]]]:
    tables = re.findall(r'<table class="matrix">.*?</table>', page)
    return [[re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.split("<tr>")[2:]] for table in tables]


@pytest.fixture(scope="module")
def app(space) -> SimpleNamespace:
    """The page's functions, in this process."""
    return SimpleNamespace(**runpy.run_path(str(space / "app.py")))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "Type at least one sentence"),
        (" \n\t\n\u2028", "Type at least one sentence"),
        ("Why?", "Add a second sentence on a new line to see a similarity."),
        (
            "word " * 2000,
            "Sentence 1 is longer than the 128 tokens that this model reads; the rest is ignored.",
        ),
        ("x" * 10_000, "Sentence 1 is longer than the 128 tokens"),
        ("Why?\n" * 50, "There are 50 lines; only the first 20 are compared."),
        ("🙂 👩‍👩‍👧\n東京は雨だった。", "🙂"),
        ("שלום עולם\nمرحبا", "שלום"),
        ("a\0b \ud83d\x1b[31m", "Add a second sentence"),
        ("<script>alert(1)</script>\n<b title='\">", "&lt;"),
        ("</s><s><pad>\n<mask>", "1.000"),
    ],
)
def test_whatever_is_typed_has_an_answer(app, text, answer):
    page = app.compare(text)
    assert answer in page and "nan" not in page
    assert "<script" not in page and "<b " not in page
    found = app.search(text, "Why?\n" + text, None)
    assert "Why?" in found or "ready: type a query" in found


def test_a_file_is_read_as_text_or_refused_in_one_sentence(app, tmp_path):
    (tmp_path / "with a mark.txt").write_bytes("\ufeffWhy?\r\n\r\nHow so?\r\n".encode())
    assert app.read_lines(str(tmp_path / "with a mark.txt")) == ["Why?", "How so?"]
    for name, content in {
        "picture.png": (PROJECT / "docs" / "token_importance.png").read_bytes(),
        "latin.txt": "Das Café".encode("latin-1"),
        "wide.txt": "Why?".encode("utf-16"),
    }.items():
        (tmp_path / name).write_bytes(content)
        found = app.search("Why?", "", str(tmp_path / name))
        assert found == app.note(f"{name} is not a UTF-8 text file: upload one with one sentence per line.")
    (tmp_path / "empty.txt").write_text("\n")
    assert "Paste the sentences to search" in app.search("Why?", "", str(tmp_path / "empty.txt"))


def test_ten_thousand_sentences_are_searched_and_none_is_embedded_twice(app, monkeypatch):
    model, rows = app.MODELS[0], []
    vectors = model.vectors
    monkeypatch.setattr(model, "vectors", lambda ids: rows.extend(ids) or vectors(ids))
    pasted = "\n".join(f"Number {number}." for number in range(10_001))
    first = app.search("Number 7.", pasted, None)
    assert "There are 10,001 sentences; only the first 10,000 are searched." in first
    assert "The nearest 10 of 10,000 sentences" in first and len(rows) == 10_000
    assert "1.000</span> <bdi>Number 7.</bdi>" in first
    assert "one new sentence" not in first and app.search("Number 7.", pasted + "\nNew.", None).count("<li>") == 10
    assert len(rows) == 10_000, "the new one is past the end"
    app.search("Something else.", "Number 3.\nNew.", None)
    assert len(rows) == 10_002, "the new one, and what is looked for"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_is_pooled_as_it_should_be(app, space, pooling):
    """As for the default second model and a plain release; padding is ignored."""
    embeddings = app.Model(os.path.relpath(ENCODER, space), None, pooling, False).embed(SENTENCES)
    encoder, tokenizer = AutoModel.from_pretrained(ENCODER).eval(), AutoTokenizer.from_pretrained(ENCODER)
    for sentence, embedding in zip(SENTENCES, embeddings, strict=True):
        with torch.no_grad():
            vectors = encoder(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
        expected = vectors.mean(dim=0) if pooling == "mean" else vectors[0]
        torch.testing.assert_close(embedding, F.normalize(expected, dim=0), atol=1e-5, rtol=0)


def test_a_plain_release_is_pooled_as_it_says(app, space, tokenizer, tmp_path):
    """It has no code, and its folder names the pooler."""
    model, _ = load_model(str(ENCODER), pooler="cls")
    expected = model.encode(SENTENCES, tokenizer, normalize=True)
    write_model(model, tokenizer, tmp_path / "plain", plain=True, with_decoder=False)
    shown = find(str(tmp_path / "plain"), "main", space)
    assert shown.pooling == "cls"
    embeddings = app.Model(**shown.settings()).embed(SENTENCES)
    torch.testing.assert_close(embeddings, torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_a_model_that_only_sentence_transformers_can_pool_is_refused(tmp_path):
    folder = shutil.copytree(ENCODER, tmp_path / "pooled")
    (folder / "modules.json").write_text("[]")
    with pytest.raises(
        ValueError, match="pooled: its embeddings need sentence-transformers, which a Space does not have"
    ):
        find(str(folder), "main", tmp_path)


def test_of_an_encoder_and_decoder_the_encoder_is_shown(app, tokenizer, tmp_path):
    """T5: the full model would need a second input, and its tokenizer has no limit."""
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    folder = random_encoder(tmp_path / "t5", T5Model(config), None)
    AutoTokenizer.from_pretrained(ENCODER, model_max_length=10**30).save_pretrained(folder)
    model = app.Model(folder, None, "mean", False)
    assert model.embed(["word " * 1000]).shape == (1, 32) and not model.is_cut("word " * 1000)


def test_tokens_are_spaced_as_in_the_sentence(app):
    """Whether the tokenizer marks the start of words, continuations, or nothing."""
    spaced = [(" ", "Kick"), ("", "ing"), (" ", "a"), (" ", "ball"), ("", ".")]
    for texts in (["Kick", "ing", " a", " ball", "."], ["kick", "##ing", "a", "ball", "."]):
        found = app.spaced("Kicking a ball.", texts)
        assert [(space, text.lower()) for space, text in found[1:]] == spaced[1:], texts


def test_a_second_model_that_cannot_be_loaded_is_left_out_and_a_first_one_ends_in_a_line(space, tmp_path):
    for index in (1, 0):
        folder = shutil.copytree(space, tmp_path / f"space{index}")
        settings = json.loads((space / "space.json").read_text())
        for model in settings["models"]:
            model["name"] = str((space / model["name"]).resolve())
        settings["models"][index]["name"] = "nowhere"
        (folder / "space.json").write_text(json.dumps(settings))
    page = SimpleNamespace(**runpy.run_path(str(tmp_path / "space1" / "app.py")))
    assert len(page.MODELS) == 1
    assert "No second model is shown: nowhere could not be loaded." in page.compare("Why?")
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
        expect(page.locator(".panel")).to_have_count(2, timeout=PATIENCE)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert {url for url in requested if not url.startswith((address, "data:", "blob:"))} == set()


def compare(page: Page, sentences: list[str]) -> None:
    page.get_by_label("Sentences, one per line (Shift").fill("\n".join(sentences))
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".panel").nth(1).locator(".sentences li")).to_have_count(len(sentences), timeout=PATIENCE)
    expect(page.locator(".matrix th bdi").first).to_have_text(sentences[0], timeout=PATIENCE)


def search(page: Page, wanted: str) -> list[tuple[str, str]]:
    page.get_by_label("Query").fill(wanted)
    page.keyboard.press("Enter")
    expect(page.locator(".found")).to_be_visible(timeout=PATIENCE)
    return [
        (row.locator(".score").inner_text(), row.locator("bdi").inner_text())
        for row in page.locator(".found li").all()
    ]


def test_what_is_compared_has_the_numbers_of_the_models(open_page, release_folder, finished_run, tokenizer):
    """Similarities of both models, how far the embedding moves without each token, and the reconstruction errors."""
    page = open_page()
    compare(page, SENTENCES)
    numbers = []
    for panel, folder in zip(page.locator(".panel").all(), (release_folder, finished_run[0])):
        assert panel.locator("h3").inner_text() == folder.name
        rows = panel.locator(".matrix tr").all()[1:]
        assert [row.locator("td").all_inner_texts() for row in rows] == similarities(folder, SENTENCES)
        rows = panel.locator(".sentences li").all()
        numbers.append([[float(t.get_attribute("data-number")) for t in row.locator(".token").all()] for row in rows])
    trained = SarcseModel.from_pretrained(finished_run[0])
    errors = [[error for _, error in row] for row in token_importance(trained, SENTENCES, tokenizer)]
    for found, expected in zip(numbers, ([movements(release_folder, s, tokenizer) for s in SENTENCES], errors)):
        for row, expected_row in zip(found, expected, strict=True):
            assert row == pytest.approx(expected_row, abs=6e-5)
    token = page.locator(".token").nth(1)
    for look_at in (token.hover, token.focus):
        look_at()
        shown = "token => (({content, height}) => [content, parseFloat(height)])(getComputedStyle(token, '::after'))"
        content, height = token.evaluate(shown)
        assert content == f'"{numbers[0][0][1]:.4f}"' and height < 30, "pixels: one line"
        page.mouse.move(0, 0)


@torch.no_grad()
def movements(folder: Path, sentence: str, tokenizer) -> list[float]:
    """1 - cosine without each token, with one forward pass each."""
    model = SarcseModel.from_pretrained(folder).eval()
    ids = tokenizer(sentence)["input_ids"]
    whole = model(torch.tensor([ids])).pooler_output
    others = [ids[:place] + ids[place + 1 :] for place in range(1, len(ids) - 1)]
    return [1 - F.cosine_similarity(model(torch.tensor([other])).pooler_output, whole).item() for other in others]


def test_what_is_typed_is_text_to_the_page(open_page):
    """Not as markup and not as a Gradio template, in any writing direction. Empty input gives a one-sentence note."""
    page = open_page()
    texts = ["<b>bold</b> & <img src=x onerror=alert(1)>", "${1 + 1} {{value}} @children", "שלום 🙂"]
    compare(page, texts)
    panel = page.locator(".panel").first
    assert panel.locator(".matrix bdi").all_inner_texts() == texts
    read = ["".join(row.split()) for row in panel.locator(".sentences li").all_inner_texts()]
    assert read == ["".join(text.split()) for text in texts]
    assert panel.locator("b, img").count() == 0
    page.get_by_label("Sentences, one per line (Shift").fill(" ")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".note")).to_have_text(re.compile("Type at least one sentence"), timeout=PATIENCE)
    assert page.locator(".error, .toast-body").count() == 0


def test_a_search_finds_what_the_model_holds_for_nearest(open_page, release_folder, tmp_path):
    """Among pasted sentences and those of a file. A file that is not text gives a one-sentence note."""
    page = open_page()
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Sentences to search, one").fill("\n".join(SENTENCES))
    more = [f"{sentence.rstrip('.')}, and {other.lower()}" for sentence in SENTENCES for other in SENTENCES[:3]]
    (tmp_path / "more.txt").write_text("\n".join(more))
    page.locator("input[type=file]").set_input_files(tmp_path / "more.txt")
    expect(page.get_by_role("cell").first).to_contain_text("more", timeout=PATIENCE)
    found = search(page, "A cat runs.")
    sentences = [*SENTENCES, *more]
    scores = SarcseModel.from_pretrained(release_folder).encode([*sentences, "A cat runs."], normalize=True)
    scores = scores[:-1] @ scores[-1]  # (16, d) @ (d,) -> (16,)
    best = scores.argsort()[::-1][:10]
    assert found == [(f"{scores[row]:.3f}", sentences[row]) for row in best]
    page.get_by_role("button", name="Clear").click()
    page.locator("input[type=file]").set_input_files(PROJECT / "docs" / "token_importance.png")
    expect(page.get_by_role("cell").first).to_contain_text("token_importance", timeout=PATIENCE)
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".note")).to_contain_text("token_importance.png is not a UTF-8 text file", timeout=PATIENCE)


def test_the_model_is_shown_with_its_scores_and_figures(open_page, finished_run):
    page = open_page()
    page.get_by_role("tab", name="The model").click()
    card = page.locator(".prose.card")
    results = json.loads((finished_run[0] / "sts_results.json").read_text())["models"][f"after: {finished_run[0]}"]
    low, high = results["average_interval"]
    expect(card).to_contain_text(f"{results['average']:.2f} [{low:.2f}, {high:.2f}]", timeout=PATIENCE)
    pictures = card.locator("img").evaluate_all("images => images.map(image => [image.alt, image.naturalWidth > 0])")
    assert pictures == [[text, True] for text in FIGURES.values()]


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
    """Shaded text has the contrast that WCAG requires, and no page is wider than the window, even on hover."""
    page = open_page(**options)
    assert page.locator("body.dark").count() == (options.get("color_scheme") == "dark")
    compare(page, [*SENTENCES, "Antidisestablishmentarianism" * 9])

    def width() -> int:
        return page.evaluate("document.scrollingElement.scrollWidth - innerWidth")

    assert page.locator(".matrix td, .token").evaluate_all(LEAST_CONTRAST) >= 4.5
    right = page.locator(".token").evaluate_all(
        "tokens => tokens.reduce((best, token, i) => token.getBoundingClientRect().right >"
        " tokens[best].getBoundingClientRect().right ? i : best, 0)"
    )
    page.locator(".token").nth(right).hover()
    assert width() <= 0
    page.get_by_role("tab", name="Search").click()
    search(page, "Why?")
    assert page.locator(".score, .found bdi").evaluate_all(LEAST_CONTRAST) >= 4.5 and width() <= 0
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
    expect(page.locator(".matrix td").nth(1)).to_have_text(
        similarities(release_folder, ["Why?", "How so?"])[0][1], timeout=PATIENCE
    )
    go_to("tab", "Search")
    page.keyboard.press("Enter")
    go_to("textbox", "Query")
    page.keyboard.type("birds")
    go_to("button", "Search")
    page.keyboard.press("Enter")
    expect(page.locator(".found li").first).to_be_visible(timeout=PATIENCE)
