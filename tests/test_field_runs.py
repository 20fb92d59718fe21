"""
Problems with the settings of a run that users of other programs have reported. Each must give the right result or an
error message, never a wrong result without a warning.
"""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import (
    RobertaConfig,
    RobertaModel,
)

from sarcse.options import DataArguments
from sarcse.training.arguments import WITHOUT_EFFECT, ModelArguments, SarcseTrainingArguments
from sarcse.training.build import build_trainer
from sarcse.training.parsing import OTHER_NAMES, parse_arguments

from .conftest import (
    DEMO,
    ENCODER,
    PROJECT,
    SMALL,
    flags,
    random_encoder,
    refusal,
    run_command,
    write,
)


# --- InfoNCE with nothing to learn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_batch_of_one_sentence_is_refused(tmp_path, accumulation):
    message = refusal(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=accumulation)
    assert "InfoNCE has no negatives" in message and "--gradient_cache_mini_batch_size" in message


@pytest.mark.parametrize("cached", [None, 4])
def test_a_run_whose_contrastive_loss_is_always_zero_says_so(tmp_path, cached):
    write(tmp_path / "same.txt", "A dog runs across the wet grass.\n" * 16)
    options = {"eval_strategy": "no", "eval_pairs": None, "save_strategy": "no", "pooler": "mean", "channels": None}
    options |= {"reconstruction_weight": 0, "gradient_cache_mini_batch_size": cached, "logging_steps": 2}
    for file, is_zero in ((tmp_path / "same.txt", True), (DEMO / "sentences.txt", False)):
        folder = tmp_path / f"run-{is_zero}"
        process = run_command(PROJECT / "train.py", *flags(folder, **options, train_file=file), cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert all((line["contrastive_loss"] == 0) == is_zero for line in history if "loss" in line)
        assert ("the contrastive loss has been exactly 0 since the run began" in process.stderr) == is_zero


# --- Resuming --------------------------------------------------------------------------------------------------------


def resuming(finished_run, folder: Path, **fields) -> str:
    """The objection to resuming the tiny run from its first checkpoint with these other fields."""
    checkpoint = finished_run[0] / "checkpoint-2"
    return refusal(folder, **{"resume_from_checkpoint": checkpoint, **fields})


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"learning_rate": 0.002}, "learning_rate 0.0002 (now 0.002)"),
        ({"autoencoder_learning_rate": 0.002}, "autoencoder_learning_rate 0.001 (now 0.002)"),
        ({"pooler": "mean", "channels": None}, "pooler 'words' (now 'mean')"),
        ({"channels": 8}, "channels 4 (now 8)"),
        ({"reconstruction_weight": 0}, "reconstruction_weight 1.0 (now 0.0)"),
        ({"optim": "sgd"}, "optim 'adamw_torch_fused' (now 'sgd')"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type 'linear' (now 'cosine')"),
        ({"num_train_epochs": 2}, "num_train_epochs 1.0 (now 2.0)"),
        ({"max_seq_length": 16}, "max_seq_length 32 (now 16)"),
        ({"seed": 1}, "seed 42 (now 1)"),
        ({"per_device_train_batch_size": 16}, "batch_size_of_all_processes 8 (now 16)"),
        ({"max_train_samples": 24}, "train_data 'sentences.txt, 32 sentences with SHA-256 "),
        ({"train_file": "other.txt"}, "(now 'other.txt, 32 sentences with SHA-256 "),
        ({"eval_pairs": "few.tsv"}, "eval_data '420 pairs with SHA-256 "),
        ({"metric_for_best_model": "health"}, "metric_for_best_model 'pairs_spearman' (now 'health')"),
        ({"frequency_weighting": "uniform"}, "frequency_weighting 'smooth_inverse' (now 'uniform')"),
        ({"bf16": "true"}, "bf16 False (now True)"),
    ],
)
def test_a_run_is_not_resumed_with_settings_that_change_its_result(
    finished_run, tmp_path, monkeypatch, fields, difference
):
    monkeypatch.chdir(tmp_path)
    write(Path("other.txt"), "".join(f"Sentence {number}.\n" for number in range(32)))
    write(Path("few.tsv"), "".join((DEMO / "sts.tsv").read_text().splitlines(keepends=True)[:20]))
    message = resuming(finished_run, tmp_path, **fields)
    assert f"{finished_run[0]}/checkpoint-2 belongs to a run with " in message and difference in message, message


def test_a_run_is_not_resumed_on_another_encoder(finished_run, tmp_path, tokenizer):
    config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **SMALL)
    folder = random_encoder(tmp_path / "other", RobertaModel(config), tokenizer)
    assert "model_name_or_path 'encoder' (now 'other')" in resuming(finished_run, tmp_path, model_name_or_path=folder)


def test_a_run_is_not_resumed_with_other_token_weights(tmp_path):
    """As from a file of general text whose content has changed. The record has the file's name, without its folder."""
    general = write(tmp_path / "general.txt", "A dog runs across the wet grass.\n" * 3)
    fields = {"token_frequencies": general, "max_steps": 2}
    trained = run_command(PROJECT / "train.py", *flags(tmp_path / "run", **fields), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    record = json.loads((tmp_path / "run" / "training_record.json").read_text())
    assert record["hyperparameters"]["token_frequencies"] == "general.txt"
    again = {**fields, "resume_from_checkpoint": tmp_path / "run" / "checkpoint-2"}
    assert refusal(tmp_path, **again) == ""
    write(tmp_path / "general.txt", "Why?\n" * 3)
    assert re.search("belongs to a run with token_weights '.*' .now '", refusal(tmp_path, **again))


@pytest.mark.parametrize("name", ["englisch", "absent.txt", "empty.txt"])
def test_token_frequencies_of_no_text_are_refused(tmp_path, name):
    write(tmp_path / "empty.txt", "")
    given = tmp_path / name if "." in name else name
    message = refusal(tmp_path, token_frequencies=given)
    assert name in message and ("--token_frequencies" in message or "is empty" in message), message
    assert "\n" not in message


def test_what_does_not_change_the_result_may_change_when_a_run_is_resumed(finished_run, tmp_path):
    """Logging, saving, the output folder, the number of workers, and where the same sentences and encoder are."""
    fields = {"logging_steps": 3, "save_total_limit": 7, "dataloader_num_workers": 1, "report_to": "none"}
    fields |= {"train_file": shutil.copy(DEMO / "sentences.txt", tmp_path), "preprocessing_num_workers": 2}
    fields |= {"model_name_or_path": shutil.copytree(ENCODER, tmp_path / "encoder")}
    fields |= {"per_device_train_batch_size": 8, "run_name": "again"}
    assert resuming(finished_run, tmp_path, **fields) == ""


def test_settings_of_a_run_are_in_its_checkpoints_and_a_checkpoint_without_them_is_not_whole(finished_run, tmp_path):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    settings = json.loads((run / "checkpoint-4" / "run_settings.json").read_text())
    assert settings["learning_rate"] == 0.0002 and settings["pooler"] == "words"
    (run / "checkpoint-4" / "run_settings.json").unlink()
    assert "run_settings.json is missing" in resuming(
        (run, None), tmp_path, resume_from_checkpoint=run / "checkpoint-4"
    )


# --- Metrics and pairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spearman", "stsb_spearman_", "loss", "eval_loss", "uniformity"])
def test_a_metric_that_picks_no_checkpoint_is_refused_before_anything_is_loaded(tmp_path, name):
    message = refusal(tmp_path, metric_for_best_model=name, train_file="absent.txt", model_name_or_path="absent")
    assert message == (
        f"--metric_for_best_model {name.removeprefix('eval_')}: the evaluations measure pairs_spearman, health."
    )
    with pytest.raises(ValueError, match="the evaluations measure stsb_spearman"):
        build_trainer(*parse_arguments(["--metric_for_best_model", "pairs_spearman", "--sts_dir", str(tmp_path)]))


def test_a_direction_against_the_metric_is_refused():
    with pytest.raises(ValueError, match="values of pairs_spearman are better"):
        parse_arguments(["--metric_for_best_model", "pairs_spearman", "--greater_is_better", "false"])


def test_the_learning_rate_falls_when_the_metric_stops_getting_better():
    for name in ("health", "stsb_spearman"):
        arguments = ["--metric_for_best_model", name, "--lr_scheduler_type", "reduce_lr_on_plateau"]
        assert parse_arguments(arguments)[2].lr_scheduler_kwargs == {"mode": "max"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a\tb\t1\n", "there is only one"),
        ("a\tb\t2\nc\td\t2\ne\tf\t2\n", "all 3 have the score 2"),
        ("a\tb\t2\nc\td\t\n", "there is only one"),
    ],
)
def test_pairs_without_two_scores_are_refused_before_the_training(tmp_path, rows, message):
    path = write(tmp_path / "pairs.tsv", f"sentence1\tsentence2\tscore\n{rows}")
    expected = f"{path}: a correlation needs two pairs with different scores; {message}"
    assert expected in refusal(tmp_path, eval_pairs=path, model_name_or_path="absent")
    process = run_command(PROJECT / "eval_sts.py", ENCODER, "--pairs", path, cwd=tmp_path)
    assert process.returncode == 2 and expected in process.stderr and "Traceback" not in process.stderr


def test_two_pairs_are_enough(tmp_path):
    path = write(tmp_path / "pairs.tsv", "sentence1\tsentence2\tscore\nA dog.\tA cat.\t1\nRain.\tIt rains.\t5\n")
    process = run_command(PROJECT / "eval_sts.py", ENCODER, "--pairs", path, cwd=tmp_path)
    assert process.returncode == 0 and "100.00" in process.stdout, process.stderr


# --- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"report_to": "wandb"}, r"--report_to wandb: .*pip install wandb"),
        ({"report_to": "wandbb"}, "wandbb is not supported, only .*wandb"),
        ({"optim": "adamw_8bit"}, r"--optim adamw_8bit, .*bitsandbytes"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "--lr_scheduler_type cosine_with_min_lr: .*lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": '{"x": 1}'}, "--lr_scheduler_type linear: .*'x'"),
        ({"max_train_samples": 0}, "--max_train_samples must be at least 1, got 0"),
        ({"sts_dir": "anywhere"}, "give either --eval_pairs or --sts_dir, not both"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor has no effect: InfoNCE has no labels"),
        ({"bf16_full_eval": "true"}, "--bf16_full_eval has no effect: evaluations use the precision of the training"),
        (
            {"per_device_eval_batch_size": 16},
            "--per_device_eval_batch_size has no effect: graded pairs are scored",
        ),
        ({"eval_on_start": "true"}, "--eval_on_start has no effect: evaluations begin before the first step"),
        ({"auto_find_batch_size": "true"}, "--auto_find_batch_size has no effect: a smaller batch changes InfoNCE's"),
        ({"token_count_samples": 10}, "--token_count_samples has no effect without a stream"),
        ({"dataset_config_name": "en"}, "--dataset_config_name has no effect without --dataset_name"),
        ({"accelerator_config": '{"split_batches": true}'}, "--accelerator_config split_batches is not supported"),
        (
            {"accelerator_config": '{"dispatch_batches": true}'},
            "dispatch_batches is not supported: each process reads",
        ),
        ({"accelerator_config": '{"even_batches": false}'}, "--accelerator_config even_batches is not supported"),
        ({"accelerator_config": '{"use_seedable_sampler": false}'}, "use_seedable_sampler is not supported"),
        (
            {"accelerator_config": '{"gradient_accumulation_kwargs": {"num_steps": 4}}'},
            "gradient_accumulation_kwargs is not supported: .* --gradient_accumulation_steps",
        ),
        ({"accelerator_config": '{"x": 1}'}, "--accelerator_config {'x': 1}: .*unexpected keyword argument 'x'"),
        ({"accelerator_config": "none.json"}, "--accelerator_config none.json: .*No such file"),
        ({"optim": "schedule_free_sgd"}, "--optim schedule_free_sgd is not supported: the weights that it steps with"),
        ({"group_by_length": "true"}, "--group_by_length. Did you mean --train_sampling_strategy group_by_length?"),
        ({"evaluation_strategy": "no"}, "--evaluation_strategy. Did you mean --eval_strategy?"),
        ({"temp": 0.05}, "--temp. Did you mean --contrastive_temperature?"),
        ({"pooler_type": "cls"}, "--pooler_type. Did you mean --pooler?"),
        ({"learning_rates": 1}, "--learning_rates. Did you mean --learning_rate?"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_before_the_training(tmp_path, fields, message):
    text = refusal(tmp_path, **fields)
    assert re.search(message, text), text


def test_every_argument_without_effect_is_one_that_transformers_has_or_had():
    """A typo in the table would let the flag pass; names that a version lacks are those of another one."""
    names = {argument.name for argument in dataclasses.fields(SarcseTrainingArguments)}
    assert len(set(WITHOUT_EFFECT) - names) <= 2, set(WITHOUT_EFFECT) - names


def test_other_names_lead_to_fields_that_exist():
    names = {argument.name for argument in dataclasses.fields(SarcseTrainingArguments)}
    names |= {argument.name for group in (ModelArguments, DataArguments) for argument in dataclasses.fields(group)}
    for other, meant in OTHER_NAMES.items():
        assert re.match(r"\w+", meant)[0] in names, other
