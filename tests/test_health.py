"""The health check without labels: what it measures, on which sentences, and how a training uses it."""

import json
import logging

import datasets
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoModel, EarlyStoppingCallback, TrainerCallback

from modeling_sarcse import SarcseModel
from sarcse.data.sts import load_pairs
from sarcse.training.arguments import SarcseTrainingArguments
from sarcse.training.corpus import keep_aside
from sarcse.training.health import HealthCheck
from sarcse.training.trainer import SarcseTrainer
from sarcse.training.watch import check_health

from .conftest import DEMO, ENCODER, PROJECT, flags, run_command, whole_model


TEXTS = (DEMO / "sentences.txt").read_text().splitlines()[:400]
QUIET = {"report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 8, "learning_rate": 1e-3}


def fresh_model(**fields) -> SarcseModel:
    torch.manual_seed(0)
    # Random weights of words, as in a whole default model, would be worse than any training makes them.
    return whole_model(str(ENCODER), **{"channels": 4, "pooler": "autoencoder", **fields})


def general(tokenizer) -> np.ndarray:
    """Counts of a general text in which a token's number is its frequency."""
    return np.arange(len(tokenizer))


@pytest.mark.parametrize("pooler", ["words", "autoencoder", "textcnn", "mean"])
def test_health_is_what_texts_have_in_common_with_their_neighbours(tokenizer, pooler):
    """Here embedded one by one, without padding, sorted, and with scikit-learn's TF-IDF."""
    model = fresh_model(pooler=pooler, channels=None if pooler == "mean" else 4).train()
    token_ids = tokenizer(TEXTS[:40], truncation=True, max_length=32)["input_ids"] + [[0, 2]]
    counts = general(tokenizer)
    health = HealthCheck(token_ids, model.config, counts)(model)
    assert model.training
    model.eval()
    with torch.no_grad():
        embeddings = [model(torch.tensor([ids])).pooler_output[0].numpy() for ids in token_ids]
    words = [[token for token in ids if token not in tokenizer.all_special_ids] for ids in token_ids]
    vectorizer = TfidfVectorizer(analyzer=lambda ids: ids, sublinear_tf=True, norm=None)
    vectors = vectorizer.fit_transform(words).toarray()
    vectors *= 3e-4 / (3e-4 + counts[vectorizer.get_feature_names_out().astype(int)] / counts.sum())
    in_common = []
    for place, (text, embedding) in enumerate(zip(vectors, embeddings)):
        cosines = [embedding @ e / np.linalg.norm(embedding) / np.linalg.norm(e) for e in embeddings]
        near = [other for other in np.argsort(cosines)[::-1] if other != place][:10]
        lengths = np.linalg.norm(vectors[near], axis=1) * np.linalg.norm(text)
        in_common += list(np.divide(vectors[near] @ text, lengths, out=np.zeros(10), where=lengths > 0))
    assert health == pytest.approx(100 * np.mean(in_common), rel=1e-5)
    assert 0 < health < 100


def test_tokens_that_general_text_has_often_count_little(tokenizer):
    """Neighbours that share a rare token have more in common than those that share a frequent one."""
    rare, frequent = 1000, 2000
    token_ids = [[0, rare + place, frequent + place % 2, 2] for place in range(2)] * 20
    counts = np.ones(len(tokenizer), dtype=np.int64)
    vectors = {}
    for often in (1, 10**9):
        counts[frequent : frequent + 2] = often
        config = fresh_model().config
        vectors[often] = HealthCheck(token_ids, config, counts).vectors.toarray()[0]
    assert vectors[1][rare] == pytest.approx(vectors[1][frequent])
    assert vectors[10**9][rare] > 0.99 and vectors[10**9][frequent] < 0.01


def test_a_model_of_nan_has_no_health(tokenizer):
    model = fresh_model()
    torch.nn.init.constant_(model.encoder.get_input_embeddings().weight, torch.nan)
    token_ids = tokenizer(TEXTS[:20], truncation=True, max_length=32)["input_ids"]
    assert HealthCheck(token_ids, model.config, general(tokenizer))(model) == 0


def test_embeddings_that_are_all_the_same_are_unhealthy(tokenizer):
    token_ids = tokenizer(TEXTS, truncation=True, max_length=32)["input_ids"]
    model = fresh_model()
    health = HealthCheck(token_ids, model.config, general(tokenizer))
    before = health(model)
    for parameter in model.encoder.parameters():  # the last layer norm's among them
        torch.nn.init.zeros_(parameter)
    assert health(model) < before


def test_sentences_that_are_kept_aside_are_spread_over_the_corpus_and_not_trained_on():
    tokens = datasets.Dataset.from_dict({"input_ids": [[number] for number in range(100)]})
    aside, rest = keep_aside(tokens, 10, batch_size=90)
    assert aside == [[number] for number in range(0, 100, 10)]
    assert sorted([*aside, *rest["input_ids"][:]]) == tokens["input_ids"][:]
    # None, too many to keep aside, or so many that the rest does not fill a batch:
    for number, batch_size in ((0, 1), (11, 1), (200, 1), (10, 91)):
        aside, rest = keep_aside(tokens, number, batch_size)
        assert len(aside) == min(number, 100) and rest["input_ids"][:] == tokens["input_ids"][:]


def test_without_pairs_the_health_picks_the_checkpoint(tmp_path, tokenizer):
    """It is also logged before the first step, once."""
    arguments = {**QUIET, "max_steps": 6, "eval_steps": 2, "save_steps": 2, "health_sentences": 40}
    arguments = SarcseTrainingArguments(str(tmp_path), **arguments)
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, processing_class=tokenizer)
    assert len(trainer.train_dataset) == 360
    trainer.train()
    found = {line["step"]: line["eval_health"] for line in trainer.state.log_history if "eval_health" in line}
    assert list(found) == [0, 2, 4, 6]
    assert not any("eval_pairs_spearman" in line for line in trainer.state.log_history)
    best = [step for step, health in found.items() if health >= found[0]][-1]
    assert best > 0 and trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.health(trainer.model) == pytest.approx(found[best], abs=1e-4)
    trainer.create_model_card()
    assert "The training used no labels: the health check" in " ".join((tmp_path / "README.md").read_text().split())
    again = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, processing_class=tokenizer)
    again.train(resume_from_checkpoint=True)
    assert [line["step"] for line in again.state.log_history if "eval_health" in line] == [0, 2, 4, 6]


def test_too_few_texts_for_neighbours_are_told_and_trained_on(tmp_path, caplog):
    rows = datasets.Dataset.from_dict({"input_ids": [[0, 5, 2]] * 11})
    fields = {**QUIET, "token_frequencies": "corpus"}
    with caplog.at_level(logging.WARNING, logger="sarcse.training.trainer"):
        trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **fields), train_dataset=rows)
    assert trainer.health is None and trainer.args.eval_strategy == "no"
    assert "do not check the model's health: 11 held-out texts are too few for 10 neighbours." in caplog.text
    arguments = SarcseTrainingArguments(str(tmp_path), metric_for_best_model="health", **fields)
    pairs = load_pairs(str(DEMO / "sts.tsv")).select(range(8))
    with pytest.raises(ValueError, match="--metric_for_best_model health: 11 held-out texts are too few"):
        SarcseTrainer(fresh_model(), arguments, train_dataset=rows, eval_dataset=pairs)


def test_general_text_decides_what_counts_also_where_the_corpus_gives_the_weights(tmp_path, tokenizer):
    """A training that erases the words which name its topics would look healthy by its own frequencies."""
    found = []
    for frequencies in ("english", "corpus"):
        arguments = SarcseTrainingArguments(str(tmp_path), token_frequencies=frequencies, **QUIET)
        trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, processing_class=tokenizer)
        found.append(trainer.health.vectors)
    assert (found[0] != found[1]).nnz == 0


def test_a_fall_is_a_warning_with_a_step_numbers_and_advice(tmp_path, tokenizer, caplog):
    arguments = SarcseTrainingArguments(str(tmp_path), **QUIET)
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, processing_class=tokenizer)
    caplog.clear()
    trainer.state.log_history = [{"step": 0, "eval_health": 30.0}, {"step": 4, "eval_health": 40.0}]
    with caplog.at_level(logging.WARNING, logger="sarcse.training.watch"):
        check_health(trainer, 30.0)
        assert not caplog.text
        check_health(trainer, 29.9)
    assert "the health has fallen from 30.00 before the training to 29.90" in caplog.text
    assert "lower --learning_rate, now 0.001, or --learning_rate_budget, now 0.003." in caplog.text


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (10.5, "Probably better: texts have more"),
        (10.1, "About as before: texts have as much"),
        (9.9, "Probably worse"),
    ],
)
def test_the_last_line_says_what_the_health_says(tmp_path, tokenizer, monkeypatch, caplog, health, said):
    """Of the model after the last step, if none is chosen."""
    fields = {**QUIET, "max_steps": 2, "eval_steps": 1, "load_best_model_at_end": False, "save_strategy": "no"}
    trainer = SarcseTrainer(
        fresh_model(),
        SarcseTrainingArguments(str(tmp_path), **fields),
        train_dataset=TEXTS,
        processing_class=tokenizer,
    )
    told = iter([10.0, 5.0, health])
    monkeypatch.setattr(trainer, "health", lambda model: next(told))
    trainer.train()
    assert caplog.records[-1].message.startswith(said)
    assert f"(health {health:.2f}, before 10.00). Only labels" in caplog.records[-1].message


def test_a_ruinous_training_is_warned_of_by_its_health_and_the_budget_prevents_it(tmp_path):
    """At 100 times a usual learning rate, without any pairs, through the command."""
    options = {"learning_rate": 0.01, "lr_scheduler_type": "constant", "max_train_samples": 400}
    options |= {"eval_pairs": None, "eval_steps": 10, "save_steps": 10}
    options |= {"health_sentences": 40, "max_steps": 40, "pooler": "autoencoder"}
    health = {}
    for budget in (0, 0.003):
        folder = tmp_path / f"budget-{budget}"
        process = run_command(
            PROJECT / "train.py", *flags(folder, learning_rate_budget=budget, **options), cwd=tmp_path
        )
        assert process.returncode == 0, process.stderr
        assert ("the health has fallen" in process.stderr) == (budget == 0)
        if budget == 0:
            assert process.stderr.count("Kept as it was before the training, with a health of") == 1
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        health[budget] = [line["eval_health"] for line in log if "eval_health" in line]
    assert health[0][-1] < health[0][0] <= health[0.003][-1]
    kept = SarcseModel.from_pretrained(tmp_path / "budget-0").encoder.state_dict()
    encoder = AutoModel.from_pretrained(ENCODER, add_pooling_layer=False).state_dict()
    assert kept.keys() == encoder.keys() and all(torch.equal(kept[name], encoder[name]) for name in encoder)


def test_the_last_healthy_evaluation_is_kept(tmp_path, tokenizer, caplog):
    """Whether or not its health is the highest. The checkpoint of an unhealthy evaluation is not kept."""
    arguments = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "learning_rate_budget": 0, "max_steps": 40}
    arguments |= {"eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 64, "save_strategy": "steps"}
    trainer = SarcseTrainer(
        fresh_model(),
        SarcseTrainingArguments(str(tmp_path), **{**QUIET, **arguments}),
        train_dataset=(DEMO / "sentences.txt").read_text().splitlines(),
        processing_class=tokenizer,
    )
    with caplog.at_level(logging.WARNING, logger="sarcse.training.watch"):
        trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_health" in line]
    healthy = [line for line in lines if line["eval_health"] >= lines[0]["eval_health"]]
    assert 0 < len(healthy) - 1 < len(lines) - 1 and healthy[-1]["step"] > 0
    assert trainer.state.best_global_step == healthy[-1]["step"]
    assert trainer.health(trainer.unwrapped) == pytest.approx(healthy[-1]["eval_health"])
    assert "as it was" not in caplog.text


def test_early_stopping_compares_with_the_highest_health(tmp_path, tokenizer, monkeypatch):
    """The checkpoint that is kept is the last healthy one, with a health that may be lower."""
    told = iter([24.0, 25.0, 24.5, 24.2, 24.3, 24.4])
    arguments = {**QUIET, "max_steps": 5, "eval_steps": 1, "save_steps": 1, "health_sentences": 40}
    arguments = SarcseTrainingArguments(str(tmp_path), **{**arguments, "save_strategy": "steps"})
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = SarcseTrainer(
        fresh_model(), arguments, train_dataset=TEXTS, processing_class=tokenizer, callbacks=[stopping]
    )
    monkeypatch.setattr(trainer, "health", lambda model: next(told))
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")


# What makes a run without an evaluation that could pick a checkpoint.
WITHOUT_EVALUATION = {
    "steps": {"eval_delay": 1000, "save_total_limit": 3},
    "epochs": {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_delay": 3},
    "the best saved only": {"eval_delay": 1000, "save_strategy": "best"},
    "one checkpoint": {"eval_delay": 1000, "save_total_limit": 1},
    "graded pairs": {"eval_delay": 1000, "metric_for_best_model": "pairs_spearman"},
}


@pytest.mark.parametrize("kind", WITHOUT_EVALUATION)
def test_without_an_evaluation_the_last_model_is_kept_and_one_line_says_so(tmp_path, tokenizer, caplog, kind):
    """The same weights as without a choice, also if the run was interrupted and resumed. Nothing was unhealthy."""
    pairs = load_pairs(str(DEMO / "sts.tsv")).select(range(40)) if kind == "graded pairs" else None
    stopping = [EarlyStoppingCallback(1)]

    def trainer(folder, **fields):
        arguments = SarcseTrainingArguments(
            str(tmp_path / folder), max_steps=6, health_sentences=40, learning_rate_budget=0, **QUIET, **fields
        )
        callbacks = stopping if arguments.load_best_model_at_end else None
        return SarcseTrainer(fresh_model(), arguments, None, TEXTS, pairs, tokenizer, callbacks=callbacks)

    last = trainer("last", eval_strategy="steps", eval_delay=1000, save_strategy="no")
    last.train()
    chosen = trainer("chosen", **WITHOUT_EVALUATION[kind], save_steps=3, eval_steps=3)
    with caplog.at_level(logging.WARNING, logger="sarcse.training.watch"):
        chosen.train()
    resumed = trainer("chosen", **WITHOUT_EVALUATION[kind], save_steps=3, eval_steps=3)
    if kind == "steps":
        resumed.train(str(tmp_path / "chosen" / "checkpoint-3"))
    for name, tensor in last.unwrapped.state_dict().items():
        assert torch.equal(chosen.unwrapped.state_dict()[name], tensor), name
        assert kind != "steps" or torch.equal(resumed.unwrapped.state_dict()[name], tensor), name
    assert "The model is kept as it was after the last step: there was no evaluation (--eval_delay" in caplog.text
    assert "before the training" not in caplog.text and chosen.state.best_model_checkpoint is None


def test_a_health_that_is_no_number_picks_no_checkpoint(tmp_path, tokenizer):
    """Weights that are not finite after the optimizer's step would otherwise find everything, and be kept."""
    arguments = {**QUIET, "max_steps": 2, "eval_steps": 1, "save_steps": 1, "health_sentences": 40}
    arguments |= {"learning_rate": 0.0, "autoencoder_learning_rate": 0.0}  # the first step is as healthy as the start
    arguments = SarcseTrainingArguments(str(tmp_path), **arguments)
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, processing_class=tokenizer)

    class BreaksAfterTheLastStep(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 2:
                model.encoder.embeddings.LayerNorm.bias.data.fill_(torch.nan)

    trainer.add_callback(BreaksAfterTheLastStep())
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert all(tensor.isfinite().all() for tensor in trainer.unwrapped.state_dict().values())


def test_the_best_checkpoint_must_be_this_runs(tmp_path, tokenizer):
    """Another run that wrote into the same folder would otherwise be kept as this one's result."""
    arguments = {**QUIET, "max_steps": 2, "eval_steps": 1, "save_steps": 1, "health_sentences": 40}
    arguments = SarcseTrainingArguments(str(tmp_path), **arguments)
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, processing_class=tokenizer)

    class ExchangesCheckpoints(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            path = tmp_path / f"checkpoint-{state.global_step}" / "run_settings.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 7}))

    trainer.add_callback(ExchangesCheckpoints())
    with pytest.raises(ValueError, match=r"checkpoint-2 belongs to a run with seed 7 \(now 42\)"):
        trainer.train()
