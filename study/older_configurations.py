"""The configurations behind docs/choices.md: older runs, from which the defaults were chosen."""

from typing import Any


# Options that were tried and then removed from the code. For each, the one value that can still be run: what the
# program does now. Lines in study.jsonl with another value name the commit that has the option.
REMOVED: dict[str, Any] = {
    "pooling": "mean",  # how the TextCNN encoder pools its integrated vectors; or max
    "reconstructed_views": 1,  # or 2: both views of a sentence are reconstructed
    # The reconstruction error of a token. Alternatives: 1 - cosine (cosine), or a squared error with another target.
    # That target receives a gradient too (attached), comes from the other view (crosswise), or has each dimension
    # divided by its deviation in the batch (standardised).
    "error": "squared",
    "shielded_encoder": False,  # whether the reconstruction sends no gradient to the encoder
    # Share of the vectors from before the training in the reconstruction target. It kept long trainings from ruining
    # the encoder; the learning-rate budget does so without another forward pass.
    "reconstruction_anchor": 0.0,
    "target_decay": None,  # decay of an anchor that is a moving average of the encoder
    # Decay of the weights towards those before the training. It also kept trainings from ruining the encoder, but cost
    # more than the learning-rate budget, and the last checkpoint was not near the best.
    "start_decay": 0.0,
    "token_pooling": "uniform",  # token weights in mean pooling; or a frequency weighting
    "dropout": 0.1,  # the encoder's; both encoders come with this value
    # What a view loses when both views come from one pass. Dimensions, the same ones in all token vectors: set to
    # three quarters of their mean (centred), or to zero (shared). Or: other dimensions in each vector (dimensions),
    # dimensions of the embedding (embedding), or whole tokens (tokens). Or noise is added to the embedding (noise).
    "view_kind": "centred",
    "token_cutoff": 0.0,  # share of the tokens that each view loses
    "layers": "last",  # the layer whose vectors are used; or the mean of the first and the last (first_last)
    # Whether the TextCNN and the decoder add to the mean and the embedding. Otherwise they start as copies of them.
    "residual": True,
    "decoder_initialization": "copy",  # the decoder starts as a copy of the embedding; or random
    "decoder_shape": "full",  # or without its TextCNN (shallow), or no decoder at all (none)
    "encoder_shape": "full",  # of the TextCNN encoder; or a plain mean (none)
}
# The defaults that this project began with. Fields outside `REMOVED` are train.py's flags.
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
    **REMOVED,
    "decoder_initialization": "random",
    "residual": False,
}
# Fields that only an autoencoder uses.
OF_AUTOENCODER = ("decoder_initialization", "residual")


def can_run(configuration: dict[str, Any]) -> bool:
    """Whether the program still supports everything in a complete configuration."""
    without = () if configuration["pooler"] == "autoencoder" else OF_AUTOENCODER
    return all(configuration[name] == value for name, value in REMOVED.items() if name not in without)


SIMCSE = {"pooler": "cls", "reconstruction_weight": 0.0}
MEAN = {"pooler": "mean", "reconstruction_weight": 0.0}

# Part one: changes from START. These names appear in the tables; each one adds a change to the one before:
#   START  the defaults that this project began with
#   COPY   the decoder starts as a copy of the embedding: the choice that mattered most
#   FAST   a higher learning rate, searched from COPY
#   WIDE   the fewest channels with which the TextCNN can start as the identity: a third of 2 d, rounded up to a
#          multiple of 8 for GPUs
#   STEEP  token weights that decrease sooner with frequency; the remaining choices were made from here
#   APART  a higher learning rate for the new layers: SARCSE as part one settled it
#   SLOW   APART with about a third of the learning rates, for longer trainings (below)
# The two baselines, SIMCSE and MEAN, were tuned in the same way.
COPY = {"decoder_initialization": "copy"}
FAST = {**COPY, "learning_rate": 1e-4}
WIDE = {**FAST, "channels": 176}
STEEP = {**WIDE, "frequency_smoothing": 1e-4}
APART = {**STEEP, "autoencoder_learning_rate": 3e-4}
WEIGHTED = {**MEAN, "learning_rate": 1e-4, "token_pooling": "smooth_inverse"}  # the reconstruction's token weights
# SARCSE with parts removed. With a reconstruction weight of 1,000 the contrastive loss hardly matters.
LESS = {
    "SARCSE without decoder": {**APART, "decoder_shape": "none"},
    "SARCSE without new layers": {**APART, "decoder_shape": "none", "encoder_shape": "none"},
    "SARCSE with hardly any contrast": {**APART, "reconstruction_weight": 1000.0},
}
# The result as an option of the program: mean pooling with a reconstruction.
DIRECT = {**MEAN, "reconstruction_weight": 1.0, "learning_rate": 1e-4, "frequency_smoothing": 1e-5}
FIRST_LAST = {**APART, "layers": "first_last"}
CHOICES: list[dict[str, Any]] = [
    {},
    COPY,
    FAST,
    WIDE,
    STEEP,
    APART,
    *({**APART, "reconstruction_anchor": share} for share in (0.25, 0.5, 1.0)),
    *({**APART, "reconstruction_anchor": 1.0, "reconstruction_weight": weight} for weight in (3.0, 10.0)),
    {**APART, "reconstruction_anchor": 1.0, "target_decay": 0.99},
    {**APART, "shielded_encoder": True},
    {**APART, "error": "cosine"},
    {**APART, "channels": 256},
    {**APART, "reconstruction_weight": 3.0},
    *LESS.values(),
    {**APART, "frequency_smoothing": 1e-5},
    {**APART, "decoder_shape": "shallow"},
    FIRST_LAST,
    {**STEEP, "autoencoder_learning_rate": 1e-3},
    {**STEEP, "reconstruction_anchor": 1.0},
    *({**STEEP, "error": error} for error in ("cosine", "standardised")),
    *({**STEEP, "token_cutoff": share} for share in (0.1, 0.2)),
    {**STEEP, "channels": 256},
    {**STEEP, "reconstructed_views": 2},
    *({**STEEP, "dropout": dropout} for dropout in (0.05, 0.2)),
    {**STEEP, "pooling": "max"},
    {**STEEP, "integration_kernel_size": 1},
    {**STEEP, "activation": "relu"},
    {**STEEP, "decoder_length": 16},
    {**STEEP, "learning_rate": 3e-4},
    *({**STEEP, "contrastive_temperature": temperature} for temperature in (0.1, 0.2)),
    *({**STEEP, "contrastive_temperature": 0.1, "reconstruction_weight": weight} for weight in (3.0, 10.0)),
    *(
        {**STEEP, "learning_rate": 3e-4, "contrastive_temperature": 0.1, "reconstruction_weight": weight}
        for weight in (1.0, 3.0, 10.0)
    ),
    {**STEEP, "learning_rate": 2e-4, "contrastive_temperature": 0.1, "reconstruction_weight": 3.0},
    {**STEEP, "learning_rate": 2e-4, "contrastive_temperature": 0.07},
    {**STEEP, "reconstruction_weight": 3.0},
    SIMCSE,
    *({**SIMCSE, "learning_rate": rate} for rate in (1e-5, 1e-4)),
    *({**SIMCSE, "contrastive_temperature": temperature} for temperature in (0.02, 0.01, 0.005, 0.002)),
    {**SIMCSE, "contrastive_temperature": 0.02, "learning_rate": 1e-5},
    *({**SIMCSE, "contrastive_temperature": 0.01, "learning_rate": rate} for rate in (1e-5, 1e-4)),
    {**SIMCSE, "contrastive_temperature": 0.005, "learning_rate": 1e-4},
    MEAN,
    *({**MEAN, "learning_rate": rate} for rate in (1e-5, 1e-4, 3e-4, 1e-3)),
    {**MEAN, "contrastive_temperature": 0.02},
    *({**MEAN, "contrastive_temperature": temperature, "learning_rate": 1e-4} for temperature in (0.02, 0.1, 0.2)),
    *({**MEAN, "contrastive_temperature": temperature, "learning_rate": 3e-4} for temperature in (0.1, 0.2, 0.5)),
    {**MEAN, "contrastive_temperature": 0.1, "learning_rate": 1e-3},
    *(
        {**WEIGHTED, "learning_rate": rate, "contrastive_temperature": temperature, "frequency_smoothing": smoothing}
        for smoothing in (1e-3, 1e-4)
        for temperature in (0.05, 0.1)
        for rate in (1e-4, 3e-4)
    ),
    *({**MEAN, "learning_rate": 3e-4, "token_cutoff": share} for share in (0.1, 0.2)),
    {**MEAN, "learning_rate": 3e-4, "contrastive_temperature": 0.1, "layers": "first_last"},
    DIRECT,
    *({**DIRECT, "frequency_smoothing": smoothing} for smoothing in (1e-4, 1e-6)),
    *({**DIRECT, "contrastive_temperature": temperature} for temperature in (0.02, 0.1)),
    *({**DIRECT, "learning_rate": rate} for rate in (5e-5, 2e-4)),
    {**DIRECT, "reconstruction_weight": 3.0},
    *({**FAST, "reconstruction_weight": weight} for weight in (0.0, 3.0, 10.0)),
    {**FAST, "frequency_weighting": "uniform"},
    {**FAST, "reconstruction_weight": 3.0, "frequency_weighting": "uniform"},
    {**FAST, "frequency_weighting": "self_information"},
    *({**FAST, "frequency_smoothing": smoothing} for smoothing in (1e-4, 1e-5)),
    *({**FAST, "channels": channels} for channels in (256, 171)),
    {**FAST, "channels": 48},  # preserves 28% of a vector, about as much as START's channels would for RoBERTa-base
    *({**FAST, "error": error} for error in ("cosine", "attached")),
    {**FAST, "error": "crosswise", "reconstructed_views": 2},
    {**FAST, "token_pooling": "smooth_inverse"},
    {**FAST, "contrastive_temperature": 0.02},
    {**FAST, "train_sampling_strategy": "random"},
    {**WIDE, "contrastive_temperature": 0.02},
    {**WIDE, "reconstruction_weight": 3.0},
    {**COPY, "learning_rate": 3e-4},
    *({**COPY, "reconstruction_weight": weight} for weight in (3.0, 10.0)),
    {**COPY, "frequency_weighting": "uniform"},
    {**COPY, "contrastive_temperature": 0.02},
    {**COPY, "reconstruction_weight": 10.0, "contrastive_temperature": 0.02},
    {**COPY, "reconstruction_weight": 10.0, "learning_rate": 1e-5},
    {"reconstruction_weight": 0.0},
    {"autoencoder_learning_rate": 3e-4},
]

# Part two: the settings that part one chose for each method, and the ladder from SimCSE up to SARCSE.
SETTLED: dict[str, Any] = APART
SETTLED_SIMCSE: dict[str, Any] = {**SIMCSE, "contrastive_temperature": 0.005}
SETTLED_MEAN: dict[str, Any] = {**MEAN, "learning_rate": 3e-4, "contrastive_temperature": 0.1}
BASELINES: dict[str, dict[str, Any]] = {
    "SimCSE": SETTLED_SIMCSE,
    "mean pooling": SETTLED_MEAN,
    "weighted mean pooling": WEIGHTED,
    "weighted mean pooling, steep": {**WEIGHTED, "frequency_smoothing": 1e-4},
}
# The settings before other learning rates and temperatures were tried.
EARLIER_BASELINES: dict[str, dict[str, Any]] = {
    "SimCSE, at 0.02": {**SIMCSE, "contrastive_temperature": 0.02},
    "mean pooling, at 0.05": {**MEAN, "learning_rate": 3e-4},
    "mean pooling, at 0.05 and 1e-4": {**MEAN, "learning_rate": 1e-4},
    "weighted mean pooling, at 3e-4": {**WEIGHTED, "learning_rate": 3e-4},
}
RUNGS: dict[str, dict[str, Any]] = {
    "TextCNN encoder": {"reconstruction_weight": 0.0},
    "+ reconstruction": {"frequency_weighting": "uniform"},
    "+ self-adaptive weights": {},
}
STEEPER = "+ steeper weights"
STEEPER_AS_MEAN = "+ steeper weights, at 0.1 and 3e-4"  # the settings of mean pooling
MEAN_RECONSTRUCTED = "mean pooling + reconstruction"
ON_FIRST_LAST = "SARCSE on first and last layer"
SARCSE = "+ faster new layers: SARCSE"
LADDER = {
    **BASELINES,
    **EARLIER_BASELINES,
    **{name: {**WIDE, **rung} for name, rung in RUNGS.items()},
    STEEPER: STEEP,
    SARCSE: SETTLED,
    **LESS,
    MEAN_RECONSTRUCTED: DIRECT,
    ON_FIRST_LAST: FIRST_LAST,
    STEEPER_AS_MEAN: {**STEEP, "learning_rate": 3e-4, "contrastive_temperature": 0.1},
    **{f"{name}, at 0.02": {**WIDE, "contrastive_temperature": 0.02, **rung} for name, rung in RUNGS.items()},
}
# One step with a learning rate of 0.
UNTRAINED = {"learning_rate": 0.0, "max_train_samples": 64}
UNTRAINED_POOLERS: dict[str, dict[str, Any]] = {
    "untrained, cls": {**SIMCSE, **UNTRAINED},
    "untrained, mean": {**MEAN, **UNTRAINED},
    "untrained, weighted mean": {**WEIGHTED, **UNTRAINED},
}
BATCH_SIZES = (16, 32, 64, 128, 256)


def with_batch_size(choice: dict[str, Any], size: int, exponent: float = 0.5) -> dict[str, Any]:
    """
    The same sentences in batches of another size. The learning rates are scaled with a power of the size: its square
    root, as AdamW needs (arXiv 2205.10287), or in proportion (`exponent` 1), so that their sum over all steps stays.
    """
    base = {**START, **choice}
    growth = (size / base["per_device_train_batch_size"]) ** exponent
    rates = {name: base[name] for name in ("learning_rate", "autoencoder_learning_rate") if base[name] is not None}
    return {**choice, "per_device_train_batch_size": size, **{name: rate * growth for name, rate in rates.items()}}


METHODS = {"SimCSE": SETTLED_SIMCSE, "mean pooling": SETTLED_MEAN, "SARCSE": SETTLED}
# Sizes and exponents by their names in the tables.
BATCHES = {
    **{str(size): (size, 0.5) for size in BATCH_SIZES},
    **{f"{size}, in proportion": (size, 1) for size in (BATCH_SIZES[0], BATCH_SIZES[-1])},
}
OTHER_BATCH_SIZES = [
    with_batch_size(choice, size, exponent)
    for size, exponent in BATCHES.values()
    for choice in METHODS.values()
    if size != START["per_device_train_batch_size"]
]
# About four and twenty times the sentences: what wins in a short training may lose in a long one. SLOW has about a
# third of APART's learning rates.
SLOW_RATES = {"learning_rate": 3e-5, "autoencoder_learning_rate": 9e-5}
SLOW = {**SETTLED, **SLOW_RATES}
DIRECT_SLOW = {
    f"{MEAN_RECONSTRUCTED}, at 3e-5": {**DIRECT, "learning_rate": 3e-5},
    f"{MEAN_RECONSTRUCTED}, at 3e-5, anchor 0.5": {**DIRECT, "learning_rate": 3e-5, "reconstruction_anchor": 0.5},
}
LENGTHS: dict[int, dict[str, dict[str, Any]]] = {
    20_032: {
        "START": {},
        "COPY": COPY,
        "COPY, reconstruction_weight 3": {**COPY, "reconstruction_weight": 3.0},
        **METHODS,
        "SimCSE at 1e-5": {**SETTLED_SIMCSE, "learning_rate": 1e-5},
        "mean pooling at 1e-4": {**SETTLED_MEAN, "learning_rate": 1e-4},
        "SARCSE at 3e-5": SLOW,
        "SARCSE at 3e-5, anchor 0.5": {**SLOW, "reconstruction_anchor": 0.5},
        "SARCSE, batches of 256": {**SETTLED, "per_device_train_batch_size": 256},
        **{f"SARCSE, anchor {share}": {**SETTLED, "reconstruction_anchor": share} for share in (0.1, 0.25, 0.5)},
        STEEPER: STEEP,
        f"{STEEPER}, anchor 1": {**STEEP, "reconstruction_anchor": 1.0},
        f"{STEEPER}, at 3e-5": {**STEEP, "learning_rate": 3e-5},
        **{f"{name}, at 3e-5": {**choice, **SLOW_RATES} for name, choice in LESS.items()},
        **DIRECT_SLOW,
    },
    100_032: {
        "SARCSE at 3e-5": SLOW,
        **{f"SARCSE at 3e-5, anchor {share}": {**SLOW, "reconstruction_anchor": share} for share in (0.25, 0.5, 1.0)},
        **{f"{name}, at 3e-5": {**choice, **SLOW_RATES} for name, choice in LESS.items()},
        **DIRECT_SLOW,
        "SARCSE at 6e-6": {**SETTLED, "learning_rate": 6e-6, "autoencoder_learning_rate": 1.8e-5},
    },
}
LONGER = {
    (sentences, name): {**choice, "max_train_samples": sentences}
    for sentences, choices in LENGTHS.items()
    for name, choice in choices.items()
}
ENCODER, SMALL_ENCODER, SECOND_ENCODER = "roberta-mini-wiki", "roberta-tiny-wiki", "all-MiniLM-L6-v2"
DIMENSIONS = {ENCODER: 256, SMALL_ENCODER: 128, SECOND_ENCODER: 384}
BUDGET = {"learning_rate_budget": 0.003}  # of train.py


def for_new_layers(rate: float) -> float:
    """Three times the learning rate, rounded: the lines in study.jsonl are found by their configurations."""
    return float(f"{3 * rate:.10g}")


def beside_mean(encoder: str, share: int = 8, view_dropout: float | None = 0.1) -> dict[str, Any]:
    """SARCSE with a TextCNN beside the mean; its channels are 1 / `share` of the encoder's dimensions."""
    channels = DIMENSIONS[encoder] // share
    return {**SETTLED, "residual": True, "channels": channels, "view_dropout": view_dropout}


# Another encoder: a BERT that was already trained on labelled pairs, so that mean pooling works without training. As
# it is slower, it gets a quarter of the sentences; 256 channels preserve all of its 384 dimensions. Each method is
# tried with several learning rates and, at a good one, another temperature. SARCSE's new layers learn three times as
# fast. The program's SARCSE came after the others.
SECOND_RATES = (1e-5, 3e-5, 1e-4, 3e-4)
SARCSE_BESIDE = "SARCSE, beside the mean"
SECOND_METHODS: dict[str, tuple[dict[str, Any], list[tuple[float, float]]]] = {
    "SimCSE": (SIMCSE, [*((0.02, rate) for rate in SECOND_RATES), (0.005, 1e-4)]),
    "mean pooling": (MEAN, [*((0.05, rate) for rate in SECOND_RATES), (0.1, 1e-4)]),
    STEEPER: ({**STEEP, "channels": 256}, [*((0.05, rate) for rate in SECOND_RATES), (0.1, 3e-5)]),
    "SARCSE": ({**SETTLED, "channels": 256}, [(0.05, rate) for rate in SECOND_RATES[:3]]),
    SARCSE_BESIDE: ({**beside_mean(SECOND_ENCODER), **BUDGET}, [(0.05, rate) for rate in SECOND_RATES[:2]]),
    MEAN_RECONSTRUCTED: (DIRECT, [(0.05, rate) for rate in SECOND_RATES[:3]]),
}
SECOND_LADDER: dict[str, dict[str, Any]] = {
    **UNTRAINED_POOLERS,
    **{
        f"{name}, {temperature:g} and {rate:g}": {
            **choice,
            "contrastive_temperature": temperature,
            "learning_rate": rate,
            "autoencoder_learning_rate": for_new_layers(rate) if name.startswith("SARCSE") else None,
            "max_train_samples": 1280,
        }
        for name, (choice, settings) in SECOND_METHODS.items()
        for temperature, rate in settings
    },
}
MEAN_SLOWER = "mean pooling, at 3e-5"
SECOND_SETTLED = {
    "SimCSE": "SimCSE, 0.02 and 0.0001",
    "mean pooling": "mean pooling, 0.05 and 0.0001",
    "SARCSE": "SARCSE, 0.05 and 3e-05",
    MEAN_RECONSTRUCTED: f"{MEAN_RECONSTRUCTED}, 0.05 and 3e-05",
    # By the mean of STS-B dev and of SICK's train and trial pairs, of one seed.
    SARCSE_BESIDE: f"{SARCSE_BESIDE}, 0.05 and 1e-05",
    MEAN_SLOWER: "mean pooling, 0.05 and 3e-05",
}
# One pass of the encoder for two views, compared with two passes: what each view loses, and how much of it. The third
# encoder is small: 88 channels preserve all of its 128 dimensions.
TWO_PASSES: dict[str, dict[str, dict[str, Any]]] = {
    ENCODER: {"SARCSE": SETTLED, MEAN_RECONSTRUCTED: DIRECT},
    SMALL_ENCODER: {"SARCSE": {**SETTLED, "channels": 88}, MEAN_RECONSTRUCTED: DIRECT},
}
VIEWS: dict[str, dict[str, Any]] = {
    "two passes": {},
    **{f"the same dimensions, towards the mean, {rate}": {"view_dropout": rate} for rate in (0.03, 0.05, 0.07, 0.1)},
    **{
        f"the same dimensions of all vectors, {rate}": {"view_dropout": rate, "view_kind": "shared"}
        for rate in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3)
    },
    **{
        f"the same, {rate}, encoder without dropout": {"view_dropout": rate, "view_kind": "shared", "dropout": 0.0}
        for rate in (0.1, 0.2)
    },
    "the same, 0.05, twice the learning rates": {
        "view_dropout": 0.05,
        "view_kind": "shared",
        "learning_rate": 2e-4,
        "autoencoder_learning_rate": 6e-4,
    },
    "the same, 0.1, temperature 0.1": {
        "view_dropout": 0.1,
        "view_kind": "shared",
        "contrastive_temperature": 0.1,
    },
    **{
        f"{what}, {rate}": {"view_dropout": rate, "view_kind": kind}
        for kind, what, rates in (
            ("dimensions", "dimensions of each vector", (0.1, 0.3)),
            ("embedding", "dimensions of the embedding", (0.05, 0.1)),
            ("tokens", "tokens", (0.1, 0.3)),
            ("noise", "noise on the embedding", (0.3,)),
        )
        for rate in rates
    },
}
# The TextCNN alone as the embedding (the reference), or added to the mean: with how many channels, and which views?
# The first variant beside the mean is the default.
ALONE = "alone, one pass, 0.05"
BESIDE: dict[str, dict[str, dict[str, Any]]] = {
    encoder: {
        ALONE: {**methods["SARCSE"], "view_dropout": 0.05},
        "beside the mean, d / 8 channels, 0.1": beside_mean(encoder),
        **{
            f"beside the mean, {channels} channels, 0.1": beside_mean(encoder, share)
            for channels, share in (("d / 16", 16), ("d / 4", 4), ("d", 1))
        },
        **{
            f"beside the mean, d / 8 channels, {views}": beside_mean(encoder, view_dropout=rate)
            for views, rate in (("0.05", 0.05), ("0.2", 0.2), ("two passes", None))
        },
    }
    for encoder, methods in TWO_PASSES.items()
}
ONE_PASS = {
    encoder: [{**choice, **view} for choice in methods.values() for view in VIEWS.values()]
    for encoder, methods in TWO_PASSES.items()
}
