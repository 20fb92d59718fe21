"""
SARCSE's library: what `train.py`, `eval_sts.py` and `python -m model_card` are made of. Modules import one way: text
(`files`, `sentences`, `sts`), token ids (`tokens`), arguments (`arguments`, `parsing`), models (`loading`), embeddings
and what they say (`comparison`, `figures`, `embedding`), losses (`losses`, `gradient_cache`), and the training
(`checkpoints`, `watch`, `health`, `budget`, `record`, `corpus`, `releasing`, `trainer`, `training`).

What stands here is loaded when it is first asked for: the losses need torch and transformers alone.
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
    "weighted_reconstruction": "sarcse.losses",
}
__all__ = [*HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
