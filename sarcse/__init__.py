"""
SARCSE's library: what `train.py`, `eval_sts.py` and `python -m model_card` are made of. Data flow one way: text
(`files`, `sentences`, `sts`), token ids (`tokens`), models (`loading`), losses (`trainer`), embeddings and what they
say (`embedding`, `comparison`, `figures`).
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
