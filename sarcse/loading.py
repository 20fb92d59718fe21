"""
From the name of a model to the model and its tokenizer: a SARCSE model as it was saved, or any other text encoder
under fresh layers. What cannot be used is said here, in one message, before anything is trained or scored.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import has_file

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel


# The project's own classes, not the copies that a SARCSE folder carries: no code of a model under test is run.
AutoConfig.register(SarcseConfig.model_type, SarcseConfig)
AutoModel.register(SarcseConfig, SarcseModel)

# Where a plain release, which is an encoder to everyone else, has its pooler: a field of the encoder's configuration.
POOLER_FIELD = "sarcse_pooler"


def load_model(
    name_or_path: str, revision: str = "main", trust_remote_code: bool = False, **options: Any
) -> tuple[SarcseModel, PreTrainedTokenizerBase]:
    """
    A SARCSE model as it was saved or released, or any other text encoder under fresh layers, in evaluation mode.

    Args:
        name_or_path (`str`): A folder or the id of a model on the Hub.
        revision (`str`): Branch, tag or commit of the model on the Hub.
        trust_remote_code (`bool`): Run the code that an encoder brings, if transformers has none for it.
        options: `dtype` and `attn_implementation` of `from_pretrained`, and fields of `SarcseConfig`, which must be
            those that a SARCSE model was saved with.

    Raises:
        ValueError: nothing can be loaded there, it is not a text encoder, its tokenizer is not its own, or a field is
            impossible or not the saved SARCSE model's.
    """
    config, tokenizer = load_config_and_tokenizer(name_or_path, revision, trust_remote_code)
    with loadable(name_or_path):
        if config.model_type == SarcseConfig.model_type:
            arguments = {name: options.pop(name) for name in ("dtype", "attn_implementation") if name in options}
            check_saved_fields(name_or_path, config, options)
            model = AutoModel.from_pretrained(name_or_path, revision=revision, **arguments)
        else:
            if hasattr(config, POOLER_FIELD):
                check_pooler(name_or_path, getattr(config, POOLER_FIELD), options)
            model = SarcseModel.from_encoder_pretrained(
                name_or_path, tokenizer=tokenizer, revision=revision, **options
            )
            vars(model.config.encoder_config).pop(POOLER_FIELD, None)
            point_to_code(model.config.encoder_config, name_or_path)
    fit_tokenizer(name_or_path, model, tokenizer)
    return model.eval(), tokenizer


def load_config_and_tokenizer(
    name_or_path: str, revision: str = "main", trust_remote_code: bool = False
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """
    Raises:
        ValueError: nothing at `name_or_path` can be loaded, it needs code that is not trusted, or its tokenizer cannot
            be that of its encoder.
    """
    fields: dict[str, Any] = {}
    try:
        fields, _ = PretrainedConfig.get_config_dict(name_or_path, revision=revision)
        register_code(name_or_path, fields.get("encoder_config", fields), revision, trust_remote_code)
        config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    except UntrustedCodeError:
        raise
    except Exception as error:
        if fields.get("model_type") == SarcseConfig.model_type:  # a field has an impossible value
            raise ValueError(f"{name_or_path}: {error}") from error
        raise ValueError(f"{name_or_path}: neither a model folder nor a model on a reachable Hub.\n{error}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and tokenizers have a dozen exceptions for what is missing
        raise ValueError(f"{name_or_path} has no tokenizer that can be loaded ({in_one_line(error)}).") from error
    check_tokenizer(name_or_path, tokenizer, getattr(config, "encoder_config", config))
    return config, tokenizer


@contextmanager
def loadable(name_or_path: str) -> Iterator[None]:
    """
    Raises:
        ValueError: what transformers raises within, in one line: there are no weights, they are cut short or of other
            sizes, or a package is missing.
    """
    try:
        yield
    except ValueError:
        raise
    except SafetensorError as error:
        raise ValueError(f"{name_or_path}: the weights cannot be read, copy them anew ({error}).") from error
    except Exception as error:
        raise ValueError(f"{name_or_path}: the model cannot be loaded ({in_one_line(error)}).") from error


def in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def check_pooler(name_or_path: str, pooler: str, fields: dict[str, Any]) -> None:
    """Sets the pooler of a plain release, which knows no other field."""
    if pooler != fields.setdefault("pooler", pooler):
        raise ValueError(f"{name_or_path} was released with pooler={pooler}: leave --pooler out.")


def check_saved_fields(name_or_path: str, config: PretrainedConfig, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if value != getattr(config, name):
            raise ValueError(f"{name_or_path} was saved with {name}={getattr(config, name)}: leave --{name} out.")


# --- Tokenizers ------------------------------------------------------------------------------------------------------


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, encoder_config: PretrainedConfig) -> None:
    """
    Raises:
        ValueError: the tokenizer cannot pad, or its vocabulary is not the encoder's. Without its files transformers
            makes one of a handful of tokens, to which every word is unknown.
    """
    size, vocabulary_size = len(tokenizer), getattr(encoder_config, "vocab_size", None)
    # Encoders round their vocabulary up, to a multiple of 128 at the most or by a few hundred reserved tokens.
    if isinstance(vocabulary_size, int) and size < vocabulary_size / 2:
        raise ValueError(
            f"{name} has no tokenizer of its own: the one that was found there has {size} tokens and the encoder "
            f"{vocabulary_size}. Put the tokenizer's files (tokenizer.json, or the vocabulary) beside the model."
        )
    if isinstance(vocabulary_size, int) and size > vocabulary_size:
        raise ValueError(
            f"{name}: the tokenizer has {size} tokens and the encoder {vocabulary_size}. Give the encoder its own "
            "tokenizer, or save it after `resize_token_embeddings`."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"{name}: the tokenizer has no padding token. Set its `pad_token` and save it beside the model."
        )


def fit_tokenizer(name: str, model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the tokenizer the encoder's limit, and checks their padding (`check_padding`)."""
    check_padding(name, model, tokenizer)
    tokenizer.model_max_length = encoder_max_length(model, tokenizer)


def check_padding(name: str, model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raises:
        ValueError: the encoder counts positions from behind its padding token, and the tokenizer has another one.
    """
    index = position_padding(model)
    if index is not None and index != tokenizer.pad_token_id:
        raise ValueError(
            f"{name}: the tokenizer pads with token {tokenizer.pad_token_id} and the encoder with {index}: it is the "
            "tokenizer of another model."
        )


def position_padding(model: SarcseModel) -> int | None:
    """The padding token from behind which RoBERTa, MPNet and their like count positions; None for other encoders."""
    for name, module in model.encoder.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.padding_idx
    return None


def encoder_max_length(model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The encoder's own limit in tokens, specials included; a tokenizer saved without one says 10^30."""
    positions = getattr(model.config.encoder_config, "max_position_embeddings", None)
    if positions is None or positions <= 0:  # XLNet says -1: its positions are relative, and there is no limit
        return tokenizer.model_max_length
    padding = position_padding(model)
    if padding is not None:
        positions -= padding + 1  # of RoBERTa's 514 positions 512 can be used
    return min(positions, tokenizer.model_max_length)


# --- Code that an encoder brings -------------------------------------------------------------------------------------


class UntrustedCodeError(ValueError):
    """An encoder needs code of its own, and nobody has said that it may run."""


def needs_own_code(fields: dict[str, Any]) -> bool:
    """Whether an encoder's configuration names code, and transformers itself has none for its kind."""
    return {"AutoConfig", "AutoModel"} <= set(fields.get("auto_map", {})) and (
        fields.get("model_type") not in CONFIG_MAPPING_NAMES
    )


def register_code(name: str, fields: dict[str, Any], revision: str, trust_remote_code: bool) -> None:
    """
    Make transformers know the classes of an encoder that brings its own code, and that it has no class for.

    Raises:
        UntrustedCodeError: such code, without `trust_remote_code`.
    """
    if not needs_own_code(fields) or fields["model_type"] in CONFIG_MAPPING:  # or registered already
        return
    auto_map = fields["auto_map"]
    if not trust_remote_code:
        raise UntrustedCodeError(
            f"{name} brings Python code of its own ({auto_map['AutoModel']}) and works only with it. It can do on "
            "this machine what you can; if you have read it and trust it, give --trust_remote_code."
        )
    config_class, model_class = (
        get_class_from_dynamic_module(auto_map[auto_class], name, revision=revision)
        for auto_class in ("AutoConfig", "AutoModel")
    )
    AutoConfig.register(fields["model_type"], config_class)
    AutoModel.register(config_class, model_class)


def point_to_code(encoder_config: PretrainedConfig, name_or_path: str) -> None:
    """Says in the configuration where the encoder's code is, for a SARCSE model that is saved somewhere else."""
    source = os.path.abspath(name_or_path) if Path(name_or_path).exists() else name_or_path
    auto_map = getattr(encoder_config, "auto_map", None)
    if auto_map:
        encoder_config.auto_map = {
            auto_class: reference if "--" in reference else f"{source}--{reference}"
            for auto_class, reference in auto_map.items()
        }


# --- Kinds of models -------------------------------------------------------------------------------------------------


def kind_of_model(name_or_path: str, revision: str = "main") -> Literal["sarcse", "sentence-transformers", "encoder"]:
    """
    How a model wants to be loaded. A SARCSE release has a `modules.json` too, for sentence-transformers' users. What
    cannot be read is called an encoder, for its loading says best what is wrong.
    """
    try:
        fields, _ = PretrainedConfig.get_config_dict(name_or_path, revision=revision)
    except (OSError, ValueError):
        fields = {}  # older sentence-transformers models have their configuration in a subfolder
    if fields.get("model_type") == SarcseConfig.model_type or POOLER_FIELD in fields:
        return "sarcse"
    try:
        return "sentence-transformers" if has_file(name_or_path, "modules.json", revision=revision) else "encoder"
    except (OSError, ValueError):
        return "encoder"
