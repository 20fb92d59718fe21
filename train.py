"""
Train a SARCSE model on plain sentences.

    python train.py [RECIPE.yaml] [--field value ...]
    accelerate launch train.py recipes/roberta-base.yaml
"""

import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from accelerate.utils import set_seed
from safetensors import SafetensorError
from transformers import ProgressCallback

from configuration_sarcse import SarcseConfig
from model_card.release import check_releasable, options_of_training, release, write_json
from sarcse import figures
from sarcse.arguments import ModelArguments, SarcseTrainingArguments
from sarcse.checkpoints import checkpoints
from sarcse.comparison import compare, report, write_results
from sarcse.embedding import draw_figures, encode, measure
from sarcse.files import UnreadableDataError
from sarcse.loading import needs_own_code
from sarcse.parsing import one_line_errors, parse_arguments
from sarcse.record import FILE_NAME as RECORD_FILE
from sarcse.trainer import SarcseTrainer
from sarcse.training import build_trainer, measure_before


DEMO_RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"


def run(
    trainer: SarcseTrainer,
    tasks: dict[str, datasets.Dataset],
    record: Callable[[], dict[str, Any]],
    model_arguments: ModelArguments,
) -> None:
    """Train, write the output folder, and print the table of scores and the lines that load the model."""
    args = trainer.args
    # Every process has a share in this, as in the evaluations.
    measurements = measure_before(model_arguments, args.device, tasks) if tasks else {}
    # Again, so that a run trains the same model whether it is scored before or not; now each process has a seed of its
    # own, so that no two draw the same dropout masks.
    set_seed(args.seed, device_specific=True)
    try:
        metrics = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    finally:
        progress = trainer.pop_callback(ProgressCallback)
        if progress is not None and progress.training_bar is not None:
            progress.training_bar.close()  # or it would draw itself once more, behind the message
    output_dir = Path(args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if tasks:
        embed = partial(encode, model, trainer.processing_class)
        measurements[f"after: {output_dir}"] = measure(embed, tasks, model.config.pooler)
    if not trainer.is_world_process_zero():
        return
    # Not trainer.save_model, which adds a pickle of the arguments.
    model.save_pretrained(output_dir)
    trainer.processing_class.save_pretrained(output_dir)
    trainer.save_metrics("train", metrics, combined=False)
    trainer.save_state()
    write_json(output_dir / RECORD_FILE, record())
    figures.training_curve({output_dir.name: trainer.state.log_history}, output_dir / "training_curve")
    if tasks:
        results = compare(measurements, tasks)
        write_results(results, output_dir / "sts_results.json")
        draw_figures(results, measurements, tasks, output_dir)
        print(f"\n{report(results)}")
    print(how_to_load(output_dir, model.config))


def how_to_load(output_dir: Path, config: SarcseConfig) -> str:
    if needs_own_code(config.encoder_config.to_dict()):
        return f"""
The model is in {output_dir}. Its encoder brings code of its own, and the model works only with it:

python eval_sts.py {output_dir} --trust_remote_code
"""
    return f"""
The model is in {output_dir}. Load it with

from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{output_dir}", trust_remote_code=True)
model = AutoModel.from_pretrained("{output_dir}", trust_remote_code=True)
embeddings = model(**tokenizer(["A sentence.", "Another."], padding=True, return_tensors="pt")).pooler_output
"""


def how_to_go_on(training: SarcseTrainingArguments) -> str:
    if not checkpoints(training.output_dir):
        return ""
    return " `--resume_from_checkpoint last` with the same command goes on from the last checkpoint."


def main() -> None:
    with one_line_errors("train.py"):
        model_arguments, data, training = parse_arguments(sys.argv[1:] or [str(DEMO_RECIPE)])
        to_release = options_of_training(training) if training.push_to_hub else None
        training.push_to_hub = False  # the Trainer's own push uploads checkpoints and pickles, and writes another card
        trainer, tasks, record = build_trainer(model_arguments, data, training)
        if to_release is not None:
            check_releasable(model_arguments.model_name_or_path, trainer.model.config.encoder_config.to_dict())
    try:
        run(trainer, tasks, record, model_arguments)
    except KeyboardInterrupt as interrupt:
        if trainer.is_world_process_zero():
            print(f"\nInterrupted at step {trainer.state.global_step}.{how_to_go_on(training)}", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except FloatingPointError as error:  # in all processes
        if trainer.is_world_process_zero():
            print(f"\ntrain.py: error: {error}", file=sys.stderr)
        sys.exit(1)
    except UnreadableDataError as error:
        print(f"\ntrain.py: error: {error}{how_to_go_on(training)}", file=sys.stderr)
        sys.exit(1)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        # torch.save tells of its container only where the disk is full.
        message = f"could not write or read, is the disk full? {error}.{how_to_go_on(training)}"
        print(f"\ntrain.py: error: {message}", file=sys.stderr)
        sys.exit(1)
    if to_release is not None and trainer.is_world_process_zero():
        with one_line_errors("train.py"):
            release(to_release)


if __name__ == "__main__":
    main()
    # Threads of its own that outlive the interpreter would abort it (github.com/pytorch/pytorch/issues/190489).
    PartialState().destroy_process_group()
