"""
Train a SARCSE model on plain sentences.

    python train.py [RECIPE.yaml] [--field value ...]
    accelerate launch train.py recipes/roberta-base.yaml
"""

import sys
from pathlib import Path

from sarcse.training import command


DEMO_RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"


def main() -> None:
    command.main(sys.argv[1:] or [str(DEMO_RECIPE)], "train.py")


if __name__ == "__main__":
    main()
    command.leave_group()
