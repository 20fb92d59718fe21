"""The `sarcse` command: search, clusters and duplicates in a file of texts, and the other commands by one name."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import util
from sklearn.metrics import silhouette_score

from sarcse.data.files import read_rows
from sarcse.evaluation.embedding import encode
from sarcse.evaluation.jobs import k_means
from sarcse.evaluation.texts import best_number, read_texts, write_rows
from sarcse.loading import load_model

from .conftest import DEMO, ENCODER, PROJECT, offline, run_command


@pytest.fixture
def ticket_file(tmp_path):
    """Four columns; one text is missing, and one is there twice."""
    sentences = (DEMO / "sentences.txt").read_text().splitlines()[:40]
    rows = [
        (index, sentence, len(sentence), "é") for index, sentence in enumerate([*sentences, "", sentences[3] + "!"])
    ]
    with (tmp_path / "tickets.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "body", "length", "queue"), *rows])
    return tmp_path / "tickets.csv"


@pytest.fixture(scope="module")
def mean_pooled():
    """The embeddings of texts under the demo's encoder, normalised."""
    model, tokenizer = load_model(str(ENCODER), pooler="mean")
    return lambda texts: util.normalize_embeddings(encode(model, tokenizer, texts))


def sarcse(*arguments, cwd):
    return run_command("-m", "sarcse", *arguments, cwd=cwd)


def test_search_prints_and_writes_the_rows_that_are_most_similar(tmp_path, ticket_file, mean_pooled):
    _, texts = read_texts(str(ticket_file), "body")
    query = "A football match."
    options = ["--text_column", "body", "--top", "3", "-o", "found.csv"]
    process = sarcse("search", ENCODER, ticket_file, query, *options, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    (hits,) = util.semantic_search(mean_pooled([query]), mean_pooled(texts), top_k=3)
    printed = [line[7:].removesuffix("...") for line in process.stdout.splitlines()[:3]]
    assert all(texts[hit["corpus_id"]].startswith(line) for hit, line in zip(hits, printed, strict=True))
    with (tmp_path / "found.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["id", "body", "length", "queue", "similarity"] and found[0]["queue"] == "é"
    assert [float(row["similarity"]) for row in found] == pytest.approx([hit["score"] for hit in hits], abs=1e-4)
    assert "1 of 42 rows have no body, and are left out" in process.stderr


def test_every_row_gets_its_cluster_and_the_largest_comes_first(tmp_path, ticket_file, mean_pooled):
    _, texts = read_texts(str(ticket_file), "body")
    process = sarcse(
        "cluster", ENCODER, ticket_file, "--text_column", "body", "--clusters", "4", "-o", "out.jsonl", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["body"] for row in rows] == texts and {"id", "length", "queue", "cluster"} <= rows[0].keys()
    sizes = np.bincount([row["cluster"] for row in rows])
    assert len(sizes) == 4 and list(sizes) == sorted(sizes, reverse=True)
    expected = k_means(mean_pooled(texts).numpy(), 4)
    assert len({*zip(expected.tolist(), (row["cluster"] for row in rows))}) == 4, "the same clusters by other names"
    assert f"Cluster 0: {sizes[0]} texts" in process.stdout


def test_the_number_of_clusters_has_the_best_silhouette(capsys):
    """Three groups of points. Of a hundred or more a handful is not tried: it is the best whatever the texts are."""
    generator = np.random.default_rng(0)
    points = np.concatenate([centre + 0.1 * generator.normal(size=(30, 3)) for centre in np.eye(3)])
    assert best_number(points) == 3
    assert silhouette_score(points, k_means(points, 3)) > silhouette_score(points, k_means(points, 2))
    assert "3 clusters have the best silhouette of 2, 3, 5, 8" in capsys.readouterr().out
    assert best_number(points[:2]) == 1
    assert best_number(np.concatenate([points, points])) >= 8


def test_a_reader_that_has_enough_ends_the_command_without_a_word(tmp_path, ticket_file):
    command = f"{sys.executable} -m sarcse cluster {ENCODER} {ticket_file} --text_column body --clusters 30 | head -1"
    process = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=offline({"PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}),
        capture_output=True,
        text=True,
    )
    assert process.stdout.splitlines()[-1] == "141" and "Traceback" not in process.stderr, process.stderr


def test_duplicates_are_those_that_sentence_transformers_mines(tmp_path, ticket_file, mean_pooled):
    _, texts = read_texts(str(ticket_file), "body")
    options = ["--text_column", "body", "--threshold", "0.6", "-o", "pairs.parquet"]
    process = sarcse("duplicates", ENCODER, ticket_file, *options, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    mined = [pair for pair in util.paraphrase_mining_embeddings(mean_pooled(texts)) if pair[0] >= 0.6]
    found = Dataset.from_parquet(str(tmp_path / "pairs.parquet"), cache_dir=str(tmp_path / "cache"))
    assert found["similarity"][:] == pytest.approx([score for score, _, _ in mined], abs=1e-4)
    assert [{a, b} for a, b in zip(found["body_1"][:], found["body_2"][:])][:5] == [
        {texts[i], texts[j]} for _, i, j in mined[:5]
    ]
    assert f"With a similarity of at least 0.6: {len(mined)} pairs." in process.stdout


def test_the_cache_is_for_the_same_texts_and_the_same_model(tmp_path, ticket_file, saved_model):
    """It is made only on request, gives the same results, and no model gets another's embeddings."""
    options = [ticket_file, "ball", "--text_column", "body", "--top", "2"]
    cache = tmp_path / "tickets.csv.embeddings.npz"
    expected = {model: sarcse("search", model, *options, cwd=tmp_path).stdout for model in (ENCODER, saved_model)}
    assert not cache.exists()
    for model in (ENCODER, saved_model, saved_model):
        assert sarcse("search", model, *options, "--cache", cwd=tmp_path).stdout == expected[model]
        assert cache.is_file()
    kept = cache.stat().st_mtime_ns
    assert sarcse("search", saved_model, *options, "--cache", cwd=tmp_path).stdout == expected[saved_model]
    assert cache.stat().st_mtime_ns == kept
    ticket_file.write_text("body\na ball\nother\n")
    assert "a ball" in sarcse("search", ENCODER, *options, "--cache", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "{encoder}", "none.csv", "x"], "sarcse search: error: none.csv: no such file"),
        (["search", "{encoder}", "{file}", "x"], "no column text; it has id, body, length, queue"),
        (["cluster", "{encoder}", "{file}", "--text_column", "body", "--clusters", "90"], "has only 41 texts"),
        (["cluster", "{encoder}", "{file}", "-o", "x.xls"], "the name must end in .csv, .tsv, .jsonl, .parquet"),
        (
            ["cluster", "{encoder}", "{file}", "-o", "nowhere/x.csv"],
            "nowhere/x.csv: its folder does not exist",
        ),
        (["cluster", "{encoder}", "{file}", "--clusters", "0"], "must be a whole number from 1 on, got '0'"),
        (["duplicates", "nowhere", "{file}", "--text_column", "body"], "sarcse duplicates: error: nowhere"),
        (["duplicates", "{encoder}", "{one}", "--text_column", "body"], "needs at least two texts"),
        (["serch"], "sarcse: error: no command 'serch': train, eval,"),
        (["train"], "sarcse train: error: give a recipe or --train_file FILE"),
        (["train", "--lerning_rate", "1"], "learning_rate"),
        (["eval", "{encoder}", "--pairs", "none.tsv"], "sarcse eval: error: none.tsv: no such file"),
        (["space", "model"], "usage: sarcse space MODEL DIR"),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, ticket_file, arguments, message):
    (tmp_path / "one.csv").write_text("body\nalone\n")
    names = {"encoder": ENCODER, "file": ticket_file, "one": tmp_path / "one.csv"}
    process = sarcse(*(argument.format(**names) for argument in arguments), cwd=tmp_path)
    assert process.returncode in (1, 2) and message in process.stderr, process.stderr
    assert "Traceback" not in process.stderr


def test_release_and_space_are_the_command_of_model_card(tmp_path):
    process = sarcse("space", "nowhere", "page", cwd=PROJECT)
    assert process.returncode == 2 and process.stderr.startswith("model_card: error: nowhere")
    process = sarcse("release", "--help", cwd=PROJECT)
    assert process.returncode == 0 and "--release_dir OUT" in process.stdout


def test_help_lists_the_commands_without_slow_imports(tmp_path):
    code = "import sys; sys.argv[1:] = ['--help']; from sarcse.__main__ import main; main()"
    code += "; print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert process.stdout.endswith("False\n") and "sarcse cluster MODEL FILE" in process.stdout


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_rows_are_read_back_as_they_were_written(tmp_path, ending):
    rows = [{"a": 'é, "x"', "b": "1"}, {"a": "two", "b": "2"}]
    file = tmp_path / f"rows{ending}"
    if ending == ".tsv":
        rows[0]["a"] = "é, x"  # quotation marks are text there, and read as such
    write_rows(str(file), rows)
    assert [cells for _, cells in read_rows([str(file)], ("a",), optional=None)] == rows
