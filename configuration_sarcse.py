# SPDX-License-Identifier: Apache-2.0
"""Configuration of SARCSE: a pretrained text encoder and the TextCNN autoencoder on top of it (arXiv 2402.15153)."""

import copy
import json
import shutil
from operator import attrgetter
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.activations import ACT2FN
from transformers.utils.hub import cached_file


# The version of the package, of a release's two code files, and of every configuration that they save.
__version__ = "0.2.0"

# With these two files sentence-transformers uses `pooler_output` as the sentence embedding; without them it would
# silently pool the token vectors itself. Inputs stay padded: with flash attention it would otherwise concatenate the
# sentences of a batch, and a pooler here would see a single one.
SENTENCE_TRANSFORMERS_FILES: dict[str, Any] = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
        "unpad_inputs": False,
    },
}

# Where AutoConfig and AutoModel find the code, in the folder of config.json.
AUTO_MAP = {"AutoConfig": "configuration_sarcse.SarcseConfig", "AutoModel": "modeling_sarcse.SarcseModel"}

# The encoder's sizes that servers read at the top level of config.json (tests/test_plain.py), and those that programs
# also look for in the configuration.
IN_FILE = ("hidden_size", "num_hidden_layers", "max_position_embeddings")
OF_ENCODER = (*IN_FILE, "num_attention_heads", "vocab_size")


class SarcseConfig(PretrainedConfig):
    """
    Configuration of a [`SarcseModel`]: its encoder, its pooler and the layers on top.

    The default kernel sizes are the paper's. Other sizes are not stated in the parts that we had; their defaults are
    this project's choices.

    Args:
        encoder_config (`PretrainedConfig` or `dict`): Of the text encoder, nested. Default: RoBERTa-base's shape.
        pooler (`str`): How the sentence embedding is made: a key of `POOLERS`, which [`SarcseModel`] checks.
        kernel_sizes (`list[int]`): Widths, in tokens, of the TextCNN's convolutions.
        channels (`int`):
            Output channels of each of these convolutions. Default: an eighth of the encoder's hidden size, rounded up
            to a multiple of 8 for speed on GPUs. More were no better.
        integration_kernel_size (`int`): Width, in tokens, of the convolution that integrates the scales.
        activation (`str`): After every convolution of the TextCNNs, a key of transformers' `ACT2FN`.
        decoder_length (`int`): Number of tokens that are reconstructed. Tokens past it are encoded only.
        with_decoder (`bool`): False in releases, whose decoder is left out: only training and token importance use it.
        special_token_ids (`list[int]`):
            Ids that are not content, which `sarcse.load_model` takes from the tokenizer: the reconstruction skips
            them, and in the paper's form the TextCNN. Not every encoder's configuration has them (as BERT's).
        normalize (`bool`): Embeddings have length 1.

    Raises:
        ValueError: if a field has an impossible value, which the message names; or if these are an encoder's fields.
    """

    model_type = "sarcse"
    sub_configs = {"encoder_config": AutoConfig}

    def __init__(
        self,
        encoder_config: PretrainedConfig | dict[str, Any] | None = None,
        pooler: str = "words",
        kernel_sizes: list[int] | tuple[int, ...] = (3, 4, 5),
        channels: int | None = None,
        integration_kernel_size: int = 3,
        activation: str = "gelu",
        decoder_length: int = 32,
        with_decoder: bool = True,
        special_token_ids: list[int] | tuple[int, ...] = (),
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        found = kwargs.pop("model_type", self.model_type)
        if found != self.model_type:  # transformers would build RoBERTa-base with random weights
            raise ValueError(
                f"This is an encoder (model_type={found!r}), not a SARCSE model. `sarcse.load_model` puts fresh "
                "layers on it, and gives a release without code its own pooler."
            )
        self.encoder_config = _as_config({"model_type": "roberta"} if encoder_config is None else encoder_config)
        if not isinstance(kernel_sizes, list | tuple) or not kernel_sizes:
            raise ValueError(f"`kernel_sizes` must be a list of at least one size, got {kernel_sizes!r}.")
        for size in kernel_sizes:
            _check_count("kernel_sizes", size)
        if channels is None:
            channels = 8 * -(-self.encoder_config.hidden_size // 64)  # rounded up
        _check_count("channels", channels)
        _check_count("integration_kernel_size", integration_kernel_size)
        if activation not in ACT2FN:
            raise ValueError(f"`activation` must be one of {', '.join(sorted(ACT2FN))}, got {activation!r}.")
        _check_count("decoder_length", decoder_length)
        for token_id in special_token_ids:
            _check_count("special_token_ids", token_id, minimum=0)

        self.pooler = pooler
        self.kernel_sizes = list(kernel_sizes)
        self.channels = channels
        self.integration_kernel_size = integration_kernel_size
        self.activation = activation
        self.decoder_length = decoder_length
        self.with_decoder = with_decoder
        self.special_token_ids = sorted(special_token_ids)
        self.normalize = normalize
        # The version of the running code, which is also the code that is saved beside the weights.
        self.sarcse_version = __version__
        given = {name: kwargs.pop(name) for name in OF_ENCODER if name in kwargs}
        if kwargs.pop("sarcse_version", None) is None:  # not what `to_dict` wrote
            for name, value in given.items():
                if not hasattr(self, name) or value != attrgetter(name)(self):
                    own = self.encoder_config.attribute_map.get(name, name)  # `dim` is DistilBERT's `hidden_size`
                    raise ValueError(f"`{name}` is the encoder's: set it in `encoder_config`, as {own!r}: {value!r}.")
        # Lets `pipeline("feature-extraction")` cut long sentences; transformers' own class would fail on them.
        pipeline = {"impl": "modeling_sarcse.SarcsePipeline", "pt": ["AutoModel"], "type": "text"}
        super().__init__(**{"custom_pipelines": {"feature-extraction": pipeline}, **kwargs})

    def __getattr__(self, name: str) -> Any:
        """The encoder's sizes, under the names that other libraries look for, whatever the encoder calls them."""
        if name in OF_ENCODER and name != "vocab_size":  # PEFT would read the encoder's file as a SARCSE configuration
            return attrgetter(name)(self.encoder_config)
        raise AttributeError(f"SarcseConfig has no attribute {name!r}")

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The encoder's configuration, where transformers stores the vocabulary size after a resize."""
        return self.encoder_config

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON has them, with the encoder's sizes in `IN_FILE` repeated at the top level."""
        return {**super().to_dict(), **{name: attrgetter(name)(self) for name in IN_FILE if hasattr(self, name)}}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """
        Save the configuration with the two code files and `SENTENCE_TRANSFORMERS_FILES`, which transformers and
        sentence-transformers need to load the model. `SarcseModel.save_pretrained` and the Trainer call this, too.
        """
        folder = Path(save_directory)
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(str(folder))
        code = Path(__file__).with_name("modeling_sarcse.py")
        if not code.is_file():  # AutoConfig alone was loaded
            code = Path(cached_file(self._name_or_path, code.name))
        if folder.resolve() != code.parent:
            shutil.copy(code, folder)
        for name, content in SENTENCE_TRANSFORMERS_FILES.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)


def _as_config(encoder_config: PretrainedConfig | dict[str, Any]) -> PretrainedConfig:
    if isinstance(encoder_config, dict):
        if (found := encoder_config.get("model_type")) not in CONFIG_MAPPING:
            raise ValueError(
                f"`encoder_config` has model_type={found!r}, which this version of transformers does not know. If the "
                "encoder brings its own code, register it with AutoConfig and AutoModel first."
            )
        encoder_config = AutoConfig.for_model(**encoder_config)
    if not isinstance(encoder_config, PretrainedConfig):
        raise ValueError(f"`encoder_config` must be a configuration or a dict, got {encoder_config!r}.")
    if not hasattr(encoder_config, "hidden_size") or not isinstance(encoder_config.hidden_size, int):
        raise ValueError(
            f"model_type={encoder_config.model_type!r} is not a text encoder that SARCSE can wrap: its configuration "
            "has no single `hidden_size`."
        )
    # A copy: transformers resets the attention implementation of nested configurations, and a loaded encoder that
    # shared the object would switch to it.
    return copy.deepcopy(encoder_config)


def _check_count(name: str, value: int, minimum: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` takes whole numbers of at least {minimum}, got {value!r}.")


SarcseConfig.register_for_auto_class()
