"""Configuration of SARCSE: a pretrained text encoder and the TextCNN autoencoder on top of it (arXiv 2402.15153)."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.activations import ACT2FN
from transformers.utils.hub import cached_file


# The version of the code: of the package, of a release's two files, and of every configuration that they save.
__version__ = "0.2.0"

# `pipeline("feature-extraction")` then cuts sentences that are too long; transformers' own class would stop at them.
CUSTOM_PIPELINES = {
    "feature-extraction": {"impl": "modeling_sarcse.SarcsePipeline", "pt": ["AutoModel"], "type": "text"}
}

# With these two files sentence-transformers takes `pooler_output` for the sentence embedding; without them it would
# pool the token vectors by itself, silently. Inputs stay padded: with flash attention it would put the sentences of a
# batch end to end, and a pooler here would see a single one.
SENTENCE_TRANSFORMERS_FILES = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "modeling_sarcse.SarcseTransformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
        "unpad_inputs": False,
    },
}

# Where AutoConfig and AutoModel find the code, in the folder of config.json.
AUTO_MAP = {"AutoConfig": "configuration_sarcse.SarcseConfig", "AutoModel": "modeling_sarcse.SarcseModel"}

# Fields of the encoder's configuration that tools look for at the top level of config.json, too.
OF_ENCODER = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")


class SarcseConfig(PretrainedConfig):
    """
    Everything that [`SarcseModel`] is built from. The paper's kernel sizes are 3, 4 and 5; other sizes are not stated
    in the parts that we had, and their defaults are this project's choices.

    Args:
        encoder_config (`PretrainedConfig` or `dict`, *optional*):
            Configuration of the pretrained text encoder, nested. Default: RoBERTa-base's shape.
        pooler (`str`, defaults to `"autoencoder"`):
            What makes the sentence embedding, a key of `POOLERS` (modeling_sarcse.py), which [`SarcseModel`] checks.
        kernel_sizes (`list[int]`, defaults to `[3, 4, 5]`):
            Widths, in tokens, of the TextCNN's convolutions (paper, section on the autoencoder).
        channels (`int`, *optional*):
            Output channels of each of these convolutions. Default: an eighth of the encoder's hidden size, rounded up
            to a multiple of 8, which GPUs are fast with: 96 for RoBERTa-base. More were no better.
        integration_kernel_size (`int`, defaults to 3):
            Width, in tokens, of the convolution that integrates the scales into vectors of the encoder's hidden size.
        activation (`str`, defaults to `"gelu"`):
            Activation after every convolution of the TextCNNs, a key of transformers' `ACT2FN`.
        decoder_length (`int`, defaults to 32):
            Number of tokens that are reconstructed. Tokens past it are encoded but not reconstructed.
        with_decoder (`bool`, defaults to `True`):
            False in releases, whose decoder is left out: only training and `token_importance` use it.
        special_token_ids (`list[int]`, defaults to `[]`):
            Ids that are not content: the paper drops `<s>` and `</s>` from the sequence, and here the TextCNN and the
            reconstruction do; the mean that the TextCNN adds to has them. They are stored here because
            not every encoder configuration carries them (BERT's has neither `[CLS]` nor `[SEP]`);
            [`SarcseModel.from_encoder_pretrained`] fills them in from the tokenizer.

    Raises:
        ValueError: a field has an impossible value; the message names the field and the value.
    """

    model_type = "sarcse"
    sub_configs = {"encoder_config": AutoConfig}

    def __init__(
        self,
        encoder_config: PretrainedConfig | dict[str, Any] | None = None,
        pooler: str = "autoencoder",
        kernel_sizes: list[int] | tuple[int, ...] = (3, 4, 5),
        channels: int | None = None,
        integration_kernel_size: int = 3,
        activation: str = "gelu",
        decoder_length: int = 32,
        with_decoder: bool = True,
        special_token_ids: list[int] | tuple[int, ...] = (),
        **kwargs: Any,
    ) -> None:
        self.encoder_config = _as_config(encoder_config)
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
        # Of the code that runs, which is also the code that travels with what is saved.
        self.sarcse_version = __version__
        for name in ("sarcse_version", *OF_ENCODER):
            kwargs.pop(name, None)
        _check_earlier_fields(pooler, kwargs)
        super().__init__(**{"custom_pipelines": copy.deepcopy(CUSTOM_PIPELINES), **kwargs})

    @property
    def hidden_size(self) -> int:
        """Size of a sentence embedding: the encoder's hidden size, under the name that other libraries look for."""
        return self.encoder_config.hidden_size

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The encoder's, in which transformers keeps the size of the vocabulary when it is changed."""
        return self.encoder_config

    def to_dict(self) -> dict[str, Any]:
        fields, encoder = super().to_dict(), self.encoder_config.to_dict()
        return {**fields, **{name: encoder[name] for name in OF_ENCODER if name in encoder}}

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """
        Save the configuration with all that loads the model from this folder, in transformers and in
        sentence-transformers: the two files of code, and `SENTENCE_TRANSFORMERS_FILES`. `SarcseModel.save_pretrained`
        and the Trainer come by here, too.
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


def _as_config(encoder_config: PretrainedConfig | dict[str, Any] | None) -> PretrainedConfig:
    if encoder_config is None:
        return AutoConfig.for_model("roberta")
    if isinstance(encoder_config, dict):
        if "model_type" not in encoder_config:
            raise ValueError("`encoder_config` must name its `model_type`, for example 'roberta'.")
        if encoder_config["model_type"] not in CONFIG_MAPPING:
            raise ValueError(
                f"`encoder_config` is of model_type={encoder_config['model_type']!r}, which this version of "
                "transformers does not know. Code that an encoder brings has to be registered with AutoConfig and "
                "AutoModel first."
            )
        encoder_config = AutoConfig.for_model(**encoder_config)
    if not isinstance(encoder_config, PretrainedConfig):
        raise ValueError(f"`encoder_config` must be a configuration or a dict, got {encoder_config!r}.")
    if not hasattr(encoder_config, "hidden_size") or not isinstance(encoder_config.hidden_size, int):
        raise ValueError(
            f"model_type={encoder_config.model_type!r} is not a text encoder that SARCSE can wrap: its configuration "
            "has no single `hidden_size`."
        )
    # A copy, for transformers sets the attention of nested configurations anew, and a loaded encoder would compute
    # with what is set in its own.
    return copy.deepcopy(encoder_config)


def _check_earlier_fields(pooler: str, fields: dict[str, Any]) -> None:
    """
    Takes the fields out that configurations had before version 0.2.0.

    Raises:
        ValueError: they are an autoencoder's, whose layers now make other embeddings of the same weights.
    """
    earlier = [name for name in ("decoder_initialization", "pooling") if fields.pop(name, None) is not None]
    if earlier and pooler == "autoencoder":
        raise ValueError(
            f"`{earlier[0]}` is of a model that was saved before version 0.2.0, whose embedding was the TextCNN's "
            "output alone. Load it with the code in its folder, by AutoModel.from_pretrained with "
            "trust_remote_code=True, or train it again."
        )


def _check_count(name: str, value: int, minimum: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` must be made of whole numbers of at least {minimum}, got {value!r}.")


SarcseConfig.register_for_auto_class()
