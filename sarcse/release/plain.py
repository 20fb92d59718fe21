"""
Plain releases: an encoder with sentence-transformers' pooling, which every tool loads without this project's code.

With mean or first-token pooling, the encoder alone is enough to make an embedding. The folder is then what
sentence-transformers itself would save, and what text-embeddings-inference, fastembed and others read.
"""

import copy
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from configuration_sarcse import __version__
from modeling_sarcse import SarcseModel
from sarcse.loading import PLAIN_MODULES, POOLER_FIELD, POOLING_MODES, plain_poolers
from sarcse.output import write_json


def why_not_plain(model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why a model cannot be released as a plain encoder; None if it can."""
    poolers = plain_poolers()
    if model.config.pooler not in poolers:
        return (
            f"its embedding is {model.sentence_encoder.description}, which needs this project's code (pooler "
            f"{model.config.pooler}; {' and '.join(poolers)} need none)"
        )
    if poolers[model.config.pooler] == "cls" and tokenizer.padding_side == "left":
        return "its tokenizer pads on the left, so other programs would take padding for the first token"
    # The embedding never uses the class's own pooler, but it may depend on any other weight.
    more = [name for name in missing_weights(model) if not name.startswith("pooler.")]
    if more:
        return f"AutoModel expects more than the encoder for {model.config.encoder_config.model_type!r} ({more[0]})"
    return None


def bare_encoder(model: SarcseModel) -> PreTrainedModel:
    """An instance of the class that AutoModel loads the encoder with, without memory for its weights."""
    with torch.device("meta"):
        return AutoModel.from_config(copy.deepcopy(model.config.encoder_config))


def missing_weights(model: SarcseModel) -> list[str]:
    """Names of the weights that AutoModel expects but the encoder lacks: it was loaded without its own pooler."""
    return sorted(bare_encoder(model).state_dict().keys() - model.encoder.state_dict().keys())


def write_plain_model(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, folder: Path, max_shard_size: str
) -> None:
    """
    Write the encoder with the weight names that AutoModel expects, and the files for sentence-transformers. Only the
    weights of the class's own pooler can be missing (`why_not_plain`). They are written as zeros: otherwise AutoModel
    would initialise them randomly, with a warning. Zeros also make it obvious if someone uses that output by mistake.
    """
    encoder = bare_encoder(model)
    weights, expected = model.encoder.state_dict(), encoder.state_dict()
    zeros = {name: torch.zeros(expected[name].shape, dtype=model.dtype) for name in expected.keys() - weights.keys()}
    encoder.load_state_dict({**weights, **zeros}, assign=True)
    setattr(encoder.config, POOLER_FIELD, model.config.pooler)
    encoder.config.sarcse_version = __version__
    encoder.save_pretrained(folder, max_shard_size=max_shard_size)
    mode = plain_poolers()[model.config.pooler]
    write_sentence_transformers_files(
        folder, model.config.hidden_size, mode, max_length(tokenizer), model.config.normalize
    )


def write_sentence_transformers_files(
    folder: Path, dimensions: int, pooling_mode: str, max_length: int | None, normalize: bool
) -> None:
    """Write the files of sentence-transformers' Transformer and Pooling and, if asked for, of its Normalize."""
    modules = PLAIN_MODULES if normalize else PLAIN_MODULES[:2]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_pooling(folder, dimensions, pooling_mode)
    for module in modules[2:]:
        (folder / module["path"]).mkdir()
        names = ("module_input_name", "module_output_name")
        write_json(folder / module["path"] / "config.json", dict.fromkeys(names, "sentence_embedding"))


def write_pooling(folder: Path, dimensions: int, pooling_mode: str) -> None:
    """Write the long form: text-embeddings-inference and sentence-transformers before 6 need it."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {name: mode == pooling_mode for name, mode in POOLING_MODES.items()}
    fields = {"word_embedding_dimension": dimensions, **modes, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", fields)


def max_length(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """In tokens; None for an encoder without position embeddings, whose tokenizer has 10^30 here."""
    return tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None
