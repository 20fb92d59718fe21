"""ONNX files of a release: their output in ONNX Runtime, without this project's code and without torch."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import Tokenizer
from transformers import AutoConfig

from sarcse.data.sts import load_pairs
from sarcse.evaluation.comparison import correlations
from sarcse.loading import load_model
from sarcse.options import ReleaseOptions
from sarcse.release import onnx_files
from sarcse.release.build import build
from sarcse.release.folder import GOLDEN_SENTENCES
from sarcse.release.hub import files_of
from sarcse.release.onnx_files import FLOAT_FILE, INT8_FILES, score

from .conftest import DEMO, ENCODER, PROJECT


def tokens(folder: Path, sentences: list[str]) -> dict[str, np.ndarray]:
    """As another program would tokenise: with tokenizer.json and the limit stored beside it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    padding = json.loads((folder / "config.json").read_text())["pad_token_id"]
    tokenizer.enable_truncation(limit)
    tokenizer.enable_padding(pad_id=padding)
    encoded = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([sentence.ids for sentence in encoded]),
        "attention_mask": np.array([sentence.attention_mask for sentence in encoded]),
    }


def run(folder: Path, name: str, sentences: list[str]) -> dict[str, np.ndarray]:
    """The outputs by name, in the file's order."""
    session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, tokens(folder, sentences))))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tokenizer) -> Path:
    """A plain release, with int8 files that were scored on the demo's pairs."""
    folder = tmp_path_factory.mktemp("onnx")
    load_model(str(ENCODER), pooler="mean")[0].save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pairs = str(DEMO / "sts.tsv")
    build(ReleaseOptions(str(folder / "model"), str(folder / "plain"), onnx_int8=True, pairs=pairs))
    return folder / "plain"


def golden(folder: Path) -> np.ndarray:
    return np.array(json.loads((folder / "golden_embeddings.json").read_text())["embeddings"])


def test_with_code_every_reader_finds_the_embedding(release_folder):
    """The first output, the output by name, and the repeated token vectors, however they are pooled."""
    outputs = run(release_folder, FLOAT_FILE, GOLDEN_SENTENCES)
    assert list(outputs) == ["sentence_embedding", "last_hidden_state"]
    embeddings = outputs["sentence_embedding"]
    assert distance(embeddings, golden(release_folder)) <= 1e-5
    vectors = outputs["last_hidden_state"]
    assert vectors.shape[:2] == tokens(release_folder, GOLDEN_SENTENCES)["input_ids"].shape
    assert np.array_equal(vectors, np.broadcast_to(embeddings[:, None], vectors.shape))


def test_a_plain_file_gives_token_vectors_for_the_reader_to_pool(plain):
    (name, vectors), *others = run(plain, FLOAT_FILE, GOLDEN_SENTENCES).items()
    assert name == "last_hidden_state" and not others
    mask = tokens(plain, GOLDEN_SENTENCES)["attention_mask"][:, :, None]
    assert distance((vectors * mask).sum(axis=1) / mask.sum(axis=1), golden(plain)) <= 1e-5


def test_fastembed_gives_the_golden_embeddings(release_folder, plain):
    """Its custom model, as in the cards, in its own environment (created by `make test`)."""
    python = PROJECT / ".venv" / "fastembed" / "bin" / "python"
    if not python.is_file():
        pytest.skip("fastembed is not installed: make .venv/fastembed/installed")
    for folder in (release_folder, plain):
        command = [python, PROJECT / "tests" / "fastembed_reader.py", folder]
        process = subprocess.run(command, input=json.dumps(GOLDEN_SENTENCES), capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        assert distance(np.array(json.loads(process.stdout.splitlines()[-1])), golden(folder)) <= 1e-5


def test_any_number_of_sentences_and_tokens(release_folder):
    """A sentence with only special tokens, and more sentences than the export saw."""
    for sentences in ([""], ["Why?"], GOLDEN_SENTENCES * 3):
        output = run(release_folder, FLOAT_FILE, sentences)["sentence_embedding"]
        expected = [golden(release_folder)[GOLDEN_SENTENCES.index(sentence)] for sentence in sentences]
        assert distance(output, np.array(expected)) <= 1e-5
    session = onnxruntime.InferenceSession(release_folder / FLOAT_FILE)
    shortest = {name: np.ones((1, 1), dtype=np.int64) for name in ("input_ids", "attention_mask")}
    assert np.isfinite(session.run(None, {**shortest, "input_ids": np.zeros((1, 1), dtype=np.int64)})[0]).all()


def test_int8_is_a_quarter_of_the_size_and_near(plain):
    """The same under the names that sentence-transformers and Transformers.js look for."""
    first, *others = (plain / name for name in INT8_FILES)
    assert {path.name for path in others} == {"model_qint8_arm64.onnx", "model_quantized.onnx"}
    assert all(path.read_bytes() == first.read_bytes() for path in others)
    assert first.stat().st_size < (plain / FLOAT_FILE).stat().st_size / 3
    mask = tokens(plain, GOLDEN_SENTENCES)["attention_mask"][:, :, None]
    vectors = run(plain, INT8_FILES[0], GOLDEN_SENTENCES)["last_hidden_state"]
    found, expected = torch.from_numpy((vectors * mask).sum(axis=1)), torch.from_numpy(golden(plain))
    assert torch.cosine_similarity(found, expected).min() > 0.95


def test_the_first_of_several_processes_scores_alone(plain, tokenizer, monkeypatch):
    """After a training on several processes the others have ended, and would not answer."""
    monkeypatch.setattr(
        "sarcse.evaluation.embedding.gather_object", lambda _: pytest.fail("waits for other processes")
    )
    pooler = load_model(str(ENCODER), pooler="mean")[0].sentence_encoder
    scores = score(plain, pooler, tokenizer, load_pairs(str(DEMO / "sts.tsv")))
    assert scores.keys() == {FLOAT_FILE, *INT8_FILES}


def test_the_card_has_the_score_of_int8_beside_that_of_float32(plain):
    """The demo's pairs, embedded here by ONNX Runtime without the project's own loop."""
    card = ModelCard.load(plain / "README.md").text
    pairs = load_pairs(str(DEMO / "sts.tsv"))
    for name in (FLOAT_FILE, INT8_FILES[0]):
        sides = []
        for column in ("sentence1", "sentence2"):
            vectors = run(plain, name, pairs[column][:])["last_hidden_state"]
            mask = tokens(plain, pairs[column][:])["attention_mask"][:, :, None]
            sides.append(torch.from_numpy((vectors * mask).sum(axis=1)))
        similarities = torch.cosine_similarity(*sides).numpy()
        (row,) = (line for line in card.splitlines() if line.startswith(f"| `{name}`"))
        stated = float(row.split("|")[-2])
        # int8 rounding depends on the batch: the input's range is that of the whole batch.
        tolerance = 0.01 if name == FLOAT_FILE else 1.0
        assert stated == pytest.approx(correlations(similarities, np.array(pairs["score"][:])).spearman, abs=tolerance)


def test_nothing_in_the_graph_names_code_or_this_machine(release_folder):
    model = onnx_ir.load(release_folder / FLOAT_FILE)
    assert not any(node.metadata_props for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph))


def test_beside_a_model_with_code_the_onnx_folder_is_one_without(release_folder):
    """It has a standard configuration, and a pooling that returns the embedding."""
    folder = release_folder / "onnx"
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "RobertaConfig"
    names = ("tokenizer.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
    assert {"config.json", "tokenizer_config.json", "model.onnx", *names} == set(files_of(folder))
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() > 1000


def test_an_encoder_that_cannot_be_exported_is_released_without_and_with_a_word(
    release_folder, finished_run, tmp_path, monkeypatch, caplog
):
    def fail(*args, **kwargs):
        raise RuntimeError("step 2\nand a page of advice") from RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(onnx_files.logger, "propagate", True)
    folder, _ = build(ReleaseOptions(str(finished_run[0]), str(tmp_path / "out")))
    assert "The release has no ONNX file" in caplog.text and "RuntimeError: no such operator" in caplog.text
    assert set(files_of(folder)) == {name for name in files_of(release_folder) if not name.startswith("onnx/")}
    assert "onnx" not in (folder / "README.md").read_text().lower()


def test_a_file_that_gives_other_embeddings_is_left_out(release_folder, trained_like_model, tokenizer, tmp_path):
    """Here the file of another model."""
    (tmp_path / "onnx").mkdir()
    shutil.copy(release_folder / FLOAT_FILE, tmp_path / FLOAT_FILE)
    with pytest.raises(ValueError, match="embeddings differ by"):
        onnx_files.check_float(trained_like_model, tokenizer, tmp_path)


def test_weights_past_a_protobufs_limit_go_to_a_second_file(plain, tmp_path, monkeypatch):
    """Under the name that Transformers.js and text-embeddings-inference expect; the former needs a setting too."""
    monkeypatch.setattr(onnx_files, "LARGEST_FILE", 1_000_000)
    model_dir = str(plain.with_name("model"))
    folder, _ = build(ReleaseOptions(model_dir, str(tmp_path / "large")))
    assert (folder / f"{FLOAT_FILE}_data").stat().st_size > 1_000_000 > (folder / FLOAT_FILE).stat().st_size
    told = json.loads((folder / "config.json").read_text())["transformers.js_config"]
    assert told == {"use_external_data_format": {"model.onnx": 1}}
    assert (folder / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    one, other = (run(f, FLOAT_FILE, GOLDEN_SENTENCES)["last_hidden_state"] for f in (folder, plain))
    assert np.array_equal(one, other)
    assert re.search(r"`onnx/model.onnx` +\| 5.9 MB", (folder / "README.md").read_text())
    options = ReleaseOptions(model_dir, str(tmp_path / "none"), onnx_int8=True, pairs=str(DEMO / "sts.tsv"))
    with pytest.raises(ValueError, match="--onnx_int8: the weights exceed 1,000,000 bytes"):
        build(options)
