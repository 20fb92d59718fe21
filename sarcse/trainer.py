"""
The Trainer that minimises SARCSE's losses, on one process or many, with batches that fit into memory or not.

Shapes: B sentences of one process, L positions, d dimensions.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    IntervalStrategy,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerControl,
    TrainingArguments,
)
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from modeling_sarcse import SarcseModel, SarcseModelOutput
from sarcse.arguments import TRAINABLE_POOLERS, SarcseTrainingArguments, check_metric
from sarcse.checkpoints import SETTINGS_NAME, SaveOnSignal, check_settings, load_weights, run_settings
from sarcse.embedding import embed_pairs, encode, pair_metrics
from sarcse.gradient_cache import GradientCache
from sarcse.losses import (
    ReconstructionAnchor,
    content_weights,
    info_nce,
    sentence_keys,
    share_of_total,
    two_views,
    weighted_reconstruction,
)
from sarcse.sentences import DataArguments, SentenceStream
from sarcse.tokens import (
    LengthGroupedSampler,
    as_token_ids,
    check_readable,
    token_counts,
    token_lengths,
    token_weights,
)
from sarcse.watch import LossWatch, check_collapse, describe_failure


logger = logging.get_logger(__name__)

COUNTED = DataArguments.token_count_samples


class SarcseTrainer(Trainer):
    """
    transformers' Trainer with SARCSE's losses, and with graded sentence pairs as evaluation data.

    Args:
        model (`SarcseModel`), model_init (`Callable`): As in `Trainer`.
        args (`TrainingArguments`, *optional*): transformers' own or SARCSE's, see `SarcseTrainingArguments.of`.
        train_dataset (`datasets.Dataset`, `datasets.IterableDataset`, `SentenceStream` or `list[str]`):
            Sentences in `text` or the only column, or `input_ids`.
        eval_dataset (`datasets.Dataset`, *optional*): Columns sentence1, sentence2 and score. Default: no evaluations.
        processing_class (`PreTrainedTokenizerBase`, *optional*): Default: the tokenizer beside the model.
        token_weights (`torch.Tensor` of shape `(vocabulary_size,)`, *optional*):
            Weights of the reconstruction errors by token id. Default: counted in the training data, of a stream in its
            first `COUNTED` sentences.
        eval_name (`str`): What the pairs are called in the metrics: `eval_{eval_name}_spearman`.
        settings (`dict`, *optional*): From `run_settings`, for the checkpoints. Default: those of the arguments alone.
        max_seq_length (`int`): Tokens of a sentence; longer ones are cut.

    Raises:
        ValueError: no evaluation has the metric that picks the best model, the model's pooler cannot be trained, or
            the training data have no sentences.
    """

    args: SarcseTrainingArguments
    control: TrainerControl
    processing_class: Any  # a tokenizer; None where there are token ids and weights

    # Each loss is a mean over its batch, for the Trainer to divide by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: SarcseModel | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: datasets.Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., SarcseModel] | None = None,
        *,
        token_weights: torch.Tensor | None = None,
        eval_name: str = "stsb",
        settings: dict[str, Any] | None = None,
        max_seq_length: int = DataArguments.max_seq_length,
        **kwargs: Any,
    ) -> None:
        own_args = SarcseTrainingArguments.of(args)
        if eval_dataset is None and own_args.eval_strategy != IntervalStrategy.NO:
            logger.warning("There is no eval_dataset: nothing is scored during the training, and its end is kept.")
            own_args.eval_strategy, own_args.load_best_model_at_end = IntervalStrategy.NO, False
            own_args.metric_for_best_model = None
        check_metric(own_args.metric_for_best_model, eval_name)
        self.anchor: ReconstructionAnchor | None = None
        if model is None and (model_init is None or processing_class is None):
            raise ValueError("SarcseTrainer needs a `model`, or a `model_init` and a tokenizer as `processing_class`.")
        if processing_class is None and model is not None and model.name_or_path:
            processing_class = AutoTokenizer.from_pretrained(model.name_or_path, config=model.config.encoder_config)
        self.processing_class = processing_class  # for the check of a model that `model_init` makes
        super().__init__(
            model, own_args, data_collator, train_dataset, eval_dataset, processing_class, model_init, **kwargs
        )
        if train_dataset is not None and not isinstance(train_dataset, SentenceStream):
            self.train_dataset = as_token_ids(train_dataset, processing_class, max_seq_length)
            if token_weights is None and processing_class is not None:
                token_weights = counted_weights(self.train_dataset, self.model, processing_class, self.args)
        self.eval_name = eval_name
        self.settings = run_settings(self.args) if settings is None else settings
        if token_weights is None and self.reconstruct and train_dataset is not None:
            raise ValueError("`token_weights` are needed, or a train_dataset and a tokenizer, to count the tokens.")
        if token_weights is not None:
            self.token_weights = token_weights.to(self.args.device)
        if model_init is None:
            self.prepare_to_train(self.model)
        self.save_on_signal = SaveOnSignal()
        self.add_callback(self.save_on_signal)
        self.losses = LossWatch(self)

    @property
    def reconstruct(self) -> bool:
        """Whether there is a reconstruction loss; a search may change it."""
        return self.args.reconstruction_weight > 0

    def prepare_to_train(self, model: SarcseModel) -> None:
        """What a fresh model needs before its first step."""
        check_trainable(model)
        if self.reconstruct and self.args.reconstruction_anchor > 0:
            # Before a checkpoint is loaded: a run that goes on has the anchor that it began with.
            self.anchor = ReconstructionAnchor(model, self.args.reconstruction_anchor)
        if not self.reconstruct and model.sentence_decoder is not None:
            # Parameters that get no gradient would stop DistributedDataParallel.
            model.sentence_decoder.requires_grad_(False)
        if self.args.world_size > 1 and idle_parameters(model, self.processing_class, self.reconstruct):
            self.accelerator.ddp_handler.find_unused_parameters = True  # costs a little time

    def call_model_init(self, trial: Any = None) -> SarcseModel:
        model = super().call_model_init(trial)
        self.prepare_to_train(model.to(self.args.device))
        return model

    # --- Data ---

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> torch.utils.data.Sampler:
        if self.args.train_sampling_strategy == "random":
            return super()._get_train_sampler(train_dataset)
        return LengthGroupedSampler(
            token_lengths(self.train_dataset),
            self.args.global_batch_size,
            self.args.data_seed,
            epoch=lambda: int(self.state.epoch),
        )

    def get_train_dataloader(self) -> DataLoader:
        """Of a stream each process reads its own share; accelerate would let one process read for all."""
        if not isinstance(self.train_dataset, SentenceStream):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    # --- Losses ---

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, SarcseModelOutput]:
        """
        InfoNCE + reconstruction_weight * weighted reconstruction: two dropout views in one forward pass of 2B rows, of
        which the first B are reconstructed. (Reconstructing both cost more and was no better.)
        """
        views = two_views(inputs)
        options = {"output_reconstruction": self.reconstruct, "reconstructed_rows": len(inputs["input_ids"])}
        outputs = model(**views, **options)
        loss = contrastive = self.contrastive_loss(outputs.pooler_output, inputs)
        reconstruction = None
        if self.reconstruct:
            reconstruction = self.reconstruction_loss(outputs, views)
            loss = contrastive + self.args.reconstruction_weight * reconstruction
        self.losses.add(contrastive, reconstruction)
        return (loss, outputs) if return_outputs else loss

    def contrastive_loss(self, embeddings: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """InfoNCE of this process' sentences, whose two views are the halves of `embeddings`, `(2B, d)`."""
        keys = sentence_keys(inputs["input_ids"], inputs["attention_mask"])  # (B,)
        first, second = embeddings.chunk(2)  # (2B, d) -> two of (B, d)
        return info_nce(first, second, self.args.contrastive_temperature, keys)

    def reconstruction_loss(
        self, outputs: SarcseModelOutput, views: dict[str, torch.Tensor], total_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`weighted_reconstruction` of the whole batch or, with its `total_weight`, of some of its rows."""
        if self.anchor is not None:
            with self.accelerator.autocast():
                self.anchor.move_target(outputs, views)
        return weighted_reconstruction(outputs, self.token_weights, total_weight)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Forward and backward of one batch.

        Raises:
            FloatingPointError: the loss is not finite; before the optimizer's step, so the weights are still those
                that gave this loss.
        """
        inputs = self._prepare_inputs(inputs)
        if (size := self.args.gradient_cache_mini_batch_size) is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self.cached_training_step(model, inputs, size)
        # All processes stop for what one of them found: a loss that is not finite, or a signal.
        found = torch.stack([~loss.isfinite(), torch.tensor(self.save_on_signal.received is not None).to(loss.device)])
        not_finite, signalled = self.accelerator.reduce(found.float(), "sum").tolist()
        self.save_on_signal.agreed = signalled > 0
        if not_finite:
            raise FloatingPointError(describe_failure(self, inputs))
        return loss

    def cached_training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], size: int) -> torch.Tensor:
        """The same gradients, while the activations of no more than `size` rows are alive."""
        model.train()
        rows = len(inputs["input_ids"]) if self.reconstruct else 0
        cache = GradientCache(model, two_views(inputs), size, rows)
        weights: list[torch.Tensor] = []

        def weigh(outputs: SarcseModelOutput) -> None:
            if outputs.reconstruction is not None:
                weights.append(content_weights(outputs, self.token_weights).sum())

        embeddings = cache.embed(see=weigh)  # (2B, d)
        loss = contrastive = self.contrastive_loss(embeddings, inputs)
        (gradient,) = torch.autograd.grad(contrastive, embeddings)
        total_weight = share_of_total(torch.stack(weights).sum()) if weights else None
        reconstruction = None
        for outputs, views, value in cache.replay(gradient, partial(self.accelerator.no_sync, model)):
            if outputs.reconstruction is not None:
                part = self.reconstruction_loss(outputs, views, total_weight)
                value = value + self.args.reconstruction_weight * part
                reconstruction = part.detach() if reconstruction is None else reconstruction + part.detach()
            self.accelerator.backward(value / self.current_gradient_accumulation_steps)
        if reconstruction is not None:
            loss = contrastive + self.args.reconstruction_weight * reconstruction
        self.losses.add(contrastive, reconstruction)
        return loss.detach() / self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Puts both losses, as means since the last line, beside the total."""
        if "loss" in logs:
            logs.update(self.losses.means())
        if "loss" in logs or "train_loss" in logs:  # which is at the end
            self.losses.check_contrast(last="train_loss" in logs)
        super().log(logs, start_time)

    # --- Evaluation, checkpoints, optimizer ---

    def evaluate(
        self,
        eval_dataset: datasets.Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Spearman x 100, alignment and uniformity of the pairs; every process returns the same numbers. The log has no
        missing values: what does not exist is not a number.
        """
        pairs = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics = self.predict(pairs, ignore_keys, metric_key_prefix).metrics
        metrics = broadcast_object_list([metrics])[0]
        check_collapse(self, metrics[f"{metric_key_prefix}_uniformity"])
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, test_dataset: datasets.Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Cosine similarities of graded pairs, `(P,)`, their scores, and what `evaluate` measures of them."""
        model = self.accelerator.unwrap_model(self.model)
        embedded = embed_pairs(partial(encode, model, self.processing_class), test_dataset)
        measured = pair_metrics(embedded, self.eval_name)
        metrics = {f"{metric_key_prefix}_{name}": math.nan if v is None else v for name, v in measured.items()}
        return PredictionOutput(embedded.similarities(), embedded.scores, metrics)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The settings first: the state, by which a checkpoint is known to be whole, is written last."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS_NAME).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        check_settings(Path(resume_from_checkpoint), self.settings)
        load_weights(self.accelerator.unwrap_model(self.model if model is None else model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_weights(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with the new layers' parameters in groups of their own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        rate = self.args.new_layers_learning_rate
        if rate != self.args.learning_rate:
            encoder = self.accelerator.unwrap_model(self.model).encoder
            split_groups(optimizer, {*encoder.parameters()}, rate)
        return optimizer


def split_groups(optimizer: torch.optim.Optimizer, encoder: set[torch.nn.Parameter], learning_rate: float) -> None:
    """Those parameters of each group that are not the encoder's go to a group with a learning rate of its own."""
    for group in list(optimizer.param_groups):
        new = [parameter for parameter in group["params"] if parameter not in encoder]
        if new:
            group["params"] = [parameter for parameter in group["params"] if parameter in encoder]
            optimizer.add_param_group({**group, "params": new, "lr": learning_rate})


def check_trainable(model: SarcseModel) -> None:
    """
    Raises:
        ValueError: the pooler is a baseline of evaluations.
    """
    if not model.sentence_encoder.trainable:
        able = ", ".join(TRAINABLE_POOLERS)
        raise ValueError(f"pooler={model.config.pooler!r} is for evaluations only; to be trained: {able}.")


def idle_parameters(model: SarcseModel, tokenizer: PreTrainedTokenizerBase, reconstruct: bool) -> list[str]:
    """
    Names of the parameters that get no gradient from two sentences, though they would be trained: XLNet's for masked
    tokens and for segments. DistributedDataParallel would wait for them, and not average the others.
    """
    batch = tokenizer(["A.", "A longer sentence."], padding=True, return_tensors="pt")
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    outputs = model.train()(**inputs, output_reconstruction=reconstruct)
    value = outputs.pooler_output.sum()
    if reconstruct:
        value = value + outputs.reconstruction_errors().sum()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return [name for name, gradient in zip(trained, gradients) if gradient is None]


def counted_weights(
    tokens: datasets.Dataset | datasets.IterableDataset,
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    args: SarcseTrainingArguments,
    name: str = "train_dataset",
) -> torch.Tensor:
    """
    The reconstruction's weights, `(vocabulary_size,)`, by the frequency of the tokens.

    Raises:
        ValueError: the tokenizer cannot read the sentences, which `name` stands for.
    """
    if isinstance(tokens, datasets.IterableDataset):
        tokens = datasets.Dataset.from_list(list(tokens.take(COUNTED)))
    vocabulary_size = getattr(model.config.encoder_config, "vocab_size", len(tokenizer))  # CANINE's has none
    counts = token_counts(tokens, vocabulary_size, model.config.special_token_ids)
    check_readable(counts, tokenizer, name)
    return token_weights(counts, args.frequency_weighting, args.frequency_smoothing)
