"""
SARCSE's library: what `train.py`, `eval_sts.py` and `python -m model_card` are made of. Modules import one way: text
(`files`, `sentences`, `sts`), token ids (`tokens`), arguments (`arguments`, `parsing`), models (`loading`), embeddings
and what they say (`comparison`, `figures`, `embedding`), losses (`losses`, `gradient_cache`), and the training
(`checkpoints`, `watch`, `record`, `corpus`, `releasing`, `trainer`, `training`).
"""

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel
from sarcse.arguments import SarcseTrainingArguments
from sarcse.embedding import encode
from sarcse.losses import info_nce, weighted_reconstruction
from sarcse.trainer import SarcseTrainer


__all__ = [
    "SarcseConfig",
    "SarcseModel",
    "SarcseTrainer",
    "SarcseTrainingArguments",
    "encode",
    "info_nce",
    "weighted_reconstruction",
]
