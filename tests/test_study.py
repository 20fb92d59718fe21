"""The study: its pages agree with its lines, and a run equals what the program does with the same flags."""

import lzma
import re
import shutil
import sys
from functools import partial
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from configuration_sarcse import SarcseConfig
from sarcse.data.labelled import load_labelled
from sarcse.data.sts import load_tasks
from sarcse.evaluation.embedding import encode
from sarcse.evaluation.jobs import labelled_job
from sarcse.loading import load_model
from sarcse.options import STS_TASKS
from sarcse.training.arguments import SarcseTrainingArguments
from study import bias, configurations, jobs, reading, report, run, score, tables

from .conftest import DEMO, ENCODER, PROJECT, SENTENCES, whole_model


@pytest.fixture(scope="module")
def model():
    return whole_model(str(ENCODER), channels=8)


def test_token_bias_groups_by_frequency(model, tokenizer):
    """An empty group has none, and neither has one with nothing like the token to put there."""
    frequent = tokenizer(SENTENCES[0], add_special_tokens=False)["input_ids"][0]
    counts = np.ones(model.config.encoder_config.vocab_size, dtype=np.int64)  # a share of 1e-5 to 1e-4 each ...
    counts[frequent] = len(counts)  # ... except one of a half
    change = bias.token_bias(model, tokenizer, SENTENCES[:2], counts)
    assert [value is None for value in change] == [True, False, True, True, True]
    assert change[1] > 0


def test_no_part_of_the_study_makes_a_run_twice():
    for part in run.PARTS:
        keys = [run.key_of(each) for each in run.runs_of(part, seeds=2)]
        assert len(keys) == len(set(keys)) > 0, part


@pytest.fixture
def small_data(tmp_path):
    """A folder laid out like the real data, with the demo's encoder and sentences, and its pairs for every task."""
    folder = tmp_path / "shared"
    sentences = folder / "data" / "wiki500k.txt.xz"
    sentences.parent.mkdir(parents=True)
    sentences.write_bytes(lzma.compress((DEMO / "sentences.txt").read_bytes()))
    encoder = folder / "encoders" / run.ENCODER
    encoder.parent.mkdir()
    encoder.symlink_to(ENCODER)
    pairs = [line.split("\t") for line in (DEMO / "sts.tsv").read_text().splitlines()[1:]]
    files = {f"sts-{split}.csv": [["", "", "", "", *pair] for pair in pairs] for split in ("dev", "test")}
    tasks = {"STSB": files}
    for year in ("STS12", "STS14", "STS15"):
        subset = STS_TASKS[year].subsets[0]
        golds, inputs = [pair[:1] for pair in pairs], [pair[1:] for pair in pairs]
        tasks[year] = {f"STS.gs.{subset}.txt": golds, f"STS.input.{subset}.txt": inputs}
    sick = [["1", *sentences, score, "NEUTRAL"] for score, *sentences in pairs]
    tasks["SICKR"] = {f"SICK_{split}.txt": [["header"], *sick] for split in ("train", "trial")}
    for task, files in tasks.items():
        place = folder / "data" / "senteval" / STS_TASKS[task].folder
        place.mkdir(parents=True)
        for name, rows in files.items():
            (place / name).write_text("\n".join("\t".join(row) for row in rows))
    return folder


def test_a_run_is_trained_and_measured_by_the_program_and_leaves_one_line(small_data, tmp_path, monkeypatch):
    """All tasks have the same pairs here, so each test score equals the best checkpoint's score on STS-B dev."""
    always = run.read_lines()[-1].keys() - {"health", "mean_pooled", "precision"}
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(run, "LINES", tmp_path / "study.jsonl")
    small = {"max_train_samples": 32, "per_device_train_batch_size": 8, "channels": 4}
    tiny = {"encoder": run.ENCODER, "configuration": {**run.START, **small}, "seed": 1}
    monkeypatch.setitem(run.PARTS, "health", [tiny["configuration"]])
    arguments = [
        "--float32",
        "--seeds",
        "1",
        "--keep",
        "1",
        "--data",
        str(small_data),
        "--output_dir",
        str(tmp_path / "runs"),
    ]
    monkeypatch.setattr(sys, "argv", ["study.run", "health", *arguments])
    run.main()
    (line,) = run.read_lines()
    assert line.keys() == {*always, "health", "mean_pooled", "precision"}  # of candidates and --float32
    assert tiny.items() <= line.items()
    assert [step for step, _ in line["dev"]] == [1, 2, 3, 4]
    assert [*line["sts"].values(), line["sick"]] == pytest.approx([reading.dev(line)] * 5)
    best = max(line["dev"], key=lambda pair: pair[1])[0]
    assert line["halves_found"] == pytest.approx(dict(line["health"])[best][reading.HEALTH_NUMBER], abs=1e-3)
    # Only the run's model is kept, and another command gives it the same scores.
    kept = run.kept_folder(tiny, tmp_path / "runs")
    assert [*(tmp_path / "runs").iterdir()] == [kept.parent]
    tasks = load_tasks(["STSB", "STS12"], str(small_data / "data" / "senteval"), None)
    assert score.scores(kept, tasks, bf16=False) == pytest.approx(
        dict.fromkeys(("STSB", "STS12", "average"), reading.dev(line))
    )
    # A run whose line and model exist is not repeated; a run whose model was deleted is.
    made: list[dict] = []
    monkeypatch.setattr(run, "make_line", lambda missing, _: made.append(missing))
    run.main()
    assert made == []
    shutil.rmtree(kept)
    run.main()
    assert made == [tiny]


def test_methods_are_compared_on_labelled_texts_that_none_of_them_sees_the_labels_of(small_data, tokenizer):
    """The encoder before training, a method of sentence-transformers, a rung of the ladder, and train.py's default."""
    texts = (DEMO / "queries.tsv").read_text().splitlines()[:81]  # of two categories
    file = small_data / "data" / "jobs" / jobs.CORPORA["Banking77"]
    file.parent.mkdir()
    file.write_bytes(lzma.compress("\n".join(texts).encode()))
    common = {"encoder": run.ENCODER, "corpus": "Banking77", "seed": 1}
    methods = (jobs.UNTRAINED_MEAN, jobs.TSDAE, jobs.PAPER, jobs.SARCSE)
    found = {method: jobs.one_run({**common, "method": method}, str(small_data)) for method in methods}
    assert len({tuple(line["sts"].values()) for line in found.values()}) == len(methods), "each is another model"
    rows = load_labelled(str(file))
    embed = partial(encode, load_model(str(ENCODER), pooler="mean")[0], tokenizer)
    expected = {name: s.value() for name, s in labelled_job(embed, rows.select(range(1, 80, 2))).scores.items()}
    assert found[jobs.UNTRAINED_MEAN]["report"] == pytest.approx(expected)
    table = jobs.jobs_table([{**common, "method": method, **line} for method, line in found.items()])
    assert [row.split("|")[2].strip() for row in table.splitlines()[2:]] == [*methods]


def test_an_interrupted_run_has_the_candidates_from_before_the_interruption(model, tokenizer, tmp_path):
    """The Trainer writes its state into each checkpoint, and a resumed run reads it."""
    trainer = SimpleNamespace(model=model, processing_class=tokenizer)
    sentences = (DEMO / "sentences.txt").read_text().splitlines()
    ids = np.concatenate(tokenizer(sentences)["input_ids"])
    counts = np.bincount(ids, minlength=model.config.encoder_config.vocab_size)
    watch = run.CandidatesWatch(trainer, sentences[:32], counts)
    state, arguments, control = TrainerState(global_step=3), TrainingArguments(tmp_path), TrainerControl()
    watch.on_evaluate(arguments, state, control, model=model)
    state.save_to_json(tmp_path / "trainer_state.json")
    resumed = TrainerState.load_from_json(tmp_path / "trainer_state.json")
    resumed.global_step = 4
    watch.on_evaluate(arguments, resumed, control, model=model)
    assert watch.lines(resumed) == [[step, watch.before] for step in (0, 3, 4)]


def test_each_run_of_the_study_has_one_line():
    keys = [run.key_of(line) for line in run.read_lines()]
    assert len(keys) == len(set(keys)) > 0


def test_differences_are_paired_and_their_interval_is_students():
    """2.776 is the 97.5% point of Student's distribution with 4 degrees of freedom, from a printed table."""
    one = {seed: {"dev": [[1, 0.0], [2, value]]} for seed, value in enumerate([5.0, 7.0, 6.0, 9.0, 8.0, 100.0])}
    other = {seed: {"dev": [[1, value]]} for seed, value in enumerate([4.0, 5.0, 3.0, 5.0, 3.0])}
    half = 2.776 * sqrt(2.5 / 5)  # the differences are 1 to 5
    assert reading.difference(one, other, reading.dev) == pytest.approx((3, 3 - half, 3 + half), rel=1e-3)


def gains_over_the_chosen(lines, encoder: str, name: str) -> list[float | None]:
    """Of each candidate for a rung, on development data, over the seeds of both. None: the candidate was not run."""
    chosen = reading.final_runs(lines, configurations.FINAL[encoder][name], encoder)
    gains: list[float | None] = []
    for choice in configurations.final_choices(encoder)[name]:
        of = reading.final_runs(lines, choice, encoder)
        pairs = [
            (reading.development(of[seed]), reading.development(chosen[seed])) for seed in of.keys() & chosen.keys()
        ]
        gains.append(float(np.mean([one - other for one, other in pairs])) if pairs else None)
    return gains


@pytest.mark.parametrize("encoder", configurations.FINAL)
def test_each_baseline_has_the_settings_that_development_data_prefer(encoder):
    """Where its candidates were run."""
    lines = run.read_lines()
    for name in configurations.FINAL[encoder].keys() - {configurations.ADDED, "SARCSE", configurations.SARCSE_TWICE}:
        measured = [gain for gain in gains_over_the_chosen(lines, encoder, name) if gain is not None]
        assert max(measured, default=0) < 0.05, name


def test_the_textcnn_added_to_the_mean_has_the_setting_that_development_data_of_both_encoders_prefer():
    """None is better on both. The chosen one is close to the best on each encoder."""
    lines, name = run.read_lines(), configurations.ADDED
    gains = zip(*(gains_over_the_chosen(lines, encoder, name) for encoder in configurations.FINAL), strict=True)
    choices = configurations.final_choices(configurations.ENCODER)[name]
    for choice, of_both in zip(choices, gains, strict=True):
        measured = [gain for gain in of_both if gain is not None]
        assert max(measured) < 0.3 and min(measured) <= 0, choice


@pytest.mark.parametrize("encoder, width", [(configurations.ENCODER, 256), (configurations.SMALL_ENCODER, 128)])
def test_sarcse_has_the_program_defaults_in_the_study(encoder, width):
    """So that training without flags gives what the results page shows."""
    training, config = SarcseTrainingArguments(), SarcseConfig()
    defaults = {**vars(config), **training.to_dict(), "view_dropout": training.view_dropout_of(config.pooler)}
    studied = {**configurations.START, **configurations.FINAL[encoder]["SARCSE"]}
    # Apart from the data, and channels, which depend on the encoder.
    for name in studied.keys() - {"max_train_samples", "channels"}:
        assert studied[name] == defaults[name], name
    assert studied["channels"] == width // 8


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.name)
def test_the_tables_of_the_study_are_those_of_its_lines(path):
    page = path.read_text(encoding="utf-8")
    assert report.with_tables(page, run.read_lines()) == page


def test_each_table_of_the_study_is_on_one_page():
    pages = "".join(path.read_text(encoding="utf-8") for path in report.PAGES)
    assert sorted(re.findall(r"<!-- ([^/].*?) -->", pages)) == sorted(tables.TABLES)
    assert sorted(re.findall(r"<!-- /(.*?) -->", pages)) == sorted(tables.TABLES)


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.name)
def test_each_interval_that_is_quoted_is_in_a_table_of_the_study(path):
    """Or the same difference with the opposite sign. Intervals that more seeds have changed must be updated."""
    interval = re.compile(r"\[([+-]\d+\.\d\d), ([+-]\d+\.\d\d)\]")
    rows = [row for page in report.PAGES for row in page.read_text(encoding="utf-8").splitlines() if row[:1] == "|"]
    known = {(float(low), float(high)) for row in rows for low, high in interval.findall(row)}
    known |= {(-high, -low) for low, high in known}
    prose = " ".join(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "|")
    quoted = {(float(low), float(high)) for low, high in interval.findall(prose)}
    assert quoted <= known
    assert quoted or path.name not in ("README.md", "results.md")
