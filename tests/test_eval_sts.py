import json
import math
import sys
from dataclasses import asdict

import datasets
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoModel

from eval_sts import main
from modeling_sarcse import encoder_max_length
from sarcse.data.sts import load_pairs, load_sts
from sarcse.evaluation.comparison import correlations
from sarcse.evaluation.embedding import (
    alignment,
    embed_pairs,
    encode,
    load_embedders,
    load_sentence_transformer,
    measure,
    uniformity,
)
from sarcse.loading import load_model
from sarcse.options import STS_TASKS

from .conftest import ENCODER, PROJECT, SENTENCES, run_command, run_python


DEMO_PAIRS = str(PROJECT / "demo" / "sts.tsv")


@pytest.fixture(scope="module")
def senteval(tmp_path_factory):
    """All seven tasks in SentEval's layout, a few pairs each."""
    root = tmp_path_factory.mktemp("senteval")
    for task in ("STS12", "STS13", "STS14", "STS15", "STS16"):
        folder = root / STS_TASKS[task].folder
        folder.mkdir(parents=True)
        for number, subset in enumerate(STS_TASKS[task].subsets):
            (folder / f"STS.input.{subset}.txt").write_text(f"a cat\ta dog\ntwo {number}\tthree {number}\nx\ty\n")
            (folder / f"STS.gs.{subset}.txt").write_text(f"1.5\n{number % 5}\n4\n")
    folder = root / "STS" / "STSBenchmark"
    folder.mkdir()
    rows = [f'genre\tfile\tyear\t{i:04}\t{i % 6}.0\tsentence {i}\tother "{i}\tsource' for i in range(12)]
    (folder / "sts-test.csv").write_text("\n".join(rows) + "\n")
    (root / "SICK").mkdir()
    rows = ["pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"]
    rows += [f"{i}\tA {i}\tB\t{1 + i % 5}\tNEUTRAL" for i in range(8)]
    (root / "SICK" / "SICK_test_annotated.txt").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def sentence_transformer(tmp_path_factory):
    """The embedded encoder under cls pooling, as sentence-transformers saves it."""
    folder = tmp_path_factory.mktemp("peer") / "sentence-transformer"
    transformer = Transformer(str(ENCODER), max_seq_length=128)
    SentenceTransformer(modules=[transformer, Pooling(128, pooling_mode="cls")], device="cpu").save(str(folder))
    return folder


# --- Embeddings ------------------------------------------------------------------------------------------------------


def test_embeddings_come_back_in_the_order_of_the_sentences(trained_like_model, tokenizer):
    sentences = [*SENTENCES, "Short.", *SENTENCES]
    embeddings = encode(trained_like_model.train(), tokenizer, sentences, batch_size=3)
    assert trained_like_model.training, "the mode is left as it was"
    trained_like_model.eval()
    for sentence, embedding in zip(sentences, embeddings):
        with torch.no_grad():
            alone = trained_like_model(**tokenizer(sentence, return_tensors="pt")).pooler_output[0]
        torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=0)


def test_each_distinct_sentence_is_encoded_once_and_long_ones_first(trained_like_model, tokenizer):
    pairs = datasets.Dataset.from_dict(
        {"sentence1": [*SENTENCES, "Why?"], "sentence2": ["Why?", *SENTENCES], "score": [1.0, 2.0, 3.0, 4.0, 5.0]}
    )
    lengths = []
    hook = trained_like_model.register_forward_hook(
        lambda module, inputs, kwargs, output: lengths.extend(kwargs["attention_mask"].sum(dim=1).tolist()),
        with_kwargs=True,
    )
    try:
        embedded = embed_pairs(lambda batch: encode(trained_like_model, tokenizer, batch, batch_size=1), pairs)
    finally:
        hook.remove()
    assert len(lengths) == len(embedded.embeddings) == len(SENTENCES)
    assert lengths == sorted(lengths, reverse=True)
    expected = torch.nn.functional.normalize(encode(trained_like_model, tokenizer, SENTENCES).double(), dim=1)
    torch.testing.assert_close(embedded.embeddings[embedded.first[:4]], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(embedded.embeddings[embedded.second[1:]], expected, atol=1e-6, rtol=0)
    assert encode(trained_like_model, tokenizer, []).shape == (0, 128), "a process' share can be empty"


def test_maximum_length_is_the_encoders_own(tokenizer):
    """RoBERTa's 130 positions start after the padding index, so that 128 tokens fit."""
    unlimited = type(tokenizer).from_pretrained(ENCODER)
    unlimited.model_max_length = int(1e30)
    model, loaded = load_model(str(ENCODER))
    assert encoder_max_length(model, unlimited) == 128
    assert torch.isfinite(encode(model, loaded, ["word " * 5000])).all()


def test_first_last_average_is_the_mean_over_tokens_of_the_first_and_the_last_layer(tokenizer):
    ((row, pooler, embed),) = load_embedders(str(ENCODER), ["first_last_average"], "main", torch.device("cpu"), 2)
    assert (row, pooler) == (str(ENCODER), "first_last_average")
    encoder, layers = AutoModel.from_pretrained(ENCODER, add_pooling_layer=False).eval(), []
    for layer in (encoder.encoder.layer[0], encoder.encoder.layer[-1]):
        layer.register_forward_hook(lambda module, inputs, output: layers.append(output))
    for sentence, embedding in zip(SENTENCES, embed(SENTENCES), strict=True):
        layers.clear()
        with torch.no_grad():
            encoder(**tokenizer(sentence, return_tensors="pt"))
        first, last = (layer[0] if isinstance(layer, tuple) else layer for layer in layers)
        expected = (first + last).reshape(-1, 128).mean(dim=0) / 2
        torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=0)


def test_a_model_saved_with_first_last_average_by_an_earlier_version_is_scored_with_it(tokenizer, tmp_path):
    for part in (load_model(str(ENCODER), pooler="mean")[0], tokenizer):
        part.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pooler": "first_last_average"}))
    ((row, pooler, embed),) = load_embedders(str(tmp_path), ["cls", "mean"], "main", torch.device("cpu"), 8)
    assert (row, pooler) == (str(tmp_path), "first_last_average")
    ((_, _, of_encoder),) = load_embedders(str(ENCODER), [pooler], "main", torch.device("cpu"), 8)
    torch.testing.assert_close(embed(SENTENCES), of_encoder(SENTENCES))


@pytest.mark.realdata
def test_bfloat16_scores_are_within_a_twentieth_point_of_float32(real_data):
    pairs = load_sts("STSB", str(real_data / "data" / "senteval"))
    ((_, _, embed),) = load_embedders(str(ENCODER), ["mean"], "main", torch.device("cpu"), 128)
    single = embed_pairs(embed, pairs).similarities()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = embed_pairs(embed, pairs).similarities()
    assert not np.array_equal(single, half)
    single, half = (100 * stats.spearmanr(values, pairs["score"][:]).statistic for values in (single, half))
    assert half == pytest.approx(single, abs=0.05)


# --- Exactness: the same embeddings, scored by others ----------------------------------------------------------------


class Lookup(SentenceTransformer):
    """A model for sentence-transformers' evaluator with precomputed embeddings."""

    def __init__(self, embeddings):
        super().__init__(modules=[torch.nn.Identity()], device="cpu")
        self.embeddings = embeddings

    def encode(self, sentences, **kwargs):
        return np.stack([self.embeddings[sentence] for sentence in sentences])


@pytest.fixture(scope="module")
def real_embeddings(real_data):
    """Embeddings of real tasks as float64, by sentence, with our measurement of the same embeddings."""
    tasks = {name: load_sts(name, str(real_data / "data" / "senteval")) for name in ("STS12", "STSB")}
    ((_, _, embed),) = load_embedders(str(ENCODER), ["mean"], "main", torch.device("cpu"), 128)
    sentences = sorted({s for pairs in tasks.values() for column in (1, 2) for s in pairs[f"sentence{column}"]})
    embeddings = dict(zip(sentences, embed(sentences)))
    measurement = measure(lambda some: torch.stack([embeddings[s] for s in some]), tasks)
    return tasks, {sentence: vector.double().numpy() for sentence, vector in embeddings.items()}, measurement


@pytest.mark.realdata
@pytest.mark.parametrize("task", ["STS12", "STSB"])
def test_scores_equal_senteval_all(real_embeddings, task):
    """
    SentEval's procedure (senteval/sts.py): for each subset, sort by the numbers of tokens and the score, and take a
    cosine per pair; then one correlation over all subsets. Long doubles give equal sentences equal cosines.
    """
    tasks, embeddings, measurement = real_embeddings
    system, gold = [], []
    for subset in dict.fromkeys(tasks[task]["subset"]):
        samples = [
            (pair["sentence1"].split(), pair["sentence2"].split(), pair["score"])
            for pair in tasks[task]
            if pair["subset"] == subset
        ]
        samples.sort(key=lambda sample: (len(sample[0]), len(sample[1]), sample[2]))
        for sample in samples:
            first, second = (embeddings[" ".join(words)].astype(np.longdouble) for words in sample[:2])
            system.append(np.dot(first, second) / (np.linalg.norm(first) * np.linalg.norm(second)))
            gold.append(sample[2])
    expected = 100 * stats.spearmanr(np.array(system, dtype=np.float64), gold).statistic
    ours = correlations(measurement.similarities[task], np.array(tasks[task]["score"][:]))
    assert ours.spearman == pytest.approx(expected, abs=1e-6)


@pytest.mark.realdata
@pytest.mark.parametrize("task", ["STS12", "STSB"])
def test_scores_equal_sentence_transformers_evaluator(real_embeddings, task):
    """Pairs of two equal sentences are left out: the evaluator ranks them by rounding errors."""
    tasks, embeddings, measurement = real_embeddings
    first, second, scores = (tasks[task][name][:] for name in ("sentence1", "sentence2", "score"))
    keep = [index for index in range(len(scores)) if first[index] != second[index]]
    columns = [[column[index] for index in keep] for column in (first, second, scores)]
    expected = EmbeddingSimilarityEvaluator(*columns, main_similarity="cosine")(Lookup(embeddings))
    ours = correlations(measurement.similarities[task][keep], np.array(columns[2]))
    assert ours.spearman == pytest.approx(100 * expected["spearman_cosine"], abs=1e-6)
    assert ours.pearson == pytest.approx(100 * expected["pearson_cosine"], abs=1e-6)


@pytest.mark.realdata
def test_pairs_of_equal_sentences_share_a_rank(real_embeddings):
    tasks, _, measurement = real_embeddings
    equal = np.array(tasks["STS12"]["sentence1"][:]) == np.array(tasks["STS12"]["sentence2"][:])
    assert equal.sum() == 79
    assert set(measurement.similarities["STS12"][equal]) == {1.0}


@pytest.mark.realdata
def test_alignment_and_uniformity_of_stsb_equal_wang_and_isola(real_embeddings):
    tasks, embeddings, measurement = real_embeddings
    unit = {sentence: vector / np.linalg.norm(vector) for sentence, vector in embeddings.items()}
    positive = [pair for pair in tasks["STSB"] if pair["score"] > 4]
    squares = [np.sum((unit[pair["sentence1"]] - unit[pair["sentence2"]]) ** 2) for pair in positive]
    distinct = sorted({*tasks["STSB"]["sentence1"], *tasks["STSB"]["sentence2"]})
    potentials = np.exp(-2 * pdist(np.stack([unit[sentence] for sentence in distinct])) ** 2)
    assert asdict(measurement.geometry) == {
        "alignment": pytest.approx(np.mean(squares), abs=1e-6),
        "positive_pairs": 231,
        "uniformity": pytest.approx(np.log(potentials.mean()), abs=1e-6),
        "sentences": len(distinct),
    }


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
def test_uniformity_does_not_depend_on_the_blocks(block_size):
    rows = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    expected = np.log(np.exp(-2 * pdist(rows.numpy()) ** 2).mean())
    assert uniformity(rows, block_size) == pytest.approx(expected, abs=1e-12)


def test_what_has_no_pair_has_no_number():
    nothing = torch.zeros(0, 5)
    assert alignment(nothing, nothing) is None
    assert uniformity(torch.ones(1, 5)) is None


@pytest.mark.parametrize("pooler", ["cls", "mean"])
def test_the_whole_way_equals_sentence_transformers(pooler):
    """Tokenizer, encoder, pooling and score, each computed by both programs."""
    pairs = load_pairs(DEMO_PAIRS)
    ((_, _, embed),) = load_embedders(str(ENCODER), [pooler], "main", torch.device("cpu"), 128)
    scores = correlations(embed_pairs(embed, pairs).similarities(), np.array(pairs["score"][:]))
    peer = SentenceTransformer(
        modules=[Transformer(str(ENCODER), max_seq_length=128), Pooling(128, pooling_mode=pooler)], device="cpu"
    )
    columns = [pairs[name][:] for name in ("sentence1", "sentence2", "score")]
    expected = EmbeddingSimilarityEvaluator(*columns, main_similarity="cosine")(peer)
    assert scores.spearman == pytest.approx(100 * expected["spearman_cosine"], abs=1e-3)
    assert scores.pearson == pytest.approx(100 * expected["pearson_cosine"], abs=1e-3)


# --- The command -----------------------------------------------------------------------------------------------------


def test_one_command_compares_every_kind_of_model(saved_model, sentence_transformer, senteval, tmp_path):
    """All seven tasks; a SARCSE folder, a sentence-transformers folder, an encoder under three poolers."""
    process = run_command(
        PROJECT / "eval_sts.py",
        *(saved_model, sentence_transformer, ENCODER),
        *("--pooler", "cls", "mean", "first_last_average"),
        *("--sts_dir", senteval, "--output_dir", "out"),
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    models = results["models"]
    assert {name: model["pooler"] for name, model in models.items()} == {
        str(saved_model): "words",
        str(sentence_transformer): "sentence-transformers",
        f"{ENCODER}, cls": "cls",
        f"{ENCODER}, mean": "mean",
        f"{ENCODER}, first_last_average": "first_last_average",
    }
    for model in models.values():
        assert list(model["tasks"]) == list(STS_TASKS)
        spearman = [task["spearman"] for task in model["tasks"].values()]
        assert model["average"] == pytest.approx(sum(spearman) / 7)
        assert set(model["tasks"]["STS14"]["subsets"]) == set(STS_TASKS["STS14"].subsets)
        assert (model["positive_pairs"], model["sentences"]) == (2, 24)
    # The sentence-transformers folder also pools the first token.
    peer, cls = (models[str(name)] for name in (sentence_transformer, f"{ENCODER}, cls"))
    assert peer["tasks"]["STSB"]["pearson"] == pytest.approx(cls["tasks"]["STSB"]["pearson"], abs=1e-3)
    assert results["differences"]["minus"] == str(saved_model)
    assert list(results["differences"]["models"]) == list(models)[1:]
    assert (tmp_path / "out" / "results.md").read_text().strip() in process.stdout
    for figure in ("similarity_densities", "alignment_uniformity"):
        for ending in ("png", "svg"):
            assert (tmp_path / "out" / f"{figure}.{ending}").stat().st_size > 1000
    assert not (tmp_path / "out" / "training_curve.png").exists(), "none of these folders has a log"


def test_one_model_keeps_its_name_in_results(tmp_path):
    process = run_command(
        PROJECT / "eval_sts.py", ENCODER, "--pairs", DEMO_PAIRS, "--output_dir", "out", "--bf16", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results) == {"precision", "models"} and results["precision"] == "bfloat16"
    assert "Encoded in bfloat16." in process.stdout
    entry = results["models"][str(ENCODER)]
    assert entry["pooler"] == "mean" and entry["tasks"]["sts"]["pairs"] == 420
    assert entry["average"] == entry["tasks"]["sts"]["spearman"]


def test_two_processes_score_as_one(saved_model, tmp_path):
    """Each encodes its share of the sentences; one of them reports."""
    command = [PROJECT / "eval_sts.py", saved_model, "--pairs", DEMO_PAIRS, "--output_dir"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0]
    two = run_python(*launch, *command, "two", cwd=tmp_path)
    one = run_command(*command, "one", cwd=tmp_path)
    assert two.returncode == one.returncode == 0, two.stderr
    assert two.stdout.count("Spearman x 100") == 1
    one, two = (
        json.loads((tmp_path / n / "results.json").read_text())["models"][str(saved_model)] for n in ("one", "two")
    )
    for key in ("spearman", "pearson"):
        assert two["tasks"]["sts"][key] == pytest.approx(one["tasks"]["sts"][key], abs=0.05)
    assert two["uniformity"] == pytest.approx(one["uniformity"], abs=1e-5)
    assert two["sentences"] == one["sentences"]


def test_explain_writes_a_page(saved_model, tokenizer, tmp_path):
    """For models with an autoencoder, and for those that reconstruct from their mean."""
    for part in (load_model(str(ENCODER), pooler="mean")[0], tokenizer):
        part.save_pretrained(tmp_path / "mean")
    pairs = ["--explain", "A boy kicks a ball.", "A child plays.", "--explain", "One & two.", ""]
    process = run_command(PROJECT / "eval_sts.py", saved_model, tmp_path / "mean", *pairs, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("cosine similarity") == 4
    assert "boy 0." in process.stdout
    page = tmp_path / "output" / "explain" / "token_importance.html"
    assert page.read_text(encoding="utf-8").count('class="sentence"') == 8


def test_without_sentence_transformers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        ValueError, match="here is a sentence-transformers model. To score it: `pip install sentence-transformers`"
    ):
        load_sentence_transformer("here", torch.device("cpu"), 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{model}", "--sts_dir", "nowhere", "--tasks", "STSB"],
            "nowhere/STS/STSBenchmark/sts-test.csv: no such file",
        ),
        (["no/such/model", "--pairs", DEMO_PAIRS], "no/such/model: neither a model folder nor a model on a reachable"),
        (["{model}", "--tasks", "STS11"], "invalid choice: 'STS11'"),
        (["{model}", "--pairs", "none.tsv"], "none.tsv: no such file"),
        (["{model}", "--pairs", DEMO_PAIRS, "--pooler", "max"], "invalid choice: 'max'"),
        (["{model}", "--pairs", DEMO_PAIRS, "--batch_size", "0"], "--batch_size: must be at least 1, got 0"),
        (["{model}", "--pairs", DEMO_PAIRS, "--device", "gpu"], "--device gpu: "),
        (["{model}", "--pairs", DEMO_PAIRS, "--output_dir", DEMO_PAIRS], f"--output_dir {DEMO_PAIRS}: File exists"),
        (["{nan}", "--pairs", DEMO_PAIRS], "some embeddings are not finite numbers"),
        (["{model}", "--pairs", DEMO_PAIRS, "--tasks", "STSB"], "argument --tasks: has no effect with --pairs"),
        (["{model}", "--explain", "a", "b", "--bf16"], "argument --bf16: has no effect with --explain"),
        (["{model}", "--explain", "a", "b", "--pairs", DEMO_PAIRS], "argument --pairs: has no effect with --explain"),
        ([str(ENCODER), "--explain", "a", "b"], "cannot reconstruct tokens from an embedding"),
        (["{broken}", "--pairs", DEMO_PAIRS], "sentence-transformers cannot load it"),
    ],
)
def test_user_errors_end_in_one_message_and_exit_code_2(arguments, message, saved_model, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "modules.json").write_text("[]")
    if "{nan}" in arguments:
        model, tokenizer = load_model(str(saved_model))
        model.sentence_encoder.integration.bias.data.fill_(math.nan)
        model.save_pretrained(tmp_path / "nan")
        tokenizer.save_pretrained(tmp_path / "nan")
    folders = {"model": saved_model, "broken": tmp_path / "broken", "nan": tmp_path / "nan"}
    arguments = [argument.format(**folders) for argument in arguments]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_user_error_is_no_traceback(saved_model, tmp_path):
    process = run_python(PROJECT / "eval_sts.py", saved_model, "--pairs", "none.tsv", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (2, "eval_sts.py: error: none.tsv: no such file.\n")
