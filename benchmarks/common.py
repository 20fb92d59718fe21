"""What the benchmarks share: where the data are, and a trainer that does nothing but train."""

import argparse
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from sarcse.trainer import SarcseTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))  # the project, whose modules the benchmarks import

SHARED = Path(os.environ.get("SARCSE_DATA") or Path(__file__).parent.parent.parent / "shared")
MAX_SEQ_LENGTH = 32


def arguments_for(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--model", default=str(SHARED / "encoders" / "roberta-mini-wiki"), help="The encoder.")
    parser.add_argument("--train_file", default=str(SHARED / "data" / "wiki500k.txt.xz"), help="The sentences.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="Where to write all numbers, as JSON.")
    return parser


def trainer_for(folder: str, flags: list[str], **fields: object) -> "SarcseTrainer":
    """train.py's trainer for these fields and flags, without evaluations, checkpoints and progress bars."""
    from train import build_trainer, parse_arguments

    quiet = {"eval_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    fields = {"output_dir": folder, "max_seq_length": MAX_SEQ_LENGTH, **quiet, **fields}
    trainer, _, _ = build_trainer(*parse_arguments([f"--{name}={value}" for name, value in fields.items()] + flags))
    return trainer


def peak_mebibytes() -> float:
    """The largest resident memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
