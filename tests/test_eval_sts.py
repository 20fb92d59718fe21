import json
import math

import datasets
import numpy as np
import pytest
import torch
from scipy import stats
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.nn import functional as F

import eval_sts
from eval_sts import (
    STS_TASKS,
    alignment,
    encode,
    load_model,
    load_pairs,
    load_sts,
    score_model,
    score_pairs,
    uniformity,
)

from .conftest import ENCODER, PROJECT, SENTENCES, run_python


DEMO_PAIRS = str(PROJECT / "demo" / "sts.tsv")


@pytest.fixture(scope="module")
def senteval(tmp_path_factory):
    """All seven tasks in SentEval's layout, a few pairs each, with unscored pairs, CRLF and a byte order mark."""
    root = tmp_path_factory.mktemp("senteval")
    for year in ("12", "13", "14", "15", "16"):
        folder = root / "STS" / f"STS{year}-en-test"
        folder.mkdir(parents=True)
        (folder / "STS.input.first.txt").write_text('a cat\ta dog\none " two\tthree\nx\ty\n')
        (folder / "STS.gs.first.txt").write_text("1.5\n\n4\n")
        (folder / "STS.input.second.txt").write_bytes(b"\xef\xbb\xbfe\tf\r\ng\th\r\n")
        (folder / "STS.gs.second.txt").write_bytes(b"0\r\n5.0\r\n")
    folder = root / "STS" / "STSBenchmark"
    folder.mkdir()
    for split in ("dev", "test"):
        rows = [f'genre\tfile\tyear\t{i:04}\t{i}.0\tsentence {i}\tother "{i}\tsource' for i in range(6)]
        (folder / f"sts-{split}.csv").write_text("\n".join(rows) + "\n")
    (root / "SICK").mkdir()
    sick = [
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment",
        "1\tA\tB\t4.5\tN",
        "2\tC\tD\t1\tN",
    ]
    (root / "SICK" / "SICK_test_annotated.txt").write_text("\n".join(sick) + "\n")
    return root


def test_subsets_are_concatenated_and_unscored_pairs_dropped(senteval):
    pairs = load_sts("STS15", str(senteval))
    assert pairs["sentence1"] == ["a cat", "x", "e", "g"]
    assert pairs["sentence2"] == ["a dog", "y", "f", "h"]
    assert pairs["score"] == [1.5, 4.0, 0.0, 5.0]


def test_benchmark_and_sick_files_are_read_by_their_columns(senteval):
    assert load_sts("STSB", str(senteval), split="dev")[3] == {
        "score": 3.0,
        "sentence1": "sentence 3",
        "sentence2": 'other "3',
    }
    assert load_sts("SICKR", str(senteval))[:] == {
        "score": [4.5, 1.0],
        "sentence1": ["A", "C"],
        "sentence2": ["B", "D"],
    }


def test_a_wrong_number_of_pairs_is_a_warning_with_both_numbers(senteval, caplog):
    load_sts("STS16", str(senteval))
    assert "STS16 test has 4 scored pairs here, the published task has 1186" in caplog.text


@pytest.mark.realdata
def test_real_tasks_have_the_published_number_of_pairs(real_data, caplog):
    for task in ("STS12", "STS14", "STS15", "STSB"):
        assert len(load_sts(task, str(real_data / "data" / "senteval"))) == STS_TASKS[task].pairs
    assert len(load_sts("STSB", str(real_data / "data" / "senteval"), split="dev")) == 1500
    assert "scored pairs" not in caplog.text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="SICK_test_annotated.txt: no such file. Leave the task out with --tasks"):
        load_sts("SICKR", str(tmp_path))
    with pytest.raises(ValueError, match="STS13-en-test"):
        load_sts("STS13", str(tmp_path))
    (tmp_path / "STS" / "STS13-en-test").mkdir(parents=True)
    (tmp_path / "STS" / "STS13-en-test" / "STS.gs.FNWN.txt").write_text("1\n")
    with pytest.raises(ValueError, match="STS.input.FNWN.txt"):
        load_sts("STS13", str(tmp_path))


def test_a_broken_line_is_named(tmp_path):
    folder = tmp_path / "STS" / "STS13-en-test"
    folder.mkdir(parents=True)
    (folder / "STS.gs.FNWN.txt").write_text("1\n2\n")
    (folder / "STS.input.FNWN.txt").write_text("a\tb\nno tab\n")
    with pytest.raises(ValueError, match="STS.input.FNWN.txt, line 2"):
        load_sts("STS13", str(tmp_path))
    (folder / "STS.input.FNWN.txt").write_text("a\tb\nc\td\n")
    (folder / "STS.gs.FNWN.txt").write_text("1\ntwo\n")
    with pytest.raises(ValueError, match="STS.gs.FNWN.txt, line 2: 'two' is not a number"):
        load_sts("STS13", str(tmp_path))
    (folder / "STS.gs.FNWN.txt").write_text("1\n")
    with pytest.raises(ValueError, match=r"STS.input.FNWN.txt has 2 lines and .*STS.gs.FNWN.txt 1"):
        load_sts("STS13", str(tmp_path))


def test_pairs_of_ones_own(tmp_path):
    rows = {"sentence1": ["a", 'b "c'], "sentence2": ["NA", "d"], "score": [1.0, 2.5]}
    data = datasets.Dataset.from_dict(rows)
    data.to_csv(tmp_path / "pairs.csv")
    data.to_json(tmp_path / "pairs.jsonl")
    data.to_parquet(tmp_path / "pairs.parquet")
    (tmp_path / "pairs.tsv").write_text('score\tsentence1\tsentence2\n1.0\ta\tNA\n2.5\tb "c\td\n')
    for suffix in ("csv", "jsonl", "parquet", "tsv"):
        pairs = load_pairs(str(tmp_path / f"pairs.{suffix}"))
        assert {name: pairs[name][:] for name in rows} == rows, suffix
    with pytest.raises(ValueError, match="no such file"):
        load_pairs(str(tmp_path / "none.tsv"))
    with pytest.raises(ValueError, match="must be a .tsv, .csv, .jsonl, .parquet file"):
        load_pairs(str(tmp_path / "pairs.xlsx"))
    (tmp_path / "other.csv").write_text("a,score\nx,1\n")
    with pytest.raises(ValueError, match="no column sentence1, sentence2; it has a, score"):
        load_pairs(str(tmp_path / "other.csv"))


def test_without_a_folder_or_a_hub_the_message_says_what_to_do():
    with pytest.raises(ValueError, match="mteb/sts12-sts could not be loaded from the Hub.*--sts_dir"):
        load_sts("STS12")


def test_embeddings_come_back_in_the_order_of_the_sentences(trained_like_model, tokenizer):
    sentences = [*SENTENCES, "Short.", *SENTENCES]
    embeddings = encode(trained_like_model.train(), tokenizer, sentences, batch_size=3)
    assert trained_like_model.training, "the mode is left as it was"
    trained_like_model.eval()
    for sentence, embedding in zip(sentences, embeddings):
        with torch.no_grad():
            alone = trained_like_model(**tokenizer(sentence, return_tensors="pt")).pooler_output[0]
        torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooler", ["cls", "mean"])
def test_scores_equal_sentence_transformers_evaluator(pooler):
    """The same encoder and pooling in sentence-transformers gives the same Spearman and Pearson correlation."""
    pairs = load_pairs(DEMO_PAIRS)
    model, tokenizer = load_model(str(ENCODER), pooler)
    scores = score_pairs(model, tokenizer, pairs)
    transformer = Transformer(str(ENCODER), max_seq_length=tokenizer.model_max_length)
    peer = SentenceTransformer(modules=[transformer, Pooling(128, pooling_mode=pooler)], device="cpu")
    evaluator = EmbeddingSimilarityEvaluator(
        pairs["sentence1"][:], pairs["sentence2"][:], pairs["score"][:], main_similarity="cosine"
    )
    expected = evaluator(peer)
    assert scores["spearman"] == pytest.approx(100 * expected["spearman_cosine"], abs=1e-4)
    assert scores["pearson"] == pytest.approx(100 * expected["pearson_cosine"], abs=1e-4)


def test_correlation_equals_its_definition():
    """Spearman's correlation is Pearson's of the ranks, ties sharing their mean rank."""
    predictions, references = [0.3, 0.1, 0.1, 0.9, 0.5], [2.0, 1.0, 3.0, 5.0, 3.0]
    scores = eval_sts.StsCorrelation(keep_in_memory=True).compute(predictions=predictions, references=references)
    ranks = np.corrcoef([3, 1.5, 1.5, 5, 4], [2, 1, 3.5, 5, 3.5])[0, 1]
    assert scores["spearman"] == pytest.approx(ranks, abs=1e-12)
    assert scores["pearson"] == pytest.approx(np.corrcoef(predictions, references)[0, 1], abs=1e-12)


def test_alignment_and_uniformity_equal_their_formulas():
    """Wang and Isola 2020, in float64 loops."""
    generator = torch.Generator().manual_seed(0)
    first, second = (F.normalize(torch.randn(7, 5, generator=generator), dim=1) for _ in range(2))
    squares = [sum((a - b) ** 2 for a, b in zip(x, y)) for x, y in zip(first.tolist(), second.tolist())]
    assert alignment(first, second) == pytest.approx(sum(squares) / 7, abs=1e-6)
    rows = first.tolist()
    potentials = [
        math.exp(-2 * sum((a - b) ** 2 for a, b in zip(rows[i], rows[j]))) for i in range(7) for j in range(i)
    ]
    assert uniformity(first) == pytest.approx(math.log(sum(potentials) / len(potentials)), abs=1e-6)


@pytest.mark.realdata
@pytest.mark.parametrize("task", ["STS14", "STSB"])
def test_all_setting_on_real_data_equals_a_plain_loop(real_data, task):
    """Each pair encoded for itself, in file order, float64 cosines, scipy on the whole."""
    pairs = load_sts(task, str(real_data / "data" / "senteval"))
    pairs = pairs.select(range(0, len(pairs), 10))
    model, tokenizer = load_model(str(ENCODER), "mean")
    similarities = []
    for pair in pairs:
        vectors = []
        for sentence in (pair["sentence1"], pair["sentence2"]):
            with torch.no_grad():
                output = model.encoder(**tokenizer(sentence, truncation=True, return_tensors="pt"))
            vectors.append(output.last_hidden_state[0].double().mean(dim=0))
        similarities.append(F.cosine_similarity(*vectors, dim=0).item())
    expected = 100 * stats.spearmanr(similarities, pairs["score"][:]).statistic
    assert score_pairs(model, tokenizer, pairs)["spearman"] == pytest.approx(expected, abs=1e-2)


def test_a_model_that_cannot_tell_sentences_apart_scores_null(trained_like_model, tokenizer):
    pairs = datasets.Dataset.from_dict({"sentence1": ["a"] * 3, "sentence2": ["a"] * 3, "score": [1.0, 2.0, 3.0]})
    scores = score_model(trained_like_model, tokenizer, {"same": pairs})
    assert scores["tasks"]["same"] == {"spearman": None, "pearson": None, "pairs": 3}
    json.dumps(scores, allow_nan=False)


def test_maximum_length_is_the_encoders_own(tmp_path, tokenizer):
    """RoBERTa's 130 positions begin behind the padding index, so that 128 tokens fit."""
    unlimited = type(tokenizer).from_pretrained(ENCODER)
    unlimited.model_max_length = int(1e30)
    model, _ = load_model(str(ENCODER))
    assert eval_sts.encoder_max_length(model, unlimited) == 128
    assert torch.isfinite(encode(model, load_model(str(ENCODER))[1], ["word " * 5000])).all()


def test_command_writes_results_for_several_models(saved_model, senteval, tmp_path):
    """All seven tasks, a SARCSE folder and a plain encoder, from a folder that is not the project's."""
    process = run_python(
        PROJECT / "eval_sts.py", saved_model, ENCODER, "--sts_dir", senteval, "--output_dir", "out", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    assert list(results) == [str(saved_model), str(ENCODER)]
    for model in results.values():
        assert list(model["tasks"]) == list(STS_TASKS)
        assert set(model) == {"pooler", "tasks", "average", "alignment", "uniformity"}
        assert set(model["tasks"]["STSB"]) == {"spearman", "pearson", "pairs"}
        spearman = [task["spearman"] for task in model["tasks"].values()]
        assert model["average"] == pytest.approx(sum(spearman) / 7)
    table = (tmp_path / "out" / "results.md").read_text()
    assert table.strip() in process.stdout
    assert f"{results[str(ENCODER)]['average']:.2f}" in table


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
    ],
)
def test_user_errors_end_in_one_message_and_exit_code_2(arguments, message, saved_model, tmp_path):
    arguments = [argument.format(model=saved_model) for argument in arguments]
    process = run_python(PROJECT / "eval_sts.py", *arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr
