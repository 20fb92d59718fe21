# SPDX-License-Identifier: Apache-2.0
"""
SARCSE: sentence embeddings from a pretrained encoder and a TextCNN autoencoder (arXiv 2402.15153).

Shapes, throughout the project: B sentences, L positions with padding, d hidden size, c channels, K kernel sizes. The
reconstruction has R rows and T = min(L, decoder_length) positions.
"""

import copy
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    DataCollatorWithPadding,
    FeatureExtractionPipeline,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging


try:  # The Hub's loader imports this file as part of a package ...
    from .configuration_sarcse import SarcseConfig
except ImportError:  # ... and a script beside it as a top-level module; a plain import here would confuse that loader.
    SarcseConfig = importlib.import_module("configuration_sarcse").SarcseConfig


@dataclass
class SarcseModelOutput(ModelOutput):
    """
    Output of [`SarcseModel`]. The sentence embeddings come first: `outputs[0]` is what `pipeline` takes.

    Args:
        pooler_output (`(B, d)`): The sentence embeddings, of length 1 only if `config.normalize`.
        last_hidden_state (`(B, L, d)`):
            The encoder's contextual vectors, in the tokenizer's positions (the paper's X, with special tokens).
        hidden_states, attentions: The encoder's, with `output_hidden_states=True` and `output_attentions=True`.
        reconstruction (`(R, T, d)`):
            The decoder's contextual vectors. This field and the next three need `output_reconstruction=True`.
        reconstruction_target (`(R, T, d)`): The content tokens' vectors (plus word vectors, if the pooler reads these)
            packed to the left, detached from the graph.
        content_mask (`(R, T)`, boolean): True for content tokens, False after the last one.
        content_input_ids (`(R, T)`): The content tokens' ids, by which the training loss weights their errors.
    """

    pooler_output: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    reconstruction: torch.Tensor | None = None
    reconstruction_target: torch.Tensor | None = None
    content_mask: torch.Tensor | None = None
    content_input_ids: torch.Tensor | None = None


class SameConv1d(nn.Conv1d):
    """
    Convolution over `(B, L, in)` that keeps the length, for even kernels too: the extra zero goes on the right. In two
    dimensions, of height 1, it takes channels that come last in memory; torch's own would copy its input and output.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        width = self.kernel_size[0]
        padded = F.pad(hidden_states, (0, 0, (width - 1) // 2, width // 2))  # (B, L + width - 1, in)
        image = padded.transpose(1, 2).unsqueeze(2)  # (B, in, 1, L + width - 1)
        return F.conv2d(image, self.weight.unsqueeze(2), self.bias).squeeze(2).transpose(1, 2)  # (B, L, out)


class TextCNN(nn.Module):
    """Convolutions of several widths side by side: the multi-scale representations H3, H4, H5 of the paper."""

    def __init__(self, config: SarcseConfig, in_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            SameConv1d(in_channels, config.channels, kernel_size) for kernel_size in config.kernel_sizes
        )
        self.activation = ACT2FN[config.activation]

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scales = [self.activation(convolution(hidden_states)) for convolution in self.convolutions]  # K x (B, L, c)
        # Masked, because biases fill the padding, and the next convolution would see them.
        return torch.cat(scales, dim=-1) * mask.unsqueeze(-1)  # (B, L, K c)


class TextCNNDecoder(nn.Module):
    """
    The paper's decoder: from a sentence embedding to contextual vectors, by a transposed convolution to
    `decoder_length` positions, a TextCNN and a linear layer.
    """

    def __init__(self, config: SarcseConfig) -> None:
        super().__init__()
        width = config.channels * len(config.kernel_sizes)
        self.expansion = nn.ConvTranspose1d(config.hidden_size, width, config.decoder_length)
        self.activation = ACT2FN[config.activation]
        self.textcnn = TextCNN(config, width)
        self.output = nn.Linear(width, config.hidden_size)  # a convolution of width 1

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # A transposed convolution from length 1 is a matrix product: no overlaps to add up.
        product = embeddings @ self.expansion.weight.flatten(1)  # (B, d) -> (B, K c decoder_length)
        expanded = product.unflatten(1, self.expansion.weight.shape[1:]).transpose(1, 2) + self.expansion.bias
        expanded = self.activation(expanded[:, : mask.shape[1]]) * mask.unsqueeze(-1)  # (B, T, K c)
        return self.output(self.textcnn(expanded, mask))  # (B, T, d)


class SarcseDecoder(TextCNNDecoder):
    """
    The paper's decoder, added to the embedding at every position. It is zero at first, so a token's error begins as
    its distance from the embedding. From the first step on, the error's gradient pulls the embedding to the weighted
    mean of the tokens' vectors, which is itself a good embedding (Arora, Liang and Ma, ICLR 2017).
    """

    zero_at_first = "output"

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return embeddings.unsqueeze(1) + super().forward(embeddings, mask)  # (B, T, d)


class Pooler(nn.Module):
    """
    Base class of the modules that make sentence embeddings. Code that depends on the pooler reads these attributes.

    `forward` turns vectors `(B, L, d)` into embeddings `(B, d)`. It also takes two boolean masks `(B, L)`, of the
    attended tokens and of the content tokens; only a pooler with `of_content` needs the second.

    Attributes:
        description (`str`): What the embedding is, for cards and help texts.
        has_layers (`bool`): The pooler has weights of its own, which an encoder alone lacks.
        of_content (`bool`): The pooler needs the mask of the content tokens.
        with_words (`bool`): Its input has the word vectors after the contextual ones, `(B, L, 2d)`.
        pooling_mode (`str`, *optional*): Its name in sentence-transformers, if a plain encoder can be pooled this way.
        decoder (`type`, *optional*): Maps embeddings `(B, d)` and a mask `(B, T)` to a reconstruction `(B, T, d)`.
        projection (`type`, *optional*): A layer after the embedding, `(B, d)` -> `(B, d)`, during training only.
    """

    description: str
    has_layers = False
    of_content = False
    with_words = False
    pooling_mode: str | None = None
    decoder: type[nn.Module] | None = None
    projection: type[nn.Module] | None = None

    def __init__(self, config: SarcseConfig) -> None:
        super().__init__()


class TrainingProjection(nn.Linear):
    """SimCSE's projection, used during training only ("MLP during training", arXiv 2104.08821, section 6.3)."""

    def __init__(self, config: SarcseConfig) -> None:
        super().__init__(config.hidden_size, config.hidden_size)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return torch.tanh(super().forward(embeddings))  # (B, d) -> (B, d)


class FirstToken(Pooler):
    """First-token pooling: the vector at the mask's first True, which is not position 0 if padding is on the left."""

    description = "the first token's vector"
    pooling_mode = "cls"
    projection = TrainingProjection

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor, content: Any = None) -> torch.Tensor:
        first = mask.long().argmax(dim=1).view(-1, 1, 1)  # (B, L) -> (B, 1, 1)
        return hidden_states.gather(1, first.expand(-1, 1, hidden_states.shape[2])).squeeze(1)  # (B, L, d) -> (B, d)


class Repetition(nn.Module):
    """A decoder without weights: the sentence embedding at every position, like that of a fresh `SarcseDecoder`."""

    def __init__(self, config: SarcseConfig) -> None:
        super().__init__()

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return embeddings.unsqueeze(1).expand(-1, mask.shape[1], -1)  # (B, d) -> (B, T, d)


def token_mean(hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over the attended tokens, `(B, L, d)` -> `(B, d)`, summed in float32."""
    total = (hidden_states.float() * mask.unsqueeze(-1)).sum(dim=1)  # (B, L, d) -> (B, d)
    return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden_states.dtype)


class Mean(Pooler):
    """Mean pooling over the attended tokens."""

    description = "the mean of the token vectors"
    pooling_mode: str | None = "mean"
    decoder: type[nn.Module] | None = Repetition

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor, content: Any = None) -> torch.Tensor:
        return token_mean(hidden_states, mask)


class TextCNNEncoder(Pooler):
    """The paper's encoder: the mean of what a TextCNN and an integrating convolution make of the content tokens."""

    description = "the integrated and averaged scales of a TextCNN"
    has_layers = True
    of_content = True
    decoder: type[nn.Module] | None = TextCNNDecoder

    def __init__(self, config: SarcseConfig) -> None:
        super().__init__(config)
        self.textcnn = TextCNN(config, config.hidden_size)
        self.integration = SameConv1d(
            config.channels * len(config.kernel_sizes), config.hidden_size, config.integration_kernel_size
        )

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor, content: Any = None) -> torch.Tensor:
        packed, counted = pack_left(hidden_states, content)  # (B, L, d), (B, L)
        return token_mean(self.integration(self.textcnn(packed, counted)), counted)  # (B, L, d) -> (B, d)


class SarcseEncoder(TextCNNEncoder):
    """The default until 0.2: the mean of the token vectors plus the paper's encoder, which is zero at first."""

    description = f"{Mean.description} plus {TextCNNEncoder.description}"
    decoder = SarcseDecoder
    zero_at_first = "integration"

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor, content: Any = None) -> torch.Tensor:
        return token_mean(hidden_states, mask) + super().forward(hidden_states, mask, content)


class WeightedWords(TextCNNEncoder):
    """
    The mean of the contextual vectors x plus the mean of the word vectors w (the encoder's word embeddings), in which
    the integrated scales g of a TextCNN weigh each dimension j of each token t:

        mean_t x_tj + sum_t exp(g_tj) w_tj / sum_t exp(g_tj)

    A TextCNN on the contextual vectors adds nothing: training draws their mean itself to what the TextCNN could add.
    Word vectors, which TextCNNs have read from the start (arXiv 1408.5882), keep the single words that contextual
    vectors blend (docs/results.md). The weights are equal at first.
    """

    description = f"{Mean.description} plus the mean of the word vectors, weighted by a TextCNN"
    of_content = False
    with_words = True
    decoder = SarcseDecoder
    zero_at_first = "integration"

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor, content: Any = None) -> torch.Tensor:
        contextual, words = hidden_states.chunk(2, dim=-1)  # (B, L, 2d) -> two of (B, L, d)
        return token_mean(contextual, mask) + self.weighted_mean(words, mask)

    def weighted_mean(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = words * mask.unsqueeze(-1)
        scores = self.integration(self.textcnn(words, mask)).float()  # (B, L, d)
        scores = scores.masked_fill(~mask.unsqueeze(-1), torch.finfo(scores.dtype).min)
        return (scores.softmax(dim=1) * words).sum(dim=1).to(words.dtype)  # (B, L, d) -> (B, d)


POOLERS: dict[str, type[Pooler]] = {
    "words": WeightedWords,
    "autoencoder": SarcseEncoder,
    "textcnn": TextCNNEncoder,
    "cls": FirstToken,
    "mean": Mean,
}


class SarcseModel(PreTrainedModel):
    """
    A sentence-embedding model: a pretrained text encoder and a pooler on top, one of `POOLERS`.

    Args:
        config (`SarcseConfig`): Configuration of the whole model.
        encoder (`PreTrainedModel`, *optional*):
            A loaded encoder, whose configuration becomes `config.encoder_config`; the new layers get the weights that
            training begins with. Default: a new encoder with random weights.

    Raises:
        ValueError: if the pooler or the encoder's type is unknown, or the encoder's vectors have the wrong size.
    """

    config_class = SarcseConfig
    base_model_prefix = "sarcse"
    supports_gradient_checkpointing = True
    # Attention happens in the encoder, which checks for itself whether it supports the requested implementation.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The loss is a mean over each batch (InfoNCE does not add up over micro-batches): the Trainer must divide it by
    # the number of gradient accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: SarcseConfig, encoder: PreTrainedModel | None = None) -> None:
        if config.pooler not in POOLERS:
            raise ValueError(f"`pooler` must be one of {', '.join(POOLERS)}, got {config.pooler!r}.")
        if encoder is not None and encoder.config.hidden_size != config.hidden_size:
            sizes = f"{encoder.config.hidden_size}, but the configuration says {config.hidden_size}"
            raise ValueError(f"`encoder` has vectors of size {sizes}.")
        super().__init__(config)
        self.source: dict[str, str] = {}  # where `from_pretrained` was told to look: a revision, a subfolder, a cache
        self.given_tokenizer: PreTrainedTokenizerBase | None = None
        if encoder is None:
            auto_class, options = encoder_class(config.encoder_config)
            self.encoder = auto_class.from_config(config.encoder_config, **options)
        else:
            self.encoder = encoder
            config.encoder_config = encoder.config
        # An encoder takes any other keyword without a word. (Some tokenizers give `token_type_ids` to every encoder.)
        own = inspect.signature(self.encoder.forward).parameters.keys() - {"kwargs"}
        self.encoder_arguments = {*own, *inspect.get_annotations(TransformersKwargs), "token_type_ids"}
        self.sentence_encoder = pooler = POOLERS[config.pooler](config)
        self.sentence_decoder = pooler.decoder(config) if pooler.decoder and config.with_decoder else None
        self.projection = pooler.projection(config) if pooler.projection else None
        self.post_init()
        if encoder is not None:
            for layers in filter(None, (self.sentence_encoder, self.sentence_decoder, self.projection)):
                layers.to(device=encoder.device, dtype=encoder.dtype)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. The model also remembers its revision, whose tokenizer [`own_tokenizer`] returns."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.source = {name: kwargs[name] for name in ("revision", "subfolder", "cache_dir") if kwargs.get(name)}
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        Variance-preserving weights and zero biases for the new layers; the encoder initialises its own. The last
        layers of the default's TextCNN and decoder are zero (like those of residual branches in arXiv 1901.09321):
        training begins with means, a strong baseline, instead of a random mixture that has to catch up with them.
        """
        zero = [part.get_submodule(part.zero_at_first) for part in self.children() if hasattr(part, "zero_at_first")]
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            if module in zero:
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):  # new tokens, after `resize_token_embeddings`
            self.encoder._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_reconstruction: bool = False,
        reconstructed_rows: int | None = None,
        views: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        **encoder_kwargs: Any,
    ) -> SarcseModelOutput:
        """
        Sentence embeddings of a batch and, if asked for, the reconstruction of its tokens.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): Token ids, padded on either side.
            attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 for tokens, 0 for padding. Default: ones.
            inputs_embeds (`torch.Tensor` of shape `(B, L, d)`, *optional*):
                What the encoder reads instead of `input_ids`, which then only identify the special tokens.
            output_reconstruction (`bool`): Also decode, for training and for token importance.
            reconstructed_rows (`int`, *optional*): Decode only this many rows, from the first. Default: all B.
            views (`Callable`, *optional*):
                Makes two views of each row from its vectors and their mask: `(B, L, d)` and `(B, L)` -> `(2B, L, d)`.
                `pooler_output` is then `(2B, d)`, the first views first, which alone are reconstructed.
            encoder_kwargs: Passed to the encoder, for example `token_type_ids` or `output_hidden_states`.

        Raises:
            ValueError: if there is no decoder to reconstruct with, no `input_ids` where the special tokens must be
                known, or no argument of a keyword's name.
        """
        if unknown := encoder_kwargs.keys() - self.encoder_arguments:
            raise ValueError(f"neither this model nor its encoder has an argument {', '.join(sorted(unknown))}.")
        decoder = self.require_decoder() if output_reconstruction else None
        pooler = self.sentence_encoder
        read: dict[str, Any] = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        content_matters = pooler.of_content or decoder is not None
        if input_ids is None and (inputs_embeds is None or content_matters):
            beside = "" if inputs_embeds is None else " beside `inputs_embeds`, to identify the special tokens"
            raise ValueError(f"`input_ids` are needed{beside}.")
        if attention_mask is None:
            (given,) = read.values()
            attention_mask = torch.ones(given.shape[:2], dtype=torch.long, device=self.device)
        # As asked for by `from_pretrained(..., output_hidden_states=True)`.
        if self.config.output_hidden_states:
            encoder_kwargs.setdefault("output_hidden_states", True)
        if self.config.output_attentions:
            encoder_kwargs.setdefault("output_attentions", True)
        encoded = self.encoder(**read, attention_mask=attention_mask, **encoder_kwargs)
        mask = attention_mask.bool()  # (B, L)
        vectors = pooled = self.pooled_vectors(encoded.last_hidden_state, input_ids, inputs_embeds)  # (B, L, d or 2d)
        masks = [mask]
        if content_matters and input_ids is not None:
            masks.append(content := self._content_mask(input_ids, attention_mask))  # (B, L)
        if views is not None:
            vectors = views(pooled, mask)  # (2B, L, d or 2d)
            masks = [each.repeat(2, 1) for each in masks]  # (2B, L)
        embeddings = pooler(vectors, *masks)  # (B, d), or (2B, d)
        if self.training and self.projection is not None:
            embeddings = self.projection(embeddings)  # (B, d)
        reconstruction = {}
        if decoder is not None and input_ids is not None:
            content, length = content[:reconstructed_rows], self.config.decoder_length  # (R, L)
            parts = pooled[: len(content)].detach().unflatten(-1, (-1, self.config.hidden_size))  # (R, L, 1 or 2, d)
            target, packed = pack_left(parts.sum(dim=-2), content)  # (R, L, d), (R, L)
            ids, _ = pack_left(input_ids[: len(content)], content)  # (R, L)
            reconstruction = {
                "reconstruction": decoder(embeddings[: len(content)], packed[:, :length]),  # (R, T, d)
                "reconstruction_target": target[:, :length],  # (R, T, d)
                "content_mask": packed[:, :length],  # (R, T)
                "content_input_ids": ids[:, :length],  # (R, T)
            }
        if self.config.normalize:  # after the reconstruction, whose scale is that of the token vectors
            embeddings = F.normalize(embeddings, dim=1)
        return SarcseModelOutput(
            pooler_output=embeddings,
            last_hidden_state=encoded.last_hidden_state,
            hidden_states=encoded.get("hidden_states"),
            attentions=encoded.get("attentions"),
            **reconstruction,
        )

    def pooled_vectors(self, contextual: torch.Tensor, input_ids: Any, inputs_embeds: Any = None) -> torch.Tensor:
        """
        What the pooler reads, `(B, L, d)`: the contextual vectors, or with word vectors after them, `(B, L, 2d)`. A
        word vector is the encoder's word embedding at the length of the contextual vector. An embedding with fewer
        dimensions (ALBERT) is filled up with zeros.
        """
        if not self.sentence_encoder.with_words:
            return contextual
        words = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds  # (B, L, e)
        words = F.pad(F.normalize(words, dim=-1), (0, contextual.shape[-1] - words.shape[-1]))  # (B, L, d)
        return torch.cat([contextual, words * contextual.norm(dim=-1, keepdim=True)], dim=-1)

    def require_decoder(self) -> nn.Module:
        """The decoder. A ValueError says why there is none: the pooler has none, or a release leaves it out."""
        if self.sentence_decoder is not None:
            return self.sentence_decoder
        if self.sentence_encoder.decoder is None:
            able = ", ".join(name for name, pooler in POOLERS.items() if pooler.decoder is not None)
            raise ValueError(f"pooler={self.config.pooler!r} has no reconstruction: these have one: {able}.")
        raise ValueError(
            f"{self.name_or_path or 'this model'} has no decoder, which a release leaves out, so nothing can be "
            "reconstructed. Use the folder that the training wrote, or a release made --with_decoder. Training with "
            "--reconstruction_weight 0 needs no decoder."
        )

    def _content_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`(B, L)`, True for content tokens. An empty sentence keeps its special tokens, to have an embedding."""
        attended = attention_mask.bool()
        special_token_ids = torch.tensor(self.config.special_token_ids, dtype=input_ids.dtype, device=input_ids.device)
        special = (input_ids.unsqueeze(-1) == special_token_ids).any(dim=-1)  # (B, L, S) -> (B, L); isin has no ONNX
        content = attended & ~special
        return content | attended & ~content.any(dim=1, keepdim=True)

    def own_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer loaded with the model, or else the one beside it; a ValueError if there is none."""
        if self.given_tokenizer is not None:
            return self.given_tokenizer
        place, problem = self.name_or_path or "this model, which was not loaded from anywhere,", "no files"
        config = self.config.encoder_config  # with the model's own, it would ask to run the model's code
        try:
            if self.name_or_path:
                tokenizer = AutoTokenizer.from_pretrained(self.name_or_path, config=config, **self.source)
                if not is_made_up(tokenizer, config):
                    return tokenizer
        except (OSError, ValueError) as error:
            problem = str(error).partition("\n")[0]
        raise ValueError(f"{place} has no tokenizer that can be loaded ({problem}): pass the model's own.")

    @torch.no_grad()
    def encode(
        self,
        sentences: list[str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 64,
        normalize: bool = False,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """
        Encode a list of sentences of any length as in evaluation mode, whatever the model's mode.

        Args:
            sentences (`list[str]`): Cut at the encoder's limit. Any iterable of strings will do.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                Default: the one beside the model ([`own_tokenizer`]), loaded on every call.
            batch_size (`int`): Sentences encoded at once.
            normalize (`bool`): Scale the embeddings to length 1, so that their products are cosine similarities.
            show_progress_bar (`bool`, *optional*): Default: only in a terminal.

        Returns:
            `np.ndarray` of shape `(len(sentences), d)`, float32, in the order of `sentences`.

        Raises:
            ValueError: if `sentences` is one string or a table, or one of them is not text; if `batch_size` is below
                1, or there is no tokenizer.
        """
        texts = list_of_sentences(sentences)
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if tokenizer is None:
            tokenizer = self.own_tokenizer()
        token_ids = token_ids_of(texts, tokenizer, encoder_max_length(self, tokenizer))
        # An empty text has no tokens if the tokenizer adds none (GPT-2). Its embedding is zero.
        readable = [row for row, ids in enumerate(token_ids) if ids]
        batches = rows_by_length([token_ids[row] for row in readable], batch_size)
        pad = DataCollatorWithPadding(tokenizer)
        embeddings = torch.zeros(len(token_ids), self.config.hidden_size, dtype=torch.float32, device="cpu")
        disable = None if show_progress_bar is None else not show_progress_bar
        model = in_evaluation_mode(self)
        for places in logging.tqdm(batches, desc="Encoding", leave=False, disable=disable):
            rows = [readable[place] for place in places]
            batch = pad([{"input_ids": token_ids[row]} for row in rows])
            output = model(**batch.to(self.device), return_dict=True)
            embeddings[rows] = output.pooler_output.float().cpu()  # (batch_size, d)
        return (F.normalize(embeddings, dim=1) if normalize else embeddings).numpy()


def is_made_up(tokenizer: PreTrainedTokenizerBase, encoder_config: Any) -> bool:
    """
    Whether a tokenizer has far fewer tokens than the encoder. Where a tokenizer's files are missing, transformers
    makes one up of a handful of tokens, to which every word is unknown.
    """
    # Encoders round their vocabulary up, to a multiple of 128 at the most or by a few hundred reserved tokens.
    size = encoder_config.vocab_size if hasattr(encoder_config, "vocab_size") else None  # CANINE has none
    return isinstance(size, int) and len(tokenizer) < size / 2


def position_padding(model: SarcseModel) -> int | None:
    """The padding token after which RoBERTa, MPNet and the like start to number positions; None for other encoders."""
    for name, module in model.encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.padding_idx
    return None


def encoder_max_length(model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """
    The encoder's limit in tokens, special tokens included. None if there is none: relative positions (T5, XLNet) need
    no limit, and a tokenizer that was saved without one has 10^30.
    """
    config: Any = model.config.encoder_config
    limit = tokenizer.model_max_length
    positions = config.max_position_embeddings if hasattr(config, "max_position_embeddings") else None
    if positions is not None and positions > 0:  # XLNet has -1
        # RoBERTa can use 512 of its 514 positions.
        padding = position_padding(model)
        limit = min(limit, positions if padding is None else positions - padding - 1)
    return limit if limit < 10**9 else None


def token_ids_of(texts: list[str], tokenizer: PreTrainedTokenizerBase, limit: int | None) -> list[list[int]]:
    """
    The token ids of each text, cut at the limit and without padding. A fast tokenizer stores where to cut and whether
    to pad, and every call sets both before it reads. Another thread's call may come in between. Where the result shows
    that, a copy of the tokenizer reads the texts again.
    """
    if not texts:
        return []
    options: dict[str, Any] = {"truncation": limit is not None, "max_length": limit}
    batch = tokenizer(texts, **options)
    longest = float("inf") if limit is None else limit
    for encoding in batch.encodings or ():  # none of a tokenizer in Python, which stores nothing
        cut_elsewhere = encoding.overflowing and len(encoding) != limit
        if 0 in encoding.attention_mask or cut_elsewhere or len(encoding) > longest:
            return copy.deepcopy(tokenizer)(texts, **options)["input_ids"]
    return batch["input_ids"]


def list_of_sentences(sentences: Any) -> list[str]:
    """The sentences. A ValueError says what is none: a string, a table (its column names would be), or no text."""
    if isinstance(sentences, str):
        raise ValueError("`sentences` must be a list of strings: pass a single one as [sentence].")
    if isinstance(sentences, dict) or hasattr(sentences, "columns") or hasattr(sentences, "column_names"):
        raise ValueError("`sentences` is a table: pass one of its columns.")
    texts = list(sentences)
    for row, text in enumerate(texts):
        if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
            raise ValueError(f"`sentences` must be text in Unicode; number {row}, counted from 0, is {text!r}.")
    return texts


def in_evaluation_mode(model: Any) -> Any:
    """
    The model, or where a module is in training mode a copy of all modules on the same weights and tokenizer: the
    model's own modes stay as they are, for its training and for other threads.
    """
    if not any(module.training for module in model.modules()):
        return model
    shared = {id(part): part for part in (*model.parameters(), *model.buffers(), model.given_tokenizer)}
    return copy.deepcopy(model, shared).eval()


def rows_by_length(token_ids: list[list[int]], batch_size: int) -> list[list[int]]:
    """The rows of each batch, the longest first: there is little padding, and what does not fit fails at once."""
    order = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class SarcsePipeline(FeatureExtractionPipeline):
    """transformers' feature extraction, which returns the sentence embedding `(1, d)`; long sentences are cut."""

    def preprocess(self, inputs: str, **tokenize_kwargs: Any) -> Any:
        tokenizer: Any = self.tokenizer
        limit = encoder_max_length(self.model, tokenizer)
        return super().preprocess(inputs, **{"truncation": limit is not None, "max_length": limit, **tokenize_kwargs})


def encoder_class(encoder_config: Any) -> tuple[Any, dict[str, bool]]:
    """
    The auto class that builds an encoder, and the keyword that leaves out the encoder's own pooler, if it accepts one.
    Unused parameters would stop DistributedDataParallel, which waits for every gradient.
    """
    if type(encoder_config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        # Only the encoder of T5 and the like; for the others, the same class that AutoModel would take.
        auto_class, model_class = AutoModelForTextEncoding, MODEL_FOR_TEXT_ENCODING_MAPPING[type(encoder_config)]
    elif type(encoder_config) in MODEL_MAPPING and not encoder_config.is_encoder_decoder:
        auto_class, model_class = AutoModel, MODEL_MAPPING[type(encoder_config)]
    else:
        raise ValueError(f"model_type={encoder_config.model_type!r} is not a text encoder that SARCSE can wrap.")
    if isinstance(model_class, tuple):  # Funnel has two, which do not differ in this
        model_class = model_class[0]
    parameters = inspect.signature(model_class).parameters
    return auto_class, {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


def pack_left(sequence: torch.Tensor, content_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Move the content tokens' entries of `(B, L, ...)` to the left, in order, and zero the rest. Convolutions then see
    the same neighbours whatever the padding and its side. Also returns the mask `(B, L)` of what was moved.
    """
    length = content_mask.shape[1]
    # The rest goes to one extra position, which is cut off. (ONNX's exporter has no stable sort.)
    target = torch.where(content_mask, content_mask.cumsum(dim=1) - 1, length)  # (B, L)
    target = target.view(*target.shape, *(1 for _ in sequence.shape[2:])).expand_as(sequence)  # (B, L, ...)
    packed = sequence.new_zeros(sequence.shape[0], length + 1, *sequence.shape[2:])  # (B, L + 1, ...)
    packed = packed.scatter(1, target, sequence)[:, :length]  # (B, L, ...)
    mask = torch.arange(length, device=target.device) < content_mask.sum(dim=1, keepdim=True)  # (B, L)
    return packed, mask


SarcseModel.register_for_auto_class("AutoModel")
