"""
What test_distributed.py launches on several processes: all runs of train.py, one after the other. Runs named `own-...`
use a SarcseTrainer directly, with a list of sentences and a `model_init`.

    python -m tests.distributed_runs RUNS.json

RUNS.json maps the name of each run to its flags. `NAME-views-PROCESS.pt` is written beside it, with the embeddings of
the run's first step.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState

import train
from sarcse.parsing import parse_arguments
from sarcse.sentences import load_sentences
from sarcse.trainer import SarcseTrainer
from sarcse.training import build_model


def record_views(path: Path) -> None:
    """Saves the embeddings of the first forward pass with gradients."""
    contrastive_loss = SarcseTrainer.contrastive_loss

    def recorded(self, embeddings, inputs):
        if not path.exists():
            torch.save((inputs["input_ids"], embeddings.detach()), path)
        return contrastive_loss(self, embeddings, inputs)

    SarcseTrainer.contrastive_loss = recorded


def own_trainer(flags: list[str]) -> None:
    model_arguments, data, training = parse_arguments(flags)
    trainer = SarcseTrainer(
        args=training,
        train_dataset=load_sentences(data)["text"][:],
        model_init=lambda: build_model(model_arguments)[0],
    )
    trainer.train()
    trainer.save_results()


if __name__ == "__main__":
    original = SarcseTrainer.contrastive_loss
    runs = Path(sys.argv[1])
    for name, flags in json.loads(runs.read_text()).items():
        SarcseTrainer.contrastive_loss = original
        record_views(runs.with_name(f"{name}-views-{os.environ.get('RANK', '0')}.pt"))
        sys.argv[1:] = flags
        own_trainer(flags) if name.startswith("own-") else train.main()
    PartialState().destroy_process_group()  # as train.py does at its end
