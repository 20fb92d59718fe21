"""
SARCSE's library, which `train.py`, `eval_sts.py` and `python -m model_card` are built on. Imports go one way: a room
uses itself and what stands above it in this list (tests/test_structure.py).

- `options`: of the commands, without slow imports.
- `output`: the files beside a model; `loading`: models of all kinds; `reconstruction`: of tokens, by a model.
- `data`: files, sentences, graded pairs, token ids.
- `evaluation`: embeddings and their scores.
- `release`: a folder with its card, the Hub, Spaces. The templates are in `model_card/`.
- `training`: losses and the Trainer, which evaluates and releases.

The names exported here are loaded on first use: the losses need only torch and transformers.
"""

from importlib import import_module
from typing import Any


HOMES = {
    "SarcseConfig": "configuration_sarcse",
    "SarcseModel": "modeling_sarcse",
    "SarcseTrainer": "sarcse.training.trainer",
    "SarcseTrainingArguments": "sarcse.training.arguments",
    "encode": "sarcse.evaluation.embedding",
    "info_nce": "sarcse.training.losses",
    "load_model": "sarcse.loading",
    "token_importance": "sarcse.reconstruction",
    "weighted_reconstruction": "sarcse.training.losses",
}
__all__ = [*HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
