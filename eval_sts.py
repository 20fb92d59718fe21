"""
Score sentence embeddings on the seven semantic textual similarity (STS) tasks, offline or from the Hub.

    python eval_sts.py MODEL [MODEL ...] [--sts_dir DIR] [--tasks STS12 ... STSB SICKR] [--output_dir OUT]

The setting is the one that SimCSE calls "all" (arXiv 2104.08821, appendix B): all subsets of a year are concatenated
and one Spearman correlation, times 100, is taken over cosine similarities.
"""

import argparse
import csv
import json
import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import evaluate
import torch
from scipy import stats
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel


# The project's own classes, not the copies that a SARCSE folder carries: no code of a model under test is run.
AutoConfig.register(SarcseConfig.model_type, SarcseConfig)
AutoModel.register(SarcseConfig, SarcseModel)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StsTask:
    """One task: its place in a SentEval folder, its data set on the Hub, and the number of scored test pairs."""

    folder: str
    hub_id: str
    pairs: int


STS_TASKS = {
    "STS12": StsTask("STS/STS12-en-test", "mteb/sts12-sts", 3108),
    "STS13": StsTask("STS/STS13-en-test", "mteb/sts13-sts", 1500),
    "STS14": StsTask("STS/STS14-en-test", "mteb/sts14-sts", 3750),
    "STS15": StsTask("STS/STS15-en-test", "mteb/sts15-sts", 3000),
    "STS16": StsTask("STS/STS16-en-test", "mteb/sts16-sts", 1186),
    "STSB": StsTask("STS/STSBenchmark", "mteb/stsbenchmark-sts", 1379),
    "SICKR": StsTask("SICK", "mteb/sickr-sts", 4927),
}
STSB_DEV_PAIRS = 1500

# Columns of the tab-separated files of STSBenchmark (no header) and SICK (with header).
STSB_COLUMNS = {"score": 4, "sentence1": 5, "sentence2": 6}
SICK_COLUMNS = {"score": 3, "sentence1": 1, "sentence2": 2}


# --- Data: every loader returns a data set with the columns sentence1, sentence2 and score ---------------------------


def load_sts(task_name: str, sts_dir: str | None = None, split: str = "test") -> datasets.Dataset:
    """
    Scored sentence pairs of one STS task, all subsets concatenated.

    Args:
        task_name (`str`): A key of `STS_TASKS`.
        sts_dir (`str`, *optional*): Folder in SentEval's layout. Without it the pairs come from the Hub.
        split (`str`): `"test"`, or `"dev"` for STSB.

    Returns:
        `datasets.Dataset` with the columns `sentence1`, `sentence2` and `score`. Pairs without a score are left out.

    Raises:
        ValueError: a file is missing or cannot be read, or the Hub cannot be reached; the message says what to do.
    """
    task = STS_TASKS[task_name]
    if sts_dir is None:
        pairs = _load_from_hub(task, split)
    elif task_name == "STSB":
        pairs = _read_table(Path(sts_dir, task.folder, f"sts-{split}.csv"), STSB_COLUMNS, has_header=False)
    elif task_name == "SICKR":
        pairs = _read_table(Path(sts_dir, task.folder, "SICK_test_annotated.txt"), SICK_COLUMNS, has_header=True)
    else:
        pairs = _read_year(Path(sts_dir, task.folder))
    expected = task.pairs if split == "test" else STSB_DEV_PAIRS
    if len(pairs) != expected:
        logger.warning(
            f"{task_name} {split} has {len(pairs)} scored pairs here, the published task has {expected}: "
            "the score is not comparable with published ones."
        )
    return pairs


def load_pairs(path: str) -> datasets.Dataset:
    """
    Scored pairs of one's own: a .tsv, .csv, .jsonl or .parquet file with the columns sentence1, sentence2 and score.

    Raises:
        ValueError: the file is missing, of another kind, or lacks a column.
    """
    builders = {".tsv": "csv", ".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}
    suffix = Path(path).suffix
    if suffix not in builders:
        raise ValueError(f"{path}: graded pairs must be a {', '.join(builders)} file.")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file.")
    # Without quoting, as in SentEval's files: a quotation mark of a sentence is a character like any other.
    options = {"sep": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
    if builders[suffix] == "csv":
        options["keep_default_na"] = False  # "NA" is a sentence too
    pairs = datasets.load_dataset(builders[suffix], data_files=path, split="train", **options)
    missing = {"sentence1", "sentence2", "score"} - set(pairs.column_names)
    if missing:
        raise ValueError(f"{path}: no column {', '.join(sorted(missing))}; it has {', '.join(pairs.column_names)}.")
    return pairs


def _load_from_hub(task: StsTask, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(task.hub_id, split="validation" if split == "dev" else split)
    except Exception as error:  # the client has a dozen exceptions for "not reachable"
        raise ValueError(
            f"{task.hub_id} could not be loaded from the Hub ({type(error).__name__}: {error}). "
            "Give a folder in SentEval's layout with --sts_dir, or try again with a connection."
        ) from error


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Leave the task out with --tasks, or add the file.")
    # Not splitlines(), which also splits at characters that occur in sentences.
    return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")


def _read_table(path: Path, columns: dict[str, int], has_header: bool) -> datasets.Dataset:
    rows = []
    for number, line in enumerate(_read_lines(path), start=1):
        if number > has_header:
            cells = _split(path, number, line, at_least=max(columns.values()) + 1)
            row = {name: cells[column] for name, column in columns.items()}
            rows.append({**row, "score": _score(path, number, row["score"])})
    return datasets.Dataset.from_list(rows)


def _read_year(folder: Path) -> datasets.Dataset:
    """Subsets of one year: `STS.input.NAME.txt` with two sentences a line, `STS.gs.NAME.txt` with the gold scores."""
    gold_files = sorted(folder.glob("STS.gs.*.txt"))
    if not gold_files:
        raise ValueError(f"{folder}/STS.gs.*.txt: no such files. Leave the task out with --tasks, or add the folder.")
    rows = []
    for gold_file in gold_files:
        input_file = gold_file.with_name(gold_file.name.replace("STS.gs.", "STS.input."))
        lines, golds = _read_lines(input_file), _read_lines(gold_file)
        if len(lines) != len(golds):
            raise ValueError(
                f"{input_file} has {len(lines)} lines and {gold_file} {len(golds)}: they must be as many."
            )
        for number, (line, gold) in enumerate(zip(lines, golds), start=1):
            if gold.strip():  # most pairs of 2015 and 2016 were never scored
                sentence1, sentence2 = _split(input_file, number, line, at_least=2)[:2]
                rows.append({"sentence1": sentence1, "sentence2": sentence2, "score": _score(gold_file, number, gold)})
    return datasets.Dataset.from_list(rows)


def _split(path: Path, number: int, line: str, at_least: int) -> list[str]:
    cells = line.rstrip("\r").split("\t")
    if len(cells) < at_least:
        raise ValueError(f"{path}, line {number}: {len(cells)} tab-separated fields, where a pair needs {at_least}.")
    return cells


def _score(path: Path, number: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}, line {number}: {text.strip()!r} is not a number.") from None


# --- Embeddings ------------------------------------------------------------------------------------------------------


def load_config_and_tokenizer(
    name_or_path: str, revision: str = "main"
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """
    Raises:
        ValueError: nothing at `name_or_path` can be loaded.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
        return config, AutoTokenizer.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name_or_path}: neither a model folder nor a model on a reachable Hub.\n{error}") from error


def load_model(
    name_or_path: str, pooler: str = "mean", revision: str = "main"
) -> tuple[SarcseModel, PreTrainedTokenizerBase]:
    """
    A SARCSE model as it was saved, or any other text encoder under `pooler` ("cls" or "mean").

    Raises:
        ValueError: nothing at `name_or_path` can be loaded, or it is not a text encoder.
    """
    config, tokenizer = load_config_and_tokenizer(name_or_path, revision)
    if config.model_type == SarcseConfig.model_type:
        model = AutoModel.from_pretrained(name_or_path, revision=revision)
    else:
        model = SarcseModel.from_encoder_pretrained(
            name_or_path, tokenizer=tokenizer, revision=revision, pooler=pooler
        )
    tokenizer.model_max_length = encoder_max_length(model, tokenizer)
    return model.eval(), tokenizer


def encoder_max_length(model: SarcseModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The encoder's own limit in tokens, specials included; a tokenizer saved without one says 10^30."""
    positions = getattr(model.config.encoder_config, "max_position_embeddings", tokenizer.model_max_length)
    for name, module in model.encoder.named_modules():
        # RoBERTa and MPNet count positions from behind the padding index: of 514 positions, 512 can be used.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    return min(positions, tokenizer.model_max_length)


@torch.no_grad()
def encode(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], batch_size: int = 128
) -> torch.Tensor:
    """
    Sentence embeddings, `(len(sentences), d)`, float32 on the CPU, not normalised.

    Sentences of like length share a batch, so that little padding is computed. The model is used in evaluation mode
    and left in the mode it came in.
    """
    training = model.training
    model.eval()
    try:
        # Characters stand in for tokens here: the order only saves work, every batch is padded to its own longest.
        order = sorted(range(len(sentences)), key=lambda index: -len(sentences[index]))
        embeddings = torch.empty(len(sentences), model.config.hidden_size)
        for start in tqdm(range(0, len(order), batch_size), desc="Encoding", leave=False, disable=None):
            indices = order[start : start + batch_size]
            batch = tokenizer([sentences[i] for i in indices], padding=True, truncation=True, return_tensors="pt")
            embeddings[indices] = model(**batch.to(model.device)).pooler_output.float().cpu()  # (batch_size, d)
        return embeddings
    finally:
        model.train(training)


# --- Metrics ---------------------------------------------------------------------------------------------------------


class StsCorrelation(evaluate.Metric):
    """Spearman and Pearson correlation of similarities with gold scores, through scipy and without a download."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Spearman and Pearson correlation, between -1 and 1.",
            citation="",
            inputs_description="predictions: cosine similarities; references: gold scores.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {
            "spearman": float(stats.spearmanr(predictions, references).statistic),
            "pearson": float(stats.pearsonr(predictions, references).statistic),
        }


def alignment(first: torch.Tensor, second: torch.Tensor) -> float:
    """
    Mean squared distance of positive pairs (Wang and Isola 2020, arXiv 2005.10242, section 4.1, alpha = 2); the rows
    of `first` and `second`, both `(P, d)`, are normalised embeddings.
    """
    return (first - second).pow(2).sum(dim=1).mean().item()


def uniformity(embeddings: torch.Tensor) -> float:
    """
    Log of the mean Gaussian potential exp(-2 d^2) over all pairs of distinct rows (Wang and Isola 2020, section 4.1,
    t = 2); `embeddings` are normalised, `(S, d)`.
    """
    return torch.pdist(embeddings).pow(2).mul(-2).exp().mean().log().item()


def score_pairs(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, pairs: datasets.Dataset, batch_size: int = 128
) -> dict[str, float]:
    """
    Scores of one task: `spearman` and `pearson` (times 100), `pairs`, and `alignment` (over pairs with a score of at
    least 4) and `uniformity` (over all distinct sentences) as the SimCSE paper measures them on STS-B. A correlation
    that does not exist, since all similarities are equal, is NaN.
    """
    sentences = sorted({*pairs["sentence1"], *pairs["sentence2"]})
    position = {sentence: index for index, sentence in enumerate(sentences)}
    embeddings = F.normalize(encode(model, tokenizer, sentences, batch_size), dim=1)  # (S, d)
    first = embeddings[[position[sentence] for sentence in pairs["sentence1"]]]  # (P, d)
    second = embeddings[[position[sentence] for sentence in pairs["sentence2"]]]  # (P, d)
    similarities = (first.double() * second.double()).sum(dim=1)  # (P,)
    correlation = StsCorrelation(keep_in_memory=True).compute(predictions=similarities, references=pairs["score"])
    similar = torch.tensor(pairs["score"]) >= 4
    return {
        "spearman": 100 * correlation["spearman"],
        "pearson": 100 * correlation["pearson"],
        "pairs": len(pairs),
        "alignment": alignment(first[similar], second[similar]),
        "uniformity": uniformity(embeddings),
    }


def score_model(
    model: SarcseModel, tokenizer: PreTrainedTokenizerBase, tasks: dict[str, datasets.Dataset], batch_size: int = 128
) -> dict[str, Any]:
    """
    One model's entry of results.json: each task's scores, their average Spearman, and the alignment and uniformity of
    STS-B, or of the only task where there is but one (otherwise `None`).
    """
    scores = {name: score_pairs(model, tokenizer, pairs, batch_size) for name, pairs in tasks.items()}
    reference = scores.get("STSB") or (next(iter(scores.values())) if len(scores) == 1 else {})
    return {
        "tasks": {
            name: {key: _number(task[key]) for key in ("spearman", "pearson", "pairs")}
            for name, task in scores.items()
        },
        "average": _number(sum(task["spearman"] for task in scores.values()) / len(scores)),
        "alignment": _number(reference.get("alignment")),
        "uniformity": _number(reference.get("uniformity")),
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN: a correlation that does not exist is null."""
    return None if value is None or math.isnan(value) else value


# --- Reports and the command -----------------------------------------------------------------------------------------


def results_table(results: dict[str, Any]) -> str:
    """The `{"models": ...}` of results.json as a Markdown table, aligned for the terminal too: Spearman x 100."""
    tasks = list(dict.fromkeys(task for model in results["models"].values() for task in model["tasks"]))
    rows = [["model", *tasks, "average"]]
    for name, model in results["models"].items():
        scores = [model["tasks"].get(task, {}).get("spearman") for task in tasks] + [model["average"]]
        rows.append(
            [f"{name}, {model['pooler']}" if "pooler" in model else name]
            + ["-" if score is None else f"{score:.2f}" for score in scores]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]])
    return "\n".join(
        "| " + " | ".join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]) + " |"
        for row in rows
    )


def write_results(results: dict[str, Any], json_file: Path) -> None:
    """Write `json_file` and the Markdown table beside it."""
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    json_file.with_suffix(".md").write_text(results_table(results) + "\n", encoding="utf-8")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Spearman correlation x 100 on the seven STS tasks, 'all' setting.", allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Folders or Hub ids of SARCSE or other encoders.")
    parser.add_argument("--pooler", choices=("cls", "mean"), default="mean", help="For other encoders (mean).")
    parser.add_argument("--revision", default="main", help="Branch, tag or commit of models from the Hub (main).")
    parser.add_argument("--sts_dir", help="Folder with the tasks in SentEval's layout. Default: the Hub's data sets.")
    parser.add_argument("--tasks", nargs="+", choices=STS_TASKS, default=list(STS_TASKS), help="Default: all seven.")
    parser.add_argument("--pairs", help="Score on this file instead: sentence1, sentence2, score (.tsv, .csv, ...).")
    parser.add_argument("--output_dir", help="Where to write results.json and results.md.")
    parser.add_argument("--batch_size", type=int, default=128, help="Sentences encoded at once (128).")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Default: a GPU.")
    return parser.parse_args(arguments)


def load_tasks(task_names: list[str], sts_dir: str | None, pairs: str | None) -> dict[str, datasets.Dataset]:
    """The test pairs to score on, by task name; those of a file of one's own go by the file's name."""
    if pairs is not None:
        return {Path(pairs).stem: load_pairs(pairs)}
    return {name: load_sts(name, sts_dir) for name in task_names}


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        tasks = load_tasks(args.tasks, args.sts_dir, args.pairs)
        results: dict[str, Any] = {"models": {}}
        for name in args.models:
            model, tokenizer = load_model(name, args.pooler, args.revision)
            scores = score_model(model.to(args.device), tokenizer, tasks, args.batch_size)
            results["models"][name] = {"pooler": model.config.pooler, **scores}
    except ValueError as error:
        print(f"eval_sts.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    print(results_table(results))
    if args.output_dir is not None:
        write_results(results, Path(args.output_dir, "results.json"))


if __name__ == "__main__":
    main()
