"""
SARCSE's two losses, and the Trainer that minimises them: on one process or many, with batches that fit into memory or
not.

Shapes: B sentences of one process, M of all processes, L positions, T positions that are reconstructed, d dimensions.
"""

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed
from torch.nn import functional as F
from torch.utils.checkpoint import get_device_states, set_device_states
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.utils import logging

from modeling_sarcse import SarcseModelOutput
from sarcse.arguments import SarcseTrainingArguments, check_metric
from sarcse.checkpoints import (
    SETTINGS_NAME,
    SaveOnSignal,
    check_settings,
    last_good_checkpoint,
    load_weights,
    run_settings,
)
from sarcse.comparison import correlations
from sarcse.embedding import embed_pairs, encode
from sarcse.sentences import SentenceStream
from sarcse.tokens import LengthGroupedSampler, token_lengths


logger = logging.get_logger(__name__)

# Embeddings whose uniformity is above this have collapsed: their mean squared distance is below 0.005, a mean cosine
# similarity above 0.9975. The encoders of the README's results are at -0.6 or below before any training.
COLLAPSED_UNIFORMITY = -0.01


# --- Losses ----------------------------------------------------------------------------------------------------------


def info_nce(
    first: torch.Tensor,
    second: torch.Tensor,
    temperature: float,
    positive_offset: int = 0,
    duplicates: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Contrastive loss of SimCSE (arXiv 2104.08821, equation 1), mean over the rows, in float32:

        -log( exp(cos(first_i, second_i) / temperature) / sum_j exp(cos(first_i, second_j) / temperature) )

    Args:
        first (`torch.Tensor` of shape `(B, d)`): Embeddings of the first dropout view.
        second (`torch.Tensor` of shape `(M, d)`, M >= B): Of the second, those of all processes.
        temperature (`float`): Divides the cosine similarities.
        positive_offset (`int`): Row of `second` that belongs to the first row of `first`.
        duplicates (`torch.BoolTensor` of shape `(B, M)`, *optional*):
            True where j is the same sentence as i. Such a j is left out of the sum, unless it is the positive itself:
            a sentence is no negative of itself.
    """
    similarities = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T  # (B, M)
    positives = torch.arange(len(first), device=first.device) + positive_offset  # (B,)
    if duplicates is not None:
        others = duplicates.scatter(1, positives.unsqueeze(1), False)  # (B, M)
        similarities = similarities.masked_fill(others, float("-inf"))
    return F.cross_entropy(similarities / temperature, positives)


class GatherWithGradient(torch.autograd.Function):
    """
    The rows of all processes, `(B, d)` -> `(M, d)`, in the order of the processes; the gradient of a process' rows is
    the sum of those that all processes have for them.

    torch's own such functions are deprecated, from version to version under another name, and with its functional
    collectives a process of four died at its end now and then.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]


def sentence_keys(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """
    A number for each sentence, `(B, L)` -> `(B,)`, that equal token ids share whatever their padding: the value of a
    polynomial modulo 2^64, so that comparing the sentences of all processes costs M numbers instead of M L.
    """
    factors = torch.full((input_ids.shape[1],), 6364136223846793005, device=input_ids.device)  # Knuth's, for 64 bits
    powers = factors.cumprod(dim=0)[attention_mask.cumsum(dim=1) - 1]  # (L,) -> (B, L), from the first token on
    return ((input_ids + 1) * powers * attention_mask).sum(dim=1)


def weighted_reconstruction(
    errors: torch.Tensor, weights: torch.Tensor, total_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Weighted mean of the tokens' reconstruction errors, sum(w e) / sum(w).

    Args:
        errors (`torch.Tensor` of shape `(B, T)`): From `SarcseModelOutput.reconstruction_errors`.
        weights (`torch.Tensor` of shape `(B, T)`): Zero where there is no content.
        total_weight (`torch.Tensor`, *optional*): Denominator where these are not all sentences of the batch.
    """
    total_weight = weights.sum() if total_weight is None else total_weight
    return (weights * errors).sum() / total_weight.clamp(min=torch.finfo(errors.dtype).tiny)


# --- Trainer ---------------------------------------------------------------------------------------------------------


class SarcseTrainer(Trainer):
    """
    transformers' Trainer with SARCSE's loss, and with graded sentence pairs as evaluation data.

    Args:
        token_weights (`torch.Tensor` of shape `(vocabulary_size,)`, *optional*):
            Weights of the reconstruction errors by token id, needed if `reconstruction_weight` > 0.
        eval_name (`str`): What the pairs are called in the metrics: `eval_{eval_name}_spearman`.
        settings (`dict`, *optional*): From `run_settings`, for the checkpoints. Default: those of the arguments alone.
        train_dataset (`datasets.Dataset` or `SentenceStream`): Column input_ids, or sentences.
        eval_dataset (`datasets.Dataset`): Columns sentence1, sentence2 and score.
    """

    args: SarcseTrainingArguments
    processing_class: PreTrainedTokenizerBase

    # Each loss is a mean over its batch, for the Trainer to divide by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        token_weights: torch.Tensor | None = None,
        eval_name: str = "stsb",
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_metric(self.args.metric_for_best_model, eval_name)
        self.eval_name = eval_name
        self.settings = run_settings(self.args) if settings is None else settings
        self.reconstruct = self.args.reconstruction_weight > 0
        if self.reconstruct:
            self.token_weights = token_weights.to(self.args.device)
            if self.args.reconstruction_anchor > 0:
                # Before a checkpoint is loaded: a run that goes on has the anchor that it began with.
                self.initial_encoder = copy.deepcopy(self.model.encoder).requires_grad_(False).eval()
        elif self.model.config.pooler == "autoencoder":
            # Parameters that get no gradient would stop DistributedDataParallel.
            self.model.sentence_decoder.requires_grad_(False)
        if self.args.world_size > 1 and self.idle_parameters():
            self.accelerator.ddp_handler.find_unused_parameters = True  # costs a little time
        self.save_on_signal = SaveOnSignal()
        self.add_callback(self.save_on_signal)
        self._losses: dict[str, torch.Tensor] = {}
        self._loss_batches = 0
        self._contrast: torch.Tensor | None = None  # the largest contrastive loss since the run began
        self._told_of_contrast = False

    def idle_parameters(self) -> list[str]:
        """
        Names of the parameters that get no gradient from two sentences, though they would be trained: XLNet's for
        masked tokens and for segments. DistributedDataParallel would wait for them, and not average the others.
        """
        batch = self.processing_class(["A.", "A longer sentence."], padding=True, return_tensors="pt")
        inputs = {name: batch[name].to(self.args.device) for name in ("input_ids", "attention_mask")}
        outputs = self.model.train()(**inputs, output_reconstruction=self.reconstruct)
        value = outputs.pooler_output.sum()
        if self.reconstruct:
            value = value + outputs.reconstruction_errors().sum()
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
        return [name for name, gradient in zip(trained, gradients) if gradient is None]

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

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, SarcseModelOutput]:
        """InfoNCE + reconstruction_weight * weighted reconstruction: two dropout views in one forward of 2B rows."""
        rows = self.args.reconstructed_views * len(inputs["input_ids"])
        views = two_views(inputs)
        outputs = model(**views, output_reconstruction=self.reconstruct, reconstructed_rows=rows)
        loss = contrastive = self.contrastive_loss(outputs.pooler_output, inputs)
        reconstruction = None
        if self.reconstruct:
            self.anchor_targets(outputs, views)
            weights = self.content_weights(outputs)
            reconstruction = weighted_reconstruction(
                outputs.reconstruction_errors(), weights, self.share_of_total(weights.sum())
            )
            loss = contrastive + self.args.reconstruction_weight * reconstruction
        self._add_to_log(contrastive, reconstruction)
        return (loss, outputs) if return_outputs else loss

    def contrastive_loss(self, embeddings: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        InfoNCE of this process' sentences, whose two views are the halves of `embeddings`, `(2B, d)`, against the
        second views of all processes; with gradient, since local rows against all columns is the exact global loss.
        """
        first, second = embeddings.chunk(2)  # (2B, d) -> two of (B, d)
        keys = all_keys = sentence_keys(inputs["input_ids"], inputs["attention_mask"])  # (B,)
        if self.args.world_size > 1:
            second = GatherWithGradient.apply(second)  # (B, d) -> (M, d)
            all_keys = self.accelerator.gather(keys)  # (M,)
        return info_nce(
            first,
            second,
            self.args.contrastive_temperature,
            positive_offset=self.args.process_index * len(first),
            duplicates=keys.unsqueeze(1) == all_keys,  # (B, M)
        )

    def anchor_targets(self, outputs: SarcseModelOutput, views: dict[str, Any]) -> None:
        """
        Draw the vectors to reconstruct, `(R, T, d)`, towards those of the encoder before the training, by the share
        that is `reconstruction_anchor`.

        The loss draws the sentence embedding towards the rare tokens' vectors, and by way of the encoder these
        towards the embedding: in the end they are the embedding, easy to reconstruct, and say nothing of the tokens
        (benchmarks/results/README.md). Vectors that stay prevent it.
        """
        if self.args.reconstruction_anchor == 0:
            return
        rows, length = outputs.content_mask.shape
        inputs = {name: views[name][:rows] for name in self.processing_class.model_input_names if name in views}
        with torch.no_grad(), self.accelerator.autocast():
            vectors = self.initial_encoder(**inputs).last_hidden_state  # (R, L, d)
        model = self.accelerator.unwrap_model(self.model)
        packed, _, _ = model.pack_content(vectors, inputs["input_ids"], inputs["attention_mask"])
        target, anchor = outputs.reconstruction_target, packed[:, :length]
        outputs.reconstruction_target = target.lerp(anchor.to(target.dtype), self.args.reconstruction_anchor)

    def content_weights(self, outputs: SarcseModelOutput) -> torch.Tensor:
        """The weight of each token's reconstruction error, `(rows, T)`, zero behind the last content token."""
        return self.token_weights[outputs.content_input_ids] * outputs.content_mask

    def share_of_total(self, weight: torch.Tensor) -> torch.Tensor:
        """
        The denominator of the weighted mean over all processes, from this process' sum of weights; divided by their
        number, since gradients are averaged over processes.
        """
        return self.accelerator.reduce(weight, "sum") / self.args.world_size

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
        if self.args.gradient_cache_mini_batch_size is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self.cached_training_step(model, inputs)
        self._agree(loss, inputs)
        return loss

    def cached_training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        The same gradients, while the activations of no more than `gradient_cache_mini_batch_size` rows are alive:
        gradient caching (Gao et al. 2021, arXiv 2101.06983).

        InfoNCE needs the whole batch, but only its embeddings. A first pass without a graph makes them; InfoNCE gives
        their gradients; a second pass, with the same dropout masks, takes these back through the model, a mini-batch
        at a time. The reconstruction loss is a sum over the sentences and takes the second pass only.
        """
        model.train()
        size = self.args.gradient_cache_mini_batch_size
        mini_batches = self.mini_batches(inputs)
        replays, embeddings, weight = [], [], 0.0
        with torch.no_grad():
            for mini_batch in mini_batches:
                replays.append(replay_randomness(mini_batch["input_ids"]))
                outputs = model(**mini_batch)
                embeddings.append(outputs.pooler_output)  # (size, d)
                if mini_batch["output_reconstruction"]:
                    weight = weight + self.content_weights(outputs).sum()
        embeddings = torch.cat(embeddings).requires_grad_()  # (2B, d)
        loss = contrastive = self.contrastive_loss(embeddings, inputs)
        contrastive.backward()
        total_weight = self.share_of_total(weight) if self.reconstruct else None
        reconstruction = torch.zeros_like(contrastive) if self.reconstruct else None
        for index in reversed(range(len(mini_batches))):
            # Processes exchange gradients once (unless batches are accumulated beyond it), with the first mini-batch,
            # whose turn is last: it has rows to reconstruct, so that every parameter has a gradient.
            is_last = index == 0
            with replays[index](), nullcontext() if is_last else self.accelerator.no_sync(model):
                outputs = model(**mini_batches[index])
                # Its gradient is the cached one, by the chain rule.
                surrogate = (outputs.pooler_output * embeddings.grad[index * size : (index + 1) * size]).sum()
                if mini_batches[index]["output_reconstruction"]:
                    self.anchor_targets(outputs, mini_batches[index])
                    part = weighted_reconstruction(
                        outputs.reconstruction_errors(), self.content_weights(outputs), total_weight
                    )
                    surrogate = surrogate + self.args.reconstruction_weight * part
                    reconstruction += part.detach()
                self.accelerator.backward(surrogate / self.current_gradient_accumulation_steps)
        if self.reconstruct:
            loss = contrastive + self.args.reconstruction_weight * reconstruction
        self._add_to_log(contrastive, reconstruction)
        return loss.detach() / self.current_gradient_accumulation_steps

    def mini_batches(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        """The model's arguments for `gradient_cache_mini_batch_size` rows of the two views after the other."""
        size = self.args.gradient_cache_mini_batch_size
        names, tensors = zip(*two_views(inputs).items())
        mini_batches = [dict(zip(names, rows)) for rows in zip(*(tensor.split(size) for tensor in tensors))]
        to_reconstruct = self.args.reconstructed_views * len(inputs["input_ids"]) if self.reconstruct else 0
        for index, mini_batch in enumerate(mini_batches):
            rows = max(to_reconstruct - index * size, 0)
            mini_batch.update(output_reconstruction=rows > 0, reconstructed_rows=rows)
        return mini_batches

    def _agree(self, loss: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        """All processes stop for what one of them found: a loss that is not finite, or a signal."""
        found = torch.stack([~loss.isfinite(), torch.tensor(self.save_on_signal.received is not None).to(loss.device)])
        not_finite, signalled = self.accelerator.reduce(found.float(), "sum").tolist()
        self.save_on_signal.agreed = signalled > 0
        if not_finite:
            raise FloatingPointError(self._describe_failure(inputs))

    def _describe_failure(self, inputs: dict[str, torch.Tensor]) -> str:
        """Which step, which sentences and what to go back to; the batch is written to a file."""
        mine = self.processing_class.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        sentences = gather_object(mine)
        path = Path(self.args.output_dir, "non_finite_batch.txt")
        if self.is_world_process_zero():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
        checkpoint = last_good_checkpoint(self.args.output_dir)
        rate = self.args.learning_rate
        return (
            f"step {self.state.global_step + 1}: the loss is not finite. Its {len(sentences)} sentences, from "
            f"{sentences[0][:60]!r} on, are in {path}. "
            + (f"The last good checkpoint is {checkpoint}. " if checkpoint else "There is no good checkpoint yet. ")
            + f"A learning rate that is too high is the usual cause; it was {rate:g} (--learning_rate)."
        )

    def _add_to_log(self, contrastive: torch.Tensor, reconstruction: torch.Tensor | None) -> None:
        losses = {"contrastive_loss": contrastive.detach()}
        self._contrast = losses["contrastive_loss"].clamp(min=0.0 if self._contrast is None else self._contrast)
        if reconstruction is not None:
            losses["reconstruction_loss"] = reconstruction.detach()
        self._losses = {name: value + self._losses.get(name, 0.0) for name, value in losses.items()}
        self._loss_batches += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Puts both losses, as means since the last line, beside the total."""
        if "loss" in logs and self._loss_batches > 0:
            for name, total in self._losses.items():
                logs[name] = self.accelerator.gather(total / self._loss_batches).mean().item()
            self._losses, self._loss_batches = {}, 0
        if "train_loss" in logs or ("loss" in logs and not self._told_of_contrast):  # at the end, and once before it
            self._check_contrast()
        super().log(logs, start_time)

    def _check_contrast(self) -> None:
        """Says so, if InfoNCE has had nothing to learn from since the run began."""
        if self._contrast is None or self.accelerator.gather(self._contrast).max() > 0:
            return
        self._told_of_contrast = True
        if self.is_world_process_zero():
            logger.warning(
                f"Step {self.state.global_step}: the contrastive loss has been exactly 0 since the run began, and has "
                "taught nothing. All sentences of a batch are equal, perhaps cut at --max_seq_length, or "
                f"--contrastive_temperature, now {self.args.contrastive_temperature:g}, is far too low."
            )

    def evaluate(
        self,
        eval_dataset: datasets.Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Spearman x 100, alignment and uniformity of the pairs; every process returns the same numbers."""
        pairs = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        embedded = embed_pairs(partial(encode, model, self.processing_class), pairs)
        geometry = embedded.geometry()
        metrics = {
            f"{self.eval_name}_spearman": correlations(embedded.similarities(), embedded.scores).spearman,
            "alignment": geometry.alignment,
            "uniformity": geometry.uniformity,
        }
        # The log has no missing values: what does not exist is not a number.
        metrics = {f"{metric_key_prefix}_{name}": math.nan if v is None else v for name, v in metrics.items()}
        metrics = broadcast_object_list([metrics])[0]
        if metrics[f"{metric_key_prefix}_uniformity"] > COLLAPSED_UNIFORMITY and self.is_world_process_zero():
            logger.warning(
                f"Step {self.state.global_step}: the embeddings have collapsed, all sentences are nearly the same "
                f"(uniformity {metrics[f'{metric_key_prefix}_uniformity']:.4f}, near 0). Lower --learning_rate, now "
                f"{self.args.learning_rate:g}, or --reconstruction_weight, now {self.args.reconstruction_weight:g}."
            )
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

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
        if self.args.autoencoder_learning_rate != self.args.learning_rate:
            encoder = set(self.accelerator.unwrap_model(self.model).encoder.parameters())
            for group in list(optimizer.param_groups):
                new = [parameter for parameter in group["params"] if parameter not in encoder]
                if new:
                    group["params"] = [parameter for parameter in group["params"] if parameter in encoder]
                    optimizer.add_param_group({**group, "params": new, "lr": self.args.autoencoder_learning_rate})
        return optimizer


def two_views(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every sentence twice, the second views behind the first: dropout gives each row a mask of its own."""
    return {name: tensor.repeat(2, 1) for name, tensor in inputs.items()}  # (B, L) -> (2B, L)


def replay_randomness(*tensors: torch.Tensor) -> Any:
    """A context in which the random numbers of now, on the CPU and on the tensors' devices, are drawn again."""
    cpu_state, (devices, device_states) = torch.get_rng_state(), get_device_states(*tensors)

    @contextmanager
    def replay() -> Iterator[None]:
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(cpu_state)
            set_device_states(devices, device_states)
            yield

    return replay
