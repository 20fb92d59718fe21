"""
Load a model and its tokenizer by name: a SARCSE model as it was saved, or any other text encoder under fresh layers.
What cannot be used is reported here, in one message, before anything is trained or scored.
"""

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import cached_file, has_file, logging

from configuration_sarcse import SENTENCE_TRANSFORMERS_FILES, SarcseConfig
from modeling_sarcse import POOLERS, SarcseModel, encoder_class, encoder_max_length, is_made_up, position_padding
from sarcse.options import FIRST_LAST


logger = logging.get_logger(__name__)

# The project's own classes, not the copies in a SARCSE folder: no code from a loaded model is run.
AutoConfig.register(SarcseConfig.model_type, SarcseConfig)
AutoModel.register(SarcseConfig, SarcseModel)

# The fields of `SarcseConfig` that are chosen for a training; the others follow from the encoder or the release.
FOLLOWS = {"encoder_config", "with_decoder", "special_token_ids", "normalize", "kwargs"}
ARCHITECTURE = [name for name in inspect.signature(SarcseConfig).parameters if name not in FOLLOWS]

# The field of the encoder's configuration with the pooler of a plain release, which is an encoder to all other tools.
POOLER_FIELD = "sarcse_pooler"

# sentence-transformers' modules of a plain release, the last only where embeddings have length 1. The names are those
# from before its version 6, which every version and other programs know.
PLAIN_MODULES: list[dict[str, Any]] = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]

# What makes a model's embeddings in sentence-transformers.
EMBEDDING_FILES = (
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
)

# The field of an encoder's configuration that says that its training began, maybe several trainings ago, with a
# sentence encoder.
SENTENCE_ENCODER_FIELD = "sarcse_sentence_encoder"

# Fields in the long form of 1_Pooling/config.json.
POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars that transformers shows for each model it reads or writes, which take a moment."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


@without_progress_bars()
def load_model(
    name_or_path: str, revision: str = "main", trust_remote_code: bool = False, **options: Any
) -> tuple[SarcseModel, PreTrainedTokenizerBase]:
    """
    Load a SARCSE model as it was saved or released, or any other text encoder under fresh layers, in evaluation mode.
    Of a sentence encoder its pooling, its length in tokens and the length of its vectors are kept.

    Args:
        name_or_path (`str`): A folder or the id of a model on the Hub.
        revision (`str`): Branch, tag or commit of the model on the Hub.
        trust_remote_code (`bool`): Run an encoder's own code, if transformers has none for it. No release can be made
            of such a model.
        options: `dtype` and `attn_implementation` of `from_pretrained`, and fields of `SarcseConfig`. An encoder's
            weights are in float32 by default, whatever type they are stored in. For a saved SARCSE model, fields must
            have the values it was saved with.

    Returns:
        The model and its tokenizer, which is the default of the model's `encode`.

    Raises:
        ValueError: if nothing can be loaded, it is not a text encoder, or the tokenizer is another model's. Also if a
            field does not exist, has an impossible value or differs from the saved SARCSE model's.
    """
    check_arguments(options)
    found = sentence_encoder(name_or_path, revision)
    config, tokenizer = load_config_and_tokenizer(name_or_path, revision, trust_remote_code)
    if is_sarcse(config.to_dict()) and (changed := changed_in_sentence_transformers(name_or_path, revision)):
        logger.warning(f"{name_or_path}: {changed}, which has no effect without sentence-transformers.")
    with loadable(name_or_path):
        if config.model_type == SarcseConfig.model_type:
            names = {"dtype", "attn_implementation"} & options.keys()
            arguments = {name: options.pop(name) for name in names}
            if config.pooler == FIRST_LAST and options.get("pooler") == "mean":  # for `load_embedders`
                config.pooler, arguments["config"] = options["pooler"], config
            check_saved_fields(name_or_path, config, options)
            model = AutoModel.from_pretrained(name_or_path, revision=revision, **arguments)
        else:
            if (pooler := released_pooler(name_or_path, vars(config))) is not None:
                check_pooler(name_or_path, pooler, options)
            elif found is not None:
                options.update({"pooler": found.pooler} if found.pooler and "pooler" not in options else {})
                tokenizer.model_max_length = found.max_length or tokenizer.model_max_length
            if found is not None:
                options.setdefault("normalize", found.normalize)
            model = fresh_layers_on(name_or_path, config, tokenizer, revision, **options)
            vars(model.config.encoder_config).pop(POOLER_FIELD, None)
    fit_tokenizer(name_or_path, model, tokenizer)
    model.given_tokenizer = tokenizer
    return model.eval(), tokenizer


def check_arguments(options: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: if `load_model` has no argument of one of these names. The configuration would keep it, a token for
            the Hub included.
    """
    unknown = options.keys() - {"dtype", "attn_implementation"} - inspect.signature(SarcseConfig).parameters.keys()
    if unknown:
        raise ValueError(f"load_model has no argument {', '.join(sorted(unknown))}.")


def load_config_and_tokenizer(
    name_or_path: str, revision: str = "main", trust_remote_code: bool = False
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """
    Load a model's configuration and tokenizer.

    Raises:
        ValueError: if nothing at `name_or_path` can be loaded, it needs code that is not trusted, or its tokenizer
            does not fit its encoder.
    """
    fields: dict[str, Any] = {}
    try:
        fields, _ = PretrainedConfig.get_config_dict(name_or_path, revision=revision)
        register_code(name_or_path, fields, revision, trust_remote_code)
        config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=False)
    except UntrustedCodeError:
        raise
    except Exception as error:
        if fields.get("model_type") == SarcseConfig.model_type:  # a field has an impossible value
            raise ValueError(f"{name_or_path}: {error}") from error
        raise ValueError(f"{name_or_path}: {nothing_to_load(name_or_path, error)}.") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and tokenizers raise a dozen exceptions for missing files
        raise ValueError(f"{name_or_path} has no tokenizer that can be loaded ({in_one_line(error)}).") from error
    check_tokenizer(name_or_path, tokenizer, getattr(config, "encoder_config", config))
    return config, tokenizer


def nothing_to_load(name_or_path: str, error: Exception) -> str:
    """Why nothing of this name can be loaded."""
    reason = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    if name_or_path.count("/") != 1 or name_or_path.startswith((".", "~", "/")):  # what the Hub says does not help
        return "neither a model folder nor a model on a reachable Hub"
    if Path(name_or_path).is_dir():
        return f"a folder without a model, which hides any of that name on the Hub ({reason}): rename it"
    return f"neither a model folder nor a model on a reachable Hub ({reason})"


@contextmanager
def loadable(name_or_path: str) -> Iterator[None]:
    """
    A context that turns transformers' exceptions while loading into one line.

    Raises:
        ValueError: if the weights are missing, cut short or of other sizes, or a package is missing.
    """
    try:
        yield
    except ValueError:
        raise
    except SafetensorError as error:
        raise ValueError(f"{name_or_path}: the weights cannot be read; copy them again ({error}).") from error
    except Exception as error:
        raise ValueError(f"{name_or_path}: the model cannot be loaded ({in_one_line(error)}).") from error


def in_one_line(error: Exception) -> str:
    """The type of an exception, and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def check_pooler(name_or_path: str, pooler: str, fields: dict[str, Any]) -> None:
    """
    Set the pooler of a plain release, its only field.

    Raises:
        ValueError: if another pooler was asked for.
    """
    if pooler != fields.setdefault("pooler", pooler):
        raise ValueError(f"{name_or_path} was released with pooler={pooler}: leave --pooler out.")


def check_saved_fields(name_or_path: str, config: PretrainedConfig, fields: dict[str, Any]) -> None:
    """
    Check the fields that were given for a saved SARCSE model.

    Raises:
        ValueError: if one differs from the value in the saved configuration.
    """
    for name, value in fields.items():
        if value != getattr(config, name):
            raise ValueError(f"{name_or_path} was saved with {name}={getattr(config, name)}: leave --{name} out.")


# --- Fresh layers on an encoder --------------------------------------------------------------------------------------


def fresh_layers_on(
    name: str,
    encoder_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    revision: str,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    **fields: Any,
) -> SarcseModel:
    """
    Fresh SARCSE layers on a pretrained encoder, in evaluation mode. `fields` are those of `SarcseConfig`; the
    tokenizer defines the special tokens.

    Raises:
        ValueError: if this is not a text encoder, or a field has an impossible value.
    """
    # The unknown token stays content: it stands for a word of the sentence.
    special_token_ids = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    config = SarcseConfig(
        encoder_config=encoder_config,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{"special_token_ids": sorted(special_token_ids), **fields},
    )
    options = {"revision": revision, "dtype": dtype, "attn_implementation": attn_implementation}
    model = SarcseModel(config, encoder=load_encoder(name, encoder_config, **options))
    model.config._name_or_path = model.name_or_path = name  # what cards call the base model
    model.source = {"revision": revision}
    check_encoder(name, model.eval(), tokenizer)
    return model


def load_encoder(name: str, encoder_config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """
    `from_pretrained`, without its report on the weights of a language model's head, which no encoder has. Weights
    missing from the checkpoint are still reported.

    Raises:
        ValueError: if weights are missing and the folder has code of its own: transformers' class of that name is
            another model.
    """
    auto_class, class_options = encoder_class(encoder_config)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        encoder, loading_info = auto_class.from_pretrained(name, output_loading_info=True, **options, **class_options)
    finally:
        logging.set_verbosity(verbosity)
    if loading_info["missing_keys"]:
        missing = ", ".join(sorted(loading_info["missing_keys"]))
        if hasattr(encoder_config, "auto_map") and encoder_config.model_type in CONFIG_MAPPING_NAMES:
            raise ValueError(
                f"{name} brings its own code as model_type={encoder_config.model_type!r}, which is another model in "
                f"transformers: the checkpoint has no {missing}. SARCSE cannot wrap it."
            )
        logger.warning(f"{name} lacks some weights of the encoder, which are now random: {missing}.")
    return encoder


@torch.no_grad()
def check_encoder(name: str, model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Check that the encoder turns two sentences, one of them padded, into token vectors. Warn if the padding changes
    the first sentence's vectors, as in encoders that mix all positions whatever the mask (FNet).

    Raises:
        ValueError: if it does not. transformers has no list of models that read text alone: this one may need images,
            a decoder's input or boxes, or return another number of vectors.
    """
    batch = tokenizer(["A.", "A longer sentence."], padding=True, return_tensors="pt")
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    encoder = f"{name}, model_type={model.config.encoder_config.model_type!r},"
    refusal = f"{encoder} is not a text encoder that SARCSE can wrap"
    try:
        vectors = model(**inputs).last_hidden_state
    except Exception as error:  # each kind of model raises an exception of its own for a missing input
        raise ValueError(f"{refusal} ({repr(error)[:200]}).") from error
    expected = (*inputs["input_ids"].shape, model.config.hidden_size)
    if vectors.shape != expected:
        raise ValueError(f"{refusal}: its vectors for {expected[:2]} tokens have the shape {tuple(vectors.shape)}.")
    alone = tokenizer(["A."], return_tensors="pt").to(model.device)
    padded = vectors[:1][inputs["attention_mask"][:1].bool()]  # (B, L, d) -> (length, d)
    unpadded = model(alone["input_ids"], alone["attention_mask"]).last_hidden_state[0]  # (length, d)
    if (padded - unpadded).abs().max() > 0.05 * unpadded.abs().max():
        logger.warning(
            f"{encoder} gives a sentence other vectors in a batch with a longer one. Its embeddings depend on the "
            "batch; encode sentences one at a time to compare them."
        )


# --- Tokenizers ------------------------------------------------------------------------------------------------------


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, encoder_config: PretrainedConfig) -> None:
    """
    Check that a tokenizer can be the encoder's own.

    Raises:
        ValueError: if the tokenizer cannot pad, or its vocabulary is not the encoder's.
    """
    size, vocabulary_size = len(tokenizer), getattr(encoder_config, "vocab_size", None)
    if is_made_up(tokenizer, encoder_config):
        raise ValueError(
            f"{name} has no tokenizer of its own: the one found there has {size} tokens, but the encoder has "
            f"{vocabulary_size}. Put the tokenizer's files (tokenizer.json, or the vocabulary) beside the model."
        )
    if isinstance(vocabulary_size, int) and size > vocabulary_size:
        raise ValueError(
            f"{name}: the tokenizer has {size} tokens, but the encoder has only {vocabulary_size}. Use the encoder's "
            "own tokenizer, or call `resize_token_embeddings` on the encoder and save it."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"{name}: the tokenizer has no padding token. Set its `pad_token` and save it beside the model."
        )


def fit_tokenizer(name: str, model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the tokenizer's padding (`check_padding`), and set its maximum length to the encoder's limit."""
    check_padding(name, model, tokenizer)
    tokenizer.model_max_length = encoder_max_length(model, tokenizer) or tokenizer.model_max_length


def check_padding(name: str, model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Check that the tokenizer pads with the encoder's padding token, where positions depend on it.

    Raises:
        ValueError: if the encoder numbers its positions from its padding token, and the tokenizer uses another one.
    """
    index = position_padding(model)
    if index is not None and index != tokenizer.pad_token_id:
        raise ValueError(
            f"{name}: the tokenizer pads with token {tokenizer.pad_token_id}, but the encoder with {index}: the "
            "tokenizer belongs to another model."
        )


@contextmanager
def tokenizer_as_loaded(tokenizer: PreTrainedTokenizerBase | None, revision: str | None = None) -> Iterator[None]:
    """
    A context to save a tokenizer in: with the truncation and the padding of the tokenizer.json that it was loaded
    from, or without any. Every call of a tokenizer leaves its own behind, which programs that read the file follow.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Left alone if it is written in Python or None.
        revision (`str`, *optional*): Branch, tag or commit on the Hub. Default: main.

    Raises:
        OSError: if the file cannot be written, which tokenizers reports as a bare `Exception`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer is not None and backend is not None:
        backend.no_truncation()
        backend.no_padding()
        with suppress(OSError):  # there is no such file, or no longer
            file = cached_file(tokenizer.name_or_path, "tokenizer.json", revision=revision, local_files_only=True)
            own = type(backend).from_file(file)
            if own.truncation is not None:
                backend.enable_truncation(**own.truncation)
            if own.padding is not None:
                backend.enable_padding(**own.padding)
    with tokenizer_errors():
        yield


@contextmanager
def tokenizer_errors() -> Iterator[None]:
    """
    A context to save a tokenizer in.

    Raises:
        OSError: if a file cannot be written, which tokenizers reports as a bare `Exception`.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(f"the tokenizer could not be written: {error}") from error


# --- An encoder's own code -------------------------------------------------------------------------------------------


class UntrustedCodeError(ValueError):
    """An encoder needs its own code, and nobody has allowed it to run."""


def needs_own_code(fields: dict[str, Any]) -> bool:
    """Whether an encoder's configuration refers to its own code, and transformers has none for its type."""
    return {"AutoConfig", "AutoModel"} <= set(fields.get("auto_map", {})) and (
        fields.get("model_type") not in CONFIG_MAPPING_NAMES
    )


def register_code(name: str, fields: dict[str, Any], revision: str, trust_remote_code: bool) -> None:
    """
    Register an encoder's own classes with transformers, if transformers has none for its type.

    Raises:
        UntrustedCodeError: if the encoder needs its own code, and `trust_remote_code` is False.
    """
    if not needs_own_code(fields) or fields["model_type"] in CONFIG_MAPPING:  # or registered already
        return
    auto_map = fields["auto_map"]
    if not trust_remote_code:
        raise UntrustedCodeError(
            f"{name} needs its own Python code ({auto_map['AutoConfig']}, {auto_map['AutoModel']}). That code can do "
            "on this machine whatever you can. If you have read it and trust it, eval_sts.py scores the encoder with "
            "--trust_remote_code. It cannot be trained, since no release has such code."
        )
    config_class, model_class = (
        get_class_from_dynamic_module(auto_map[auto_class], name, revision=revision)
        for auto_class in ("AutoConfig", "AutoModel")
    )
    AutoConfig.register(fields["model_type"], config_class)
    AutoModel.register(config_class, model_class)


# --- Kinds of models -------------------------------------------------------------------------------------------------


def kind_of_model(name_or_path: str, revision: str = "main") -> Literal["sarcse", "sentence-transformers", "encoder"]:
    """
    The kind of a model, which decides how to load it. A SARCSE release counts as `sarcse`, though it also has a
    `modules.json` for sentence-transformers, unless files for that library change the embeddings: by other pooling, a
    further module, a prompt, fewer dimensions, a lower limit or lower case. What cannot be read counts as an encoder,
    since loading it gives the best error message.

    Raises:
        ValueError: if it is a plain release with an unknown pooler.
    """
    fields = config_fields(name_or_path, revision)
    released_pooler(name_or_path, fields)
    try:
        if is_sarcse(fields):
            return "sentence-transformers" if changed_in_sentence_transformers(name_or_path, revision) else "sarcse"
        return "sentence-transformers" if has_file(name_or_path, "modules.json", revision=revision) else "encoder"
    except (OSError, ValueError):
        return "encoder"


def config_fields(name_or_path: str, revision: str) -> dict[str, Any]:
    """The content of config.json; empty for older sentence-transformers models, which have it in a subfolder."""
    try:
        return PretrainedConfig.get_config_dict(name_or_path, revision=revision)[0]
    except (OSError, ValueError):
        return {}


def is_sarcse(fields: dict[str, Any]) -> bool:
    """Whether a configuration is that of a SARCSE model with code, or of a plain release."""
    return fields.get("model_type") == SarcseConfig.model_type or POOLER_FIELD in fields


def plain_poolers() -> dict[str, str]:
    """
    The poolers of plain releases, by name, with their pooling modes: the two that a release's check, its card's
    examples and the page of a Space compute themselves. A model with any other pooler is released with its code.
    """
    return {name: pooler.pooling_mode for name, pooler in POOLERS.items() if pooler.pooling_mode in ("cls", "mean")}


def released_pooler(name_or_path: str, fields: Mapping[str, Any]) -> str | None:
    """
    The pooler of a plain release, which its configuration names; None for any other model.

    Raises:
        ValueError: if no plain release has this pooler.
    """
    if POOLER_FIELD not in fields:
        return None
    pooler, known = fields[POOLER_FIELD], plain_poolers()
    if not isinstance(pooler, str) or pooler not in known:
        raise ValueError(
            f"{name_or_path}: config.json has {POOLER_FIELD}={pooler!r}, which no release of this version has (only "
            f"{' and '.join(known)}). Download the release again, or correct the field."
        )
    return pooler


def embedding_files(name_or_path: str, revision: str) -> list[Any]:
    """
    The contents of `EMBEDDING_FILES` beside a model, `{}` for a file that is not there or, offline, not in the cache.
    Without the first, modules.json, the others are not looked for, which on the Hub takes time.

    Raises:
        OSError, ValueError: if one cannot be read.
    """
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}

    def content(name: str) -> Any:
        file = cached_file(name_or_path, name, _raise_exceptions_for_connection_errors=False, **options)
        return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))

    modules, *others = EMBEDDING_FILES
    return [found, *map(content, others)] if (found := content(modules)) else [{}] * len(EMBEDDING_FILES)


def types_of(modules: list[dict[str, Any]]) -> list[str]:
    """The classes of modules.json, without their packages, whose names depend on the version."""
    return [module["type"].rpartition(".")[2] for module in modules]


# With and without Normalize.
PLAIN_TYPES = types_of(PLAIN_MODULES), types_of(PLAIN_MODULES[:2])

# Of a model with code, the second in models of an earlier version.
CODE_TYPES = types_of(SENTENCE_TRANSFORMERS_FILES["modules.json"]), ["SarcseTransformer"]


def changes_of_text(saved: dict[str, Any], transformer: dict[str, Any]) -> dict[str, bool]:
    """What sentence-transformers may do to texts and embeddings beside its modules, and whether it does."""
    return {
        **{
            f"config_sentence_transformers.json has {name} {saved.get(name)!r}": saved.get(name) is not None
            for name in ("default_prompt_name", "truncate_dim")
        },
        "sentence_bert_config.json has do_lower_case": bool(transformer.get("do_lower_case")),
    }


def changed_in_sentence_transformers(name_or_path: str, revision: str = "main") -> str | None:
    """
    What in sentence-transformers' files beside a SARCSE model gives other embeddings than the model itself, with the
    file's name; None if nothing does, or the files cannot be read.
    """
    pooler = released_pooler(name_or_path, config_fields(name_or_path, revision))  # None for a model with code
    mode = None if pooler is None else plain_poolers()[pooler]
    try:
        modules, pooling, saved, transformer, tokenizer = embedding_files(name_or_path, revision)
    except (OSError, ValueError):
        return None
    if not modules:
        return None
    types = types_of(modules)
    expected = CODE_TYPES if pooler is None else PLAIN_TYPES
    length = transformer.get("max_seq_length")
    found = {
        f"modules.json lists {', '.join(types)}": types not in expected,
        f"1_Pooling/config.json pools by {pooling_mode(pooling)}": mode not in (None, pooling_mode(pooling)),
        # A release writes its own limit there.
        f"sentence_bert_config.json has max_seq_length {length}": length is not None
        and length < tokenizer.get("model_max_length", math.inf),
        **changes_of_text(saved, transformer),
    }
    return next((what for what, is_so in found.items() if is_so), None)


def pooling_mode(fields: dict[str, Any]) -> str | None:
    """The mode of sentence-transformers' Pooling: one field since its version 6, and before that a field for each."""
    modes = [mode for name, mode in POOLING_MODES.items() if fields.get(name)]
    return fields.get("pooling_mode", modes[0] if len(modes) == 1 else None)


# --- Sentence encoders -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SentenceEncoder:
    """
    What sentence-transformers' files make of the encoder beside them.

    Args:
        pooler (`str`, *optional*): The pooler that makes the same embeddings; None if none does.
        normalize (`bool`): Its embeddings have length 1.
        max_length (`int`, *optional*): In tokens. Default: what the tokenizer says.
        not_kept (`list[str]`): What no SARCSE model has, with the names of the files.
    """

    pooler: str | None
    normalize: bool
    max_length: int | None
    not_kept: list[str]

    def kept_in(self, model: SarcseModel, tokenizer: PreTrainedTokenizerBase | None) -> str:
        """What a SARCSE model on this encoder keeps of it and what not, for the log, the record and the card."""
        own = {}
        if self.pooler is not None:
            own[f"its {plain_poolers()[self.pooler]} pooling"] = model.config.pooler == self.pooler
        limit = None if tokenizer is None else encoder_max_length(model, tokenizer)
        if limit is not None:
            own[f"its length of {self.max_length or limit} tokens"] = self.max_length in (None, limit)
        if self.normalize:
            own["its vectors of length 1"] = model.config.normalize
        kept = [what for what, is_so in own.items() if is_so]
        lost = [*(what for what, is_so in own.items() if not is_so), *self.not_kept]
        parts = {f"{listed(kept)} {'is' if len(kept) == 1 else 'are'} kept": kept, f"not kept: {listed(lost)}": lost}
        return "; ".join(part for part, names in parts.items() if names)


def listed(names: list[str]) -> str:
    """The names with commas and, before the last, "and"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def sentence_encoder(name_or_path: str, revision: str = "main") -> SentenceEncoder | None:
    """
    What sentence-transformers makes of an encoder or a plain release; None without its files.

    Raises:
        ValueError: if the encoder is not in the same folder as these files.
    """
    try:
        modules, pooling, saved, transformer, _ = embedding_files(name_or_path, revision)
    except (OSError, ValueError):
        return None
    if not modules:
        return None
    types, mode = types_of(modules), pooling_mode(pooling)
    if types[0] == "Transformer" and modules[0]["path"] != "":
        raise ValueError(
            f"{name_or_path}: modules.json has the encoder in the folder {modules[0]['path']}, as early versions of "
            "sentence-transformers saved it. Load it with sentence-transformers and save it again, which puts the "
            "encoder beside that file."
        )
    if not all(module["type"].startswith("sentence_transformers.") for module in modules):
        types = [module["type"] for module in modules]  # classes of its own, whatever their names
    poolers = {mode: name for name, mode in plain_poolers().items()}
    not_kept = [what for what, is_so in changes_of_text(saved, transformer).items() if is_so]
    if types not in PLAIN_TYPES:
        not_kept.append(f"modules.json lists {', '.join(types)}")
    elif mode not in poolers:
        not_kept.append(f"1_Pooling/config.json pools by {mode}")
    return SentenceEncoder(
        pooler=poolers.get(str(mode)) if types in PLAIN_TYPES else None,
        normalize=types[-1] == "Normalize",
        max_length=transformer.get("max_seq_length"),
        not_kept=not_kept,
    )
