"""
What keeps a long run safe: checkpoints that are whole and load as they were saved, a continuation with the settings of
the run, and a checkpoint before a signal ends it.
"""

import json
import os
import signal
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    logging,
)

from sarcse.arguments import ReleaseArguments


logger = logging.get_logger(__name__)


# --- Which checkpoint to go on from ----------------------------------------------------------------------------------


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, the newest first."""
    numbered = {
        path: path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    }
    folders = [path for path, number in numbered.items() if number.isdecimal() and path.is_dir()]
    return sorted(folders, key=lambda path: -int(numbered[path]))


def flaw(checkpoint: Path) -> str | None:
    """
    Why a run cannot go on from this checkpoint as if nothing had happened, or None: a file is missing or cut short, by
    a kill or a full disk, or a weight is not finite.
    """
    contents, has_shards = {}, (checkpoint / SAFE_WEIGHTS_INDEX_NAME).exists()
    for name in (TRAINER_STATE_NAME, SETTINGS_NAME, *[SAFE_WEIGHTS_INDEX_NAME] * has_shards):
        try:
            contents[name] = json.loads((checkpoint / name).read_text())  # the state is written last of all
        except OSError:
            return f"{name} is missing"
        except ValueError as error:
            return f"{name} is cut short: {error}"
    one_file = ADAPTER_SAFE_WEIGHTS_NAME if (checkpoint / ADAPTER_CONFIG_NAME).exists() else SAFE_WEIGHTS_NAME
    shards = contents[SAFE_WEIGHTS_INDEX_NAME]["weight_map"].values() if has_shards else [one_file]
    for name in sorted(set(shards)):
        try:
            with safe_open(checkpoint / name, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118, it is no dict
                    if not tensors.get_tensor(key).isfinite().all():
                        return f"{key} is not finite"
        except OSError:
            return f"{name} is missing"
        except SafetensorError as error:
            return f"{name} is cut short: {error}"
    random_states = [path.name for path in checkpoint.glob("rng_state*.pth")] or ["rng_state.pth"]
    for name in ("optimizer.pt", "scheduler.pt", *random_states):
        try:
            zipfile.ZipFile(checkpoint / name).close()  # the directory of torch's archives stands at their end
        except OSError:
            return f"{name} is missing"
        except zipfile.BadZipFile:
            return f"{name} is cut short"
    return None


def last_good_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint without a flaw; those passed over are named in a warning."""
    for checkpoint in checkpoints(output_dir):
        problem = flaw(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning(f"{checkpoint} is left aside: {problem}.")
    return None


def checkpoint_to_resume(resume_from_checkpoint: str, output_dir: str) -> Path:
    """
    The folder that `--resume_from_checkpoint` means: `last`, or `True` as in transformers' own scripts, is the newest
    good checkpoint of the run; anything else is a path.

    Raises:
        ValueError: there is no such checkpoint, or the one that was named cannot be gone on from.
    """
    if resume_from_checkpoint.lower() not in ("last", "true"):
        problem = flaw(Path(resume_from_checkpoint))
        if problem is not None:
            raise ValueError(f"--resume_from_checkpoint {resume_from_checkpoint}: {problem}.")
        return Path(resume_from_checkpoint)
    if not checkpoints(output_dir):
        raise ValueError(f"--resume_from_checkpoint {resume_from_checkpoint}: no checkpoint in {output_dir}.")
    checkpoint = last_good_checkpoint(output_dir)
    if checkpoint is None:
        raise ValueError(f"{output_dir}: no checkpoint is whole. Remove them to start again from the beginning.")
    return checkpoint


# --- The settings of a run -------------------------------------------------------------------------------------------

SETTINGS_NAME = "run_settings.json"

# Arguments that say how a run is watched, saved and shared out; all others decide what comes out of it.
MAY_CHANGE_PREFIXES = ("do_", "logging_", "log_", "save_", "hub_", "push_to_", "trackio_", "ddp_", "torch_empty_")
MAY_CHANGE = {
    *(field.name for field in fields(ReleaseArguments)),
    "output_dir",
    "resume_from_checkpoint",
    "report_to",
    "run_name",
    "project",
    "disable_tqdm",
    "skip_memory_metrics",
    "include_num_input_tokens_seen",
    "restore_callback_states_from_checkpoint",
    "enable_jit_checkpoint",
    "use_cpu",
    "local_rank",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "preprocessing_num_workers",
    "token_count_samples",  # the sentences that are counted are among the settings, by their hash
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
}


# Settings that are gone, and what every run has now.
FIXED = {"pooling": "mean", "reconstructed_views": 1, "reconstruction_anchor": 0.0, "start_decay": 0.0}

# Settings that are new, and what every run of before had.
ADDED = {"view_dropout": 0.0, "learning_rate_budget": 0.0, "health_sentences": 0}


def decides(name: str) -> bool:
    """Whether an argument of a training decides what comes out of it."""
    return name not in MAY_CHANGE and not name.startswith(MAY_CHANGE_PREFIXES)


def run_settings(args: TrainingArguments, **sources: Any) -> dict[str, Any]:
    """
    What decides the outcome of a run, as JSON has it: the arguments, but for those that may change, and `sources`, the
    model and the data. Batches are counted over all processes, whose number may change.
    """
    values = {name: value for name, value in args.to_dict().items() if decides(name)}
    values["batch_size_of_all_processes"] = values.pop("per_device_train_batch_size") * args.world_size
    return json.loads(json.dumps({**values, **sources}, default=str))


def check_settings(checkpoint: Path, settings: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the checkpoint is of a run with other settings; the message has each, as it was and as it is now.
    """
    written = json.loads((checkpoint / SETTINGS_NAME).read_text(encoding="utf-8"))
    saved = {**ADDED, **{name: value for name, value in written.items() if name not in ADDED or value is not None}}
    settings = {**FIXED, **settings}
    # Another version of transformers may have other arguments; they are at their defaults.
    differences = [
        f"{name} {saved[name]!r} (now {settings[name]!r})"
        for name in sorted({*saved} & {*settings})
        if saved[name] != settings[name]
    ]
    if differences:
        raise ValueError(
            f"{checkpoint} is of a run with {', '.join(differences)}. It can go on with the settings that it began "
            "with; to train with others, begin anew in another --output_dir."
        )


# --- Weights as they were saved --------------------------------------------------------------------------------------


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers has one for each model that it reads or writes."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def loaded_again(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """
    The model that was saved in a folder. By `from_pretrained`, since transformers renames, splits and joins the
    weights of some encoders when it saves them (NomicBert, Mixtral); the Trainer's own loading does not undo that.

    Raises:
        ValueError: the folder lacks a weight, or has one of another size.
    """
    with without_progress_bars():
        saved, info = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lacking:
        raise ValueError(f"{folder} lacks weights of the model: {', '.join(lacking[:5])}.")
    return saved


def load_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """
    Every weight of a checkpoint into the model.

    Raises:
        ValueError: the checkpoint lacks a weight, or has one of another size.
    """
    model.load_state_dict(loaded_again(model, folder).state_dict())


def check_saving(model: PreTrainedModel, output_dir: Path) -> None:
    """
    Save the model and load it again, before a training whose outcome would be lost otherwise.

    Raises:
        ValueError: it cannot be saved, or what is loaded is another model.
    """
    kind = f"{model.config.encoder_config.model_type!r} cannot be trained: saved and loaded again,"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as folder:
            with without_progress_bars():
                model.save_pretrained(folder)
            again = loaded_again(model, folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"--output_dir {output_dir}: nothing can be saved there ({error}).") from error
    except Exception as error:  # of transformers' conversions
        raise ValueError(f"{kind} it fails ({type(error).__name__}: {error}).") from error
    found = {**again.state_dict(), **dict(again.named_buffers())}
    for name, tensor in {**model.state_dict(), **dict(model.named_buffers())}.items():
        if name not in found or not torch.equal(tensor.cpu(), found[name].cpu()):
            raise ValueError(f"{kind} {name} is another one.")


# --- Signals ---------------------------------------------------------------------------------------------------------


class SaveOnSignal(TrainerCallback):
    """
    Ctrl-C and SIGTERM, which schedulers send before they kill: the step is finished, a checkpoint saved, and the run
    ended by a KeyboardInterrupt whose argument is the signal's number. In a single process a second signal ends it at
    once; under a launcher, which repeats every signal to its processes, it changes nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed = False  # by all processes, one of which received it
        self.handlers: dict[int, Any] = {}
        self.process = os.getpid()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.is_alone, self.is_first = args.world_size == 1, state.is_world_process_zero
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a worker that loads data: the process that it works for will end it
        if self.is_alone:
            self.restore_handlers()
        if self.received is None and self.is_first:
            again = " Once more ends it at once." if self.is_alone else ""
            # Not print: the signal may have interrupted the progress bar amid its own write to the same stream.
            os.write(2, f"\n{signal.Signals(number).name}: saving a checkpoint after this step.{again}\n".encode())
        self.received = number

    def restore_handlers(self) -> None:
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save |= self.agreed

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.agreed:
            # A launcher kills the others when the first process ends, and the checkpoint may not be whole yet.
            PartialState().wait_for_everyone()
            self.interrupt()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore_handlers()
        if self.received is not None:  # behind the last step
            self.interrupt()

    def interrupt(self) -> None:
        self.restore_handlers()
        raise KeyboardInterrupt(self.received or signal.SIGTERM)
