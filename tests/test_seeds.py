"""The same training with several seeds, as one row."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from sarcse.evaluation.comparison import ModelScores, Results
from sarcse.evaluation.report import report, seeds_tables, table_in
from sarcse.evaluation.seeds import groups_of, student

from .conftest import DEMO, ENCODER, PROJECT, flags, run_command


PAIRS = DEMO / "sts.tsv"


def a_row(spearman: float) -> ModelScores:
    task = {"spearman": spearman, "pearson": 1.0, "pairs": 9, "subsets": {}, "interval": None}
    return ModelScores.from_json({"pooler": None, "tasks": {"STS12": task}, "average": None, "average_interval": None})


def results(**groups: list[float]) -> Results:
    """Rows such as a-1, a-2, by group."""
    rows = {f"{name}-{seed}": a_row(value) for name, of in groups.items() for seed, value in enumerate(of, 1)}
    of_seeds = {name: {seed: f"{name}-{seed}" for seed in range(1, len(of) + 1)} for name, of in groups.items()}
    return Results(rows, {}, groups=of_seeds)


def test_a_group_has_mean_and_deviation_and_differences_are_paired_by_seed():
    a, b = [50.0, 52.0, 57.0], [51.5, 52.0, 59.0]
    table, differences = seeds_tables(results(a=a, b=b))
    assert table == [["model", "seeds", "STS12"], ["a", "3", "53.00 ± 3.61"], ["b", "3", "54.17 ± 4.19"]]
    low, high = stats.ttest_rel(b, a).confidence_interval()
    assert f"{np.mean(b) - np.mean(a):+.2f} [{low:+.2f}, {high:+.2f}]" in differences
    assert student(np.subtract(b, a))[1] == pytest.approx([low, high])


def test_one_row_is_compared_with_each_seed():
    """An encoder before any training has no seed."""
    _, differences = seeds_tables(results(before=[50.0], after=[52.0, 53.0, 54.0]))
    low, high = stats.ttest_1samp([2.0, 3.0, 4.0], 0).confidence_interval()
    assert f"| 3 | **+3.00 [{low:+.2f}, {high:+.2f}]** |" in " ".join(differences.split())


def test_without_common_seeds_there_is_a_difference_and_no_interval():
    found = results(a=[50.0, 52.0], b=[55.0, 57.0])
    found.groups["b"] = {seed + 5: row for seed, row in found.groups["b"].items()}
    assert "| b | 1 | +5.00 |" in " ".join(seeds_tables(found)[1].split())


def test_no_group_takes_the_name_of_another(tmp_path):
    """Of six trainings two are with another learning rate, and two have names without a number."""
    for index, name in enumerate(("a-1", "a-2", "a-11", "a-12", "x", "y")):
        values = {"seed": index, "data_seed": index, "learning_rate": index // 2}
        record = {"base_model": {}, "architecture": {}, "train_data": {}, "hyperparameters": values}
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_record.json").write_text(json.dumps(record))
    rows = [str(tmp_path / name) for name in ("a-1", "a-2", "a-11", "a-12", "x", "y")]
    found = groups_of(rows)
    assert [*found] == [str(tmp_path / "a"), f"{rows[2]}, {rows[3]}", f"{rows[4]}, {rows[5]}"]
    assert [list(of.values()) for of in found.values()] == [rows[:2], rows[2:4], rows[4:]]


def test_tables_are_written_as_latex_and_csv():
    found = results(a=[50.0, 52.0], b_c=[55.0, 57.0])
    assert list(csv.reader(io.StringIO(table_in("csv", found)))) == seeds_tables(found)[0]
    latex = table_in("latex", found)
    assert r"b\_c & 2 & 56.00 $\pm$ 1.41 \\" in latex and latex.startswith(r"\begin{tabular}{lrr}")
    single = Results({"a": a_row(50.0), "b": a_row(55.0)}, {})
    assert r"b & \textbf{55.00} & - & - \\" in table_in("latex", single)
    assert table_in("csv", single).splitlines()[2] == "b,55.00,-,-"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`train.py --seeds 2`, whose second training is interrupted by a file in its way and then goes on."""
    folder = tmp_path_factory.mktemp("seeds")
    options = flags(folder / "run", report_to="none", max_steps=2, eval_steps=2, save_steps=2)
    process = run_command(PROJECT / "train.py", *options, "--seeds", "2", cwd=folder)
    return folder, options, process


def test_seeds_train_into_folders_of_their_own_and_are_compared(trained):
    folder, _, process = trained
    assert process.returncode == 0, process.stderr
    records = [json.loads((folder / f"run-{seed}" / "training_record.json").read_text()) for seed in (1, 2)]
    assert [record["hyperparameters"]["seed"] for record in records] == [1, 2]
    scores = [json.loads((folder / f"run-{seed}" / "sts_results.json").read_text())["models"] for seed in (1, 2)]
    after = [found[f"after: {folder}/run-{seed}"]["tasks"]["sts"]["spearman"] for seed, found in zip((1, 2), scores)]
    table = " ".join(process.stdout.split("over seeds.")[1].split())
    assert f"run | 2 | {np.mean(after):.2f} ± {np.std(after, ddof=1):.2f} |" in table
    assert "paired by seed" in table and "before: " in table


def test_the_same_command_goes_on_where_it_stopped(trained):
    folder, options, process = trained
    shutil.rmtree(folder / "run-2")
    again = run_command(PROJECT / "train.py", *options, "--seeds", "2", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert f"{folder}/run-1 is trained already." in again.stdout
    assert again.stdout.split("over seeds.")[1] == process.stdout.split("over seeds.")[1]


def test_eval_sts_groups_folders_whose_trainings_differ_in_the_seed_alone(trained, tmp_path):
    folder, *_ = trained
    shutil.copytree(folder / "run-1", tmp_path / "other")
    record = json.loads((tmp_path / "other" / "training_record.json").read_text())
    record["hyperparameters"]["learning_rate"] = 0.5
    (tmp_path / "other" / "training_record.json").write_text(json.dumps(record))
    runs = [str(folder / "run-1"), str(folder / "run-2")]
    assert groups_of([*runs, str(tmp_path / "other")]) == {
        str(folder / "run"): {1: runs[0], 2: runs[1]},
        str(tmp_path / "other"): {1: str(tmp_path / "other")},
    }
    assert groups_of([runs[0], str(ENCODER)]) == {}
    process = run_command(
        PROJECT / "eval_sts.py", ENCODER, *runs, "--pairs", PAIRS, "--output_dir", "out", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert "± " in process.stdout and f"| {folder / 'run'} " in process.stdout.replace("\\", "")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["groups"][str(folder / "run")] == {"1": runs[0], "2": runs[1]} and len(found["models"]) == 3
    command = [PROJECT / "eval_sts.py", ENCODER, *runs, "--pairs", PAIRS, "--format", "csv"]
    rows = list(csv.reader(io.StringIO(run_command(*command, cwd=tmp_path).stdout)))
    assert [row[:2] for row in rows] == [["model", "seeds"], [str(ENCODER), "1"], [str(folder / "run"), "2"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--seeds", "two"], "argument --seeds: invalid int value: 'two'"),
        (["--seeds", "2", "--push_to_hub", "true"], "--seeds with --push_to_hub: which of the models?"),
    ],
)
def test_seeds_that_cannot_be_are_refused(tmp_path, options, message):
    process = run_command(PROJECT / "train.py", "--train_file", "x.txt", "--output_dir", "out", *options, cwd=tmp_path)
    assert process.returncode == 2 and message in process.stderr, process.stderr


def test_a_report_of_groups_has_the_notes_of_any_report():
    text = report(results(a=[50.0, 52.0], b=[55.0, 57.0]))
    assert text.startswith("Spearman x 100, mean and standard deviation over seeds.")
    assert "STS12 has 9 pairs here" not in text and "bootstrap" not in text
