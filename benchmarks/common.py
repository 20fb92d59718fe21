"""What the benchmarks share: options, a trainer that only trains, timing, and output."""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaModel, TrainerCallback


if TYPE_CHECKING:
    from sarcse.training.trainer import SarcseTrainer

PROJECT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("SARCSE_DATA") or PROJECT.parent / "shared")
SENTENCES, MAX_SEQ_LENGTH = 20_000, 32  # for each training
MEBIBYTE = 2**20
# Shapes of RoBERTa-base, RoBERTa-large and a tiny one for tests.
SHAPES = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
}
# Fields of a training without evaluation, checkpoints or logs.
QUIET = {"eval_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}


def parser_for(docstring: str) -> argparse.ArgumentParser:
    """A parser whose --help starts with the first paragraph of the benchmark's docstring."""
    return argparse.ArgumentParser(description=docstring.split("\n\n")[0], allow_abbrev=False)


def arguments_for(docstring: str) -> argparse.ArgumentParser:
    """The options that all benchmarks with real sentences on the CPU share."""
    parser = parser_for(docstring)
    parser.add_argument("--model", default=str(SHARED / "encoders" / "roberta-mini-wiki"), help="The encoder.")
    parser.add_argument("--train_file", default=str(SHARED / "data" / "wiki500k.txt.xz"), help="The sentences.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="Where to write all numbers, as JSON.")
    return parser


def roberta_config(shape: str) -> RobertaConfig:
    return RobertaConfig(
        **SHAPES[shape], vocab_size=50265, max_position_embeddings=514, bos_token_id=0, pad_token_id=1, eos_token_id=2
    )


def random_encoder(shape: str, tokenizer_of: str, folder: str) -> str:
    """
    Write an encoder of this shape with random weights to the folder, and return the folder. The tokenizer is another
    encoder's; unused tokens fill it up to the size of this encoder's vocabulary.
    """
    config, tokenizer = roberta_config(shape), AutoTokenizer.from_pretrained(tokenizer_of)
    RobertaModel(config).save_pretrained(folder)
    tokenizer.add_tokens([f"<unused{number}>" for number in range(len(tokenizer), config.vocab_size)])
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def trainer_for(arguments: argparse.Namespace, flags: list[str], **fields: object) -> Iterator["SarcseTrainer"]:
    """train.py's trainer for these fields and flags, with `model`, `train_file` and `bf16` from the arguments."""
    from sarcse.training.build import build_trainer
    from sarcse.training.parsing import parse_arguments

    fields = {"max_train_samples": SENTENCES, "max_seq_length": MAX_SEQ_LENGTH, **QUIET, **fields}
    fields |= {"model_name_or_path": arguments.model, "train_file": arguments.train_file, "bf16": arguments.bf16}
    with tempfile.TemporaryDirectory() as fields["output_dir"]:
        options = [f"--{name}={value}" for name, value in fields.items()]
        yield build_trainer(*parse_arguments(options + flags))


# --- Timing ----------------------------------------------------------------------------------------------------------


def in_new_processes(function: Callable, *calls: tuple) -> Any:
    """
    Make all calls at the same time, each in a new process, so that nothing that ran before matters. Returns the result
    of the first call.
    """
    with ProcessPoolExecutor(len(calls), multiprocessing.get_context("spawn")) as pool:
        return [pool.submit(function, *call) for call in calls][0].result()


class StepTimes(TrainerCallback):
    """Times a Trainer's steps, from the end of one to the end of the next, including everything in between."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.ends = warm_up, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of every step after the first `warm_up` steps."""
        ends = self.ends[self.warm_up - 1 :]
        return [after - before for before, after in zip(ends, ends[1:])]


def speeds_in_turns(programs: dict[str, Callable[[], object]], sentences: int, repeats: int) -> dict[str, Any]:
    """
    Sentences per second of programs that each process `sentences` sentences per call. They take turns, so that
    whatever slows the machine down affects all of them. The first turn is a warm-up and does not count.
    """
    speeds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            if turn > 0:
                speeds[name].append(sentences / (time.perf_counter() - start))
    return {
        "median_sentences_per_second": {name: statistics.median(values) for name, values in speeds.items()},
        "sentences_per_second": speeds,
    }


def peak_mebibytes() -> float:
    """The peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- Output ----------------------------------------------------------------------------------------------------------


def speed_rows(speeds: dict[str, Any]) -> list[list[str]]:
    """`speeds_in_turns` as rows of a table."""
    medians = speeds["median_sentences_per_second"]
    ratios = {name: medians["sarcse"] / median for name, median in medians.items()}
    rows = [[name, f"{median:,.1f}", f"{ratios[name]:.2f}"] for name, median in medians.items()]
    return [["program", "sentences/s", "sarcse's speed over it"], *rows]


def print_table(title: str, rows: list[list[str]]) -> None:
    """A Markdown table; the first row is its header."""
    from sarcse.evaluation.report import markdown_table

    print(f"\n{title}:\n\n{markdown_table(rows)}", flush=True)


def write_output(results: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
