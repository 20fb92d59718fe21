"""
Train a SARCSE model on plain sentences.

    python train.py [RECIPE.yaml] [--field value ...]
    accelerate launch train.py recipes/roberta-base.yaml
"""

import sys
from pathlib import Path

from sarcse.options import one_line_errors
from sarcse.training.parsing import parse_arguments


DEMO_RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"


def main() -> None:
    with one_line_errors("train.py"):
        arguments = parse_arguments(sys.argv[1:] or [str(DEMO_RECIPE)])
        from sarcse.training.running import (
            train,  # datasets and the rest, which take seconds, are for options that are right
        )
    train(*arguments)


if __name__ == "__main__":
    main()
    from accelerate import PartialState

    # The group's threads would outlive the interpreter and abort it (github.com/pytorch/pytorch/issues/190489).
    PartialState().destroy_process_group()
