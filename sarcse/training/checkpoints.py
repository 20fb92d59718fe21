"""
Safety of long runs: one run at a time in a folder, checkpoints that are complete and load as they were saved, resuming
only with the run's settings, and a checkpoint before a signal ends the run.
"""

import json
import os
import platform
import signal
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
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

from sarcse.loading import without_progress_bars
from sarcse.options import ReleaseArguments


logger = logging.get_logger(__name__)


# --- One run at a time in a folder -----------------------------------------------------------------------------------

LOCK_NAME = ".running"
# The thread and the open file of each lock that this process holds.
LOCKS: dict[Path, tuple[int, int]] = {}


def leave_locks_to_the_parent() -> None:
    """In a new child, such as a worker that loads data: it would hold the locks after its parent was killed."""
    while LOCKS:
        os.close(LOCKS.popitem()[1][1])


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=leave_locks_to_the_parent)


def take_lock(path: Path) -> None:
    """
    Take the lock, and write into its file who has it. Where there are no locks, a warning says so.

    Raises:
        BlockingIOError: if another process or thread has it; the message is its name.
        OSError: if nothing can be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(file, 1000).decode()
            os.close(file)
            raise BlockingIOError(owner or "another process") from error
        except (OSError, ImportError) as error:  # some network file systems, and Windows
            logger.warning(f"{path.parent} cannot be locked ({error}): start no other run with this --output_dir.")
            os.close(file)
            return
        if os.fstat(file).st_nlink > 0:
            break
        os.close(file)  # between the first two calls, its owner has ended and removed it
    LOCKS[path] = threading.get_ident(), file
    with suppress(OSError):  # a full disk, which is reported when the model is saved
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}".encode())


@contextmanager
def alone_in_folder(args: TrainingArguments) -> Iterator[None]:
    """
    A context in which no other run trains into `output_dir`: each would take the other's checkpoints for its own. The
    first process of a run holds a lock for all of them, which the operating system releases when that process ends,
    however it ends. The context may be entered again inside of it.

    Raises:
        ValueError: in all processes, if another run trains there, or nothing can be written there.
    """
    path = Path(args.output_dir).resolve() / LOCK_NAME
    refusal, is_new = None, not path.parent.exists()
    takes = args.process_index == 0 and LOCKS.get(path, (None,))[0] != threading.get_ident()
    if takes:
        try:
            take_lock(path)
        except BlockingIOError as owner:
            refusal = f"{owner} is training there. Wait until it ends, or choose another --output_dir"
        except OSError as error:
            refusal = f"nothing can be saved there ({error})"
    (refusal,) = broadcast_object_list([refusal])
    if refusal is not None:
        raise ValueError(f"--output_dir {args.output_dir}: {refusal}.")
    try:
        yield
    finally:
        if takes:
            path.unlink(missing_ok=True)  # before it is released: afterwards it might be another run's
            if path in LOCKS:
                os.close(LOCKS.pop(path)[1])
            if is_new:
                with suppress(OSError):  # something was saved
                    path.parent.rmdir()


# --- Which checkpoint to resume from ---------------------------------------------------------------------------------


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
    Why a run cannot resume from this checkpoint, or None if it can. A flaw is a file that is missing or cut short (by
    a kill or a full disk), or a weight that is not finite.
    """
    contents, has_shards = {}, (checkpoint / SAFE_WEIGHTS_INDEX_NAME).exists()
    for name in (TRAINER_STATE_NAME, SETTINGS_NAME, *[SAFE_WEIGHTS_INDEX_NAME] * has_shards):
        try:
            contents[name] = json.loads(
                (checkpoint / name).read_text(encoding="utf-8")
            )  # the state is the last file written
        except OSError:
            return f"{name} is missing"
        except ValueError as error:
            return f"{name} is cut short: {error}"
    one_file = ADAPTER_SAFE_WEIGHTS_NAME if (checkpoint / ADAPTER_CONFIG_NAME).exists() else SAFE_WEIGHTS_NAME
    shards = contents[SAFE_WEIGHTS_INDEX_NAME]["weight_map"].values() if has_shards else [one_file]
    for name in sorted(set(shards)):
        try:
            with safe_open(checkpoint / name, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118, not a dict
                    if not tensors.get_tensor(key).isfinite().all():
                        return f"{key} is not finite"
        except OSError:
            return f"{name} is missing"
        except SafetensorError as error:
            return f"{name} is cut short: {error}"
    random_states = [path.name for path in checkpoint.glob("rng_state*.pth")] or ["rng_state.pth"]
    for name in ("optimizer.pt", "scheduler.pt", *random_states):
        try:
            zipfile.ZipFile(checkpoint / name).close()  # the directory of torch's archives is at their end
        except OSError:
            return f"{name} is missing"
        except zipfile.BadZipFile:
            return f"{name} is cut short"
    return None


def last_good_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint without a flaw, or None; a warning names each one skipped."""
    for checkpoint in checkpoints(output_dir):
        problem = flaw(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning(f"{checkpoint} is skipped: {problem}.")
    return None


def checkpoint_to_resume(resume_from_checkpoint: str, output_dir: str) -> Path:
    """
    The folder that `--resume_from_checkpoint` refers to. `last`, or `True` as in transformers' own scripts, is the
    newest good checkpoint of the run; anything else is a path.

    Raises:
        ValueError: if there is no such checkpoint, or the named one has a flaw.
    """
    if resume_from_checkpoint.lower() not in ("last", "true"):
        problem = flaw(Path(resume_from_checkpoint))
        if problem is not None:
            raise ValueError(f"--resume_from_checkpoint {resume_from_checkpoint}: {problem}.")
        return Path(resume_from_checkpoint)
    if not (found := checkpoints(output_dir)):
        raise ValueError(f"--resume_from_checkpoint {resume_from_checkpoint}: no checkpoint in {output_dir}.")
    checkpoint = last_good_checkpoint(output_dir)
    if checkpoint is None:
        raise ValueError(
            f"{output_dir}: no checkpoint is complete ({found[0].name}: {flaw(found[0])}). Start again in another "
            "--output_dir."
        )
    return checkpoint


def point_to_best(checkpoint: Path) -> None:
    """
    Correct the path of the best checkpoint in a checkpoint's state, if the run's folder has been moved or the path is
    relative to another folder. transformers would go on without the best one, and keep the last.
    """
    path = checkpoint / TRAINER_STATE_NAME
    state = TrainerState.load_from_json(str(path))
    if state.best_model_checkpoint is None:
        return
    moved = checkpoint.parent / Path(state.best_model_checkpoint).name
    if moved.is_dir() and moved.resolve() != Path(state.best_model_checkpoint).resolve():
        state.best_model_checkpoint = str(moved)
        state.save_to_json(str(path))


# --- The settings of a run -------------------------------------------------------------------------------------------

SETTINGS_NAME = "run_settings.json"

# Arguments that only affect how a run is logged, saved and distributed; all others affect its result. (How a stream is
# distributed does affect it, see `SarcseTrainer.settings`.)
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
    "token_count_samples",  # the settings have the hash of the counted sentences
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
}


def decides(name: str) -> bool:
    """Whether a training argument affects the result."""
    return name not in MAY_CHANGE and not name.startswith(MAY_CHANGE_PREFIXES)


def run_settings(args: TrainingArguments, **sources: Any) -> dict[str, Any]:
    """
    Everything that affects the result of a run, as JSON values: the arguments, except those that may change, and
    `sources`, the model and the data. The batch size is that of all processes, because their number may change.
    """
    values = {name: value for name, value in args.to_dict().items() if decides(name)}
    values["batch_size_of_all_processes"] = values.pop("per_device_train_batch_size") * args.world_size
    return json.loads(json.dumps({**values, **sources}, default=str))


class OtherRunError(ValueError):
    """A checkpoint belongs to a run with other settings."""


def check_settings(checkpoint: Path, settings: dict[str, Any]) -> None:
    """
    Check that a checkpoint comes from a run with the same settings.

    Raises:
        OtherRunError: if it does not; the message lists each difference, with the old and the new value.
    """
    saved = json.loads((checkpoint / SETTINGS_NAME).read_text(encoding="utf-8"))
    # Another version of transformers may have other arguments, which are then at their defaults.
    differences = [
        f"{name} {saved[name]!r} (now {settings[name]!r})"
        for name in sorted({*saved} & {*settings})
        if saved[name] != settings[name]
    ]
    if differences:
        raise OtherRunError(
            f"{checkpoint} belongs to a run with {', '.join(differences)}. A run can only resume with its original "
            "settings; to train with others, start a new run in another --output_dir."
        )


# --- Weights as they were saved --------------------------------------------------------------------------------------


def loaded_again(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """
    The model that was saved in a folder. It is loaded by `from_pretrained`, because transformers renames, splits and
    joins the weights of some encoders when it saves them (NomicBert, Mixtral). The Trainer's own loading does not undo
    that.

    Raises:
        ValueError: if the folder lacks a weight, or has one of another size.
    """
    with without_progress_bars():
        saved, info = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lacking:
        raise ValueError(f"{folder} lacks weights of the model: {', '.join(lacking[:5])}.")
    return saved


def load_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """
    Load every weight of a checkpoint into the model.

    Raises:
        ValueError: if the checkpoint lacks a weight, or has one of another size.
    """
    model.load_state_dict(loaded_again(model, folder).state_dict())


def check_saving(model: PreTrainedModel, output_dir: Path) -> None:
    """
    Save the model and load it again, before a training whose result could be lost otherwise.

    Raises:
        ValueError: if the model cannot be saved, or loads with other weights.
    """
    kind = f"{model.config.encoder_config.model_type!r} cannot be trained:"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as folder:
            with without_progress_bars():
                model.save_pretrained(folder)
            again = loaded_again(model, folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"--output_dir {output_dir}: nothing can be saved there ({error}).") from error
    except Exception as error:  # from transformers' conversions
        raise ValueError(f"{kind} saving and loading it fails ({type(error).__name__}: {error}).") from error
    found = {**again.state_dict(), **dict(again.named_buffers())}
    for name, tensor in {**model.state_dict(), **dict(model.named_buffers())}.items():
        if name not in found or not torch.equal(tensor.cpu(), found[name].cpu()):
            raise ValueError(f"{kind} saving and loading it changes {name}.")


# --- Signals ---------------------------------------------------------------------------------------------------------


class SaveOnSignal(TrainerCallback):
    """
    Saves a checkpoint on Ctrl-C or SIGTERM, which schedulers send before they kill. The step is finished first, and
    the run then ends with a KeyboardInterrupt whose argument is the signal's number. In a single process a second
    signal ends the run at once; under a launcher, which repeats every signal to its processes, it has no effect.
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
        self.received, self.agreed = None, False
        if threading.current_thread() is not threading.main_thread():
            return  # signals arrive in the main thread only
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a worker that loads data: its parent process will end it
        if self.is_alone:
            self.restore_handlers()
        if self.received is None and self.is_first:
            again = " A second signal stops at once." if self.is_alone else ""
            # Not print: the signal may have interrupted the progress bar in the middle of its own write to the stream.
            os.write(2, f"\n{signal.Signals(number).name}: saving a checkpoint after this step.{again}\n".encode())
        self.received = number

    def restore_handlers(self) -> None:
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.agreed:
            control.should_save, args.save_only_model = True, False  # to resume, the optimizer is needed, too

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.agreed:
            # When one process ends, a launcher kills the others, and the checkpoint may not be complete yet.
            PartialState().wait_for_everyone()
            self.interrupt()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore_handlers()
        if self.received is not None:  # after the last step
            self.interrupt()

    def interrupt(self) -> None:
        self.restore_handlers()
        raise KeyboardInterrupt(self.received or signal.SIGTERM)
