"""
SARCSE's library, which `train.py`, `eval_sts.py` and `python -m model_card` are built on. Imports go one way: a module
uses only its own group and the groups above it in this list.

- Options of the commands, without slow imports: `options`.
- Text: `files`, `sentences`, `sts`.
- Token ids: `tokens`.
- Arguments: `arguments`, `parsing`.
- Models: `loading`.
- Losses: `losses`, `views`, `gradient_cache`.
- Embeddings and their scores: `comparison`, `figures`, `embedding`.
- Training: `checkpoints`, `watch`, `health`, `budget`, `record`, `corpus`, `releasing`, `trainer`, `training`.
- What the commands do: `scoring` (eval_sts.py), `running` (train.py).

The names exported here are loaded on first use: the losses need only torch and transformers.
"""

from importlib import import_module
from typing import Any


HOMES = {
    "SarcseConfig": "configuration_sarcse",
    "SarcseModel": "modeling_sarcse",
    "SarcseTrainer": "sarcse.trainer",
    "SarcseTrainingArguments": "sarcse.arguments",
    "encode": "sarcse.embedding",
    "info_nce": "sarcse.losses",
    "load_model": "sarcse.loading",
    "token_importance": "sarcse.embedding",
    "weighted_reconstruction": "sarcse.losses",
}
__all__ = [*HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
