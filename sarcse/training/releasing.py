"""The results of a training: the model with its record and scores, and its release on the Hub."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from modeling_sarcse import SarcseModel
from sarcse.data.sentences import fingerprint
from sarcse.evaluation import figures
from sarcse.evaluation.comparison import Measurement, Results
from sarcse.evaluation.embedding import draw_figures, remove_results
from sarcse.evaluation.report import write_results
from sarcse.loading import tokenizer_as_loaded, without_progress_bars
from sarcse.options import ReleaseArguments, ReleaseOptions
from sarcse.output import RECORD_NAME, RESULTS_NAME, write_json
from sarcse.release.build import check_releasable, is_plain, release
from sarcse.release.card import placeholder, write_card
from sarcse.release.facts import read_facts
from sarcse.release.hub import repository_of_training
from sarcse.training.arguments import SarcseTrainingArguments
from sarcse.training.corpus import Corpus
from sarcse.training.record import training_record


logger = logging.get_logger(__name__)

ADAPTERS = "adapters"  # their folder in the output folder


class ReleasingTrainer(Trainer):
    """
    A Trainer whose `push_to_hub` makes a verified release, with a card made from the training's record and scores. The
    method of transformers would upload checkpoints and pickles, with a nearly empty card.

    This is the base class of `SarcseTrainer`, which adds the training.

    Attributes:
        corpus (`Corpus`, *optional*): The training data.
        base_model (`dict`): From `describe_base_model`.
        sentence_encoder (`str`, *optional*): What is kept of the base model, if that is a sentence encoder.
        commit (`str`, *optional*): Commit of the code when the training began.
        seconds (`float`, *optional*): Duration of the training with its evaluations; None if it was interrupted.
        tasks (`dict[str, datasets.Dataset]`): Graded pairs to score on, by name.
        labelled (`dict[str, datasets.Dataset]`): Labelled texts to score on, by name.
        measurements (`dict[str, Measurement]`): Measurements on these before and after the training, by row.
        results (`Results`, *optional*): The scores from these measurements, on the first process only.
    """

    args: SarcseTrainingArguments
    processing_class: Any  # a tokenizer; None where there are token ids
    corpus: Corpus | None
    base_model: dict[str, str | None]
    sentence_encoder: str | None
    commit: str | None
    seconds: float | None
    tasks: dict[str, datasets.Dataset]
    labelled: dict[str, datasets.Dataset]
    measurements: dict[str, Measurement]
    results: Results | None

    @property
    def unwrapped(self) -> SarcseModel:
        """The model without the wrappers of distributed training and torch.compile."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def picked_on(self) -> str | None:
        """SHA-256 of the pairs or labelled texts that pick the checkpoint; None if the health does, or nothing."""
        pairs, args = self.eval_dataset, self.args
        return fingerprint(pairs) if pairs and args.load_best_model_at_end and not args.picked_by_health else None

    def merged(self) -> SarcseModel:
        """The model or, if it has adapters, a copy with the adapters merged into its weights."""
        return copy.deepcopy(self.unwrapped).merge_and_unload() if has_adapters(self.model) else self.unwrapped

    @without_progress_bars()
    def save_results(self) -> Results | None:
        """
        Write the model into the output folder with everything its card needs: the training's record, log and curve,
        and the scores before and after with their figures. Adapters are merged into the model, and are also in
        `adapters/`, because transformers would apply adapters beside a model once more. Only the first process writes.

        Returns:
            The scores; None if there are none, and on all other processes.
        """
        if not self.is_world_process_zero():
            return None
        folder, model = Path(self.args.output_dir), self.merged()
        if self.state.global_step > 0:
            remove_results(folder)  # of an earlier training: the card would take them for this model's
        model.save_pretrained(folder)  # not save_model, which adds a pickle of the arguments
        if has_adapters(self.model):
            self.unwrapped.save_pretrained(folder / ADAPTERS)
        if self.processing_class is not None:
            with tokenizer_as_loaded(self.processing_class, self.base_model["revision"]):
                self.processing_class.save_pretrained(folder)
        if self.corpus is not None and self.state.global_step > 0:
            record = training_record(
                self.base_model,
                self.sentence_encoder,
                model.config,
                self.corpus.description,
                self.args,
                self.commit,
                self.seconds,
                self.picked_on,
            )
            write_json(folder / RECORD_NAME, record)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            figures.training_curve({folder.name: self.state.log_history}, folder / "training_curve")
        if self.results is not None:
            write_results(self.results, folder / RESULTS_NAME)
            draw_figures(self.results, self.measurements, self.tasks, folder)
        return self.results

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """
        With `push_to_hub`, check before the training that a release can be pushed. Nothing is created on the Hub yet.

        Raises:
            ValueError: if no token can write there, the Hub cannot be reached, or no release can be made of the model.
        """
        check_releasable(self.model.name_or_path, self.model.config.encoder_config.to_dict())
        self.hub_model_id = repository_of_training(self.args)

    def check_form(self) -> None:
        """
        With `plain`, check before the training that the model can have a plain release. The other forms are always
        possible.

        Raises:
            ValueError: if it cannot.
        """
        if self.args.plain and self.processing_class is not None and not has_adapters(self.model):
            is_plain(self.args, self.unwrapped, self.processing_class)

    def save_for_card(self, others: dict[str, Any]) -> bool:
        """
        Write the results that a card is made from; returns whether this process makes the card.

        Raises:
            ValueError: if there is no tokenizer.
        """
        if self.processing_class is None:
            raise ValueError("A release or its card needs the tokenizer: pass it as `processing_class`.")
        if others:  # transformers' own scripts pass them
            logger.warning(f"{', '.join(others)}: ignored, since the card is made from the training's own record.")
        self.save_results()
        return self.is_world_process_zero()

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        model_name: str | None = None,
        **others: Any,
    ) -> None:
        """
        Write the release's card as README.md beside the model, from the record and the scores, which are written too.

        Args:
            language, license: Default: `hub_language` and `hub_license`.
            model_name (`str`, *optional*): The repository, you/name. Default: `hub_model_id` or the folder's name.
            others: transformers' further arguments; ignored, because the record has this information.

        Raises:
            ValueError: if there is no tokenizer.
        """
        if not self.save_for_card(others):
            return
        folder = Path(self.args.output_dir)
        repo_id = model_name or self.args.hub_model_id or folder.name
        if "/" not in repo_id:
            repo_id = placeholder(repo_id)
        write_card(
            folder / "README.md",
            read_facts(folder, self.merged(), self.processing_class),
            repo_id,
            revision=None,
            license=license or self.args.hub_license,
            language=as_list(language) or self.args.hub_language,
        )

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        language: str | list[str] | None = None,
        license: str | None = None,
        tag: str | None = None,
        **others: Any,
    ) -> str | None:
        """
        Write the results, and build, verify and push a release of them.

        Args:
            commit_message (`str`, *optional*): Default: "Release" and the tag.
            blocking (`bool`): Has no effect: the call always waits for the upload.
            token (`str`, *optional*): Default: the one of `hf auth login`, or HF_TOKEN.
            revision (`str`, *optional*): Branch. Default: `hub_revision`, or main.
            language, license: As in `create_model_card`.
            tag (`str`, *optional*): Name of the release. Default: `release-` and a hash of its content.
            others: `plain`, `with_code`, `with_decoder` and `onnx_int8`. Default: their values in `args`.

        Returns:
            The commit's address on the first process, None on the others.

        Raises:
            ValueError: if the release cannot be built or pushed; the message says how to finish.
        """
        args = self.args
        form = {f.name: others.pop(f.name, getattr(args, f.name)) for f in fields(ReleaseArguments)}
        if not self.save_for_card(others):
            return None
        options = ReleaseOptions(
            model_dir=args.output_dir,
            release_dir=str(Path(args.output_dir, "release")),
            push="you/name",  # so that the message below has a complete command
            private=bool(args.hub_private_repo),
            revision=revision or args.hub_revision or "main",
            tag=tag,
            commit_message=commit_message,
            license=license or args.hub_license,
            language=as_list(language) or args.hub_language,
            **form,
        )
        try:
            options.push = self.hub_model_id or repository_of_training(args, token)
        except ValueError as error:
            finish = f"The model is in {args.output_dir}. To finish:\n  {options.command()}"
            raise ValueError(f"{error}\n{finish}") from error
        return release(options, token, self.tasks)


def as_list(values: str | list[str] | None) -> list[str]:
    """One value, several or none as a list."""
    return [values] if isinstance(values, str) else values or []


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether the model has PEFT adapters."""
    return hasattr(model, "peft_config")
