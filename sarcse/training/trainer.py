"""
The Trainer that minimises SARCSE's losses, on one or more processes, also with batches that do not fit into memory.

Shapes: B sentences of one process, L positions, d dimensions.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, partial
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list, set_seed
from torch.utils.data import DataLoader
from transformers import (
    IntervalStrategy,
    PreTrainedTokenizerBase,
    TrainerControl,
)
from transformers.trainer_utils import BestRun, HubStrategy, PredictionOutput, TrainOutput
from transformers.utils import logging

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel, SarcseModelOutput
from sarcse.data.general import general_counts, tell_foreign
from sarcse.data.labelled import check_labelled, is_labelled
from sarcse.data.sentences import SentenceStream, fingerprint
from sarcse.data.sts import check_pairs, with_two_scores
from sarcse.data.tokens import LengthGroupedSampler, token_lengths, token_weights
from sarcse.evaluation.comparison import compare
from sarcse.evaluation.embedding import (
    Jobs,
    embed_pairs,
    embed_together,
    encode,
    in_own_precision,
    measure,
    measure_before,
    pair_metrics,
    task_picked_on,
)
from sarcse.evaluation.jobs import labelled_job, same_labels
from sarcse.loading import (
    ARCHITECTURE,
    SENTENCE_ENCODER_FIELD,
    check_tokenizer,
    config_fields,
    fit_tokenizer,
    is_sarcse,
    sentence_encoder,
    tokenizer_as_loaded,
    without_progress_bars,
)
from sarcse.options import CORPUS, ENGLISH, HEALTH, LABELLED
from sarcse.reconstruction import reconstruction_errors
from sarcse.training.arguments import SarcseTrainingArguments, check_reconstruction
from sarcse.training.budget import keep_to_budget
from sarcse.training.checkpoints import (
    SETTINGS_NAME,
    SaveOnSignal,
    alone_in_folder,
    check_saving,
    check_settings,
    checkpoint_to_resume,
    load_weights,
    point_to_best,
    run_settings,
)
from sarcse.training.corpus import Corpus, read_corpus
from sarcse.training.gradient_cache import GradientCache
from sarcse.training.health import HealthCheck
from sarcse.training.losses import (
    batch_losses,
    content_weights,
    share_of_total,
    token_losses,
    two_views,
    weighted_sum,
)
from sarcse.training.record import code_commit, describe_base_model
from sarcse.training.releasing import ADAPTERS, ReleasingTrainer, has_adapters
from sarcse.training.views import dropping
from sarcse.training.watch import (
    EvaluationAtStart,
    LossWatch,
    check_choice,
    check_collapse,
    check_health,
    describe_failure,
    is_healthy,
    verdict,
    was_evaluated,
)


logger = logging.get_logger(__name__)

# Arguments that have their effect when the sentences are read.
READ_ONCE = ("max_seq_length", "health_sentences", "token_count_samples", "token_frequencies")
# The parameters of each decoder that a training without a reconstruction has frozen.
RESTING: WeakKeyDictionary[torch.nn.Module, list[torch.nn.Parameter]] = WeakKeyDictionary()


class SarcseTrainer(ReleasingTrainer):
    """
    transformers' Trainer with SARCSE's losses, graded sentence pairs as evaluation data, and releases for the Hub
    (`ReleasingTrainer`).

    Args:
        model (`SarcseModel`), model_init (`Callable`):
            As in `Trainer`. The model may have PEFT adapters, which a release merges into its weights.
        args (`SarcseTrainingArguments`, *optional*): Default: the arguments' own defaults.
        data_collator (`Callable`, *optional*): As in `Trainer`. Default: one that pads token ids or tokenises streams.
        train_dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[str]`):
            Sentences in `text` or the only column, or `input_ids`. A stream is shuffled, distributed over the
            processes and restarted at its end: set `max_steps`.
        eval_dataset (`datasets.Dataset`, *optional*):
            Graded pairs: columns sentence1, sentence2 and score (from 0 to 5). Or labelled texts: text and label.
            Default: evaluations only check the health, which then picks the best checkpoint.
        processing_class (`PreTrainedTokenizerBase`, *optional*): Default: the tokenizer beside the model.
        token_weights (`torch.Tensor` of shape `(vocabulary_size,)`, *optional*):
            Weights of the reconstruction errors by token id. Default: from the tokens' frequencies, as the arguments
            say (`token_frequencies`, `frequency_weighting`, `frequency_smoothing`).
        eval_name (`str`): Name of the pairs in the metrics, as in `eval_{eval_name}_spearman`.
        tasks (`dict[str, datasets.Dataset]`, *optional*):
            Graded pairs or labelled texts that are scored before and after training, for the card. Default: the
            `eval_dataset`.
        train_source (`dict`, *optional*): `name` and `hub_id` of the training data, for the card.
        model_revision (`str`, *optional*): Branch, tag or commit of the model, for the card. Default: as loaded.

    Raises:
        ValueError: if the model, the tokenizer, the data and the arguments do not fit together; the message says why.
            For example: no evaluation has the metric that picks the best model, the pooler cannot be trained, the
            tokenizer is another model's, the decoder is missing, or there are too few sentences.
    """

    control: TrainerControl
    lr_scheduler: Any

    # Each loss is a mean over its batch, for the Trainer to divide by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: SarcseModel | None = None,
        args: SarcseTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: datasets.Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., SarcseModel] | None = None,
        *,
        token_weights: torch.Tensor | None = None,
        eval_name: str = "pairs",
        tasks: dict[str, datasets.Dataset] | None = None,
        train_source: dict[str, str | None] | None = None,
        model_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, SarcseTrainingArguments | None):
            found = type(args).__name__
            raise ValueError(f"`args` must be SarcseTrainingArguments, whose defaults are SARCSE's, not {found}.")
        own_args = copy.copy(args) if args else SarcseTrainingArguments()  # what is changed below is not the caller's
        own_args.hub_strategy = HubStrategy.END  # checkpoints stay local, and only a release is pushed
        self.eval_name = eval_name
        own_args.resolve_metric(None if eval_dataset is None else self.metric_of(eval_dataset))
        for unused in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
            if kwargs.get(unused) is not None:
                raise ValueError(f"{unused} has no effect: the losses and the metrics are SARCSE's own.")
        eval_dataset = None if eval_dataset is None else check_evaluation("eval_dataset", eval_dataset)
        if tasks is None:
            tasks = (
                {} if eval_dataset is None else {"labelled" if is_labelled(eval_dataset) else "pairs": eval_dataset}
            )
        tasks = {task: check_evaluation(task, rows) for task, rows in tasks.items()}
        if model is None and model_init is None:
            raise ValueError("SarcseTrainer needs a `model` or a `model_init`.")
        # Without pairs, evaluations only check the health; transformers would require a data set.
        evaluated = {} if eval_dataset is None else eval_dataset
        super().__init__(
            model, own_args, data_collator, train_dataset, evaluated, processing_class, model_init, **kwargs
        )
        self.eval_dataset = eval_dataset
        if self.model.config.model_type != SarcseConfig.model_type:
            raise ValueError(
                f"SarcseTrainer trains a SarcseModel, not {type(self.model).__name__}. `load_model` puts fresh layers "
                "on an encoder."
            )
        if has_adapters(self.model) and not hasattr(self.model, "merge_and_unload"):
            raise ValueError("The adapters could not be merged into a release: add them with `peft.get_peft_model`.")
        name = self.model.name_or_path
        if processing_class is None and name:
            processing_class = self.unwrapped.own_tokenizer()
        if processing_class is not None:
            check_tokenizer(name or "the model", processing_class, self.model.config.encoder_config)
            fit_tokenizer(name or "the model", self.model, processing_class)
        elif eval_dataset is not None or tasks:
            raise ValueError("Pairs and labelled texts are text: pass the tokenizer as `processing_class`.")
        self.processing_class = self.callback_handler.processing_class = processing_class
        self.check_form()
        self.tasks = {task: rows for task, rows in tasks.items() if not is_labelled(rows)}
        self.labelled = {task: rows for task, rows in tasks.items() if is_labelled(rows)}
        self.measurements, self.results = {}, None
        revision = model_revision or self.unwrapped.source.get("revision", "main")
        self.base_model = describe_base_model(name, revision)
        self.sentence_encoder = self.kept_of_sentence_encoder(name, revision)
        self.commit = self.seconds = None
        self.checkpoint: Path | None = None  # to resume from
        self.rehearsed_for: str | bool | None = None
        self.rehearsed = self.pushed_later = False
        self.given_weights = token_weights
        self.corpus, self.health = None, None
        if train_dataset is not None:
            self.corpus = read_corpus(train_dataset, processing_class, self.model.config, self.args, train_source)
            self.train_dataset = self.corpus.rows
            if isinstance(self.train_dataset, SentenceStream):
                self.args.train_sampling_strategy = "random"  # for the record: a stream cannot be sorted
            self.data_collator = data_collator or self.corpus.collator
            self.health = self.health_check(self.corpus)
            self.prepare_to_train(self.corpus)
        self.read_once = {name: getattr(self.args, name) for name in READ_ONCE}
        if eval_dataset is None and self.health is None and self.args.eval_strategy != IntervalStrategy.NO:
            self.without_evaluations()
        self.add_callback(EvaluationAtStart(self))
        self.save_on_signal = SaveOnSignal()
        self.add_callback(self.save_on_signal)
        self.losses = LossWatch(self)

    def kept_of_sentence_encoder(self, name: str, revision: str) -> str | None:
        """
        If the training begins with a sentence encoder, or with a SARCSE model on one: lower the default of the
        learning-rate budget, and log and return what is kept. None for any other model.
        """
        encoder = None
        if name and not is_sarcse(config_fields(name, revision)):
            encoder = sentence_encoder(name, revision)
        if encoder is None and not hasattr(self.unwrapped.config.encoder_config, SENTENCE_ENCODER_FIELD):
            self.args.of_sentence_encoder = False  # which a copy of other arguments may say
            return None
        self.args.of_sentence_encoder = True
        kept = None if encoder is None else encoder.kept_in(self.unwrapped, self.processing_class)
        if self.is_world_process_zero():
            what = f"is a sentence encoder: {kept}" if kept else "was trained from a sentence encoder"
            logger.warning(f"{name} {what}; --learning_rate_budget is {self.args.rate_budget:g}.")
        return kept

    @cached_property
    def general_counts(self) -> np.ndarray:
        """How often each token occurs in general text, `(vocabulary_size,)`: English, unless a file is named."""
        general, corpus = self.args.token_frequencies, cast(Corpus, self.corpus)
        general = ENGLISH if general == CORPUS else general
        return general_counts(general, self.processing_class, self.unwrapped.config, len(corpus.counts))

    def health_check(self, corpus: Corpus) -> HealthCheck | None:
        """
        The health check on held-out texts; None if there are none, or they are too few.

        Raises:
            ValueError: if they are too few and the health is to pick the best checkpoint.
        """
        if not corpus.aside:
            return None
        counts = np.ones_like(corpus.counts) if self.processing_class is None else self.general_counts
        try:
            return HealthCheck(corpus.aside, self.unwrapped.config, counts)
        except ValueError as error:
            if self.eval_dataset is not None and self.args.picked_by_health:
                raise ValueError(f"--metric_for_best_model health: {error}.") from error
            logger.warning(f"Evaluations do not check the model's health: {error}.")
            return None

    def without_evaluations(self) -> None:
        """Turn evaluations off, if there are neither graded pairs nor held-out sentences."""
        logger.warning("There are no graded pairs and no health check: nothing is scored, and the last model is kept.")
        self.args.eval_strategy, self.args.load_best_model_at_end = IntervalStrategy.NO, False
        self.args.metric_for_best_model = None

    @property
    def reconstruct(self) -> bool:
        """Whether there is a reconstruction loss; a search may change it."""
        return self.args.reconstruction_weight > 0

    @property
    def view_dropout(self) -> float | None:
        """The share of dimensions that a view of one pass drops, or None for two passes; a search may change it."""
        return self.args.view_dropout_of(self.model.config.pooler)

    def settings(self) -> dict[str, Any]:
        """Everything that affects the result of the run, to be saved in its checkpoints."""
        pairs, args = self.eval_dataset, self.args
        weighted = self.corpus is not None and self.reconstruct
        # The order of a stream depends on who reads it: no worker and one worker differ, too.
        readers = {"processes": args.world_size, "dataloader_num_workers": args.dataloader_num_workers}
        return run_settings(
            args,
            **{name: getattr(self.model.config, name) for name in ARCHITECTURE},
            view_dropout=self.view_dropout or 0.0,
            model_name_or_path=" at ".join(filter(None, self.base_model.values())),
            train_data=self.corpus and self.corpus.identity,
            stream_readers=readers if isinstance(self.train_dataset, SentenceStream) else None,
            token_weights=sha256(self.token_weights.cpu().numpy().tobytes()).hexdigest() if weighted else None,
            eval_data=pairs and f"{len(pairs)} pairs with SHA-256 {fingerprint(pairs)}",
        )

    # --- Training ---

    def prepare_to_train(self, corpus: Corpus) -> None:
        """Prepare the model for its first step, with the current arguments."""
        model, args = self.model, self.args
        if self.args.of_sentence_encoder:
            setattr(self.unwrapped.config.encoder_config, SENTENCE_ENCODER_FIELD, True)
        check_precision(model)
        check_reconstruction(model.config.pooler, args.reconstruction_weight)
        if self.reconstruct:
            self.unwrapped.require_decoder()
            check_decoder_length(model.config, corpus.longest, self.processing_class)
        self.rest_decoder(model.sentence_decoder)
        if args.world_size > 1 and idle_parameters(model, self.reconstruct):
            self.accelerator.ddp_handler.find_unused_parameters = True  # costs a little time
        weights = self.given_weights
        if weights is None:
            counts = corpus.counts
            if args.weighs_tokens and args.token_frequencies != CORPUS:
                counts = self.general_counts
                if self.is_world_process_zero():
                    tell_foreign(args.token_frequencies, counts, corpus.counts)
            weights = token_weights(counts, args.frequency_weighting, args.frequency_smoothing)
        if weights.shape != (len(corpus.counts),):
            raise ValueError(
                f"token_weights must have the shape ({len(corpus.counts)},), one for each token id; got "
                f"{tuple(weights.shape)}."
            )
        self.token_weights = weights.to(args.device)  # (vocabulary_size,)

    def rest_decoder(self, decoder: torch.nn.Module | None) -> None:
        """Freeze a decoder that is not trained, and let the next training with a reconstruction train it again."""
        if decoder is None:
            return
        if not self.reconstruct:
            # Parameters that get no gradient would stop DistributedDataParallel.
            RESTING.setdefault(decoder, [p for p in decoder.parameters() if p.requires_grad])
            decoder.requires_grad_(False)
            return
        for parameter in RESTING.pop(decoder, []):
            parameter.requires_grad_(True)

    def rehearse(self, resume_from_checkpoint: str | bool | None = None) -> None:
        """
        Find the checkpoint to resume from, and try out the optimizer, the scheduler and saving, so that a long
        training does not fail on them later. `train` calls this by itself.

        Raises:
            ValueError: if the checkpoint belongs to a run with other settings or has a flaw, the optimizer or the
                scheduler cannot be created, or the model cannot be saved, or does not load as it was saved.
        """
        args, given = self.args, self.lr_scheduler
        self.checkpoint, self.rehearsed_for = None, resume_from_checkpoint
        if resume_from_checkpoint:  # a path, "last" or True
            self.checkpoint = checkpoint_to_resume(str(resume_from_checkpoint), args.output_dir)
            check_settings(self.checkpoint, self.settings())
            if self.is_world_process_zero():
                point_to_best(self.checkpoint)
            self.accelerator.wait_for_everyone()
        elif self.rehearsed:
            return
        try:
            self.create_optimizer()  # the one that is used
            rehearsal = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
            super().create_scheduler(num_training_steps=10, optimizer=rehearsal)
        except (ImportError, ValueError, TypeError, RuntimeError) as error:
            what = f"--optim {args.optim.value}, --lr_scheduler_type {args.lr_scheduler_type.value}"
            raise ValueError(f"{what}: {error}") from error
        self.lr_scheduler = given
        if args.local_process_index == 0 and not has_adapters(self.model):
            check_saving(self.unwrapped, Path(args.output_dir))
        self.rehearsed = True

    def _hp_search_setup(self, trial: Any) -> None:
        """Prepare the model: it and, in a search, the arguments are known here, and no checkpoint is loaded yet."""
        super()._hp_search_setup(trial)
        changed = [name for name, value in self.read_once.items() if getattr(self.args, name) != value]
        if changed:
            raise ValueError(
                f"{', '.join(changed)}: has no effect on a trainer that has read its sentences. Make another trainer "
                "for another value, instead of a search."
            )
        if self.model_init is not None and self.corpus is not None:
            self.prepare_to_train(self.corpus)
        # Each process has its own seed, so that no two draw the same dropout masks. It is set here, so that a run
        # trains the same model whether it was scored before or not.
        set_seed(self.args.seed, device_specific=True)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        `Trainer.train`, with the `tasks` scored before and after, and a warning that says whether the model is better.
        `resume_from_checkpoint` is a checkpoint's folder, or True or "last" for the last complete one.

        Raises:
            ValueError: if the checkpoint belongs to a run with other settings, or has a flaw, or another run trains
                into the same folder.
            FloatingPointError: if a loss is not finite.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is saved.
        """
        # A search holds the lock for all of its runs, of which several may be at work in other processes.
        with alone_in_folder(self.args) if self.hp_search_backend is None else nullcontext():
            if not self.rehearsed or resume_from_checkpoint != self.rehearsed_for:
                self.rehearse(resume_from_checkpoint)
            checkpoint, self.rehearsed_for = self.checkpoint and str(self.checkpoint), None  # the next may be newer
            self.commit = code_commit()
            scored = (self.tasks or self.labelled) and trial is None  # a search only uses its evaluations
            jobs: Jobs = {task: partial(labelled_job, rows=rows) for task, rows in self.labelled.items()}
            if scored and not self.measurements:
                model = self.call_model_init() if self.model is None else self.model  # after a search there is none
                self.measurements = measure_before(
                    model, self.processing_class, self.tasks, self.base_model["revision"] or "main", jobs
                )
            start = time.monotonic()
            try:
                output = super().train(checkpoint, trial, ignore_keys_for_eval)
            finally:
                self.save_on_signal.restore_handlers()  # after an error, too
            self.seconds = None if checkpoint else time.monotonic() - start
            check_choice(self)
            if scored:
                model = self.unwrapped
                with in_own_precision(model):  # as its file will be read
                    embed = partial(encode, model, self.processing_class)
                    after = measure(embed, self.tasks, model.config.pooler, jobs)
                after.picked_on = task_picked_on(self.picked_on, {**self.tasks, **self.labelled})
                self.measurements[f"after: {self.args.output_dir}"] = after
                if self.is_world_process_zero():
                    self.results = compare(self.measurements, self.tasks)
            if trial is None and self.is_world_process_zero():
                logger.warning(verdict(self))
                if self.args.push_to_hub and not self.pushed_later:
                    logger.warning("push_to_hub is set: `trainer.push_to_hub()` makes the release and pushes it.")
            return output

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Skip an epoch after the last step: a resumed run that had ended within an epoch would make one more step."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """
        `Trainer.hyperparameter_search`, whose default objective is `metric_for_best_model` in its better direction, or
        else Spearman's correlation. (transformers adds up all metrics, though some are better when lower.)

        Raises:
            ValueError: if there are no graded pairs and no `compute_objective`: the health does not rank models.
        """
        if self.eval_dataset is None and compute_objective is None:
            raise ValueError(
                "hyperparameter_search needs an eval_dataset: graded pairs to compare the runs on. (Or a "
                "compute_objective; the health tells better from worse than before, and does not rank models.)"
            )
        metric = self.args.metric_for_best_model or self.metric_of(self.eval_dataset)
        if direction is None:
            direction = "minimize" if compute_objective else "maximize"
        objective = compute_objective or itemgetter(f"eval_{metric}")
        with alone_in_folder(self.args):
            return super().hyperparameter_search(hp_space, objective, n_trials, direction, **kwargs)

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
        """From a stream each process reads its own share; accelerate would let one process read for all."""
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
        InfoNCE + reconstruction_weight * weighted reconstruction, from one forward pass of B rows, or of 2B if the
        encoder's own dropout makes the two views. Only the first views are reconstructed: reconstructing both cost
        more and was no better.
        """
        views = self.encoder_inputs(inputs)
        options = {"output_reconstruction": self.reconstruct, "reconstructed_rows": len(inputs["input_ids"])}
        outputs = model(**views, **options, views=dropping(self.view_dropout))
        losses = batch_losses(outputs.pooler_output, inputs, self.args) | token_losses(outputs, self.token_weights)
        self.losses.add(losses)
        loss = weighted_sum(losses, self.args)
        return (loss, outputs) if return_outputs else loss

    def encoder_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each sentence twice, `(2B, L)`, or once, `(B, L)`, if `view_dropout` makes the views from its vectors."""
        return two_views(inputs) if self.view_dropout is None else inputs

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Forward and backward of one batch.

        Raises:
            FloatingPointError: if the loss is not finite. The optimizer has not stepped, so the weights are still
                those that gave this loss.
        """
        inputs = self._prepare_inputs(inputs)
        if (size := self.args.gradient_cache_mini_batch_size) is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self.cached_training_step(model, inputs, size)
        # All processes stop if one of them has a loss that is not finite, or received a signal.
        found = torch.stack([~loss.isfinite(), torch.tensor(self.save_on_signal.received is not None).to(loss.device)])
        not_finite, signalled = self.accelerator.reduce(found.float(), "sum").tolist()
        self.save_on_signal.agreed = signalled > 0
        if not_finite:
            raise FloatingPointError(describe_failure(self, inputs))
        return loss

    def cached_training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], size: int) -> torch.Tensor:
        """A training step with the same gradients, but the activations of at most `size` rows in memory."""
        model.train()
        rows = len(inputs["input_ids"]) if self.reconstruct else 0
        views, read = self.encoder_inputs(inputs), self.unwrapped.pooled_vectors
        cache = GradientCache(model, views, size, rows, self.view_dropout, read)
        weights: list[torch.Tensor] = []

        def weigh(outputs: SarcseModelOutput) -> None:
            if outputs.reconstruction is not None:
                weights.append(content_weights(outputs, self.token_weights).sum())

        embeddings = cache.embed(see=weigh)  # (2B, d)
        losses = batch_losses(embeddings, inputs, self.args)
        (gradient,) = torch.autograd.grad(weighted_sum(losses, self.args), embeddings)
        total_weight = share_of_total(torch.stack(weights).sum()) if weights else None
        for outputs, value in cache.replay(gradient, partial(self.accelerator.no_sync, model)):
            parts = token_losses(outputs, self.token_weights, total_weight)
            value = value + weighted_sum(parts, self.args)
            self.accelerator.backward(value / self.current_gradient_accumulation_steps)
            losses |= {name: losses.get(name, 0) + part.detach() for name, part in parts.items()}
        self.losses.add(losses)
        return weighted_sum(losses, self.args).detach() / self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each loss, averaged since the last line of the log, beside the total."""
        if "loss" in logs:
            logs.update(self.losses.means())
        if "loss" in logs or "train_loss" in logs:  # `train_loss` comes at the end
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
        Spearman x 100, alignment and uniformity on the graded pairs, if there are any, and the health, if sentences
        are held out. Every process returns the same numbers; one that does not exist is NaN.
        """
        pairs = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics = self.measured(pairs, ignore_keys, metric_key_prefix)
        if (uniformity := metrics.get(f"{metric_key_prefix}_uniformity")) is not None:
            check_collapse(self, uniformity)
        if (health := metrics.get(f"{metric_key_prefix}_{HEALTH}")) is not None:
            check_health(self, health)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measured(
        self, pairs: datasets.Dataset | None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The metrics of `evaluate`, neither logged nor checked."""
        metrics: dict[str, float] = {}
        if pairs is not None or self.health is None:
            metrics = self.predict(pairs, ignore_keys, metric_key_prefix).metrics
        if self.health is not None:
            metrics[f"{metric_key_prefix}_{HEALTH}"] = self.health(self.unwrapped)
        return broadcast_object_list([metrics])[0]

    def metric_of(self, rows: datasets.Dataset) -> str:
        """The name of the metric that evaluations have of graded pairs or labelled texts."""
        return LABELLED if is_labelled(rows) else f"{self.eval_name}_spearman"

    def predict(
        self, test_dataset: datasets.Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """
        Cosine similarities of graded pairs, `(P,)`, with their gold scores and the metrics of `evaluate` without the
        health. Of labelled texts: the share of each one's ten nearest neighbours with its label, `(N,)`, and no
        scores.

        Raises:
            ValueError: if `test_dataset` has neither the columns of graded pairs nor those of labelled texts.
        """
        if is_labelled(test_dataset):
            test_dataset = check_labelled("eval_dataset", test_dataset)
            embed = partial(embed_together, partial(encode, self.unwrapped, self.processing_class))
            same = same_labels(embed, test_dataset).mean(axis=1)  # (N, NEIGHBOURS) -> (N,)
            return PredictionOutput(same, None, {f"{metric_key_prefix}_{LABELLED}": 100 * float(same.mean())})
        check_pairs("eval_dataset", test_dataset)
        embedded = embed_pairs(partial(encode, self.unwrapped, self.processing_class), test_dataset)
        measured = pair_metrics(embedded, self.eval_name)
        metrics = {f"{metric_key_prefix}_{name}": math.nan if v is None else v for name, v in measured.items()}
        return PredictionOutput(embedded.similarities(), embedded.scores, metrics)

    @without_progress_bars()
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the run's settings first: the state, which marks a checkpoint as complete, is written last."""
        folder = Path(output_dir or self.args.output_dir)
        if has_adapters(self.model) and folder == Path(self.args.output_dir):
            folder /= ADAPTERS
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS_NAME).write_text(json.dumps(self.settings(), indent=2) + "\n", encoding="utf-8")
        with tokenizer_as_loaded(self.processing_class, self.base_model["revision"]):
            super()._save(str(folder), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if has_adapters(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(self.unwrapped, resume_from_checkpoint)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """
        If the health picks the checkpoint, it is the last healthy one: the number tells better from worse than before
        the training, and does not rank good models.

        A model that is evaluated and not saved is none to keep. transformers would remember it as the best, and then
        keep an earlier checkpoint than the best of those that were saved.
        """
        is_saved = self.control.should_save or self.args.save_strategy == "best" or self.state.global_step == 0
        if self.args.load_best_model_at_end and not is_saved:
            return False
        if not self.args.picked_by_health:
            return super()._determine_best_metric(metrics, trial)
        if not is_healthy(self, metrics[f"eval_{HEALTH}"]):
            return False
        # The highest, not that of the checkpoint: EarlyStoppingCallback compares with it.
        self.state.best_metric = max(metrics[f"eval_{HEALTH}"], self.state.best_metric or 0.0)
        if self.args.save_strategy != "no":
            self.state.best_global_step = self.state.global_step
        return True

    def _load_best_model(self) -> None:
        """
        Load the best checkpoint. Without an evaluation that is only the untrained model (`EvaluationAtStart`), and
        the last one stays.

        Raises:
            OtherRunError: if the checkpoint belongs to a run with other settings.
        """
        state = self.state
        if not was_evaluated(self):
            state.best_model_checkpoint = state.best_global_step = state.best_metric = None
            return
        check_settings(Path(state.best_model_checkpoint), self.settings())
        if has_adapters(self.model):
            super()._load_best_model()
        else:
            load_weights(self.unwrapped, state.best_model_checkpoint)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with the new layers' parameters in separate groups with their own learning rate."""
        optimizer, rate = self.optimizer, self.args.new_layers_learning_rate
        if optimizer is None:
            optimizer = super().create_optimizer(model)
            if rate != self.args.learning_rate:
                split_groups(optimizer, {*self.unwrapped.encoder.parameters()}, rate)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The Trainer's schedule, scaled down to the learning-rate budget. A schedule given to it is not changed."""
        given = self.lr_scheduler is not None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if not given and not has_adapters(self.model):  # adapters are not pretrained weights
            keep_to_budget(self, scheduler, num_training_steps)
        return scheduler


def check_evaluation(name: str, rows: Any) -> datasets.Dataset:
    """
    Graded pairs or labelled texts, checked.

    Raises:
        ValueError: if they are neither, or nothing can be measured on them.
    """
    if is_labelled(rows):
        return check_labelled(name, rows)
    check_pairs(name, rows)
    return with_two_scores(rows, name)


def split_groups(optimizer: torch.optim.Optimizer, encoder: set[torch.nn.Parameter], learning_rate: float) -> None:
    """Move the parameters of each group that are not the encoder's to a new group with its own learning rate."""
    for group in list(optimizer.param_groups):
        new = [parameter for parameter in group["params"] if parameter not in encoder]
        if new:
            group["params"] = [parameter for parameter in group["params"] if parameter in encoder]
            optimizer.add_param_group({**group, "params": new, "lr": learning_rate})


def check_decoder_length(config: SarcseConfig, longest: int, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """
    Check that whole texts can be reconstructed. If only their first tokens are, their embeddings become those of their
    beginnings (docs/training.md).

    Raises:
        ValueError: if the decoder has fewer positions than the `longest` text has tokens, without special ones.
    """
    special = 0 if tokenizer is None else tokenizer.num_special_tokens_to_add()
    if longest - special > config.decoder_length:
        raise ValueError(
            f"--max_seq_length: texts have up to {longest} tokens in training, but the model's decoder_length is "
            f"{config.decoder_length}: the ends of longer texts would not count. Give fresh layers --decoder_length "
            f"{longest}, or cut the texts at {config.decoder_length + special} tokens."
        )


def check_precision(model: SarcseModel) -> None:
    """
    Check that the weights can take small steps.

    Raises:
        ValueError: if some that are to be trained are in half precision, in which most of AdamW's steps are lost.
    """
    half = {str(p.dtype) for p in model.parameters() if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16)}
    if half:
        raise ValueError(
            f"The model's weights are {' and '.join(sorted(half))}, in which most of the optimizer's small steps are "
            "lost. Load it with dtype=torch.float32; --bf16 computes in half precision, but keeps the weights in full."
        )


def idle_parameters(model: SarcseModel, reconstruct: bool) -> list[str]:
    """
    Names of the trainable parameters that get no gradient from three sentences, such as XLNet's for masked tokens and
    for segments. DistributedDataParallel would wait for them, and not average the others.
    """
    input_ids = model.dummy_inputs["input_ids"].to(model.device)
    outputs = model.train()(input_ids, torch.ones_like(input_ids), output_reconstruction=reconstruct)
    value = outputs.pooler_output.sum()
    if reconstruct:
        value = value + reconstruction_errors(outputs).sum()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return [name for name, gradient in zip(trained, gradients) if gradient is None]
