"""The flags and recipes of train.py, and the messages for wrong ones."""

import dataclasses
import json
import re
import shutil
import sys

import pytest
import yaml

import train
from model_card import __main__ as model_card
from sarcse.evaluation import command as eval_sts
from sarcse.loading import load_model
from sarcse.output import write_json
from sarcse.training.arguments import RANGES, WITHOUT_EFFECT, ModelArguments, SarcseTrainingArguments
from sarcse.training.build import build_model, build_trainer, evaluated
from sarcse.training.parsing import parse_arguments
from train import DEMO_RECIPE

from .conftest import DEMO, ENCODER, PROJECT, flags, run_command, run_python


def test_the_recipe_that_is_run_without_arguments_is_the_demo():
    model, data, training = parse_arguments([str(DEMO_RECIPE)])
    demo = yaml.safe_load((PROJECT / "recipes" / "demo.yaml").read_text())
    assert (model.model_name_or_path, data.train_file) == (demo["model_name_or_path"], demo["train_file"])
    assert training.output_dir == demo["output_dir"]


def test_flags_without_a_recipe_start_from_the_defaults():
    model, data, training = parse_arguments(["--seed", "7"])
    assert model.model_name_or_path == "FacebookAI/roberta-base"
    assert data.train_file is None and training.max_seq_length == 32
    assert (training.per_device_train_batch_size, training.num_train_epochs) == (64, 1)
    assert (training.contrastive_temperature, training.warmup_steps, training.weight_decay) == (0.05, 0, 0)
    assert str(training.lr_scheduler_type.value) == "linear"
    assert (training.eval_steps, training.metric_for_best_model) == (125, "auto")


def test_a_flag_overrides_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "learning_rate: 1e-4\nkernel_sizes: [2, 3]\nbf16: false\nseed: 3\nlr_scheduler_kwargs: {a: 1}\n"
        "eval_strategy: no\nmax_train_samples: null\n"
    )
    model, data, training = parse_arguments([str(recipe), "--seed", "4", "--output_dir", "x"])
    assert (training.learning_rate, training.seed, training.output_dir) == (1e-4, 4, "x")
    assert model.kernel_sizes == [2, 3] and training.bf16 is False and training.lr_scheduler_kwargs == {"a": 1}
    assert training.eval_strategy == "no" and data.max_train_samples is None


# SimCSE's batch sizes and learning rates, and the encoders that they are for.
PUBLISHED = {
    "roberta-base": ("FacebookAI/roberta-base", 512, 1e-5),
    "roberta-large": ("FacebookAI/roberta-large", 512, 3e-5),
    "bert-base": ("google-bert/bert-base-uncased", 64, 3e-5),
}


@pytest.mark.parametrize("form", ["", "paper"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_protocol_and_nothing_is_scaled(name, form):
    """Whether in the paper's form or in this project's, whose new layers have a rate of their own."""
    model, _, training = parse_arguments([str(PROJECT / "recipes" / form / f"{name}.yaml")])
    given = (model.model_name_or_path, training.per_device_train_batch_size, training.learning_rate)
    assert given == PUBLISHED[name] and training.rate_budget == 0
    assert training.new_layers_learning_rate == (training.learning_rate if form else 1e-3)
    assert (training.num_train_epochs, training.max_seq_length, training.contrastive_temperature) == (1, 32, 0.05)
    assert (training.lr_scheduler_type, training.warmup_steps) == ("linear", 0)
    assert (training.metric_for_best_model, training.load_best_model_at_end) == ("stsb_spearman", True)
    assert training.eval_steps == training.save_steps == 125
    pooler = model.pooler or "words"
    assert (pooler, training.view_dropout_of(pooler), training.token_frequencies) == (
        ("textcnn", None, "corpus") if form else ("words", 0.1, "english")
    )


def test_no_recipe_is_forgotten_here():
    known = {f"{form}{name}" for form in ("", "paper/") for name in PUBLISHED} | {"demo"}
    recipes = PROJECT / "recipes"
    assert {str(path.relative_to(recipes).with_suffix("")) for path in recipes.rglob("*.yaml")} == known


STREAM = ["--streaming", "true", "--max_steps", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "unknown field --learning_rat. Did you mean --learning_rate?"),
        (["--learning_rate", "fast"], "argument --learning_rate.*invalid float value: 'fast'"),
        (["--frequency_weighting", "tfidf"], "frequency_weighting.*invalid choice: 'tfidf'"),
        (["{tmp}/nan.yaml"], "--reconstruction_weight must be a finite number, got nan"),
        (["{tmp}/dot_nan.yaml"], "argument --reconstruction_weight.*invalid float value: '.nan'"),
        (["--pooler", "first_last_average"], "--pooler: invalid choice: 'first_last_average'"),
        (["--pooler", "cls"], "--pooler cls has no reconstruction: add --reconstruction_weight 0"),
        (["--channels", "0"], "`channels` takes .* at least 1, got 0"),
        (["--resume_from_checkpoint", "last"], "no checkpoint in"),
        (["none.yaml"], "none.yaml: no such recipe"),
        (["{tmp}/typo.yaml"], "typo.yaml: unknown field chanels. Did you mean channels?"),
        (["{tmp}/type.yaml"], "invalid int value: 'many'"),
        (["{tmp}/list.yaml"], "list.yaml: a recipe consists of lines"),
        (["{tmp}/broken.yaml"], "broken.yaml: not a YAML file"),
        (["--train_file", "none.txt"], "none.txt: no such file"),
        (["--eval_pairs", "none.tsv"], "none.tsv: no such file"),
        (["--sts_dir", "nowhere", "--eval_pairs="], "nowhere/STS"),
        (
            ["--model_name_or_path", "no/such-model"],
            "no/such-model: neither a model folder nor a model on a reachable",
        ),
        (["--model_name_or_path", str(DEMO)], "demo: neither a model folder nor a model on a reachable Hub"),
        (["--max_seq_length", "2"], "--max_seq_length must be between 3 and 128 for this encoder, got 2"),
        (["--max_seq_length", "129"], "--max_seq_length must be between 3 and 128"),
        (["--max_train_samples", "5"], "5 sentences do not fill one batch of 8"),
        ([*STREAM, "--train_file", "{tmp}/short.txt"], "5 sentences do not fill one batch of 8"),
        ([*STREAM, "--max_steps", "-1"], "max_steps has to be specified"),
        ([*STREAM, "--max_train_samples", "3"], "--max_train_samples is for a corpus in memory"),
        (
            [*STREAM, "--token_count_samples", "7"],
            "7 sentences .* batch of 8: .* or raise --token_count_samples",
        ),
        (
            ["--metric_for_best_model", "health", "--health_sentences", "0"],
            "health needs held-out sentences: raise --health_sentences",
        ),
        (["--eval_pairs=", "--sts_tasks", "STS12"], "--sts_tasks has no effect without STS data: add --sts_dir"),
        (["--fp16", "true", "--use_cpu", "true"], "fp16 needs a GPU. On a CPU, train in bfloat16"),
        (["--deepspeed", "zero2.json"], "DeepSpeed is not supported: .* --gradient_cache_mini_batch_size"),
        (["--fsdp", "true"], "FSDP is not supported: .*`accelerate launch --multi_gpu`"),
    ],
)
def test_user_errors_are_one_message(tmp_path, capsys, arguments, message):
    (tmp_path / "short.txt").write_text("A.\nB.\nC.\nD.\nE.\n")
    (tmp_path / "typo.yaml").write_text("chanels: 3\n")
    (tmp_path / "type.yaml").write_text("channels: many\n")
    (tmp_path / "nan.yaml").write_text("reconstruction_weight: nan\n")
    (tmp_path / "dot_nan.yaml").write_text("reconstruction_weight: .nan\n")
    (tmp_path / "list.yaml").write_text("- channels\n")
    (tmp_path / "broken.yaml").write_text("channels: [\n")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if not arguments[0].endswith(".yaml"):
        fields = {"eval_pairs": None} if "--eval_pairs=" in arguments else {}
        fields |= {"max_train_samples": None} if "--streaming" in arguments else {}
        arguments = flags(tmp_path / "out", **fields) + [a for a in arguments if a != "--eval_pairs="]
    try:
        build_trainer(*parse_arguments(arguments))
    except ValueError as error:
        text = str(error)
    except SystemExit as error:  # argparse
        assert error.code == 2
        text = capsys.readouterr().err
        assert text.startswith("train.py: error: ") and text.count("\n") == 1
    else:
        pytest.fail("no error")
    assert re.search(message, text), text


# A value just outside of each range.
OUTSIDE = {
    "above 0": 0,
    "at least 0": -1,
    "at least 0 and below 1": 1,
    "at least 0 and below 2^32": 2**32,
    "at least 1": 0,
    "at least 1, or -1 for num_train_epochs": 0,
}


@pytest.mark.parametrize("wanted", RANGES)
def test_a_number_outside_of_its_range_is_refused_before_anything_is_loaded(tmp_path, wanted):
    """Also what no comparison finds: `not nan > 0`, but `nan < 0` is false too."""
    for name in RANGES[wanted][1].split():
        for value in (OUTSIDE[wanted], float("nan"), float("inf"), float("-inf")):
            expected = f"--{name} must be {wanted if value == OUTSIDE[wanted] else 'a finite number'}, got {value}."
            with pytest.raises(ValueError, match=re.escape(expected)):
                SarcseTrainingArguments(str(tmp_path), **{name: value})


def test_every_number_among_the_arguments_has_a_range():
    """transformers' own included, of which it checks only some."""
    numbers = {
        argument.name
        for argument in dataclasses.fields(SarcseTrainingArguments)
        if {"int", "float"} & set(re.findall(r"\w+", str(argument.type)))
    }
    ranged = [name for _, names in RANGES.values() for name in names.split()]
    of_the_launcher = {"local_rank"}
    kinds_with_flags = {"report_to", "include_num_input_tokens_seen"}
    assert len(ranged) == len(set(ranged))
    assert numbers - set(ranged) - WITHOUT_EFFECT.keys() - of_the_launcher - kinds_with_flags == set()
    assert set(ranged) <= numbers


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP is not supported"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron_LM is not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "Parallelism_Config is not supported"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16 needs a GPU"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "fp8 is not supported: use --bf16 true"),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "--gradient_accumulation_steps 2, but accelerate was asked for 4 .*: leave one of them out",
        ),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "only through MPI: add --mpirun_hostfile FILE"),
        ({"ACCELERATE_USE_CPU": "False", "MASTER_ADDR": "127.0.0.1"}, "only through MPI"),
    ],
)
def test_what_accelerate_was_asked_for_is_refused_if_it_would_not_be_done(monkeypatch, environment, message):
    """The request comes from `accelerate launch`, by a configuration file or its own flags."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--use_cpu", "true", "--gradient_accumulation_steps", "2"])


def test_what_accelerate_was_asked_for_is_in_the_arguments(monkeypatch):
    """And so in the record and in the size of a step. The Trainer itself does not read the second variable."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    for given in ([], ["--gradient_accumulation_steps", "3"]):
        training = parse_arguments(["--use_cpu", "true", "--per_device_train_batch_size", "8", *given])[2]
        assert training.bf16 and training.gradient_accumulation_steps == 3 and training.global_batch_size == 24


def test_weights_that_are_cut_short_are_named(tmp_path, saved_model):
    for source in (saved_model, ENCODER):
        folder = shutil.copytree(source, tmp_path / source.name)
        with (folder / "model.safetensors").open("r+b") as weights:
            weights.truncate(100_000)
        for load in (load_model, lambda source: build_model(ModelArguments(source))):
            with pytest.raises(ValueError, match=f"{folder.name}: the weights cannot be read; copy them again"):
                load(str(folder))


def test_without_sts_data_the_message_comes_before_any_model(tmp_path):
    """It names both solutions: a folder, or evaluations without pairs."""
    fields = {"eval_pairs": None, "model_name_or_path": "no/model", "metric_for_best_model": "stsb_spearman"}
    process = run_command(PROJECT / "train.py", *flags(tmp_path / "out", **fields), cwd=tmp_path)
    assert process.returncode == 2
    assert "--sts_dir" in process.stderr and "--metric_for_best_model health" in process.stderr
    assert "no/model" not in process.stderr and "Traceback" not in process.stderr


# What is given, and the metric of the evaluations.
EVALUATED = [
    ({}, "stsb_spearman"),  # SimCSE's sentences, and its protocol
    ({"train_file": "mine.txt"}, None),
    ({"dataset_name": "me/mine"}, None),
    ({"train_file": "mine.txt", "sts_dir": "senteval"}, "stsb_spearman"),
    ({"train_file": "mine.txt", "eval_pairs": "pairs.tsv"}, "pairs_spearman"),
    ({"train_file": "mine.txt", "eval_labelled": "labelled.tsv"}, "labelled_neighbours"),
    ({"train_file": "mine.txt", "metric_for_best_model": "stsb_spearman"}, "stsb_spearman"),
    ({"train_file": "mine.txt", "metric_for_best_model": "eval_stsb_spearman"}, "stsb_spearman"),
    ({"metric_for_best_model": "health"}, None),
    ({"train_file": "mine.txt", "eval_strategy": "no"}, None),
]


@pytest.mark.parametrize(("given", "metric"), EVALUATED)
def test_only_a_metric_of_pairs_has_data_loaded_that_were_not_given(tmp_path, given, metric):
    _, data, training = parse_arguments([f"--{k}={v}" for k, v in {"output_dir": tmp_path, **given}.items()])
    assert evaluated(data, training) == metric


def test_the_metric_that_auto_stands_for_is_in_the_settings_of_the_run(tmp_path):
    """Nothing asks the Hub for pairs, and a run that is resumed compares what picks its checkpoint."""
    own = build_trainer(*parse_arguments(flags(tmp_path / "own", eval_pairs=None)))
    assert own.eval_dataset is None and own.tasks == {} and own.args.greater_is_better
    assert own.settings()["metric_for_best_model"] == "health"
    for given in ("auto", "stsb_spearman"):  # of a recipe, whose pairs these replace
        graded = build_trainer(*parse_arguments(flags(tmp_path / given, metric_for_best_model=given)))
        assert graded.settings()["metric_for_best_model"] == "pairs_spearman"
    neither = build_trainer(*parse_arguments(flags(tmp_path / "neither", eval_pairs=None, health_sentences=0)))
    assert (neither.args.eval_strategy, neither.settings()["metric_for_best_model"]) == ("no", None)


def test_help_lists_our_fields_help_all_every_field_and_unknown_flags_exit_with_2(tmp_path):
    listed = {option: run_command(PROJECT / "train.py", option, cwd=tmp_path) for option in ("--help", "--help_all")}
    assert all(process.returncode == 0 for process in listed.values())
    assert "Refused: InfoNCE has no labels." in listed["--help_all"].stdout  # instead of transformers' own help
    for field in ("kernel_sizes", "train_file", "contrastive_temperature", "learning_rate", "output_dir", "max_steps"):
        for process in listed.values():
            assert f"--{field} " in process.stdout and f"--{field.replace('_', '-')}," not in process.stdout
    assert "--adam_beta1 " in listed["--help_all"].stdout and "--adam_beta1" not in listed["--help"].stdout
    dashes = run_command(PROJECT / "train.py", "--train-file", "none.txt", "--output-dir", "x", cwd=tmp_path)
    assert dashes.stderr.splitlines()[-1] == "train.py: error: none.txt: no such file."
    wrong = run_command(PROJECT / "train.py", "--sts_dri", "x", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1] == "train.py: error: unknown field --sts_dri. Did you mean --sts_dir?"


SLOW_MODULES = """
import runpy, sys
slow, command, *arguments = sys.argv[1:]
sys.argv[1:] = arguments
try:
    runpy.run_module(command, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, sorted({name.split(".")[0] for name in sys.modules} & {*slow.split(",")}))
"""


@pytest.mark.parametrize(("given", "code"), [(["--help"], 0), (["model", "--typo", "x"], 2)])
@pytest.mark.parametrize("command", ["eval_sts", "model_card"])
def test_help_and_a_typo_need_no_slow_import(command, given, code):
    """So they are answered within a second."""
    process = run_python("-c", SLOW_MODULES, "torch,transformers,datasets,numpy", command, *given, cwd=PROJECT)
    assert process.stdout.splitlines()[-1] == f"{code} []", process.stderr


def test_the_help_of_a_training_needs_transformers_arguments_and_no_library_of_data():
    process = run_python("-c", SLOW_MODULES, "torch,datasets,matplotlib,evaluate", "train", "--help", cwd=PROJECT)
    assert process.stdout.splitlines()[-1] == "0 ['torch']", process.stderr


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (train, ["--train_file=caf\udce9.txt"]),
        (train, ["--output_dir", "caf\udce9"]),
        (train, ["recipe.yaml"]),
        (eval_sts, ["caf\udce9"]),
        (eval_sts, ["model", "--pairs", "caf\udce9.tsv"]),
        (eval_sts, ["model", "--explain", "caf\udce9", "tea"]),
        (model_card, ["caf\udce9", "--release_dir", "out"]),
        (model_card, ["model", "--release_dir", "out", "--results", "caf\udce9.json"]),
    ],
)
def test_arguments_that_are_not_utf8_end_in_one_line(tmp_path, monkeypatch, capsys, command, arguments):
    """Records, cards and the readers of weights could not hold such names; nothing is loaded before that is said."""
    (tmp_path / "recipe.yaml").write_text('train_file: "caf\\udce9.txt"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"error: '.*caf\\udce9.*' is not UTF-8\. If it names a file or folder, rename that\.", line)


def test_a_record_can_hold_a_name_that_is_not_utf8(tmp_path):
    """SarcseTrainer may be given one, and would find out when the training is over."""
    write_json(tmp_path / "record.json", {"name": "caf\udce9 é"})
    text = (tmp_path / "record.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "caf\udce9 é"} and "é" in text
