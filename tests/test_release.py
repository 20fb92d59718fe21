"""The release folder: its content, its card, every way to load it, and what stops a release."""

import ast
import copy
import hashlib
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from model_card.__main__ import main
from modeling_sarcse import SarcseModel
from sarcse.data.sts import load_tasks
from sarcse.data.tokens import FREQUENCY_WEIGHTINGS
from sarcse.evaluation.comparison import (
    Measurement,
    ModelScores,
    Results,
    TaskDifference,
    TaskScores,
    compare,
    difference,
)
from sarcse.evaluation.embedding import encode, measure
from sarcse.evaluation.report import report, write_results
from sarcse.loading import load_model
from sarcse.options import STS_TASKS, ReleaseOptions
from sarcse.release import folder as folder_module
from sarcse.release.build import build, prompts_of
from sarcse.release.card import WIDGET, eval_result_entries, eval_results, placeholder, seeds_table, write_card
from sarcse.release.facts import Facts, Onnx, read_facts, read_scores, read_seeds
from sarcse.release.folder import GOLDEN_SENTENCES, verify, write_model, write_tokenizer
from sarcse.release.hub import files_of
from sarcse.training.build import build_trainer
from sarcse.training.parsing import parse_arguments

from . import hub_rules
from .conftest import DEMO, ENCODER, PROJECT, flags, refusal, run_command, run_python
from .ways_to_load import EXACT, LOWER_PRECISION


# --- The folder ------------------------------------------------------------------------------------------------------


def test_a_release_holds_what_loads_it_and_nothing_else(release_folder):
    assert set(files_of(release_folder)) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "configuration_sarcse.py",
        "modeling_sarcse.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "modules.json",
        "sentence_bert_config.json",
        "golden_embeddings.json",
        "special_tokens_map.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        *(f"onnx/{name}" for name in ("model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json")),
        *(f"onnx/{name}" for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")),
        "similarity_densities.png",
        "alignment_uniformity.png",
        "training_curve.png",
    }


def test_nothing_in_a_release_names_the_machine_that_made_it(release_folder, finished_run):
    private = [str(PROJECT), str(finished_run[0].parent), str(release_folder.parent)]
    for name, path in files_of(release_folder).items():
        content = path.read_bytes()
        assert not [text for text in private if text.encode() in content], name


def test_golden_embeddings_are_those_of_the_trained_model(release_folder, finished_run, tokenizer):
    """Sentence by sentence, from the output folder of the training."""
    golden = json.loads((release_folder / "golden_embeddings.json").read_text())
    model = SarcseModel.from_pretrained(finished_run[0]).double()
    for sentence, expected in zip(GOLDEN_SENTENCES, golden["embeddings"], strict=True):
        batch = tokenizer(sentence, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            exact = model(**batch).pooler_output[0].float()
        torch.testing.assert_close(exact, torch.tensor(expected), atol=2e-6, rtol=0)


def test_the_same_model_gives_the_same_release_byte_by_byte(release_folder, finished_run, tmp_path):
    """So a second push has nothing to send. An earlier release in the folder is replaced."""
    again = tmp_path / "again" / "sarcse-tiny"
    shutil.copytree(release_folder, again)
    (again / "left_over.txt").write_text("of an earlier release")
    build(ReleaseOptions(str(finished_run[0]), str(again), tag="v1", license="apache-2.0", language=["en"]))
    files = {name: path.read_bytes() for name, path in files_of(again).items()}
    assert files == {name: path.read_bytes() for name, path in files_of(release_folder).items()}
    assert [path.name for path in again.parent.iterdir()] == ["sarcse-tiny"], "nothing is left beside it"


def test_a_release_is_built_through_a_link(finished_run, tmp_path):
    """To a folder, to an earlier release, and to a folder that does not exist yet; the link stays."""
    target, link = tmp_path / "disk" / "release", tmp_path / "link"
    link.symlink_to(target)
    (tmp_path / "disk").mkdir()
    for _ in range(2):
        folder, _ = build(ReleaseOptions(str(finished_run[0]), str(link)))
        assert folder == link and link.is_symlink() and (target / "golden_embeddings.json").is_file()
        assert [path.name for path in target.parent.iterdir()] == ["release"], "nothing is left beside it"
        (target / "stale.txt").write_text("of an earlier release")
    assert not {path.name for path in tmp_path.iterdir()} - {"disk", "link"}


@pytest.mark.parametrize("pooler", ["words", "mean"])
def test_sentence_transformers_finds_the_similarity_and_the_prompts_beside_a_release(tmp_path, tokenizer, pooler):
    from sentence_transformers import SentenceTransformer

    model, _ = load_model(str(ENCODER), pooler=pooler, channels=4)
    prompts = prompts_of(ReleaseOptions("model", "release", prompt=["query=query: ", "x=a = b"]))
    write_model(model, tokenizer, tmp_path / "release", plain=pooler == "mean", with_decoder=False, prompts=prompts)
    loaded = SentenceTransformer(str(tmp_path / "release"), trust_remote_code=True, device="cpu")
    assert loaded.prompts.items() >= {"query": "query: ", "x": "a = b"}.items()
    assert loaded.similarity_fn_name == "cosine" and loaded.default_prompt_name is None
    expected = loaded.encode(["query: Why?"])
    np.testing.assert_allclose(loaded.encode(["Why?"], prompt_name="query"), expected, atol=1e-6)
    for wrong in ("query", "=text", "query="):
        with pytest.raises(ValueError, match="--prompt .*: write NAME=TEXT"):
            prompts_of(ReleaseOptions("model", "release", prompt=[wrong]))


def test_tokenizer_json_alone_cuts_at_the_models_limit(release_folder, tokenizer, tmp_path):
    """
    Whatever an encoder or the last call left there: programs without transformers read that file. The plain form and
    both folders of the other one are read here by the package tokenizers.
    """
    for folder in (tmp_path / "plain", tmp_path / "with_code"):
        own = AutoTokenizer.from_pretrained(ENCODER)
        own(["Why?", "A longer one."], padding=True, truncation=True, max_length=8, pad_to_multiple_of=8)
        assert own.backend_tokenizer.truncation["max_length"] == 8 and own.backend_tokenizer.padding is not None
        model, plain = load_model(str(ENCODER), pooler="mean")[0], folder.name == "plain"
        own.model_max_length = 128
        write_model(model, own, folder, plain, with_decoder=False)
        write_tokenizer(own, folder / "onnx")
    folders = [release_folder, *(tmp_path / "plain", tmp_path / "with_code")]
    for file in [path for folder in folders for path in folder.rglob("tokenizer.json")]:
        bare = Tokenizer.from_file(str(file))
        for sentence in GOLDEN_SENTENCES:
            expected = tokenizer(sentence)["input_ids"]
            expected = expected if len(expected) <= 128 else [*expected[:127], tokenizer.sep_token_id]
            assert bare.encode(sentence).ids == expected, file


@pytest.mark.parametrize(
    "left", [{"truncation": {"max_length": 32}}, {"padding": {"length": 64, "pad_id": 1, "pad_token": "<pad>"}}]
)
def test_the_reader_that_fails_is_named_with_what_it_reads(release_folder, tmp_path, left):
    """Here the package tokenizers; AutoModel gives the same embeddings, and its difference is not printed."""
    folder = shutil.copytree(release_folder, tmp_path / "release")
    bare = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if "padding" in left:
        bare.enable_padding(**left["padding"])
    else:
        bare.enable_truncation(**left["truncation"])
    bare.save(str(folder / "tokenizer.json"))
    told = r"process: transformers: the same; tokenizers: ValueError: tokenizer.json: (32|64) tokens, not the same \d+"
    with pytest.raises(ValueError, match=told):
        verify(folder)


def test_large_weights_are_sharded(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "MAX_SHARD_SIZE", "1MB")
    # This also loads it in a new process.
    folder, _ = build(ReleaseOptions(str(finished_run[0]), str(tmp_path / "sharded")))
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    assert (folder / "model.safetensors.index.json").is_file() and not (folder / "model.safetensors").exists()


def test_a_full_disk_leaves_the_model_and_no_half_release(finished_run, tmp_path):
    """The weights have 6 MB."""
    model_dir, _ = finished_run
    before = {path: path.stat().st_mtime_ns for path in model_dir.rglob("*")}
    out = tmp_path / "releases" / "out"
    process = run_python("-m", "model_card", model_dir, "--release_dir", out, cwd=PROJECT, largest_file=2_000_000)
    assert process.returncode == 2
    message = process.stderr[process.stderr.index("model_card: error:") :]
    assert f"the release could not be written to {out}" in message
    assert f"python -m model_card {model_dir} --release_dir {out}" in message and "Traceback" not in process.stderr
    assert before == {path: path.stat().st_mtime_ns for path in model_dir.rglob("*")}
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("training_args.bin", "a pickle", "training_args.bin would be in the release, but does not belong there"),
        ("optimizer.pt", "a pickle", "optimizer.pt would be in the release"),
        ("helper.py", "import os", "helper.py would be in the release"),
        ("notes.json", '"hf_' + "a1" * 17 + '"', "notes.json would be in the release, but contains an access token"),
    ],
)
def test_what_must_not_leave_the_machine_stops_a_release(release_folder, tmp_path, name, content, message):
    folder = shutil.copytree(release_folder, tmp_path / "release")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        verify(folder)


def test_a_release_with_other_embeddings_is_stopped(release_folder, tmp_path):
    folder = shutil.copytree(release_folder, tmp_path / "release")
    golden = json.loads((folder / "golden_embeddings.json").read_text())
    golden["embeddings"][0][0] += 0.01
    (folder / "golden_embeddings.json").write_text(json.dumps(golden))
    with pytest.raises(
        ValueError,
        match="does not reproduce .* in a new process: transformers: largest diff.*; tokenizers: the",
    ):
        verify(folder)


def test_a_release_that_needs_the_project_is_stopped(release_folder, tmp_path):
    """The verification runs without the project on its path."""
    folder = shutil.copytree(release_folder, tmp_path / "release")
    code = (folder / "modeling_sarcse.py").read_text()
    (folder / "modeling_sarcse.py").write_text(code + "\nimport importlib\nimportlib.import_module('comparison')\n")
    with pytest.raises(ValueError, match="in a new process: .*No module named 'comparison'"):
        verify(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere", "--release_dir", "{tmp}/out"], "nowhere: no such folder"),
        (
            [str(DEMO / "encoder"), "--release_dir", "{tmp}/out"],
            "no SARCSE model in it. Give the output folder of a training",
        ),
        (["{model}", "--release_dir", "{model}"], "would overwrite the model in"),
        (["{model}", "--release_dir", "{model}/.."], "would overwrite the model in"),
        (["{model}", "--release_dir", "{tmp}/full"], "holds something that is not a release; choose a new folder"),
        (["{model}", "--release_dir", "{tmp}/full/note.txt"], "note.txt: is a file"),
        (["{model}", "--release_dir", "{tmp}/out", "--results", "{tmp}/none.json"], "none.json could not be read"),
        (["{model}", "--release_dir", "{tmp}/out", "--results", "{tmp}/others.json"], "no scores of .* among a, b"),
        (["{model}", "--release_dir", "{tmp}/out", "--seeds", "{model}"], "seed 42 was given already"),
        (
            ["{model}", "--release_dir", "{tmp}/out", "--seeds", "{tmp}/other"],
            "differs .* seed: architecture.channels",
        ),
        (["{model}", "--release_dir", "{tmp}/out", "--push", "no/such/name"], "no/such/name"),
        (["{model}", "--release_dir", "{tmp}/out", "--push", "name"], "--push name: add the owner, you/name"),
        (
            ["{model}", "--release_dir", "{tmp}/out", "--tag", "first one"],
            "--tag first one: use letters, digits",
        ),
        (
            ["{model}", "--release_dir", "{tmp}/out", "--tag", "main"],
            "--tag main: .* not the name of the branch to push to",
        ),
        (
            ["{model}", "--release_dir", "{tmp}/out", "--plain"],
            "--plain: its embedding is the mean of the token vectors plus .* needs this project's code.*"
            "Leave --plain out",
        ),
        (["{model}", "--release_dir", "{tmp}/out", "--plain", "--with_code"], "--plain and --with_code exclude"),
        (["{model}", "--release_dir", "{tmp}/out", "--plain", "--with_decoder"], "--plain and --with_decoder exclude"),
        (
            ["{model}", "--release_dir", "{tmp}/out", "--onnx_int8", "--sts_dir", "{tmp}/full"],
            "--onnx_int8 scores int8 on STS-B: give its folder with --sts_dir, or --pairs FILE. {tmp}/full",
        ),
    ],
)
def test_user_errors_end_in_one_message(finished_run, tmp_path, monkeypatch, capsys, arguments, message):
    model_dir, _ = finished_run
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "others.json").write_text('{"models": {"a": {}, "b": {}}}')
    (tmp_path / "other").mkdir()
    record = json.loads((model_dir / "training_record.json").read_text())
    record["hyperparameters"]["seed"], record["architecture"]["channels"] = 1, 8
    (tmp_path / "other" / "training_record.json").write_text(json.dumps(record))
    shutil.copy(model_dir / "sts_results.json", tmp_path / "other")
    arguments = [argument.format(tmp=tmp_path, model=model_dir) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["model_card", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    message = message.format(tmp=tmp_path)
    assert re.search(f"model_card: error: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists() and (tmp_path / "full" / "note.txt").read_text() == "mine"


# --- Loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def differences(release_folder, tmp_path_factory) -> dict[str, float | str]:
    """Differences from the golden embeddings for each way to load, in a process outside the project."""
    script = shutil.copy(PROJECT / "tests" / "ways_to_load.py", tmp_path_factory.mktemp("stranger"))
    process = run_python(script, release_folder, *here(EXACT + LOWER_PRECISION), cwd=Path(script).parent)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


# langchain-huggingface and optimum do not work with the newest huggingface_hub and transformers, and Transformers.js
# is not Python: compat.py tests them in separate environments. The release here has no int8 file.
ELSEWHERE = ("langchain", "optimum", "sentence_transformer_onnx", "fastembed", "transformers_js", "onnx_int8")


def here(ways: list[Callable]) -> list[str]:
    return [way.__name__ for way in ways if not way.__name__.startswith(ELSEWHERE)]


@pytest.mark.parametrize("way", here(EXACT))
def test_every_way_to_load_gives_the_same_vectors(differences, way):
    assert differences[way] <= 1e-6, differences[way]


@pytest.mark.parametrize("way", here(LOWER_PRECISION))
def test_lower_precision_stays_near(differences, way):
    """As 1 - cosine, on a model with random channels."""
    assert differences[way] <= {"bfloat16": 1e-3, "int8": 1e-2}[way], differences[way]


# --- The decoder -----------------------------------------------------------------------------------------------------


WITHOUT_DECODER = """
import sys
from transformers import AutoModel, AutoTokenizer
folder = sys.argv[1]
model, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
assert not [name for name, _ in model.named_parameters() if "decoder" in name]
batch = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(["Why?"], return_tensors="pt")
try:
    model(**batch, output_reconstruction=True)
except ValueError as error:
    print(error)
"""


def test_a_release_has_no_decoder_misses_none_and_says_so_when_asked_for_a_reconstruction(release_folder, tmp_path):
    process = run_python("-c", WITHOUT_DECODER, release_folder, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    told = "has no decoder, which a release leaves out, so nothing can be reconstructed. Use the folder that"
    assert told in process.stdout
    assert not re.search(r"MISSING|UNEXPECTED|newly initialized", process.stdout + process.stderr)
    explain = [PROJECT / "eval_sts.py", release_folder, "--explain", "Why?", "How?", "--output_dir", tmp_path / "out"]
    process = run_command(*explain, cwd=tmp_path)
    assert process.returncode == 2 and told in process.stderr and "Traceback" not in process.stderr


def test_training_goes_on_from_a_release_with_its_decoder_and_from_others_without_reconstruction(
    release_folder, finished_run, tmp_path
):
    fields = {"model_name_or_path": release_folder, "channels": None}
    assert "has no decoder, which a release leaves out" in refusal(tmp_path, **fields)
    assert refusal(tmp_path, **fields, reconstruction_weight=0) == ""
    model, tokenizer = load_model(str(finished_run[0]))
    expected = model.state_dict()
    write_model(model, tokenizer, tmp_path / "kept", plain=False, with_decoder=True)
    kept, _ = load_model(str(tmp_path / "kept"))
    assert kept.state_dict().keys() == expected.keys()
    assert refusal(tmp_path, **{**fields, "model_name_or_path": tmp_path / "kept"}) == ""


# --- The card --------------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_recorded(release_folder, finished_run):
    card = ModelCard.load(release_folder / "README.md")
    assert card.data.to_dict() == {
        "model_name": "sarcse-tiny",
        "language": ["en"],
        "license": "apache-2.0",
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": [
            *("sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "transformers"),
            *("dataset_size:32", "loss:InfoNCE", "loss:TokenReconstruction", "sarcse"),
        ],
        "widget": WIDGET,
    }  # no base_model, no dataset, no model-index: a local encoder, a local file, and pairs that are no published task
    results = json.loads((finished_run[0] / "sts_results.json").read_text())["models"][f"after: {finished_run[0]}"]
    low, high = results["average_interval"]
    for fact in (
        f"{results['average']:.2f} [{low:.2f}, {high:.2f}]",
        "before: encoder, mean",
        "`learning_rate`",
        "from one training seed",
        'revision="v1"',
        "graded pairs picked the checkpoint",
        "The pairs of sts also picked this model's checkpoint, which makes its score on them too high.",
        "1 x CPU (1 thread)",
        f"torch {torch.__version__}",
        "![Density of the cosine similarity by gold rating](similarity_densities.png)",
    ):
        assert fact in card.content, fact


@pytest.mark.parametrize(
    ("pooler", "weight", "sentence", "tag"),
    [
        (
            "autoencoder",
            1.0,
            "{mean} plus {scales}. {trained}, with the two losses of SARCSE",
            "sarcse",
        ),
        ("words", 1.0, "{mean} plus {words}. {trained}, with the two losses of SARCSE", "sarcse"),
        ("words", 0.0, "{mean} plus {words}. {trained}, with InfoNCE", "sarcse"),
        ("textcnn", 1.0, "{scales}. {trained}, with the two losses of SARCSE", "sarcse"),
        ("mean", 1.0, "{mean}. {trained}, with the two losses of SARCSE", "sarcse"),
        ("mean", 0.0, "{mean}. {trained}, with InfoNCE", "simcse"),
        ("cls", 0.0, "the first token's vector. {trained}, with InfoNCE", "simcse"),
    ],
)
def test_the_card_names_the_method_that_was_trained(facts, tmp_path, pooler, weight, sentence, tag):
    parts = {"mean": "the mean of the token vectors", "scales": "the integrated and averaged scales of a TextCNN"}
    parts["words"] = "the mean of the word vectors, weighted by a TextCNN"
    sentence = "The embedding is " + sentence.format(**parts, trained="Trained without labels")
    facts.model = load_model(str(ENCODER), pooler=pooler)[0]
    facts.record["hyperparameters"]["reconstruction_weight"] = weight
    write_card(tmp_path / "README.md", facts, "you/model", "v1", None, ["en"])
    card = ModelCard.load(tmp_path / "README.md")
    assert sentence in " ".join(card.content.split()) and card.data.tags[-1] == tag
    assert ("liu2024sarcse" in card.content) == (tag == "sarcse")


def test_the_data_hash_is_of_the_sentences_trained_on(finished_run):
    """`head -n 32 demo/sentences.txt | sha256sum`"""
    lines = (DEMO / "sentences.txt").read_bytes().splitlines(keepends=True)[:32]
    data = json.loads((finished_run[0] / "training_record.json").read_text())["train_data"]
    expected = hashlib.sha256(b"".join(lines)).hexdigest()
    assert data == {"name": "sentences.txt", "hub_id": None, "sentences": 32, "sha256": expected}


@pytest.fixture()
def facts(finished_run, tokenizer) -> Facts:
    model_dir, _ = finished_run
    return read_facts(model_dir, SarcseModel.from_pretrained(model_dir), tokenizer)


def scored(spearman: dict[str, float], missing: int = 0) -> ModelScores:
    tasks = {
        task: TaskScores(value, 0.0, STS_TASKS[task].pairs - missing, subsets={}, interval=[0.0, 1.0], loaded_as=task)
        for task, value in spearman.items()
    }
    return ModelScores("autoencoder", tasks, statistics.fmean(spearman.values()), [0.0, 1.0], geometry=None)


def test_published_tasks_are_in_the_metadata(facts, tmp_path):
    facts.models, facts.row = {"m": scored({"STS12": 61.234, "STSB": 70.5})}, "m"
    facts.record["base_model"] = {"name": "FacebookAI/roberta-base", "revision": "0" * 40}
    facts.record["train_data"]["hub_id"] = "you/wiki"
    facts.seeds = {seed: scored({"STS12": 60.0 + seed}) for seed in (1, 2, 3)}
    write_card(tmp_path / "README.md", facts, "you/model", "v1", None, [])
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data["base_model"] == "FacebookAI/roberta-base" and data["datasets"] == ["you/wiki"]
    assert "license" not in data and "language" not in data
    text = (tmp_path / "README.md").read_text()
    assert "The same training with 3 seeds:" in text and "one training seed" not in text
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "model"
    assert [(r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in results] == [
        ("mteb/sts12-sts", "test", "spearman_cosine", 0.6123),
        ("mteb/stsbenchmark-sts", "test", "spearman_cosine", 0.705),
    ]
    entries = yaml.safe_load(yaml.safe_dump(eval_result_entries(facts)))
    assert [(entry["dataset"]["id"], entry["value"]) for entry in entries] == [
        ("mteb/sts12-sts", 61.23),
        ("mteb/stsbenchmark-sts", 70.5),
    ]


def test_the_hub_takes_the_metadata_of_every_card(facts, tmp_path):
    """With all possible fields, and with none, by the rules of hub_rules.py. Each rule rejects a bad example."""
    write_card(tmp_path / "least.md", replace(facts, record={}, models={}, row=None), "you/model", None, None, [])
    facts.models, facts.row = {"m": scored({task: 61.2 for task in STS_TASKS})}, "m"
    facts.record["base_model"] = {"name": "FacebookAI/roberta-base", "revision": "0" * 40}
    facts.record["train_data"]["hub_id"] = "you/wiki"
    write_card(tmp_path / "most.md", facts, "you/model", "v1", "apache-2.0", ["en", "de"])
    most = (tmp_path / "most.md").read_text()
    assert hub_rules.errors(most) == hub_rules.errors((tmp_path / "least.md").read_text()) == []
    assert len(ModelCard(most).data.eval_results) == 7
    for good, bad in [
        ("license: apache-2.0", "license: apache"),
        ("- de\n", "- German\n"),
        ("base_model: FacebookAI/roberta-base", "base_model:"),
        ("base_model: FacebookAI/roberta-base", "base_model: /home/me/encoder"),
        ("- you/wiki", "- my own text"),
        ("model-index:\n- name: model", "model-index:\n- label: model"),
        ("license: apache-2.0", "license: apache-2.0\nlicense: mit"),
    ]:
        assert good in most and hub_rules.errors(most.replace(good, bad, 1)), bad


def test_no_line_of_a_card_is_long_for_those_who_read_it_as_it_is(facts, tmp_path):
    """Except for rows of tables, which start with a bar."""
    facts.onnx = Onnx({"onnx/model.onnx": 10**9}, task="STSB", pairs=9, scores={"onnx/model.onnx": 50.0})
    facts.record["base_model"] = {"name": "somebody/an-encoder-with-a-rather-long-name", "revision": "0" * 40}
    for plain in (False, True):
        facts.plain = plain
        write_card(tmp_path / "README.md", facts, "you/a-model-with-a-rather-long-name", "v1", "mit", ["en"])
        lines = (tmp_path / "README.md").read_text().splitlines()
        assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


def test_a_score_in_lower_precision_is_labelled_and_not_published(finished_run, tokenizer, tmp_path):
    """As `eval_sts.py --bf16` gives it."""
    model_dir, _ = finished_run
    results = json.loads((model_dir / "sts_results.json").read_text(encoding="utf-8"))
    assert results["precision"] == "float32", "of a training"
    models = {str(model_dir): scored({"STS12": 61.234}).to_json()}
    for precision in ("float32", "bfloat16"):
        content = {"precision": precision, "models": models}
        (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
        model = SarcseModel.from_pretrained(model_dir)
        facts = read_facts(model_dir, model, tokenizer, str(tmp_path / "results.json"))
        write_card(tmp_path / "README.md", facts, "you/model", "v1", None, [])
        card = ModelCard.load(tmp_path / "README.md")
        published, text = "model-index" in card.data.to_dict(), " ".join(card.text.split())
        assert published == bool(eval_result_entries(facts)) == (precision == "float32")
        assert ("encoded in bfloat16, so these are not the scores of the model as released" in text) != published
        assert "61.23" in text
    shutil.copy(tmp_path / "results.json", tmp_path / "sts_results.json")
    record = json.loads((model_dir / "training_record.json").read_text(encoding="utf-8"))
    record["hyperparameters"] |= {"seed": 1, "data_seed": 1}
    (tmp_path / "training_record.json").write_text(json.dumps(record), encoding="utf-8")
    content["models"] = {"after: x": models[str(model_dir)]}
    (tmp_path / "sts_results.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"--seeds {tmp_path}: scored in bfloat16, not in float32"):
        read_seeds(model_dir, [str(tmp_path)])


def test_a_training_in_lower_precision_is_scored_as_its_file_is_read(tmp_path):
    """In float32, like the row before it: the published scores are the model's. Its steps keep their precision."""
    trainer = build_trainer(*parse_arguments(flags(tmp_path / "model", bf16="true")))
    trainer.train()
    trainer.save_results()
    model, tokenizer = load_model(str(tmp_path / "model"))
    saved = measure(partial(encode, model, tokenizer), trainer.tasks)
    after = trainer.measurements[f"after: {tmp_path / 'model'}"]
    for task, similarities in saved.similarities.items():
        np.testing.assert_array_equal(after.similarities[task], similarities)
    assert not torch.equal(encode(trainer.unwrapped, tokenizer, ["A dog."]), encode(model, tokenizer, ["A dog."]))


HOSTILE = "a`b [c](http://d.e) <b>f</b> | *g* _h_ &lt; ~~i~~ \\ - j\n# k"


def test_names_are_text_in_a_card_and_in_tables(facts, finished_run, tokenizer, tmp_path):
    """
    Whatever a file or a folder is called: rendered by a Markdown parser, the names are there as they are, on one line,
    and add neither a link nor HTML nor a cell.
    """
    facts.record["base_model"] = {"name": HOSTILE, "revision": None}
    facts.record["train_data"]["name"] = HOSTILE
    facts.record["hyperparameters"] |= {"optim_args": HOSTILE, "metric_for_best_model": HOSTILE}
    own = facts.own()
    tasks = {f"{HOSTILE} {number}": scores for number, scores in enumerate([*own.tasks.values()] * 2)}
    facts.models = {HOSTILE: replace(own, tasks=tasks), "two": replace(own, tasks=tasks)}
    facts.row = "two"
    license = "x *y* | z\n--- a: b\n---\n"
    write_card(tmp_path / "README.md", facts, placeholder(HOSTILE), None, license, [])
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == license and card.data.model_name == "a-b-c-http-d.e-b-f-b-g-_h_-lt-i-j-k"
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    results = Results(facts.models, {"two": difference(own, own, np.zeros((1, 2)))}, "float32")
    results.differences["two"].tasks = {task: TaskDifference(1.0, [0.5, 1.5]) for task in tasks}
    name = " ".join(HOSTILE.split())
    for text, times in ((card.text, 4 + 2 * 2 + 1), (report(results), 1 + 2 + 2 * 3)):
        tokens = parser.parse(text)
        inline = [token for token in tokens if token.type == "inline"]
        children = [child for token in inline for child in token.children]
        assert "http://d.e" not in {child.attrs.get("href") for child in children}
        assert not [child for child in children if child.type in ("html_inline", "em_open", "s_open")]
        assert "k" not in {token.content for token in inline}
        shown = ["".join(child.content for child in token.children).replace("\u00a0", " ") for token in inline]
        assert sum(line.count(name) for line in shown) >= times, shown
        rows = [token for token in tokens if token.type == "tr_open"]
        assert len([token for token in tokens if token.type in ("th_open", "td_open")]) % 2 == 0 and rows


def test_a_tokenizer_that_cannot_be_written_is_an_error_of_the_disk(tokenizer, tmp_path):
    """tokenizers raises a bare Exception, which a release would end in a traceback with."""
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(OSError, match="the tokenizer could not be written"):
        write_tokenizer(copy.deepcopy(tokenizer), tmp_path)


def test_own_pairs_are_no_published_task_whatever_their_name_and_number(facts, tmp_path):
    """As in a file STSB.tsv with as many rows as the test pairs of STS-B."""
    number = STS_TASKS["STSB"].pairs
    rows = "".join(f"a {row}\tb {row}\t{row % 6}\n" for row in range(number))
    (tmp_path / "STSB.tsv").write_text(f"sentence1\tsentence2\tscore\n{rows}", encoding="utf-8")
    tasks = load_tasks(["STSB"], None, str(tmp_path / "STSB.tsv"))
    similarities = np.random.default_rng(0).random(number)
    for name, pairs in {**tasks, "STSB": tasks["STSB.tsv"]}.items():  # as the command names it, and as Python can
        results = compare({"after: m": Measurement("cls", {name: similarities})}, {name: pairs})
        write_results(results, tmp_path / "results.json")
        facts.models, facts.row, _ = read_scores(tmp_path / "results.json", tmp_path)
        assert facts.own().tasks[name].pairs == number
        assert eval_results(facts) == [] and eval_result_entries(facts) == []
    facts.models[facts.row].tasks[name].loaded_as = "STSB"
    assert [result.dataset_type for result in eval_results(facts)] == ["mteb/stsbenchmark-sts"]


def test_an_incomplete_task_is_no_published_score(facts, tmp_path):
    facts.models, facts.row = {"m": scored({"STS12": 61.0}, missing=1)}, "m"
    write_card(tmp_path / "README.md", facts, "you/model", "v1", None, [])
    card = ModelCard.load(tmp_path / "README.md")
    assert "model-index" not in card.data.to_dict() and eval_result_entries(facts) == []
    text = " ".join(card.content.split())
    assert "61.00" in text and "only some of the published pairs were scored: STS12" in text


@pytest.mark.parametrize(
    ("weighting", "said"),
    [
        ("smooth_inverse", "with smaller weights for frequent tokens"),
        ("self_information", "with smaller weights for frequent tokens"),
        ("uniform", "all with the same weight"),
    ],
)
def test_the_card_says_how_tokens_were_weighted(facts, tmp_path, weighting, said):
    assert FREQUENCY_WEIGHTINGS.keys() == {"smooth_inverse", "self_information", "uniform"}
    facts.record["hyperparameters"]["frequency_weighting"] = weighting
    write_card(tmp_path / "README.md", facts, "you/model", "v1", None, [])
    text = " ".join(ModelCard.load(tmp_path / "README.md").text.split())
    assert said in text and text.count("weight for") + text.count("weights for") == (weighting != "uniform")


def test_what_was_not_measured_is_left_out(facts, tmp_path):
    facts.models, facts.row, facts.record, facts.figure_dir = {}, None, {}, tmp_path
    write_card(tmp_path / "README.md", facts, "you/model", "v1", None, [])
    text = (tmp_path / "README.md").read_text()
    for absent in ("## Scores", "## Training", "## Licence", "SHA-256", "](", "None", "nan"):
        assert absent not in text.replace("](https://arxiv.org", ""), absent
    assert "This model has not been evaluated." in text


def test_runs_that_differ_in_their_seed_alone_are_read(finished_run, tmp_path, tokenizer):
    model_dir, _ = finished_run
    record = json.loads((model_dir / "training_record.json").read_text())
    results = json.loads((model_dir / "sts_results.json").read_text())
    record["hyperparameters"] |= {"seed": 1, "data_seed": 1}
    own = results["models"].pop(f"after: {model_dir}")
    results["models"] = {**results["models"], "after: elsewhere": {**own, "average": 12.5}}
    (tmp_path / "training_record.json").write_text(json.dumps(record))
    (tmp_path / "sts_results.json").write_text(json.dumps(results))
    facts = read_facts(model_dir, SarcseModel.from_pretrained(model_dir), tokenizer, seed_dirs=[str(tmp_path)])
    assert {seed: scores.average for seed, scores in facts.seeds.items()} == {42: own["average"], 1: 12.5}
    for name, value in {
        "neftune_noise_alpha": 5.0,
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "optim_args": "eps=1",
        "torch_compile": True,
        "data_seed": 7,
    }.items():
        other = {**record, "hyperparameters": {**record["hyperparameters"], name: value}}
        (tmp_path / "training_record.json").write_text(json.dumps(other), encoding="utf-8")
        with pytest.raises(ValueError, match=f"in more than the seed: hyperparameters.{name}"):
            read_seeds(model_dir, [str(tmp_path)])
    record["hyperparameters"]["data_seed"] = 42  # one order of the sentences for both seeds
    (tmp_path / "training_record.json").write_text(json.dumps(record), encoding="utf-8")
    assert read_seeds(model_dir, [str(tmp_path)]).keys() == {42, 1}
    record["train_data"] = {"name": "corpus", "hub_id": None, "token_count_samples": 100}  # of a stream
    (tmp_path / "training_record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="in more than the seed: .*train_data.token_count_samples"):
        read_seeds(model_dir, [str(tmp_path)])


TASK = {"spearman": 1.0, "pearson": 1.0, "pairs": 9, "subsets": {}, "interval": [0.0, 2.0]}
ROW = {"pooler": "cls", "tasks": {"sts": TASK}, "average": 1.0, "average_interval": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "'list' object has no attribute 'get'"),
        ({"models": None}, "'NoneType' object is not iterable"),
        ({"models": {"after: m": {"tasks": {}}}}, "KeyError.'pooler'"),
        ({"models": {"after: m": {**ROW, "tasks": [TASK]}}}, "'list' object has no attribute 'items'"),
        ({"models": {"after: m": {**ROW, "tasks": {"sts": {"subsets": {}}}}}}, "'spearman', 'pearson', 'pairs'"),
        ({"models": {"after: m": {**ROW, "average": "high"}}}, "'average' with value 'high'"),
        ({"models": {"after: m": {**ROW, "alignment": 0.1}}}, "'positive_pairs', 'uniformity', and 'sentences'"),
        ({"models": {"after: m": ROW, "other": {**ROW, "tasks": {}}}}, "its rows have different tasks"),
    ],
)
def test_results_of_another_shape_are_one_line_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"models": {"after: m": ROW}}))
    models, own, _ = read_scores(path, tmp_path)
    assert own == "after: m" and models[own].tasks["sts"].pairs == 9
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"results.json: .*{message}") as error:
        read_scores(path, tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_seeds_give_mean_and_deviation():
    seeds = {seed: scored({"STS12": 60.0 + seed, "STSB": 70.0 - 2 * seed}) for seed in (1, 2, 4)}
    rows = {cells[1].strip(): cells[2:5] for cells in (row.split("|") for row in seeds_table(seeds).splitlines())}
    columns = ([61.0, 62.0, 64.0], [68.0, 66.0, 62.0], [64.5, 64.0, 63.0])
    missing = seeds_table({1: scored({"STS12": math.nan}), 2: scored({"STS12": 3.0})})
    assert missing.splitlines()[-1].count(" nan ") == 1
    for values, mean, deviation in zip(columns, rows["mean"], rows["standard deviation"], strict=True):
        assert float(mean) == pytest.approx(sum(values) / 3, abs=0.005)
        center = sum(values) / 3
        sample_variance = sum((value - center) ** 2 for value in values) / 2
        assert float(deviation) == pytest.approx(sample_variance**0.5, abs=0.005)


# --- The code that users trust ---------------------------------------------------------------------------------------


SHIPPED = ["configuration_sarcse.py", "modeling_sarcse.py"]


def test_the_shipped_code_is_short_enough_to_be_read(release_folder):
    """What only training and evaluations need is in the library, which nobody has to trust to use a release."""
    assert {path.name for path in release_folder.rglob("*.py")} == {*SHIPPED}
    assert sum(len((release_folder / name).read_text().splitlines()) for name in SHIPPED) <= 850


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_code_is_the_projects_and_only_computes(release_folder, name):
    """
    It imports only torch, transformers, each other and harmless modules. It opens no socket, executes no text, and
    touches only the files that the configuration's `save_pretrained` writes beside config.json.
    """
    code = (release_folder / name).read_text()
    assert code == (PROJECT / name).read_text()
    modules = {"torch", "numpy", "transformers", "configuration_sarcse", "copy", "dataclasses", "importlib", "inspect"}
    modules |= {"collections", "re"}
    tree = ast.parse(code)
    if name == "configuration_sarcse.py":
        modules |= {"json", "operator", "pathlib", "shutil"}
        (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
        (saving,) = (node for node in config.body if getattr(node, "name", None) == "save_pretrained")
        calls = {ast.unparse(node.func) for node in ast.walk(saving) if isinstance(node, ast.Call)}
        assert calls == {
            *("Path", "dict", "str", "super", "super().save_pretrained", "Path(__file__).with_name", "code.is_file"),
            *("cached_file", "folder.resolve", "shutil.copy", "SENTENCE_TRANSFORMERS_FILES.items"),
            *("(folder / name).write_text", "json.dumps", "self.push_to_hub", "kwargs.pop"),
        }
        config.body.remove(saving)
    builtins = {
        "open",
        "exec",
        "eval",
        "compile",
        "__import__",
        "input",
        "breakpoint",
        "globals",
        "getattr",
        "setattr",
    }
    for node in ast.walk(tree):
        text = ast.unparse(node)
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= modules, text
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in modules | {"typing"}, text
            assert node.level == (1 if node.module == "configuration_sarcse" else 0), text
        elif isinstance(node, ast.Name):
            assert node.id not in builtins, text
        elif isinstance(node, ast.Attribute):
            assert not re.match(r"load|save|write|read|open|unlink|rmtree|system|popen|hub|__(?!init__)", node.attr), (
                text
            )
        elif isinstance(node, ast.Call) and text.startswith("importlib."):
            assert text == "importlib.import_module('configuration_sarcse')"


def test_the_card_says_nothing_of_a_training_that_nobody_recorded(facts, tmp_path):
    facts.record = {}
    write_card(tmp_path / "README.md", facts, "you/model", "v1", None, ["en"])
    text = " ".join(ModelCard.load(tmp_path / "README.md").content.split())
    assert "The embedding is the mean of the token vectors plus the mean of the word" in text and "Trained" not in text
