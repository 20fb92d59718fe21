"""
What test_distributed.py launches on several processes: all runs of train.py, one after the other. Runs named `own-...`
use a SarcseTrainer directly, with a list of sentences and a `model_init`.

    python -m tests.distributed_runs RUNS.json

RUNS.json maps the name of each run to its flags. Runs named `views...` drop the same dimensions of a sentence wherever
it is read. `NAME-views-PROCESS.pt` is written beside it, with the embeddings of
the run's first step.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState

import train
from sarcse.data.sentences import load_sentences
from sarcse.training import losses, trainer, views
from sarcse.training.build import build_model
from sarcse.training.parsing import parse_arguments
from sarcse.training.trainer import SarcseTrainer


def record_views(path: Path) -> None:
    """Saves the embeddings of the first forward pass with gradients."""

    def recorded(embeddings, inputs, args):
        if not path.exists():
            torch.save((inputs["input_ids"], embeddings.detach()), path)
        return losses.batch_losses(embeddings, inputs, args)

    trainer.batch_losses = recorded


def own_trainer(flags: list[str]) -> None:
    model_arguments, data, training = parse_arguments(flags)
    own = SarcseTrainer(
        args=training,
        train_dataset=load_sentences(data)["text"][:],
        model_init=lambda: build_model(model_arguments)[0],
    )
    own.train()
    own.save_results()


def kept_by_content(vectors: torch.Tensor, rate: float) -> torch.Tensor:
    """Instead of random numbers, which differ between processes: about a quarter of the dimensions, by their sign."""
    first = vectors.detach()[:, 0]  # (B, L, d) -> (B, d)
    return torch.stack([first > -0.5, first < 0.5]).unsqueeze(2) / (1 - rate)  # (2, B, 1, d)


if __name__ == "__main__":
    random = views.kept_dimensions
    runs = Path(sys.argv[1])
    for name, flags in json.loads(runs.read_text()).items():
        record_views(runs.with_name(f"{name}-views-{os.environ.get('RANK', '0')}.pt"))
        views.kept_dimensions = kept_by_content if name.startswith("views") else random
        sys.argv[1:] = flags
        own_trainer(flags) if name.startswith("own-") else train.main()
    PartialState().destroy_process_group()  # as train.py does at its end
