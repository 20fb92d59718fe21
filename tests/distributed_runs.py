"""
Several runs of train.py in each of the processes that started this script together; what test_distributed.py launches.

    python distributed_runs.py RUNS.json

RUNS.json maps the name of each run to its flags; `NAME-views-PROCESS.pt` holds the embeddings of its first step.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState


sys.path.insert(0, str(Path(__file__).parent.parent))
import train  # noqa: E402
from sarcse.trainer import SarcseTrainer  # noqa: E402


def record_views(name: str) -> None:
    """Saves the embeddings of the first forward that is made for a gradient."""
    contrastive_loss = SarcseTrainer.contrastive_loss
    path = Path(f"{name}-views-{os.environ.get('RANK', '0')}.pt")

    def recorded(self, embeddings, inputs):
        if not path.exists():
            torch.save((inputs["input_ids"], embeddings.detach()), path)
        return contrastive_loss(self, embeddings, inputs)

    SarcseTrainer.contrastive_loss = recorded


if __name__ == "__main__":
    original = SarcseTrainer.contrastive_loss
    for name, flags in json.loads(Path(sys.argv[1]).read_text()).items():
        SarcseTrainer.contrastive_loss = original
        record_views(name)
        sys.argv[1:] = flags
        train.main()
    PartialState().destroy_process_group()  # as train.py does at its end
