"""What `train.py` does with its options: train, write the output folder, and push."""

import shlex
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sarcse.data.files import UnreadableDataError
from sarcse.evaluation.comparison import ModelScores, Results
from sarcse.options import RELEASE_COMMAND, DataArguments, one_line_errors
from sarcse.output import RECORD_NAME, RESULTS_NAME, read_json
from sarcse.training.arguments import ModelArguments, SarcseTrainingArguments
from sarcse.training.build import build_trainer
from sarcse.training.checkpoints import OtherRunError, alone_in_folder, checkpoints, last_good_checkpoint
from sarcse.training.parsing import parse_arguments
from sarcse.training.trainer import SarcseTrainer


def train_with_seeds(number: int, arguments: list[str], output_dir: str, prog: str) -> None:
    """
    Train with the seeds from 1 to `number`, each into a folder of its own, and print a comparison. Again with the same
    arguments, this goes on where it was interrupted.
    """
    folders = {seed: f"{output_dir}-{seed}" for seed in range(1, number + 1)}
    for seed, folder in folders.items():
        if Path(folder, RECORD_NAME).is_file():
            print(f"{folder} is trained already.")
            continue
        resume = ["--resume_from_checkpoint", "last"] if last_good_checkpoint(folder) else []
        with one_line_errors(prog):
            own = parse_arguments([*arguments, "--seed", str(seed), "--output_dir", folder, *resume])
        train(*own)
    if PartialState().is_main_process:
        print(seeds_report(output_dir, folders))


def seeds_report(output_dir: str, folders: dict[int, str]) -> str:
    """The scores of the same training with several seeds, by seed, beside those before it."""
    models: dict[str, ModelScores] = {}
    groups: dict[str, dict[int, str]] = {}
    for seed, folder in folders.items():
        if not Path(folder, RESULTS_NAME).is_file():
            return "Nothing was scored: --eval_pairs, --eval_labelled or --sts_dir would compare the seeds."
        for name, row in read_json(Path(folder, RESULTS_NAME))["models"].items():
            group, name = (output_dir, folder) if name.startswith("after: ") else (name, name)
            models[name] = ModelScores.from_json(row)
            groups.setdefault(group, {})[seed if group == output_dir else 0] = name
    return str(Results(models, {}, groups=groups))


def train(model: ModelArguments, data: DataArguments, training: SarcseTrainingArguments) -> None:
    """Train from the command line. What the user can fix ends the process with one line."""
    with ExitStack() as until_the_end:
        with one_line_errors("train.py"):
            until_the_end.enter_context(alone_in_folder(training))
            trainer = build_trainer(model, data, training)
        run_and_push(trainer)


def run_and_push(trainer: SarcseTrainer) -> None:
    """Run, and push a release if requested. What ends the run ends the process with one line."""
    training, trainer.pushed_later = trainer.args, True
    try:
        run(trainer)
    except KeyboardInterrupt as interrupt:
        if trainer.is_world_process_zero():
            print(f"\nInterrupted at step {trainer.state.global_step}.{how_to_go_on(training)}", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except (FloatingPointError, OtherRunError) as error:  # in all processes
        if trainer.is_world_process_zero():
            print(f"\ntrain.py: error: {error}", file=sys.stderr)
        sys.exit(1)
    except UnreadableDataError as error:
        print(f"\ntrain.py: error: {own_message(error)}{how_to_go_on(training)}", file=sys.stderr)
        sys.exit(1)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        # torch.save raises this RuntimeError about its container only if the disk is full.
        message = f"could not read or write a file. Is the disk full? {error}.{how_to_go_on(training)}"
        print(f"\ntrain.py: error: {message}", file=sys.stderr)
        sys.exit(1)
    if training.push_to_hub:
        with one_line_errors("train.py"):
            trainer.push_to_hub()


def run(trainer: SarcseTrainer) -> None:
    """Train, write the output folder, and print the table of scores and the code that loads the model."""
    try:
        metrics = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
    finally:
        progress = trainer.pop_callback(ProgressCallback)
        if progress is not None and progress.training_bar is not None:
            progress.training_bar.close()  # otherwise it would be drawn once more, after the message
    results = trainer.save_results()
    if not trainer.is_world_process_zero():
        return
    trainer.save_metrics("train", metrics, combined=False)
    if results is not None:
        print(f"\n{results}")
    print(what_next(trainer.args.output_dir))


def what_next(output_dir: str) -> str:
    folder, release = shlex.quote(output_dir), " ".join(RELEASE_COMMAND)
    return f"""
The model is in {output_dir}. With sentence-transformers, or with transformers alone:

from sentence_transformers import SentenceTransformer
model = SentenceTransformer("{output_dir}", trust_remote_code=True)

from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{output_dir}", trust_remote_code=True)
model = AutoModel.from_pretrained("{output_dir}", trust_remote_code=True)
embeddings = model(**tokenizer(["A sentence.", "Another."], padding=True, return_tensors="pt")).pooler_output

To search in a file of texts, and to release the model for the Hub:

python -m sarcse search {folder} FILE "a question"
{release} {folder} --release_dir {folder}/release
{about_checkpoints(output_dir)}"""


def about_checkpoints(output_dir: str) -> str:
    """How large the checkpoints are, and how to delete them; empty without any."""
    size = sum(file.stat().st_size for folder in checkpoints(output_dir) for file in folder.rglob("*.*"))
    if size == 0:
        return ""
    prefix = f"{shlex.quote(output_dir)}/{PREFIX_CHECKPOINT_DIR}"
    return f"\nThe checkpoints of this training, {size / 1e6:,.0f} MB, are not needed any more:\n\nrm -r {prefix}-*\n"


def how_to_go_on(training: SarcseTrainingArguments) -> str:
    if last_good_checkpoint(training.output_dir) is None:
        return ""
    return " To continue from the last checkpoint, add `--resume_from_checkpoint last` to the same command."


def own_message(error: UnreadableDataError) -> str:
    """Its message, without the worker's traceback that torch's DataLoader puts before it."""
    _, found, message = str(error).rpartition(f"{type(error).__name__}: ")
    return message.strip() if found else str(error)
