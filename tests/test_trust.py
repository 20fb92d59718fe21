"""
Whose code runs. A release, its card and its configuration are a stranger's text: none of them can make this project or
the page of a Space run code that nobody has allowed.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from modeling_sarcse import SarcseModel
from sarcse.evaluation.embedding import load_embedders
from sarcse.loading import kind_of_model, load_model
from sarcse.options import SpaceOptions
from sarcse.release.folder import write_model
from sarcse.release.space import find, second_model

from .conftest import ENCODER, PROJECT, SENTENCES, run_command, run_python
from .loopback_hub import LoopbackHub


MINE = "hf_" + "w1" * 17

# Leaves a file where it runs, and is otherwise the model's code.
EVIL = "\nimport os\nopen(os.environ.get('EVIL', '/dev/null'), 'w').close()\n"


def edit(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


# --- The models of a Space -------------------------------------------------------------------------------------------


@pytest.fixture()
def release(release_folder, tmp_path) -> Path:
    """A release with code, to be changed."""
    return shutil.copytree(release_folder, tmp_path / "release")


CHANGES = {
    "modeling_sarcse.py": lambda folder: append(folder / "modeling_sarcse.py", EVIL),
    "configuration_sarcse.py": lambda folder: append(folder / "configuration_sarcse.py", "# of an older version\n"),
    "evil/model--evil.Model": lambda folder: edit(
        folder / "config.json", lambda fields: fields["auto_map"].update(AutoModel="evil/model--evil.Model")
    ),
    "evil.Tokenizer": lambda folder: edit(
        folder / "config.json", lambda fields: fields["auto_map"].update(AutoTokenizer="evil.Tokenizer")
    ),
    "the model that adapter_config.json names": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "auto_map None": lambda folder: edit(folder / "config.json", lambda fields: fields.pop("auto_map")),
}


@pytest.mark.parametrize("code", CHANGES)
def test_code_that_is_not_this_installations_needs_a_flag(release, tmp_path, code):
    """By the release itself and by --beside. The message says what the code is and where, and nothing is written."""
    assert find(str(release), "main", tmp_path).settings()["code"], "this project's own needs none"
    shutil.copytree(release, tmp_path / "own")
    CHANGES[code](release)
    for models in (["release"], ["own", "--beside", "release"]):
        command = ["-m", "model_card", *models, "--space", tmp_path / "space"]
        process = run_command(*command, cwd=tmp_path)
        assert process.returncode == 2
        (line,) = process.stderr.splitlines()
        assert line.startswith("model_card: error: release: its page would run Python code") and code in line
        assert line.endswith("If you have read it and trust it, add --trust_remote_code.")
        assert not (tmp_path / "space").exists()
    assert run_command(*command, "--trust_remote_code", cwd=tmp_path).returncode == 0
    models = json.loads((tmp_path / "space" / "space.json").read_text(encoding="utf-8"))["models"]
    assert [(model["pooling"], model["code"]) for model in models] == [(None, True)] * 2


SHOWN = """
import runpy
page = runpy.run_path("space/app.py")
print(len(page["MODELS"]), page["NO_SECOND_MODEL"])
"""


def test_the_model_that_a_card_names_is_an_encoder_without_code(release, tmp_path):
    """
    A plain release names a stranger's SARCSE model on the Hub as the encoder that it started from. The page leaves it
    out without running its code, and so it does if that model lies in a folder of its name.
    """
    model, tokenizer = load_model(str(ENCODER), pooler="mean")
    write_model(model, tokenizer, tmp_path / "plain", plain=True, with_decoder=False)
    CHANGES["modeling_sarcse.py"](release)
    with LoopbackHub({MINE: ("me", "write")}) as hub:
        commit = hub.add("models", "evil/model", release)
        (tmp_path / "plain" / "README.md").write_text(
            f"---\nlicense: mit\n---\nStarted from `evil/model` at commit `{commit}`.\n", encoding="utf-8"
        )
        environment = {**hub.environment(tmp_path / "home"), "EVIL": str(tmp_path / "ran")}
        command = ["-m", "model_card", tmp_path / "plain", "--space", tmp_path / "space"]
        made = run_python(*command, cwd=PROJECT, **environment)
        assert made.returncode == 0, made.stderr
        asked = [path for _, path, _ in hub.log if "evil/model" in path]
        assert asked == [], "nothing of it is asked, so nothing of it decides"
        settings = json.loads((tmp_path / "space" / "space.json").read_text(encoding="utf-8"))["models"][1]
        assert settings == {"name": "evil/model", "revision": commit, "pooling": "mean", "code": False}
        shown = run_python("-c", SHOWN, cwd=tmp_path, **environment)
        assert any("evil/model" in path for _, path, _ in hub.log), "the page asked"
        shutil.copytree(release, tmp_path / "evil" / "model")
        again = run_python("-c", SHOWN, cwd=tmp_path, **environment)
    for process in (shown, again):
        assert process.returncode == 0, process.stderr
        assert "1 No second model is shown: evil/model could not be loaded." in process.stdout
    assert not (tmp_path / "ran").exists()
    assert "evil/model exists here and would be read instead of the Hub's" in again.stderr


@pytest.mark.parametrize("name", ["../model", "/tmp/model", ".", "a/b/c", "model/", "a b", "a--b", "C:\\model"])
def test_a_path_in_a_card_is_no_model(tmp_path, name):
    for text in (f"`{name}` at commit `{'c' * 40}`", "`a/b` at commit `main`", f"`a/b` at commit `{'c' * 39}`"):
        card = ModelCard(f"---\nlicense: mit\n---\nStarted from {text}.\n")
        assert second_model(SpaceOptions(str(tmp_path)), card, tmp_path) is None


# In a process without this project, whose own classes transformers would prefer.
LOADS = """
import json, os, runpy, sys
page = runpy.run_path(sys.argv[1])
said = []
for name, revision, pooling, code in json.loads(sys.argv[2]):
    try:
        said.append(page["load"](name, revision, pooling, code).encode(json.loads(sys.argv[3])).tolist())
    except (OSError, ValueError) as error:
        said.append(str(error))
    said.append([os.path.exists(os.environ[name]) for name in ("EVIL", "EVIL_TOKENIZER")])
print(json.dumps(said))
"""


def test_the_page_runs_code_only_where_space_json_says_so(release_folder, release, tmp_path):
    """Never with a pooling, never of the tokenizer, and never of a folder that has the name of a model on the Hub."""
    made = run_command("-m", "model_card", release_folder, "--space", tmp_path / "space", cwd=PROJECT)
    assert made.returncode == 0, made.stderr
    append(release / "modeling_sarcse.py", EVIL)
    (release / "evil.py").write_text(EVIL.replace("'EVIL'", "'EVIL_TOKENIZER'") + "class Evil:\n    pass\n")
    foreign = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    edit(release / "tokenizer_config.json", lambda fields: fields.update(auto_map=foreign))
    (tmp_path / "me").mkdir()
    shutil.copytree(release, tmp_path / "me" / "model")
    folder = str(release)
    wanted = [
        *((folder, None, pooling, code) for pooling, code in ((None, False), ("mean", True), ("mean", False))),
        ("me/model", "c" * 40, None, True),
        (folder, None, None, True),
    ]
    environment = {"EVIL": str(tmp_path / "ran"), "EVIL_TOKENIZER": str(tmp_path / "of_tokenizer")}
    arguments = (tmp_path / "space" / "app.py", json.dumps(wanted), json.dumps(SENTENCES))
    process = run_python("-c", LOADS, *arguments, cwd=tmp_path, **environment)
    assert process.returncode == 0, process.stderr
    *refused, embeddings, ran = json.loads(process.stdout.splitlines()[-1])
    assert all("trust_remote_code" in message for message in refused[0:6:2])
    assert refused[6].startswith("me/model exists here and would be read instead of the Hub's")
    assert refused[1::2] == [[False, False]] * 4 and ran == [True, False]
    expected = SarcseModel.from_pretrained(release).encode(SENTENCES)
    torch.testing.assert_close(torch.tensor(embeddings), torch.from_numpy(expected), atol=1e-5, rtol=0)


# --- Fields of a configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooler", [None, "evil", 1, ["mean"], "words", "first_last_average"])
def test_a_pooler_that_no_release_has_is_an_error(tmp_path, pooler):
    """Not the mean and not code: for the Space, for a score, and for a training."""
    folder = shutil.copytree(ENCODER, tmp_path / "plain")
    edit(folder / "config.json", lambda fields: fields.update(sarcse_pooler=pooler))
    for read in (load_model, kind_of_model, lambda name: find(name, "main", tmp_path)):
        with pytest.raises(ValueError, match=r"plain: config.json has sarcse_pooler=.*only cls and mean"):
            read(str(folder))


def test_a_release_names_no_code_of_its_encoder(tmp_path):
    """An encoder that transformers knows may name a stranger's code, which its release would name as well."""
    encoder = shutil.copytree(ENCODER, tmp_path / "encoder")
    foreign = {"AutoConfig": "evil/model--c.C", "AutoModel": "evil/model--c.M"}
    edit(encoder / "config.json", lambda fields: fields.update(auto_map=foreign, custom_pipelines={"x": {}}))
    edit(
        encoder / "tokenizer_config.json",
        lambda fields: fields.update(auto_map={"AutoTokenizer": ["evil/m--t.T", None]}),
    )
    for pooler in ("mean", "words"):
        model, tokenizer = load_model(str(encoder), pooler=pooler)
        write_model(model, tokenizer, tmp_path / pooler, plain=pooler == "mean", with_decoder=False)
        config = json.loads((tmp_path / pooler / "config.json").read_text(encoding="utf-8"))
        assert ("auto_map" in config, "custom_pipelines" in config) == (pooler != "mean",) * 2
        for name in ("config.json", "tokenizer_config.json"):
            assert "evil" not in (tmp_path / pooler / name).read_text(encoding="utf-8")


# --- Scores ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_sentence_transformers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("peer") / "model"
    SentenceTransformer(modules=[Transformer(str(ENCODER)), Pooling(128, "mean")], device="cpu").save(str(folder))
    (folder / "evil.py").write_text(f"{EVIL}class Module:\n    pass\n")
    return folder


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("modules.json", lambda modules: modules[0].update(type="evil.Module")),
        (
            "config.json",
            lambda fields: fields.update(
                model_type="evil", auto_map=dict.fromkeys(("AutoConfig", "AutoModel"), "evil.Module")
            ),
        ),
    ],
)
def test_a_local_folder_of_sentence_transformers_runs_no_code_without_the_flag(
    by_sentence_transformers, tmp_path, monkeypatch, file, change
):
    """Neither a file of the folder nor, as a module, one of the current folder."""
    folder = shutil.copytree(by_sentence_transformers, tmp_path / "model")
    edit(folder / file, change)
    monkeypatch.setenv("EVIL", str(tmp_path / "ran"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(ValueError, match="trust_remote_code"):
        list(load_embedders(str(folder), ["mean"], "main", torch.device("cpu"), 8))
    assert not (tmp_path / "ran").exists()
