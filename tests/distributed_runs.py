"""
Several runs of train.py in each of the processes that started this module together; what test_distributed.py launches.

    python -m tests.distributed_runs RUNS.json

RUNS.json maps the name of each run to its flags. Beside it, `NAME-views-PROCESS.pt` holds the embeddings of the first
step of a run.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState

import train
from sarcse.trainer import SarcseTrainer


def record_views(path: Path) -> None:
    """Saves the embeddings of the first forward that is made for a gradient."""
    contrastive_loss = SarcseTrainer.contrastive_loss

    def recorded(self, embeddings, inputs):
        if not path.exists():
            torch.save((inputs["input_ids"], embeddings.detach()), path)
        return contrastive_loss(self, embeddings, inputs)

    SarcseTrainer.contrastive_loss = recorded


if __name__ == "__main__":
    original = SarcseTrainer.contrastive_loss
    runs = Path(sys.argv[1])
    for name, flags in json.loads(runs.read_text()).items():
        SarcseTrainer.contrastive_loss = original
        record_views(runs.with_name(f"{name}-views-{os.environ.get('RANK', '0')}.pt"))
        sys.argv[1:] = flags
        train.main()
    PartialState().destroy_process_group()  # as train.py does at its end
