"""Failures in the middle of a training, in real processes: kills, signals, full disks, non-finite numbers."""

import json
import platform
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_sarcse import SarcseModel
from sarcse.training.build import build_trainer
from sarcse.training.checkpoints import checkpoint_to_resume, checkpoints, flaw
from sarcse.training.parsing import parse_arguments

from .commands import Command
from .conftest import DEMO, PROJECT, flags, run_command, start_command, start_python
from .test_distributed import places


# 16 steps of 8 sentences, two epochs, an evaluation on a few pairs and a checkpoint every 2 steps, with dropout. The
# learning rates are scaled down to a budget, once, and not again in a resumed run.
LONG_RUN = {"max_train_samples": 64, "num_train_epochs": 2, "eval_pairs": "few.tsv", "learning_rate_budget": 1e-3}
LONG_RUN["pooler"] = "autoencoder"  # whose best checkpoint is not the last


def train(folder: Path, largest_file: int | None = None, **fields):
    write_few_pairs(folder.parent)
    return run_command(
        PROJECT / "train.py",
        *flags(folder, **{**LONG_RUN, **fields}),
        cwd=folder.parent,
        largest_file=largest_file,
    )


def write_few_pairs(folder: Path) -> None:
    (folder / "few.tsv").write_text("".join((DEMO / "sts.tsv").read_text().splitlines(keepends=True)[:60]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run that keeps all its checkpoints."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "model"
    process = train(folder, save_total_limit=9)
    assert process.returncode == 0, process.stderr
    return folder


def copy_until(run: Path, folder: Path, step: int) -> Path:
    """A copy of a run as it was after this step."""
    shutil.copytree(run, folder, ignore=lambda _, names: [n for n in names if not is_until(n, step)])
    return folder


def is_until(name: str, step: int) -> bool:
    is_checkpoint = name.startswith("checkpoint-")
    return int(name.split("-")[1]) <= step if is_checkpoint else not name.endswith((".png", ".svg"))


# --- Stopped and resumed ---------------------------------------------------------------------------------------------


def stopped_run(folder: Path, number: int, step: int, **fields) -> tuple[int, str]:
    """Exit code and output of a run that gets the signal in this step; it waits there for the signal."""
    write_few_pairs(folder.parent)
    arguments = flags(folder, **{**LONG_RUN, **fields})
    process = start_python("-c", WAITING_RUN, step, *arguments, cwd=folder.parent, PYTHONPATH=str(PROJECT))
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "waiting for a signal" in line:
            process.send_signal(number)
            break
    output, _ = process.communicate()
    return process.returncode, "".join(lines) + output


WAITING_RUN = """
import sys, time, train
from sarcse.training import trainer
step = int(sys.argv.pop(1))
training_step = trainer.SarcseTrainer.training_step
def wait(self, *arguments):
    if self.state.global_step == step and self.save_on_signal.received is None:
        print("waiting for a signal", flush=True)
        while self.save_on_signal.received is None:
            time.sleep(0.01)
    return training_step(self, *arguments)
trainer.SarcseTrainer.training_step = wait
train.main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_run_resumes_to_the_weights_of_the_uninterrupted_one(uninterrupted, tmp_path, number):
    """Killed, interrupted or terminated in a random step, the weights are equal bit for bit."""
    folder, step = tmp_path / "model", random.randint(5, 12)
    returncode, output = stopped_run(folder, number, step)
    if number == signal.SIGKILL:
        assert returncode == -signal.SIGKILL, output
    else:
        assert returncode == 128 + number, output
        assert f"Interrupted at step {step + 1}." in output
        assert checkpoints(folder)[0].name == f"checkpoint-{step + 1}"
        assert "saving a checkpoint after this step" in output and "Traceback" not in output
    resumed = train(folder, resume_from_checkpoint="last")
    assert resumed.returncode == 0, resumed.stderr
    assert equal(folder, uninterrupted), f"stopped at step {step}"
    assert equal(folder / "checkpoint-16", uninterrupted / "checkpoint-16")
    one, other = (json.loads((run / "trainer_state.json").read_text()) for run in (folder, uninterrupted))
    assert scores(one) == scores(other) and 0 < one["best_global_step"] == other["best_global_step"] < 16
    assert 1 <= len(checkpoints(folder)) <= 2, "--save_total_limit 2"
    assert folder / f"checkpoint-{one['best_global_step']}" in checkpoints(folder), "the best is never deleted"


def test_an_interrupted_run_that_saves_only_its_model_saves_what_it_needs_to_resume(uninterrupted, tmp_path):
    folder = tmp_path / "model"
    returncode, output = stopped_run(folder, signal.SIGINT, 4, save_only_model="true")
    assert returncode == 128 + signal.SIGINT and "`--resume_from_checkpoint last`" in output
    resumed = train(folder, resume_from_checkpoint="last", save_only_model="true")
    assert resumed.returncode == 0, resumed.stderr
    assert equal(folder, uninterrupted)


def scores(state: dict) -> list[float]:
    return [line["eval_pairs_spearman"] for line in state["log_history"] if "eval_pairs_spearman" in line]


def test_a_resumed_stream_goes_on_where_it_was(tmp_path):
    """The corpus has 24 sentences, the run reads 64: the order of later passes counts too."""
    sentences = (DEMO / "sentences.txt").read_text().splitlines()[:24]
    (tmp_path / "short.txt").write_text("\n".join(sentences))
    options = {"train_file": "short.txt", "streaming": "true", "max_steps": 8, "max_train_samples": None}
    options |= {"eval_strategy": "no", "eval_pairs": None}
    whole = train(tmp_path / "whole", save_steps=3, save_total_limit=3, **options)
    assert whole.returncode == 0, whole.stderr
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed = train(tmp_path / "resumed", resume_from_checkpoint=checkpoint, **options)
    assert resumed.returncode == 0, resumed.stderr
    assert equal(tmp_path / "resumed", tmp_path / "whole")
    record = json.loads((tmp_path / "whole" / "training_record.json").read_text())
    assert record["train_data"] == {"name": "short.txt", "hub_id": None, "token_count_samples": 100_000}
    assert record["hyperparameters"]["train_sampling_strategy"] == "random", "a stream cannot be sorted by length"


@pytest.mark.parametrize("began_with", [0, 2])
def test_a_stream_goes_on_with_the_readers_it_began_with_or_not_at_all(tmp_path, began_with):
    """Another number of workers, one instead of none included, would read sentences again and leave others out."""
    for file in range(2):
        lines = (DEMO / "sentences.txt").read_text().splitlines()[32 * file :][:32]
        (tmp_path / f"part-{file}.txt").write_text("\n".join(lines))
    options = {"train_file": "part-*.txt", "streaming": "true", "max_steps": 6, "max_train_samples": None}
    options |= {"eval_strategy": "no", "eval_pairs": None}
    whole = train(tmp_path / "whole", save_steps=3, dataloader_num_workers=began_with, **options)
    assert whole.returncode == 0, whole.stderr
    options["resume_from_checkpoint"] = tmp_path / "whole" / "checkpoint-3"
    refused = train(tmp_path / "other", dataloader_num_workers=1, **options)
    assert refused.returncode == 2
    readers = f"{{'processes': 1, 'dataloader_num_workers': {began_with}}}"
    assert f"belongs to a run with stream_readers {readers} (now {{'processes': 1, " in refused.stderr
    unrelated = {"dataloader_prefetch_factor": 5, "dataloader_persistent_workers": "true"} if began_with else {}
    resumed = train(tmp_path / "resumed", dataloader_num_workers=began_with, **unrelated, **options)
    assert resumed.returncode == 0, resumed.stderr
    assert equal(tmp_path / "resumed", tmp_path / "whole")


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path):
    """Otherwise an evaluation of an hour could not be interrupted."""
    write_few_pairs(tmp_path)
    arguments = flags(tmp_path / "model", **{**LONG_RUN, "per_device_train_batch_size": 32})
    process = start_python("-c", SLOW_STEPS, *arguments, cwd=tmp_path, PYTHONPATH=str(PROJECT))
    for line in process.stdout:
        if "slow step" in line:
            process.send_signal(signal.SIGINT)
        if "SIGINT: saving a checkpoint after this step. A second signal stops at once." in line:
            process.send_signal(signal.SIGINT)
            break
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "Interrupted at step 0." in output and checkpoints(tmp_path / "model") == [
        tmp_path / "model" / "checkpoint-0"
    ]


SLOW_STEPS = """
import time, train
from sarcse.training import trainer
def training_step(*arguments):
    print("slow step", flush=True)
    while True:
        time.sleep(0.05)  # a signal that comes just before one long sleep would not end it
trainer.SarcseTrainer.training_step = training_step
train.main()
"""


# --- Two runs in one folder ------------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    """
    Started anew or to resume, by several processes or in Python: each would take the other's checkpoints for its own.
    A killed run leaves no lock behind, though its worker that loads data lives on for some seconds.
    """
    write_few_pairs(tmp_path)
    folder = tmp_path / "model"
    arguments = flags(folder, **LONG_RUN, dataloader_num_workers=1)
    first = start_python("-c", WAITING_RUN, 4, *arguments, cwd=tmp_path, PYTHONPATH=str(PROJECT))
    try:
        assert any("waiting for a signal" in line for line in first.stdout)
        expected = f"--output_dir {folder}: process {first.pid} on {platform.node()} is training there. Wait until it"
        several = [
            start_command(PROJECT / "train.py", *flags(folder, **LONG_RUN, use_cpu="true"), cwd=tmp_path, **place)
            for place in places(2)
        ]
        for process in (
            train(folder, seed=1),
            train(folder, resume_from_checkpoint="last"),
            *map(Command.wait, several),
        ):
            assert process.returncode == 2, process.stderr
            assert process.stderr.splitlines()[-1].startswith(f"train.py: error: {expected}"), process.stderr
            assert "Traceback" not in process.stderr
        trainer = build_trainer(
            *parse_arguments(flags(tmp_path / "other", **LONG_RUN | {"eval_pairs": DEMO / "sts.tsv"}))
        )
        trainer.args.output_dir = str(folder)
        with pytest.raises(ValueError, match=re.escape(expected)):
            trainer.train()
    finally:
        first.kill()
        first.wait()
    resumed = train(folder, resume_from_checkpoint="last")
    first.communicate()
    assert resumed.returncode == 0, resumed.stderr
    assert not (folder / ".running").exists()


# --- Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: cut(folder / "trainer_state.json"), "trainer_state.json is cut short"),
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is cut short"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: cut(folder / "optimizer.pt"), "optimizer.pt is cut short"),
        (lambda folder: cut(folder / "scheduler.pt"), "scheduler.pt is cut short"),
        (lambda folder: cut(folder / "rng_state.pth"), "rng_state.pth is cut short"),
        (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda folder: blow_up(folder / "model.safetensors"), "encoder.embeddings.LayerNorm.bias is not finite"),
        (lambda folder: None, None),
    ],
)
def test_a_broken_checkpoint_is_recognised_and_the_one_before_it_used(uninterrupted, tmp_path, damage, problem):
    run = copy_until(uninterrupted, tmp_path / "run", step=4)
    damage(run / "checkpoint-4")
    found = flaw(run / "checkpoint-4")
    assert found.startswith(problem) if problem else found is None
    assert checkpoint_to_resume("last", str(run)) == run / ("checkpoint-2" if problem else "checkpoint-4")
    if problem:
        with pytest.raises(ValueError, match=re.escape(f"--resume_from_checkpoint {run}/checkpoint-4: {problem}")):
            checkpoint_to_resume(str(run / "checkpoint-4"), str(run))
        for step in (0, 2):
            shutil.rmtree(run / f"checkpoint-{step}")
        with pytest.raises(ValueError, match="no checkpoint is complete"):
            checkpoint_to_resume("last", str(run))


def test_a_missing_shard_of_large_weights_is_recognised(uninterrupted, tmp_path):
    checkpoint = copy_until(uninterrupted, tmp_path / "run", step=2) / "checkpoint-2"
    model = SarcseModel.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="2MB")
    first, *others = sorted(checkpoint.glob("model-*.safetensors"))
    assert flaw(checkpoint) is None and others
    first.unlink()
    assert flaw(checkpoint) == f"{first.name} is missing"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blow_up(path: Path) -> None:
    tensors = load_file(path)
    tensors["encoder.embeddings.LayerNorm.bias"][3] = torch.inf
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_full_disk_ends_in_a_message_and_the_run_resumes_from_the_checkpoint_before(uninterrupted, tmp_path):
    """The model has 6 MB and the optimizer's state 12 MB, so that writing a checkpoint fails halfway."""
    run = copy_until(uninterrupted, tmp_path / "run", step=14)
    full = train(run, resume_from_checkpoint="last", largest_file=9_000_000)
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    last_line = full.stderr.splitlines()[-1]
    assert (
        "train.py: error: could not read or write a file" in last_line
        and "`--resume_from_checkpoint last`" in last_line
    )
    resumed = train(run, resume_from_checkpoint="last")
    assert resumed.returncode == 0, resumed.stderr
    assert "checkpoint-16 is skipped: trainer_state.json is missing" in resumed.stderr
    assert equal(run, uninterrupted)


# --- Numbers ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    fields = {"learning_rate": 1e39, "learning_rate_budget": 0, "eval_strategy": "no", "save_steps": 1}
    process = train(tmp_path / "model", **fields)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    message = process.stderr.splitlines()[-1]
    assert message.startswith(
        "train.py: error: step 2: the loss is not finite. The batch of 8 sentences, beginning with '"
    )
    assert "There is no good checkpoint yet." in message and "it was 1e+39 (--learning_rate)" in message
    batch = (tmp_path / "model" / "non_finite_batch.txt").read_text().splitlines()
    sentences = (DEMO / "sentences.txt").read_text().splitlines()
    assert len(batch) == 8, "cut where the model's input is cut"
    assert all(any(whole.startswith(line) for whole in sentences) for line in batch)


def test_the_last_good_checkpoint_is_named(uninterrupted, tmp_path):
    run = copy_until(uninterrupted, tmp_path / "run", step=4)
    blow_up(run / "checkpoint-4" / "model.safetensors")
    write_few_pairs(tmp_path)
    options = {"eval_pairs": tmp_path / "few.tsv", "resume_from_checkpoint": "last"}
    trainer = build_trainer(*parse_arguments(flags(run, **LONG_RUN | options)))
    with torch.no_grad():
        trainer.model.encoder.embeddings.LayerNorm.bias.fill_(torch.nan)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    with pytest.raises(FloatingPointError, match=f"The last good checkpoint is {run}/checkpoint-2."):
        trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))


def test_a_learning_rate_that_collapses_the_embeddings_is_warned_about(uninterrupted, tmp_path):
    options = {
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "eval_pairs": DEMO / "sts.tsv",
        "learning_rate_budget": 0,
    }
    process = train(tmp_path / "model", learning_rate=0.03, **options)
    assert process.returncode == 0, process.stderr
    assert re.search(r"the embeddings have collapsed.*\(uniformity -0\.00\d\d, near 0\)", process.stderr)
    assert "Lower --learning_rate, now 0.03" in process.stderr
