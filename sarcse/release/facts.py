"""What is known about a released model: what was recorded and measured, read from the files of its training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedTokenizerBase

from modeling_sarcse import SarcseModel
from sarcse.evaluation.comparison import PRECISION, ModelScores
from sarcse.evaluation.figures import FIGURES
from sarcse.evaluation.seeds import differing
from sarcse.output import RECORD_NAME, RESULTS_NAME, read_json


SARCSE = "[arXiv 2402.15153](https://arxiv.org/abs/2402.15153)"
SIMCSE = "[arXiv 2104.08821](https://arxiv.org/abs/2104.08821)"
WITH_RECONSTRUCTION = f"""Trained without labels, with the two losses of SARCSE ({SARCSE}). InfoNCE over two views of
each sentence spreads the embeddings. Reconstructing every token's vector from the embedding"""
SMALLER_WEIGHTS = ", with smaller weights for frequent tokens, preserves the rare, meaning-bearing ones."
EQUAL_WEIGHTS = ", all with the same weight, preserves what the tokens say."
WITHOUT_RECONSTRUCTION = f"""Trained without labels, with InfoNCE over two dropout views of each sentence, as in SimCSE
({SIMCSE})."""


@dataclass
class Onnx:
    """
    The ONNX files of a release.

    Args:
        files (`dict[str, int]`): Size in bytes by name, including weights that are in a second file.
        task (`str`, *optional*), pairs (`int`): What int8 was scored on; None without int8.
        scores (`dict[str, float | None]`): Spearman x 100 on that task, by file name.
    """

    files: dict[str, int]
    task: str | None = None
    pairs: int = 0
    scores: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Facts:
    """
    What is known about a model.

    Args:
        model, tokenizer: As released.
        record (`dict`): training_record.json; empty if there is none.
        models (`dict[str, ModelScores]`): Scores of this and other models, by row; empty if there are none.
        row (`str`): The model's own row in `models`.
        precision (`str`): Of these scores.
        figure_dir (`Path`): Where figures of these scores may be.
        seeds (`dict[int, ModelScores]`): Scores of the same training with each seed.
        plain (`bool`): Released as an encoder with its pooling, without this project's code.
        onnx (`Onnx`, *optional*): The files for ONNX Runtime.
    """

    model: SarcseModel
    tokenizer: PreTrainedTokenizerBase
    record: dict[str, Any]
    models: dict[str, ModelScores]
    row: str | None
    precision: str
    figure_dir: Path
    seeds: dict[int, ModelScores] = field(default_factory=dict)
    plain: bool = False
    onnx: Onnx | None = None

    def own(self) -> ModelScores | None:
        """The model's own row, if it was scored."""
        return None if self.row is None else self.models[self.row]

    def base_model(self) -> str | None:
        """Hub id of the model that the training started from, if it came from the Hub."""
        base = self.record.get("base_model", {})
        return base["name"] if base.get("revision") else None

    def figures(self) -> list[Path]:
        """The files of `FIGURES` that exist."""
        return [file for name in FIGURES if (file := self.figure_dir / f"{name}.png").is_file()]

    def reconstructs(self) -> bool:
        """Whether the training used the reconstruction loss."""
        return self.record.get("hyperparameters", {}).get("reconstruction_weight", 0) > 0

    def losses(self) -> list[str]:
        """Their names; none if the training was not recorded."""
        return ["InfoNCE", *["TokenReconstruction"] * self.reconstructs()] if self.record else []

    def method(self) -> str:
        """What the embedding is, and how it was trained if that was recorded."""
        training = WITHOUT_RECONSTRUCTION
        if self.reconstructs():
            equal = self.record["hyperparameters"]["frequency_weighting"] == "uniform"
            training = WITH_RECONSTRUCTION + (EQUAL_WEIGHTS if equal else SMALLER_WEIGHTS)
        embedding = f"The embedding is {self.model.sentence_encoder.description}."
        return f"{embedding} {training}" if self.record else embedding

    def is_sarcse(self) -> bool:
        """Whether it has the paper's autoencoder, or at least the reconstruction loss."""
        return self.model.sentence_encoder.has_layers or self.reconstructs()


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_facts(
    model_dir: Path,
    model: SarcseModel,
    tokenizer: PreTrainedTokenizerBase,
    results_file: str | None = None,
    seed_dirs: list[str] | tuple[str, ...] = (),
) -> Facts:
    """
    Raises:
        ValueError: a file cannot be read, `results_file` has no row for this model, or the runs of `seed_dirs` differ
            in more than their seeds.
    """
    results_path = Path(results_file) if results_file else model_dir / RESULTS_NAME
    scored = results_file is not None or results_path.is_file()
    models, row, precision = read_scores(results_path, model_dir) if scored else ({}, None, PRECISION)
    record_path = model_dir / RECORD_NAME
    return Facts(
        model=model,
        tokenizer=tokenizer,
        record=read_json(record_path) if record_path.is_file() else {},
        models=models,
        row=row,
        precision=precision,
        figure_dir=results_path.parent,
        seeds=read_seeds(model_dir, seed_dirs),
    )


def read_scores(path: Path, model_dir: Path) -> tuple[dict[str, ModelScores], str, str]:
    """
    All rows, the name of the model's own, and the precision; train.py writes `after: FOLDER`, and eval_sts.py the
    folder as given.
    """
    try:
        content = read_json(path)
        rows, precision = content.get("models", {}), content.get("precision", PRECISION)
        own = [name for name in rows if name.startswith("after: ") or Path(name).resolve() == model_dir.resolve()]
        if len(own) != 1:
            raise ValueError(
                f"{path}: no scores of {model_dir} among {', '.join(rows) or 'no models'}. Run "
                f"`python eval_sts.py {model_dir} --output_dir OUT`, then pass --results OUT/results.json."
            )
        models = {name: ModelScores.from_json(row) for name, row in rows.items()}
    except (AttributeError, KeyError, TypeError, StrictDataclassFieldValidationError) as error:
        found = repr(error.__cause__ or error)  # strict's own message has two lines
        raise ValueError(f"{path}: not in the format of eval_sts.py and train.py: {found}") from error
    if len({tuple(scores.tasks) for scores in models.values()}) > 1:
        raise ValueError(f"{path}: its rows have different tasks.")
    return models, own[0], precision


def read_seeds(model_dir: Path, seed_dirs: list[str] | tuple[str, ...]) -> dict[int, ModelScores]:
    """Scores of this run and of the same training with other seeds, by seed; empty if there are no others."""
    if not seed_dirs:
        return {}
    seeds: dict[int, ModelScores] = {}
    folders = [model_dir, *map(Path, seed_dirs)]
    records = [read_json(folder / RECORD_NAME) for folder in folders]
    for folder, record in zip(folders, records):
        seed = record["hyperparameters"]["seed"]
        if different := differing(record, records[0]):
            raise ValueError(
                f"--seeds {folder}: differs from {model_dir} in more than the seed: {', '.join(different)}."
            )
        if seed in seeds:
            raise ValueError(f"--seeds {folder}: seed {seed} was given already.")
        models, row, precision = read_scores(folder / RESULTS_NAME, folder)
        if precision != PRECISION:
            raise ValueError(f"--seeds {folder}: scored in {precision}, not in {PRECISION}.")
        seeds[seed] = models[row]
    if len({tuple(scores.tasks) for scores in seeds.values()}) > 1:
        raise ValueError("--seeds: the runs were scored on different tasks.")
    return seeds
