"""
Every code block of the README and of docs/ runs: Python as it stands, a shell's commands one by one.

bash reads the shell's blocks, with programs that only note how they were called. The calls are then made here, in the
order in which they stand, each once: trainings in one step of eight sentences, the Hub on the loopback address. What
takes hours or several GPUs is checked by its own parser instead, and so is what other tests run.
"""

import csv
import lzma
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from sarcse.training.parsing import parse_arguments

from .conftest import DEMO, ENCODER, PROJECT, run_command, run_python
from .loopback_hub import LoopbackHub


PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"python", "bash", "yaml", "text"}  # text: what a command prints, or how it is called
PROGRAMS = ("python", "sarcse", "accelerate", "make", "pip", "hf", "diff")
NOTE = """#!/bin/bash
printf '%s\\x1f' "${0##*/}" "$@" >> "$CALLS"
printf '\\x1e' >> "$CALLS"
"""
TOKEN = "hf_" + "w1" * 17
# Later flags win. The recipes' sentences and graded pairs are on the Hub.
ONE_STEP = [*("--max_steps", "1", "--per_device_train_batch_size", "8", "--report_to", "none")]
# What the pages load from the Hub.
ENCODERS = (
    "FacebookAI/roberta-base",
    "princeton-nlp/unsup-simcse-roberta-base",
    "sentence-transformers/all-MiniLM-L6-v2",
)
FEW_STEPS = "max_steps=2, eval_steps=1, save_steps=1, per_device_train_batch_size=8"
SENTENCES_HERE = ["--train_file", "sentences.txt"]
NO_EVALUATION = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
LONG = ("study.", "benchmarks.")  # modules that measure for minutes or hours


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(code) for _, of, code in found if of == language]


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def name_of(page: Path) -> str:
    return page.name


def test_each_block_says_its_language():
    for page in PAGES:
        fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(fences[::2]) <= LANGUAGES and set(fences[1::2]) <= {""}, page


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory) -> Path:
    """What a clone holds, `output/demo` as `make demo` leaves it, sentences, and encoders under their Hub names."""
    tmp_path = tmp_path_factory.mktemp("clone")
    for path in PROJECT.iterdir():
        if path.name not in ("output", ".git", ".venv"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "output").mkdir()
    # Which a page trains and uses; its Python is run first.
    shutil.copytree(
        finished_run[0], tmp_path / "output" / "tickets-model", ignore=shutil.ignore_patterns("checkpoint-*")
    )
    for name in ("demo", "mine"):  # the trainings that push, to output/mine, are not run here
        (tmp_path / "output" / name).symlink_to(finished_run[0])
    for name in ENCODERS:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(ENCODER)
    sentences = (DEMO / "sentences.txt").read_text().splitlines()[:300]
    (tmp_path / "sentences.txt").write_text("\n".join(sentences) + "\n")
    (tmp_path / "pairs.tsv").symlink_to(DEMO / "sts.tsv")
    with (tmp_path / "tickets.csv").open("w", newline="") as file:
        tickets = [(sentence, len(sentence) % 3) for sentence in sentences]
        csv.writer(file).writerows([("body", "queue"), *tickets])
    for code in blocks(PROJECT / "docs" / "training.md", "yaml"):
        (tmp_path / "machine.yaml").write_text(code)
    return tmp_path


@pytest.mark.parametrize("page", with_blocks("python"), ids=name_of)
def test_python_blocks_run_one_after_the_other(page, folder):
    """But for the one that pushes, which tests/test_hub.py runs."""
    code = "".join(block for block in blocks(page, "python") if "push_to_hub()" not in block)
    code = re.sub(r"max_steps=\d+, eval_steps=\d+, save_steps=\d+", FEW_STEPS, code)
    succeeds(run_python("-c", code, cwd=folder, PYTHONPATH=str(PROJECT)))


# --- Shells ----------------------------------------------------------------------------------------------------------


def calls(code: str, folder: Path, data: Path | None) -> list[list[str]]:
    """How bash calls programs in a block: name and arguments of each."""
    programs, noted = folder / "programs", folder / "calls"
    programs.mkdir(exist_ok=True)
    for name in PROGRAMS:
        (programs / name).write_text(NOTE)
        (programs / name).chmod(0o755)
    noted.write_text("")
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(noted)}
    environment |= {"SARCSE_DATA": str(data)} if data else {}
    subprocess.run(["bash", "-euc", code], cwd=folder, env=environment, check=True)
    return [call.split("\x1f")[:-1] for call in noted.read_text().split("\x1e")[:-1]]


def check(call: list[str], folder: Path, hub: LoopbackHub) -> None:
    """Make a call, or ask the program's parser about it."""
    program, *arguments = call
    if program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    elif program == "pip":
        assert arguments[0] == "install"
        extra = re.fullmatch(r"\.(?:\[(.+)\])?", arguments[1])[1]
        assert extra is None or f"\n{extra} = [" in (PROJECT / "pyproject.toml").read_text()
    elif program == "accelerate":
        check_launch(arguments, folder)
    elif program == "sarcse":
        script = {"train": "train.py", "eval": "eval_sts.py"}.get(arguments[0], arguments[0])
        succeeds(run_command("-m", "sarcse", arguments[0], *shortened([script, *arguments[1:]])[1:], cwd=folder))
    elif program == "diff":
        subprocess.run(["diff", *arguments], cwd=folder, check=True)
    elif program == "hf":
        main = hub.repositories["models", arguments[1]].branches["main"]
        commit = [main if argument == "COMMIT" else argument for argument in arguments]
        succeeds(run_python(Path(sys.executable).with_name("hf"), *commit, cwd=folder, **of_hub(hub, folder)))
    elif arguments[0] == "-m" and arguments[1].startswith(LONG):
        check_flags(arguments[1:], folder)
    elif arguments[0].endswith("app.py"):
        assert (folder / arguments[0]).is_file()  # it serves until it is stopped: tests/test_space.py
    elif "--push_to_hub" in arguments:
        parse(arguments[1:])  # tests/test_hub.py
    elif any(argument.startswith("you/") for argument in arguments):
        # A process of its own: the Hub's address is read when its client is imported.
        succeeds(run_python(*shortened(arguments), cwd=folder, **of_hub(hub, folder)))
    else:
        succeeds(run_command(*shortened(arguments), cwd=folder))


def shortened(arguments: list[str]) -> list[str]:
    """A training in one step, and without what would come from the Hub or take long."""
    if arguments[0] == "eval_sts.py":
        scored = any(name in arguments for name in ("--pairs", "--sts_dir", "--explain", "--labelled"))
        return [*arguments, *([] if scored else ["--pairs", "demo/sts.tsv"])]
    if arguments[0] != "train.py":
        return arguments
    changes = [*ONE_STEP, *([] if "--train_file" in arguments else SENTENCES_HERE)]
    changes += [] if "health" in arguments else NO_EVALUATION  # by the health it needs nothing from elsewhere
    return [*arguments, *changes, *(["--sts_tasks", "STSB"] if "--sts_dir" in arguments else [])]


def succeeds(process: subprocess.CompletedProcess) -> None:
    assert process.returncode == 0, process.stderr


def of_hub(hub: LoopbackHub, folder: Path) -> dict[str, str]:
    return hub.environment(folder / "home", TOKEN)


def parse(arguments: list[str]) -> None:
    """Whether train.py takes these."""
    parse_arguments([str(PROJECT / each) if each.startswith("recipes/") else each for each in arguments])


def check_launch(arguments: list[str], folder: Path) -> None:
    """`accelerate launch`: its own flags, those of the script behind them, and a file of its settings."""
    assert arguments[0] == "launch"
    launch = launch_command_parser().parse_args(arguments[1:])
    assert launch.training_script == "train.py"
    parse(launch.training_script_args)
    if launch.config_file:
        file = folder / launch.config_file
        assert load_config_from_file(str(file)).to_dict().items() >= yaml.safe_load(file.read_text()).items()


def check_flags(arguments: list[str], folder: Path) -> None:
    """Whether `--help` of a module, or of the training that it measures, knows what it is called with."""
    module, *rest = arguments
    helped = run_command("-m", module, "--help", cwd=folder).stdout
    known = helped + (run_command("train.py", "--help_all", cwd=folder).stdout if "train.py's" in helped else "")
    for argument in rest:
        if argument.startswith("--"):
            assert re.search(rf"{argument}\b", known), (module, argument)
    if module == "study.run":
        assert re.search(rf"[{{,]{rest[0]}[,}}]", re.sub(r"\s", "", helped)), rest


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub({TOKEN: ("you", "write")}) as hub:
        yield hub


@pytest.fixture(scope="module")
def made() -> list[list[str]]:
    """The calls of the pages before."""
    return []


def check_page(page: Path, folder: Path, hub: LoopbackHub, made: list[list[str]], data: Path | None) -> None:
    for code in blocks(page, "bash"):
        if ("$SARCSE_DATA" in code) == (data is not None):
            for call in calls(code, folder, data):
                if call not in made:
                    check(call, folder, hub)
                    made.append(call)


@pytest.mark.parametrize("page", with_blocks("bash"), ids=name_of)
def test_shell_blocks_run_one_after_the_other(page, folder, hub, made):
    check_page(page, folder, hub, made, None)


def needs_data(page: Path) -> bool:
    return any("$SARCSE_DATA" in code for code in blocks(page, "bash"))


@pytest.mark.realdata
@pytest.mark.parametrize("page", [*filter(needs_data, PAGES)], ids=name_of)
def test_shell_blocks_on_real_data_run(page, folder, hub, made, real_data, tmp_path):
    """With a smaller encoder and the first sentences."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "senteval").symlink_to(real_data / "data" / "senteval")
    with lzma.open(tmp_path / "data" / "wiki500k.txt.xz", "wt") as file:
        file.write((folder / "sentences.txt").read_text())
    (tmp_path / "encoders").mkdir()
    for name in ("roberta-mini-wiki", "roberta-tiny-wiki"):
        (tmp_path / "encoders" / name).symlink_to(ENCODER)
    check_page(page, folder, hub, made, tmp_path)
