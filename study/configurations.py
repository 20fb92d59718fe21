"""What the study runs: configurations, each written as its differences from `START`, and the parts they form."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


# The defaults that this project began with. The fields are train.py's flags.
START: dict[str, Any] = {
    "max_train_samples": 5120,
    "per_device_train_batch_size": 64,
    "learning_rate": 3e-5,
    "autoencoder_learning_rate": None,
    "train_sampling_strategy": "group_by_length",
    "contrastive_temperature": 0.05,
    "pooler": "autoencoder",
    "activation": "gelu",
    "channels": 128,
    "integration_kernel_size": 3,
    "decoder_length": 32,
    "reconstruction_weight": 1.0,
    "frequency_weighting": "smooth_inverse",
    "frequency_smoothing": 1e-3,
    "view_dropout": None,
    "learning_rate_budget": 0.0,
}
ENCODER, SMALL_ENCODER, SECOND_ENCODER = "roberta-mini-wiki", "roberta-tiny-wiki", "all-MiniLM-L6-v2"
DIMENSIONS = {ENCODER: 256, SMALL_ENCODER: 128, SECOND_ENCODER: 384}

SIMCSE: dict[str, Any] = {"pooler": "cls", "reconstruction_weight": 0.0}
MEAN: dict[str, Any] = {"pooler": "mean", "reconstruction_weight": 0.0}
MEAN_RECONSTRUCTED = "mean pooling + reconstruction"
DIRECT = {**MEAN, "reconstruction_weight": 1.0, "learning_rate": 1e-4, "frequency_smoothing": 1e-5}
# One step with a learning rate of 0.
UNTRAINED = {**MEAN, "learning_rate": 0.0, "max_train_samples": 64}
BUDGET = {"learning_rate_budget": 0.003}  # of train.py


def for_new_layers(rate: float) -> float:
    """Three times the learning rate, rounded: the lines in study.jsonl are found by their configurations."""
    return float(f"{3 * rate:.10g}")


def added(encoder: str) -> dict[str, Any]:
    """The default until 0.2: a TextCNN of the contextual vectors, added to their mean."""
    return {
        "learning_rate": 1e-4,
        "autoencoder_learning_rate": for_new_layers(1e-4),
        "channels": DIMENSIONS[encoder] // 8,
        "frequency_smoothing": 1e-4,
        "view_dropout": 0.1,
    }


def sarcse(encoder: str, view_dropout: float | None = 0.1) -> dict[str, Any]:
    """The program's default."""
    own = {"pooler": "words", "autoencoder_learning_rate": 1e-3, "token_frequencies": "english"}
    return {**added(encoder), **own, "view_dropout": view_dropout}


# Which number tracks STS-B dev without labels, and what keeps a training from ruining the encoder? Both methods with
# their defaults; the learning rates and lengths include both cases. New layers learn three times as fast.
ADDED = "TextCNN added to the mean"
WITH_BUDGET = (ADDED, MEAN_RECONSTRUCTED)
HEALTH_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
HEALTH_LENGTHS = (5120, 20_032, 100_032)


def health_run(encoder: str, method: str, sentences: int, rate: float, budget: bool = True) -> dict[str, Any]:
    common = {"learning_rate": rate, "max_train_samples": sentences, **(BUDGET if budget else {})}
    if method == MEAN_RECONSTRUCTED:
        return {**DIRECT, **common}
    return {**added(encoder), **common, "autoencoder_learning_rate": for_new_layers(rate)}


def steps_of(sentences: int) -> int:
    """Steps of one epoch."""
    return sentences // START["per_device_train_batch_size"]


def within_budget(sentences: int, rate: float) -> bool:
    """Whether a linear schedule from this rate to 0 needs no scaling."""
    return rate * (steps_of(sentences) + 1) / 2 <= BUDGET["learning_rate_budget"]


def rates_with_budget(sentences: int) -> list[float]:
    """The learning rates that give different trainings: all rates above the budget give the same one."""
    within = [rate for rate in HEALTH_RATES if within_budget(sentences, rate)]
    return list(HEALTH_RATES[: len(within) + 1])


def health_runs(encoder: str) -> list[dict[str, Any]]:
    limited = [
        health_run(encoder, method, sentences, rate)
        for sentences in HEALTH_LENGTHS
        for method in WITH_BUDGET
        for rate in rates_with_budget(sentences)
    ]
    settings = itertools.product(WITH_BUDGET, HEALTH_LENGTHS, HEALTH_RATES)
    return [UNTRAINED, *limited, *(health_run(encoder, *setting, budget=False) for setting in settings)]


# The final ladder, on the current program, in 313 steps: the candidates for each method's learning rate, temperature
# and smoothing. With a budget, all rates above it give the same training, so one represents them.
FINAL_SENTENCES = 20_032
UNTRAINED_MEAN, UNTRAINED_FIRST = "untrained, mean pooling", "untrained, first token"
SARCSE_TWICE = "SARCSE, two passes"

# The paper's ladder in the paper's form (docs/method.md): the TextCNN alone is the embedding, in two passes, with one
# learning rate for all layers and without a budget. SimCSE is the rung below.
TEXTCNN, TEXTCNN_RECONSTRUCTED, PAPER = "TextCNN", "TextCNN + reconstruction", "SARCSE as in the paper"
# Temperature and learning rate. On the first encoder a run takes four times as long: it has fewer candidates, around
# the best of the second.
PAPER_SETTINGS = {
    ENCODER: [(0.05, 1e-4), (0.05, 3e-4)],
    SMALL_ENCODER: [(0.05, 1e-4), (0.05, 3e-4), (0.05, 1e-3), (0.02, 3e-4), (0.02, 1e-3)],
}


def paper_rungs(encoder: str) -> dict[str, dict[str, Any]]:
    """What is stated of each rung in the parts of the paper that we had."""
    form = {"pooler": "textcnn", "channels": DIMENSIONS[encoder] // 8}
    return {
        TEXTCNN: {**form, "reconstruction_weight": 0.0},
        TEXTCNN_RECONSTRUCTED: {**form, "frequency_weighting": "uniform"},
        PAPER: {**form, "frequency_smoothing": 1e-4},
    }


# SimCSE's temperatures and learning rates beyond the first grid, whose best settings were at its edge.
BEYOND = {
    ENCODER: [*itertools.product((0.002,), (1e-5, 3e-5, 1e-4)), (0.001, 3e-5)],
    SMALL_ENCODER: [
        *itertools.product((0.05, 0.02, 0.005), (3e-4, 1e-3, 3e-3)),
        (0.1, 1e-3),
    ],
}


def final_choices(encoder: str) -> dict[str, list[dict[str, Any]]]:
    """The candidates for each rung on an encoder."""
    common = {"max_train_samples": FINAL_SENTENCES}
    budget = {**common, **BUDGET, "learning_rate": 1e-4}
    contrast = {
        "SimCSE": (SIMCSE, [*itertools.product((0.05, 0.02, 0.005), (1e-5, 3e-5, 1e-4)), *BEYOND[encoder]]),
        **{name: (rung, PAPER_SETTINGS[encoder]) for name, rung in paper_rungs(encoder).items()},
        "mean pooling": (MEAN, itertools.product((0.05, 0.1, 0.2), (3e-5, 1e-4, 3e-4, 1e-3))),
    }
    reconstruction = {
        MEAN_RECONSTRUCTED: {**DIRECT, **budget},
        ADDED: {**added(encoder), **budget},
    }
    variants = [
        {"contrastive_temperature": temperature, "frequency_smoothing": smoothing}
        for temperature in (0.05, 0.02, 0.1)
        for smoothing in (1e-4, 1e-5)
    ]
    return {
        UNTRAINED_MEAN: [{**MEAN, "learning_rate": 0.0, "max_train_samples": 128}],
        UNTRAINED_FIRST: [{**SIMCSE, "learning_rate": 0.0, "max_train_samples": 128}],
        **{
            name: [
                {**choice, **common, "learning_rate": rate, "contrastive_temperature": temperature}
                for temperature, rate in settings
            ]
            for name, (choice, settings) in contrast.items()
        },
        **{name: [{**choice, **variant} for variant in variants] for name, choice in reconstruction.items()},
        # Whose settings were chosen on own text as well (docs/results.md).
        "SARCSE": [{**sarcse(encoder), **budget}],
        SARCSE_TWICE: [{**sarcse(encoder, view_dropout=None), **budget}],
    }


# The settings with the best mean of STS-B dev and SICK's train and trial pairs. The TextCNN added to the mean keeps
# those that no other setting beats on both encoders.
CHOSEN: dict[str, dict[str, dict[str, float]]] = {
    ENCODER: {
        "SimCSE": {"contrastive_temperature": 0.002, "learning_rate": 3e-5},
        TEXTCNN: {"contrastive_temperature": 0.05, "learning_rate": 1e-4},
        TEXTCNN_RECONSTRUCTED: {"contrastive_temperature": 0.05, "learning_rate": 1e-4},
        PAPER: {"contrastive_temperature": 0.05, "learning_rate": 1e-4},
        "mean pooling": {"contrastive_temperature": 0.1, "learning_rate": 1e-4},
        MEAN_RECONSTRUCTED: {"contrastive_temperature": 0.05, "frequency_smoothing": 1e-5},
        ADDED: {"contrastive_temperature": 0.05, "frequency_smoothing": 1e-4},
        "SARCSE": {},
        SARCSE_TWICE: {},
    },
    SMALL_ENCODER: {
        "SimCSE": {"contrastive_temperature": 0.02, "learning_rate": 1e-3},
        TEXTCNN: {"contrastive_temperature": 0.05, "learning_rate": 3e-4},
        TEXTCNN_RECONSTRUCTED: {"contrastive_temperature": 0.05, "learning_rate": 3e-4},
        PAPER: {"contrastive_temperature": 0.05, "learning_rate": 3e-4},
        "mean pooling": {"contrastive_temperature": 0.1, "learning_rate": 1e-4},
        MEAN_RECONSTRUCTED: {"contrastive_temperature": 0.02, "frequency_smoothing": 1e-4},
        ADDED: {"contrastive_temperature": 0.05, "frequency_smoothing": 1e-4},
        "SARCSE": {},
        SARCSE_TWICE: {},
    },
}


def chosen(encoder: str) -> dict[str, dict[str, Any]]:
    """The rungs of the final ladder."""
    settings = {UNTRAINED_MEAN: {}, UNTRAINED_FIRST: {}, **CHOSEN[encoder]}
    return {
        name: next(choice for choice in choices if settings[name].items() <= choice.items())
        for name, choices in final_choices(encoder).items()
    }


FINAL = {encoder: chosen(encoder) for encoder in (ENCODER, SMALL_ENCODER)}
# Does the best checkpoint need the budget? SimCSE's learning rate for batches of 64, and three times it, without one.
WATCHED, WATCHED_RATES = ("SARCSE", MEAN_RECONSTRUCTED), (3e-5, 9e-5)


def watched(encoder: str, method: str, rate: float) -> dict[str, Any]:
    return {**FINAL[encoder][method], "learning_rate_budget": 0.0, "learning_rate": rate}


# Do small or large batches, or long trainings, lower the scores? Each run uses the whole budget.
def in_batches_of(encoder: str, method: str, size: int) -> dict[str, Any]:
    """The learning rates are scaled with the square root of the size, as AdamW needs (arXiv 2205.10287)."""
    base = {**START, **FINAL[encoder][method]}
    growth = (size / base["per_device_train_batch_size"]) ** 0.5
    rates = {name: base[name] for name in ("learning_rate", "autoencoder_learning_rate") if base[name] is not None}
    return {**base, "per_device_train_batch_size": size, **{name: rate * growth for name, rate in rates.items()}}


def of_length(encoder: str, method: str, sentences: int) -> dict[str, Any]:
    if method == "SARCSE":
        return {**FINAL[encoder][method], "max_train_samples": sentences}
    return health_run(encoder, method, sentences, rates_with_budget(sentences)[-1])


@dataclass(frozen=True)
class Series:
    """Runs that differ in one thing: its name and values, and the configuration for (encoder, method, value)."""

    what: str
    values: tuple[int, ...]
    methods: tuple[str, ...]
    choice: Callable[[str, str, int], dict[str, Any]]


SERIES = {
    "sizes": Series(
        "batch size", (16, 32, 64, 128, 256, 512), ("SimCSE", PAPER, *WITH_BUDGET, "SARCSE"), in_batches_of
    ),
    "lengths": Series("sentences", (*HEALTH_LENGTHS, 320_000), (*WITH_BUDGET, "SARCSE"), of_length),
}
PARTS = {
    "health": health_runs(ENCODER),
    "health_small": health_runs(SMALL_ENCODER),
    "health_second": health_runs(SECOND_ENCODER),
    "tuning": list(itertools.chain(*final_choices(ENCODER).values())),
    "tuning_small": list(itertools.chain(*final_choices(SMALL_ENCODER).values())),
    "final": list(FINAL[ENCODER].values()),
    "final_small": list(FINAL[SMALL_ENCODER].values()),
    "watched": [watched(ENCODER, *each) for each in itertools.product(WATCHED, WATCHED_RATES)],
    "watched_small": [watched(SMALL_ENCODER, *each) for each in itertools.product(WATCHED, WATCHED_RATES)],
    **{
        f"{part}{suffix}": [series.choice(encoder, *each) for each in itertools.product(series.methods, series.values)]
        for part, series in SERIES.items()
        for suffix, encoder in (("", ENCODER), ("_small", SMALL_ENCODER))
    },
}
# The encoder of each part that does not run on ENCODER.
ENCODERS = {
    "health_second": SECOND_ENCODER,
    **{part: SMALL_ENCODER for part in PARTS if part.endswith("_small")},
}
