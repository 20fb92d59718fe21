"""Scores of what people do with embeddings: clusters, neighbours, duplicates and search."""

import csv
import gzip
import json
import random
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score, v_measure_score
from sklearn.neighbors import NearestNeighbors

from sarcse.data.labelled import check_reference, load_labelled, load_retrieval
from sarcse.evaluation import command as eval_sts
from sarcse.evaluation.comparison import Measurement, ModelScores, Results, compare
from sarcse.evaluation.embedding import encode
from sarcse.evaluation.jobs import Job, duplicates_job, labelled_job, nearest, retrieval_job, v_measure
from sarcse.loading import load_model
from sarcse.training.arguments import SarcseTrainingArguments
from sarcse.training.build import build_trainer
from sarcse.training.parsing import parse_arguments
from sarcse.training.trainer import SarcseTrainer

from .conftest import ENCODER, PROJECT, TINY_RUN, run_command


WORDS = {
    "billing": ["invoice", "payment", "refund", "card", "charge", "money", "bill", "account", "price", "fee"],
    "network": ["router", "cable", "wifi", "signal", "connection", "slow", "modem", "port", "server", "outage"],
    "login": ["password", "user", "name", "locked", "reset", "sign", "code", "access", "email", "forgot"],
}


def tickets(number: int = 90, seed: int = 0) -> list[tuple[str, str]]:
    """Texts whose words come from their label's list, or from another in one case of three."""
    draw = random.Random(seed)
    names = [*WORDS]
    rows = []
    for index in range(number):
        label = names[index % 3]
        words = [draw.choice(WORDS[label if draw.random() < 0.67 else draw.choice(names)]) for _ in range(5)]
        rows.append((" ".join(words), label))
    return rows


def counted(sentences: list[str]) -> torch.Tensor:
    """Embeddings without a model: how often each word occurs, and how long the text is."""
    words = [word for list_of_words in WORDS.values() for word in list_of_words]
    return torch.tensor(
        [[*map(sentence.split().count, words), 1 + len(sentence) % 7] for sentence in sentences]
    ).float()


@pytest.fixture
def ticket_file(tmp_path):
    path = tmp_path / "tickets.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("body", "queue"), *tickets()])
    return path


def as_rows(pairs: list[tuple[str, str]]) -> Dataset:
    return Dataset.from_dict({"text": [text for text, _ in pairs], "label": [label for _, label in pairs]})


def values(job: Job) -> dict[str, float]:
    return {name: score.value() for name, score in job.scores.items()}


# --- The scores ------------------------------------------------------------------------------------------------------


def test_clusters_and_neighbours_are_those_of_scikit_learn():
    rows = tickets()
    job = labelled_job(counted, as_rows(rows))
    embeddings = torch.nn.functional.normalize(counted([text for text, _ in rows]), dim=1).numpy()
    labels = np.array([label for _, label in rows])
    clusters = KMeans(3, n_init=5, random_state=0).fit_predict(embeddings)
    found = values(job)
    assert found["clusters"] == pytest.approx(100 * v_measure_score(labels, clusters))
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -np.inf)
    # Of equally similar texts either may come first: the similarities are compared, and then the labels.
    ours = nearest(torch.from_numpy(embeddings), torch.from_numpy(embeddings), 10, leave_out_own=True)
    np.testing.assert_allclose(
        np.take_along_axis(similarities, ours, axis=1), np.sort(similarities, axis=1)[:, :-11:-1], atol=1e-6
    )
    assert found["ten neighbours"] == pytest.approx(100 * (labels[ours] == labels[:, None]).mean())
    assert found["neighbour"] == pytest.approx(100 * (labels[ours[:, 0]] == labels).mean())
    assert job.sizes == {"texts": 90, "labels": 3} and np.allclose(job.drawn, embeddings, atol=1e-6)


def test_weights_count_a_text_as_often_as_they_say():
    """A resample's V-measure is that of the texts written out."""
    generator = np.random.default_rng(1)
    labels, clusters = generator.integers(0, 4, 200), generator.integers(0, 5, 200)
    clusters[:100] = labels[:100]
    weights = generator.multinomial(200, np.full(200, 1 / 200))
    rows = np.repeat(np.arange(200), weights)
    assert v_measure(labels, clusters, weights) == pytest.approx(v_measure_score(labels[rows], clusters[rows]))
    assert v_measure(labels, np.zeros_like(labels), np.ones(200)) == 0


def test_neighbours_may_be_looked_for_in_another_file():
    rows, reference = tickets(30), tickets(60, seed=1)
    found = values(labelled_job(counted, as_rows(rows), as_rows([*reference, ("an invoice", "other")])))
    texts, labels = zip(*reference, ("an invoice", "other"))
    embeddings = [torch.nn.functional.normalize(counted(list(of)), dim=1) for of in ([t for t, _ in rows], texts)]
    near = nearest(*embeddings, 10)
    same = [[labels[place] == label for place in places] for places, (_, label) in zip(near, rows)]
    assert found["ten neighbours"] == pytest.approx(100 * np.mean(same))


def test_few_texts_have_few_neighbours():
    assert values(labelled_job(counted, as_rows(tickets(6))))["ten neighbours"] <= 100


def test_a_large_file_is_clustered_in_part(monkeypatch):
    monkeypatch.setattr("sarcse.evaluation.jobs.CLUSTERED", 30)
    job = labelled_job(counted, as_rows(tickets(90)))
    assert job.scores["clusters"].items == 30 and job.scores["neighbour"].items == 90


def test_duplicates_have_an_average_precision_beside_the_correlation(tmp_path):
    """Only if the scores are 0 and 1."""
    scores = np.array([1, 0, 1, 0, 0, 1.0])
    similarities = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.1])
    (score,) = duplicates_job(similarities, scores).scores.values()
    assert score.value() == pytest.approx(100 * average_precision_score(scores, similarities))
    assert np.isfinite(score.resampled(200)).all()


def beir(folder, compress: bool = False) -> None:
    """Each ticket is a document; a query is answered by the tickets with one of its words."""
    documents = [{"_id": f"d{n}", "title": text.split()[0], "text": text} for n, (text, _) in enumerate(tickets(40))]
    texts = {"q0": "refund bill", "q1": "wifi port", "unanswered": "nothing"}
    queries = [{"_id": name, "text": text} for name, text in texts.items()]
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", documents), ("queries", queries)):
        content = "".join(json.dumps(row) + "\n" for row in rows)
        file = folder / (f"{name}.jsonl.gz" if compress else f"{name}.jsonl")
        file.write_bytes(gzip.compress(content.encode()) if compress else content.encode())
    grades = [
        f"{query['_id']}\t{document['_id']}\t1"
        for query in queries
        for document in documents
        if set(query["text"].split()) & set(document["text"].split())
    ]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *grades, "q0\td39\t0"]) + "\n")


@pytest.mark.parametrize("compress", [False, True])
def test_retrieval_has_the_ndcg_of_sentence_transformers(tmp_path, compress):
    beir(tmp_path / "search", compress)
    collection = load_retrieval(str(tmp_path / "search"))
    assert len(collection.queries) == 2 and len(collection.documents) == 40
    model = SentenceTransformer(str(ENCODER), device="cpu")
    found = values(retrieval_job(lambda texts: model.encode(texts, convert_to_tensor=True), collection))
    relevant = {query: set(documents) for query, documents in collection.relevant.items()}
    evaluator = InformationRetrievalEvaluator(collection.queries, collection.documents, relevant, name="x")
    assert found["nDCG at 10"] == pytest.approx(100 * evaluator(model)["x_cosine_ndcg@10"], abs=1e-4)


# --- Intervals and differences ---------------------------------------------------------------------------------------


def comparison(*models: str, number: int = 90) -> Results:
    job = labelled_job(counted, as_rows(tickets(number)))
    return compare({name: Measurement("mean", jobs={"tickets": job}) for name in models}, {})


def test_the_difference_of_a_model_from_itself_is_exactly_zero():
    """The same resamples serve all models."""
    for score in comparison("one", "two").differences["two"].jobs["tickets"].scores.values():
        assert score.value == 0 and score.interval == [0, 0]


def test_intervals_hold_the_score_and_are_those_of_the_normal_distribution():
    scores = comparison("one", number=900).models["one"].jobs["tickets"].scores
    for score in scores.values():
        assert score.interval[0] < score.value < score.interval[1]
    share = scores["neighbour"].value / 100
    half = 196 * (share * (1 - share) / 900) ** 0.5
    assert scores["neighbour"].interval == pytest.approx([100 * share - half, 100 * share + half], abs=0.5)


def test_results_with_jobs_are_read_as_they_were_written():
    scores = comparison("one").models["one"]
    assert ModelScores.from_json(json.loads(json.dumps(scores.to_json()))) == scores


# --- Files -----------------------------------------------------------------------------------------------------------


def test_all_kinds_of_files_give_the_same_texts(tmp_path, ticket_file):
    expected = load_labelled(str(ticket_file), "body", "queue").to_list()
    assert expected == [{"text": text, "label": label} for text, label in tickets()]
    rows = Dataset.from_dict({"body": [text for text, _ in tickets()], "queue": [label for _, label in tickets()]})
    rows.to_json(tmp_path / "t.jsonl")
    rows.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.tsv").write_text("queue\tbody\n" + "".join(f"{label}\t{text}\n" for text, label in tickets()))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(ticket_file.read_bytes()))
    for name in ("t.jsonl", "t.parquet", "t.tsv", "t.csv.gz"):
        assert load_labelled(str(tmp_path / name), "body", "queue").to_list() == expected, name


def test_numbers_are_labels_and_rows_without_one_are_left_out(tmp_path, caplog):
    lines = [{"text": "a", "label": 1}, {"text": "b", "label": 1}, {"text": "c", "label": 0}, {"text": "d"}]
    lines += [{"text": " ", "label": 1}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_labelled(str(tmp_path / "t.jsonl"))["label"][:] == ["1", "1", "0"]
    assert "2 of 5 rows have no text or no label, and are left out" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tlabel\na\tx\nb\tx\n", "all 2 texts have the label 'x'"),
        ("text\tlabel\na\tx\nb\ty\n", "each of the 2 texts has a label of its own"),
        ("text\tlabel\n\tx\nb\t\n", "no row with text and label"),
        ("text\tqueue\na\tx\n", "no column label; it has text, queue"),
        ("text\tlabel\na\n", "t.tsv, line 2: 1 cells, but the header has 2"),
    ],
)
def test_labels_that_say_nothing_end_in_one_message(tmp_path, content, message):
    (tmp_path / "t.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_labelled(str(tmp_path / "t.tsv"))


def test_a_label_must_be_text_or_a_whole_number(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 0.5}\n')
    with pytest.raises(ValueError, match=r"t.jsonl, line 1: 'label' is 0.5, not a label"):
        load_labelled(str(tmp_path / "t.jsonl"))


def test_a_reference_needs_every_label():
    with pytest.raises(ValueError, match="--reference r.csv: no text with the label network"):
        check_reference("r.csv", as_rows([row for row in tickets() if row[1] != "network"]), as_rows(tickets()))


@pytest.mark.parametrize(
    ("grade", "message"),
    [
        ("q9\td1\t1", r"test.tsv, line 2: there is no query 'q9'"),
        ("q0\td99\t1", r"test.tsv, line 2: there is no document 'd99'"),
        ("q0\td1\tyes", r"test.tsv, line 2: the score 'yes' is not a number"),
        ("q0\td1\t0", r"test.tsv: no query has a relevant document"),
    ],
)
def test_grades_that_cannot_be_used_end_in_one_message(tmp_path, grade, message):
    beir(tmp_path)
    (tmp_path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{grade}\n")
    with pytest.raises(ValueError, match=message):
        load_retrieval(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corpus.jsonl", r"corpus.jsonl: no such file. --retrieval needs corpus.jsonl, queries.jsonl and qrels/"),
        ("qrels/test.tsv", r"qrels: needs test.tsv, or a single .tsv file; it has none"),
    ],
)
def test_a_missing_file_of_a_collection_is_named(tmp_path, name, message):
    beir(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=message):
        load_retrieval(str(tmp_path))


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_compares_models_on_labelled_texts(tmp_path, ticket_file):
    """Without STS data; the results are a table, a file, bars and a map."""
    command = [PROJECT / "eval_sts.py", ENCODER, "--pooler", "mean", "cls", "--labelled", ticket_file]
    command += ["--text_column", "body", "--label_column", "queue", "--output_dir", tmp_path / "out"]
    process = run_command(*command, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "| clusters | neighbour | ten neighbours |" in " ".join(process.stdout.split())
    assert "tickets: 90 texts, 3 labels." in process.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = [row["jobs"]["tickets"]["scores"] for row in results["models"].values()]
    assert len(scores) == 2 and all(0 <= score["value"] <= 100 for of in scores for score in of.values())
    (difference,) = results["differences"]["models"].values()
    assert difference["jobs"]["tickets"]["scores"]["neighbour"]["value"] == pytest.approx(
        scores[1]["neighbour"]["value"] - scores[0]["neighbour"]["value"]
    )
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {"job_scores.png", "text_map.png"}
    assert (tmp_path / "out" / "results.md").read_text().strip() in process.stdout


def test_the_command_takes_pairs_and_a_collection_too(tmp_path, ticket_file):
    beir(tmp_path / "search")
    pairs = [["sentence1", "sentence2", "score"], ["A dog.", "A dog runs.", "1"], ["A dog.", "Tax law.", "0"]]
    (tmp_path / "dup.tsv").write_text("".join("\t".join(row) + "\n" for row in [*pairs, ["Hi.", "Hello.", "1"]]))
    command = [PROJECT / "eval_sts.py", ENCODER, "--labelled", ticket_file, "--text_column", "body"]
    command += ["--label_column", "queue", "--retrieval", tmp_path / "search", "--pairs", tmp_path / "dup.tsv"]
    process = run_command(*command, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for column in ("dup", "dup: average precision", "tickets: clusters", "search: nDCG at 10"):
        assert f"| {column} |" in " ".join(process.stdout.split()), process.stdout
    assert "search: 2 queries, 40 documents." in process.stdout and "dup: 3 pairs, 2 duplicates." in process.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label_column", "x"], "argument --label_column: has no effect without --labelled"),
        (["--reference", "x.csv"], "argument --reference: has no effect without --labelled"),
        (["--labelled", "x.csv", "--tasks", "STSB"], "argument --tasks: add --sts_dir"),
        (["--labelled", "x.csv", "--explain", "a", "b"], "argument --labelled: has no effect with --explain"),
    ],
)
def test_options_without_effect_are_refused(capsys, options, message):
    with pytest.raises(SystemExit):
        eval_sts.parse_arguments(["model", *options])
    assert message in capsys.readouterr().err


@pytest.mark.realdata
def test_banking77_is_scored_as_published_tools_would(real_data):
    """On a thousand queries of Banking77, through the demo's encoder."""
    rows = load_labelled(str(real_data / "data" / "jobs" / "banking77_test.tsv.xz")).select(range(0, 3080, 3))
    model = SentenceTransformer(str(ENCODER), device="cpu")
    found = values(labelled_job(lambda texts: model.encode(texts, convert_to_tensor=True), rows))
    embeddings = model.encode(rows["text"][:], normalize_embeddings=True)
    labels = np.array(rows["label"][:])
    near = NearestNeighbors(n_neighbors=10, metric="cosine").fit(embeddings).kneighbors(return_distance=False)
    assert found["ten neighbours"] == pytest.approx(100 * (labels[near] == labels[:, None]).mean(), abs=0.1)
    assert found["neighbour"] == pytest.approx(100 * (labels[near[:, 0]] == labels).mean(), abs=0.2)
    clusters = KMeans(77, n_init=5, random_state=0).fit_predict(embeddings)
    assert found["clusters"] == pytest.approx(100 * v_measure_score(labels, clusters), abs=1)


# --- Training --------------------------------------------------------------------------------------------------------


def test_labels_score_each_checkpoint_and_pick_one(tmp_path, ticket_file):
    """The file with the sentences may be the one with the labels, which do not train."""
    options = {**TINY_RUN, "train_file": ticket_file, "text_column": "body", "output_dir": tmp_path / "out"}
    options |= {"max_train_samples": 90, "eval_labelled": ticket_file, "label_column": "queue"}
    options.pop("eval_pairs")
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    process = run_command(PROJECT / "train.py", *flags, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    found = {line["step"]: line["eval_labelled_neighbours"] for line in state["log_history"] if "eval_health" in line}
    assert {0, 2} <= found.keys()
    record = json.loads((tmp_path / "out" / "training_record.json").read_text())
    assert record["hyperparameters"]["metric_for_best_model"] == "labelled_neighbours"
    assert record["hyperparameters"]["learning_rate_budget"] == 0, "the best checkpoint is kept, whatever follows"
    rows = json.loads((tmp_path / "out" / "sts_results.json").read_text())["models"]
    kept = next(row for name, row in rows.items() if name.startswith("after: "))
    assert kept["jobs"]["tickets"]["scores"]["ten neighbours"]["value"] == pytest.approx(max(found.values()))
    assert kept["picked_on"] == "tickets"
    assert "the texts of tickets also picked its checkpoint" in process.stdout
    assert "on the ten neighbours of tickets" in process.stderr or "Kept as it was" in process.stderr
    release = run_command("-m", "model_card", tmp_path / "out", "--release_dir", tmp_path / "release", cwd=PROJECT)
    assert release.returncode == 0, release.stderr
    card = (tmp_path / "release" / "README.md").read_text()
    assert "labelled texts picked the checkpoint" in " ".join(card.split())
    assert "The texts of tickets also picked this model's checkpoint" in " ".join(card.split())
    assert "| this model, words |" in " ".join(card.split()) and "Spearman correlation" not in card


def test_a_trainer_takes_labelled_texts_as_its_evaluation_data(tmp_path):
    """With names or numbers as labels; `predict` says for each text how many of its neighbours share its label."""
    rows = as_rows(tickets())
    classes = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=sorted(WORDS))})
    arguments = SarcseTrainingArguments(
        str(tmp_path), max_steps=2, eval_steps=1, save_steps=1, per_device_train_batch_size=8, report_to="none"
    )
    found = []
    for given in (rows, rows.cast(classes)):
        model, tokenizer = load_model(str(ENCODER), channels=4)
        trainer = SarcseTrainer(model, arguments, train_dataset=rows["text"][:], eval_dataset=given)
        assert trainer.args.metric_for_best_model == "labelled_neighbours"
        output = trainer.predict(given)
        found.append(output.metrics["test_labelled_neighbours"])
        expected = values(labelled_job(partial(encode, model, tokenizer), rows))["ten neighbours"]
        assert found[-1] == pytest.approx(expected) == 100 * output.predictions.mean()
        assert trainer.evaluate()["eval_labelled_neighbours"] == found[-1]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": ["a", "b"], "label": ["x", "x"]}, "eval_dataset: all 2 texts have the label 'x'"),
        ({"text": ["a", None], "label": ["x", "y"]}, "eval_dataset, row 1: has no text or no label"),
        ({"text": ["a", "b"], "label": [0.5, 1.5]}, "eval_dataset, row 0: 'label' is 0.5, not a label"),
        ({"text": ["a", "b"], "topic": ["x", "y"]}, "or text and label, not"),
    ],
)
def test_labelled_texts_that_cannot_be_scored_are_refused_by_the_trainer(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        SarcseTrainer(
            load_model(str(ENCODER), channels=4)[0],
            SarcseTrainingArguments(str(tmp_path), report_to="none"),
            train_dataset=[text for text, _ in tickets()],
            eval_dataset=Dataset.from_dict(rows),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label_column", "x"], "--label_column has no effect without --eval_labelled"),
        (["--eval_labelled", "x.csv", "--eval_pairs", "y.csv"], "give either --eval_pairs or --eval_labelled"),
        (["--metric_for_best_model", "labelled_neighbours"], "metric_for_best_model labelled_neighbours: the evalu"),
    ],
)
def test_options_of_a_training_that_do_not_go_together_are_refused(tmp_path, options, message):
    flags = ["--train_file", "x.txt", "--output_dir", str(tmp_path), *options]
    with pytest.raises(ValueError, match=message):
        build_trainer(*parse_arguments(flags))
