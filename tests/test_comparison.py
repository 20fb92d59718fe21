import json
import re
from dataclasses import asdict, replace

import datasets
import numpy as np
import pytest
from scipy import stats

from sarcse.evaluation.comparison import (
    BOOTSTRAP_RESAMPLES,
    Geometry,
    Measurement,
    ModelScores,
    StsCorrelation,
    bootstrap_spearman,
    compare,
    interval,
    reference_task,
)
from sarcse.evaluation.report import difference_in_words, report, results_table


@pytest.fixture(scope="module")
def tasks():
    """Two tasks with ties, one of them with subsets."""
    generator = np.random.default_rng(1)
    pairs = {
        name: datasets.Dataset.from_dict(
            {
                "sentence1": [f"{name} {i}" for i in range(size)],
                "sentence2": [f"{name} {i}, again" for i in range(size)],
                "score": generator.integers(0, 11, size) / 2,
                **({"subset": [("news", "forum")[i % 3 == 0] for i in range(size)]} if name == "STS13" else {}),
            }
        )
        for name, size in (("STS13", 120), ("mine", 80))
    }
    pairs["STS13"].info.dataset_name = "STS13 test"  # as `load_sts` calls it
    return pairs


@pytest.fixture(scope="module")
def measurements(tasks):
    """Three models: a noisy one, the same with cubed similarities, and a better one."""
    generator = np.random.default_rng(2)
    gold = {name: np.array(pairs["score"][:]) for name, pairs in tasks.items()}
    noisy = {name: (scores + generator.normal(0, 3, len(scores))).round(1) for name, scores in gold.items()}
    better = {name: scores + generator.normal(0, 0.5, len(scores)) for name, scores in gold.items()}
    geometry = Geometry(alignment=0.2, positive_pairs=30, uniformity=-1.0, sentences=240)
    return {
        "path/noisy": Measurement("cls", noisy, geometry),
        "path/cubed": Measurement("mean", {name: values**3 for name, values in noisy.items()}, geometry),
        "path/better": Measurement("autoencoder", better, replace(geometry, alignment=0.1, uniformity=-2.0)),
    }


@pytest.fixture(scope="module")
def results(measurements, tasks):
    return compare(measurements, tasks)


def test_correlation_equals_its_definition():
    """Spearman's correlation is Pearson's correlation of the ranks, with mean ranks for ties."""
    predictions, references = [0.3, 0.1, 0.1, 0.9, 0.5], [2.0, 1.0, 3.0, 5.0, 3.0]
    scores = StsCorrelation(keep_in_memory=True).compute(predictions=predictions, references=references)
    ranks = np.corrcoef([3, 1.5, 1.5, 5, 4], [2, 1, 3.5, 5, 3.5])[0, 1]
    assert scores["spearman"] == pytest.approx(ranks, abs=1e-12)
    assert scores["pearson"] == pytest.approx(np.corrcoef(predictions, references)[0, 1], abs=1e-12)


def test_scores_and_subsets_equal_scipy_on_each_part(results, measurements, tasks):
    for name, measurement in measurements.items():
        scores = results.models[name]
        for task, pairs in tasks.items():
            gold = np.array(pairs["score"][:])
            expected = 100 * stats.spearmanr(measurement.similarities[task], gold).statistic
            assert scores.tasks[task].spearman == pytest.approx(expected, abs=1e-9)
            assert scores.tasks[task].pairs == len(gold)
        subset = np.array(tasks["STS13"]["subset"][:]) == "forum"
        forum = measurement.similarities["STS13"][subset], np.array(tasks["STS13"]["score"][:])[subset]
        assert asdict(scores.tasks["STS13"].subsets["forum"]) == {
            "spearman": pytest.approx(100 * stats.spearmanr(*forum).statistic),
            "pearson": pytest.approx(100 * stats.pearsonr(*forum).statistic),
            "pairs": 40,
        }
        assert scores.tasks["mine"].subsets == {}
        assert scores.average == pytest.approx(np.mean([task.spearman for task in scores.tasks.values()]))


def test_bootstrap_agrees_with_a_plain_loop(measurements, tasks):
    """Other resamples, correlated by scipy one at a time: same mean and deviation, within their standard errors."""
    similarities = measurements["path/noisy"].similarities["STS13"]
    gold = np.array(tasks["STS13"]["score"][:])
    (ours,) = bootstrap_spearman(similarities[None], gold, np.random.default_rng(0))
    assert len(ours) == BOOTSTRAP_RESAMPLES
    generator = np.random.default_rng(3)
    loop = []
    for _ in range(3000):
        drawn = generator.integers(0, len(gold), len(gold))
        loop.append(100 * stats.spearmanr(similarities[drawn], gold[drawn]).statistic)
    # Standard errors: s / sqrt(R) of a mean, s / sqrt(2 R) of a deviation; four of them.
    deviation = np.std(loop)
    assert ours.mean() == pytest.approx(np.mean(loop), abs=4 * deviation / np.sqrt(1000))
    assert ours.std() == pytest.approx(deviation, abs=4 * deviation / np.sqrt(2000))
    low, high = interval(ours)
    assert np.mean((ours >= low) & (ours <= high)) == pytest.approx(0.95, abs=0.002)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Samples of 100 pairs from a bivariate normal, whose Spearman correlation is known: 6 / pi asin(r / 2)."""
    generator = np.random.default_rng(4)
    truth, covered = 600 / np.pi * np.arcsin(0.6 / 2), []
    for _ in range(100):
        x, noise = generator.normal(size=(2, 100))
        distribution = bootstrap_spearman(x[None], 0.6 * x + 0.8 * noise, np.random.default_rng(5))
        low, high = interval(distribution[0])
        covered.append(low <= truth <= high)
    # 95 of 100, with a deviation of 2.2; the percentile interval of a correlation is known to be a little narrow.
    assert 88 <= sum(covered) <= 100


def test_differences_are_paired(results):
    """A monotonous change of all similarities changes no rank, in the data and in every single resample."""
    assert list(results.differences) == ["path/cubed", "path/better"]
    cubed, better = results.differences.values()
    for task in cubed.tasks.values():
        assert asdict(task) == {"spearman": pytest.approx(0, abs=1e-9), "interval": pytest.approx([0, 0], abs=1e-9)}
    assert cubed.average_interval == pytest.approx([0, 0], abs=1e-9)
    averages = results.models["path/better"].average, results.models["path/noisy"].average
    assert better.average == pytest.approx(averages[0] - averages[1])
    low, high = better.average_interval
    assert 0 < low < better.average < high


def test_the_same_measurements_give_the_same_results(results, measurements, tasks):
    assert compare(measurements, tasks) == results


def test_a_model_that_cannot_tell_sentences_apart_scores_null():
    pairs = datasets.Dataset.from_dict({"sentence1": ["a"] * 3, "sentence2": ["a"] * 3, "score": [1.0, 2.0, 3.0]})
    measurement = Measurement("mean", {"same": np.ones(3)}, Geometry(None, 0, None, 1))
    results = compare({"constant": measurement, "other": measurement}, {"same": pairs})
    entry = json.loads(json.dumps(results.to_json(), allow_nan=False))["models"]["constant"]
    assert entry["tasks"]["same"] == {
        "spearman": None, "pearson": None, "pairs": 3, "interval": None, "subsets": {}, "loaded_as": None
    }  # fmt: skip
    assert entry["average"] is None and entry["average_interval"] is None and entry["alignment"] is None
    assert "| constant, mean |" in report(results)


def test_a_file_gives_back_the_scores_that_were_written(results, measurements, tasks):
    """With and without geometry; the order of the fields is that of earlier files."""
    written = json.loads(json.dumps(results.to_json()))
    assert {name: ModelScores.from_json(entry) for name, entry in written["models"].items()} == results.models
    first = written["models"]["path/noisy"]
    geometry = ["alignment", "positive_pairs", "uniformity", "sentences"]
    assert list(first) == ["pooler", "tasks", "average", "average_interval", "picked_on", *geometry]
    assert list(first["tasks"]["mine"]) == ["spearman", "pearson", "pairs", "subsets", "interval", "loaded_as"]
    assert written["differences"]["minus"] == "path/noisy"
    single = compare({"one": Measurement("cls", measurements["path/noisy"].similarities)}, tasks)
    written = json.loads(json.dumps(single.to_json()))
    assert list(written) == ["precision", "models"] and list(written["models"]["one"])[-1] == "picked_on"
    assert ModelScores.from_json(written["models"]["one"]) == single.models["one"]


def test_the_reference_task_is_stsb_or_the_only_one():
    assert reference_task({"STS12": None, "STSB": None}) == "STSB"
    assert reference_task({"mine": None}) == "mine"
    assert reference_task({"STS12": None, "STS13": None}) is None


def test_the_best_of_each_column_is_bold(results):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in results_table(results.models).splitlines()
    ]
    assert rows[0] == ["model", "STS13", "mine", "average", "alignment", "uniformity"]
    cells = {row[0]: row[1:] for row in rows[2:]}
    assert list(cells) == ["path/noisy, cls", "path/cubed, mean", "path/better, autoencoder"]
    assert all(cell.startswith("**") for cell in cells["path/better, autoencoder"][:3])
    assert cells["path/better, autoencoder"][3:] == ["0.10", "-2.00"], "either alone is no virtue"
    assert not any("*" in cell for name in ("path/noisy, cls", "path/cubed, mean") for cell in cells[name])


def test_what_reads_as_well_as_the_best_is_bold_too(results, tasks):
    scores = results.models["path/noisy"]
    rows = results_table({"one": scores, "two": scores}).splitlines()[2:]
    assert [row.count("**") for row in rows] == [6, 6]
    assert "**" not in results_table({"one": scores})


NUMBERS = r"-?\+?[\d.]+ \[-?\+?[\d.]+, -?\+?[\d.]+\]"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("noisy", "better", "Better than before by N on the average of 2 tasks."),
        ("better", "noisy", "Worse than before by N on the average of 2 tasks."),
        ("noisy", "cubed", "No better than before: N on the average of 2 tasks."),
    ],
)
def test_the_difference_in_words_is_that_of_the_table(measurements, tasks, before, after, said):
    """A loss is told as a positive number, with the same interval."""
    rows = {f"before: {before}": measurements[f"path/{before}"], f"after: {after}": measurements[f"path/{after}"]}
    results = compare(rows, tasks)
    sentence = difference_in_words(results)
    assert re.sub(NUMBERS, "N", sentence) == said
    (of_table,) = re.findall(rf"{NUMBERS}(?=\W*$)", report(results))
    told, table = ([float(number) for number in re.findall(r"-?[\d.]+\d", text)] for text in (sentence, of_table))
    flipped = [-table[0], -table[2], -table[1]]
    assert told == (flipped if said.startswith("Worse") else table)


def test_the_difference_in_words_names_what_came_before_and_what_picked_the_checkpoint(measurements, tasks):
    mine = {"mine": tasks["mine"]}
    rows = {
        "before: an/encoder, mean": measurements["path/cubed"],
        "before: an/encoder, cls": measurements["path/noisy"],
    }
    rows["after: out"] = replace(measurements["path/better"], picked_on="mine")
    assert re.sub(NUMBERS, "N", difference_in_words(compare(rows, mine))) == (
        "Better than an/encoder with mean pooling by N on mine; the pairs of mine also picked the checkpoint."
    )
    rows["after: out"] = Measurement("mean", {"mine": np.ones(80)})  # all embeddings are equal
    assert difference_in_words(compare(rows, mine)) == (
        "Unknown whether better than an/encoder with mean pooling: no interval on mine."
    )


def test_the_report_says_what_its_numbers_rest_on(measurements, tasks):
    picked = {**measurements, "path/better": replace(measurements["path/better"], picked_on="STS13")}
    text = report(compare(picked, {"STS13": tasks["STS13"]}))
    assert "- path/better, autoencoder: the pairs of STS13 also picked its checkpoint, which makes its score" in text
    assert text.count("picked its checkpoint") == 1
    assert "STS13 has 120 pairs here, but the published task has 1500: not comparable." in text
    assert "On STS13: alignment of 30 pairs with a score above 4, uniformity of 240 distinct sentences" in text
    assert "Minus path/noisy, cls, on the same resamples" in text
    differences = text.split("Minus")[1]
    assert "average" not in differences, "of a single task"
    assert differences.count("**") == 2, "only the better model's interval excludes 0"
