"""SarcseTrainer as users use a Trainer: with their own data, arguments and model, and without train.py."""

import errno
import fcntl
import hashlib
import itertools
import json
import lzma
import math
import os
import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import optuna
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel, AutoTokenizer, EarlyStoppingCallback, TrainerCallback, TrainingArguments

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel
from sarcse import SarcseTrainer, SarcseTrainingArguments
from sarcse.data.general import ENGLISH_FILE
from sarcse.data.sts import load_pairs
from sarcse.data.tokens import FREQUENCY_WEIGHTINGS, token_weights
from sarcse.loading import load_model

from .conftest import DEMO, ENCODER, PROJECT, run_command, whole_model


TEXTS = (DEMO / "sentences.txt").read_text().splitlines()[:32]
QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
SMALL = {**QUIET, "per_device_train_batch_size": 8, "max_steps": 2}


def fresh_model(**fields) -> SarcseModel:
    torch.manual_seed(0)
    return whole_model(str(ENCODER), **{"channels": 4, **fields})


def sha256(sentences: list[str]) -> str:
    return hashlib.sha256("".join(f"{sentence}\n" for sentence in sentences).encode()).hexdigest()


def text_file(folder) -> str:
    (folder / "sentences.txt").write_text("\n".join(TEXTS) + "\n")
    return str(folder / "sentences.txt")


@pytest.fixture(scope="module")
def pairs():
    return load_pairs(str(DEMO / "sts.tsv")).select(range(40))


def padded(ids: list[list[int]]) -> datasets.Dataset:
    """As from `tokenizer(texts, padding="max_length")`."""
    masks = [[1] * len(row) + [0] * (32 - len(row)) for row in ids]
    return datasets.Dataset.from_dict(
        {"input_ids": [row + [1] * (32 - len(row)) for row in ids], "attention_mask": masks}
    )


DATA = {
    "a text file": lambda folder, ids: datasets.load_dataset("text", data_files=text_file(folder), split="train"),
    "a stream": lambda folder, ids: datasets.load_dataset(
        "text", data_files=text_file(folder), split="train", streaming=True
    ),
    "a list": lambda folder, ids: TEXTS,
    "padded token ids in tensors": lambda folder, ids: padded(ids).with_format("torch"),
    "text beside other columns": lambda folder, ids: datasets.Dataset.from_dict(
        {"title": ["x"] * len(TEXTS), "text": TEXTS}
    ),
    "one column of another name": lambda folder, ids: datasets.Dataset.from_dict({"sentence": TEXTS}),
    "a stream of token ids": lambda folder, ids: datasets.Dataset.from_dict({"input_ids": ids}).to_iterable_dataset(),
    "token ids": lambda folder, ids: datasets.Dataset.from_dict({"input_ids": ids, "text": TEXTS}),
}


def too_long(tokenizer, kind: str) -> Any:
    """Texts of 39 tokens; as token ids they are padded to 60."""
    text = " ".join(["a"] * 37)
    if kind == "text":
        return [text] * 16
    rows = [tokenizer(text, padding="max_length", max_length=60)] * 16
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in ("input_ids", "attention_mask")})


@pytest.mark.parametrize("kind", ["text", "token ids"])
@pytest.mark.parametrize("pooler", ["words", "mean"])
def test_texts_longer_than_the_decoder_are_refused_where_it_is_used(tmp_path, tokenizer, kind, pooler):
    """Their embeddings would be those of their beginnings: neighbours of long texts got worse by 6 points."""
    channels = {"channels": 4 if pooler == "words" else None}

    def trainer(decoder_length: int, **fields) -> SarcseTrainer:
        return SarcseTrainer(
            model=fresh_model(pooler=pooler, decoder_length=decoder_length, **channels),
            args=SarcseTrainingArguments(str(tmp_path), max_seq_length=39, **SMALL, **fields),
            train_dataset=too_long(tokenizer, kind),
            processing_class=tokenizer,
        )

    trainer(37)  # and two special tokens
    trainer(36, reconstruction_weight=0)
    with pytest.raises(ValueError, match="up to 39 tokens .* decoder_length is 36: .* or cut the texts at 38 tokens"):
        trainer(36)


@pytest.mark.parametrize("kind", DATA)
def test_sentences_are_taken_as_people_have_them(tmp_path, tokenizer, kind):
    """Here token weights come from the sentences' own tokens, counted one by one."""
    ids = tokenizer(TEXTS, truncation=True, max_length=32)["input_ids"]
    arguments = SarcseTrainingArguments(str(tmp_path / "out"), **SMALL, token_frequencies="corpus")
    trainer = SarcseTrainer(
        model=fresh_model(), args=arguments, train_dataset=DATA[kind](tmp_path, ids), processing_class=tokenizer
    )
    special = set(trainer.model.config.special_token_ids)
    content = [token for row in ids for token in row if token not in special]
    share = torch.tensor([content.count(token) / len(content) for token in content[:20]], dtype=torch.float64)
    wanted = FREQUENCY_WEIGHTINGS["smooth_inverse"](share, 1e-4, 1 / len(content)).float()
    torch.testing.assert_close(trainer.token_weights[content[:20]], wanted)
    assert trainer.corpus.aside == ids  # all, since there are few; the health is measured on these
    assert trainer.train().global_step == 2


@pytest.mark.parametrize("kind", ["english", "a file"])
def test_tokens_are_counted_in_general_text(tmp_path, tokenizer, kind):
    """By default in the sample of Wikipedia, or in a file of one's own. Here they are counted one by one."""
    general = TEXTS[:3] if kind == "a file" else lzma.decompress(ENGLISH_FILE.read_bytes()).decode().splitlines()
    (tmp_path / "general.txt").write_text("\n".join(TEXTS[:3]), encoding="utf-8")
    fields = {"token_frequencies": str(tmp_path / "general.txt")} if kind == "a file" else {}
    arguments = SarcseTrainingArguments(str(tmp_path / "out"), **SMALL, **fields)
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, processing_class=tokenizer)
    ids = tokenizer(general, truncation=True, max_length=128, add_special_tokens=False)["input_ids"]
    counts = Counter(token for row in ids for token in row)
    tokens = [*[token for token, _ in counts.most_common(20)], *range(100, 120)]
    share = torch.tensor([counts[token] / counts.total() for token in tokens], dtype=torch.float64)
    torch.testing.assert_close(trainer.token_weights[tokens], (1e-4 / (1e-4 + share)).float())


def test_general_text_of_another_language_is_warned_about(tmp_path, tokenizer, caplog):
    (tmp_path / "greek.txt").write_text("αβγ δεζ\n" * 20, encoding="utf-8")
    arguments = SarcseTrainingArguments(str(tmp_path), **SMALL, token_frequencies=str(tmp_path / "greek.txt"))
    SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, processing_class=tokenizer)
    assert re.search(r"greek.txt: only \d+% of the training text's tokens occur there", caplog.text)
    caplog.clear()
    SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)
    assert "occur there" not in caplog.text


def test_token_ids_alone_are_weighted_by_their_own_counts_only_if_asked(tmp_path, tokenizer):
    ids = datasets.Dataset.from_dict({"input_ids": [[0, 5, 6, 7, 8, 2]] * 16})
    model = SarcseModel(SarcseConfig(encoder_config=fresh_model().config.encoder_config))  # from no folder
    with pytest.raises(ValueError, match="--token_frequencies english needs the tokenizer: pass it .* in the corpus"):
        SarcseTrainer(model, SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=ids)
    for fields in ({"token_frequencies": "corpus"}, {"frequency_weighting": "uniform"}, {"reconstruction_weight": 0}):
        SarcseTrainer(model, SarcseTrainingArguments(str(tmp_path), **SMALL, **fields), train_dataset=ids)


def test_a_trainer_without_training_data_evaluates_and_saves(tmp_path, pairs):
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), eval_dataset=pairs)
    assert "eval_pairs_spearman" in trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    assert SarcseModel.from_pretrained(tmp_path / "saved").config.pooler == "words"


UNREADABLE = {
    "train_dataset has the columns a, b: the sentences must be in `text`": {"a": TEXTS, "b": TEXTS},
    "train_dataset: column 'text' holds Value\\('int64'\\), not text": {"text": [1, 2, 3]},
    "a data set without a name: no sentence in it": {"text": ["", " ", None]},
    "a data set without a name: no sentence in it.": {"text": [None, None]},
    "train_dataset has a row whose `input_ids` are None": {"input_ids": [[0, 5, 2], None] * 8},
    "4 sentences do not fill one batch of 8": {"text": [*TEXTS[:4], *[""] * 8]},
    "train_dataset has the token id 8192, but the encoder's vocabulary has 8,192": {"input_ids": [[0, 8192, 2]] * 8},
    "train_dataset has the token id -100, but": {"input_ids": [[0, -100, 2]] * 8},
    "train_dataset has a sentence of 129 tokens, but the encoder reads 128 at most": {"input_ids": [[5] * 129] * 8},
}


@pytest.mark.parametrize("message", UNREADABLE)
def test_data_that_cannot_be_trained_on_end_in_a_message(tmp_path, message):
    rows = datasets.Dataset.from_dict(UNREADABLE[message])
    with pytest.raises(ValueError, match=message):
        SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=rows)


def test_data_of_another_kind_end_in_a_message(tmp_path):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})
    with pytest.raises(ValueError, match=r"a list of sentences, or one split of .* not DatasetDict"):
        SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=splits)


def test_a_tokenizer_of_another_model_ends_in_a_message(tmp_path, tokenizer):
    model = fresh_model()
    model.resize_token_embeddings(100)
    with pytest.raises(ValueError, match="the tokenizer has 8192 tokens, but the encoder has only 100"):
        SarcseTrainer(model, SarcseTrainingArguments(str(tmp_path), **SMALL), None, TEXTS, None, tokenizer)


def test_a_stream_is_shuffled_and_begins_anew_at_its_end(tmp_path, tokenizer):
    """Like train.py's own: two passes have each sentence twice, in different orders."""
    stream = datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()
    arguments = SarcseTrainingArguments(str(tmp_path), **{**SMALL, "max_steps": 8})
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=stream, processing_class=tokenizer)
    batches = itertools.islice(trainer.get_train_dataloader(), 8)
    drawn = [text for batch in batches for text in tokenizer.batch_decode(batch["input_ids"], True)]
    wanted = tokenizer.batch_decode(
        [ids[:32] for ids in tokenizer(TEXTS, truncation=True, max_length=32).input_ids], True
    )
    assert sorted(drawn[:32]) == sorted(drawn[32:]) == sorted(wanted)
    assert drawn[:32] != drawn[32:] and drawn[:32] != wanted


def test_arguments_of_transformers_are_refused_with_the_name_of_those_to_use(tmp_path):
    """Their defaults, such as a learning rate of 5e-5, would be taken for the caller's choice."""
    with pytest.raises(ValueError, match="`args` must be SarcseTrainingArguments, .* not TrainingArguments"):
        SarcseTrainer(fresh_model(), TrainingArguments(str(tmp_path)), train_dataset=TEXTS)


def test_without_pairs_and_without_a_health_check_the_end_of_the_training_is_kept(tmp_path):
    arguments = SarcseTrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, report_to="none", health_sentences=0
    )
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS)
    assert trainer.args.eval_strategy == "no" and not trainer.args.load_best_model_at_end
    assert "eval_health" not in json.dumps(trainer.train().metrics | {"log": trainer.state.log_history})


def test_a_metric_of_pairs_without_pairs_ends_in_a_message(tmp_path):
    arguments = SarcseTrainingArguments(str(tmp_path), metric_for_best_model="pairs_spearman", **SMALL)
    with pytest.raises(ValueError, match="pairs_spearman: the evaluations measure health without graded pairs"):
        SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS)


def test_the_learning_rate_of_the_new_layers_follows_what_a_search_sets(tmp_path):
    """Without a reconstruction all layers have the same."""
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)
    trainer.args.learning_rate = 2e-4
    rates = {group["lr"] for group in trainer.create_optimizer().param_groups}
    assert rates == {2e-4, 1e-3}
    trainer.args.reconstruction_weight = 0.0
    assert trainer.args.to_dict()["autoencoder_learning_rate"] == 2e-4


def test_a_finished_run_makes_no_step_more(tmp_path):
    """When it is resumed, the model stays the same."""
    arguments = {**SMALL, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    arguments = SarcseTrainingArguments(str(tmp_path), **arguments)
    finished, again = (SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS) for _ in range(2))
    assert finished.train().global_step == again.train(resume_from_checkpoint=True).global_step == 2
    for name, tensor in finished.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="belongs to a run with train_data 'a data set without a name, 32 sentences"):
        SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS[:16]).train(resume_from_checkpoint=True)


def test_predict_gives_the_similarities_that_evaluate_scores(tmp_path, pairs, tokenizer):
    arguments = SarcseTrainingArguments(str(tmp_path), eval_steps=1, **SMALL)
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, eval_dataset=pairs)
    predicted, evaluated = trainer.predict(pairs), trainer.evaluate()
    first, second = (trainer.model.encode(pairs[name][:], tokenizer) for name in ("sentence1", "sentence2"))
    wanted = torch.cosine_similarity(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(predicted.predictions, wanted, atol=1e-6)
    assert predicted.label_ids.tolist() == pairs["score"][:]
    assert trainer.predict(pairs.select([3])).predictions == pytest.approx(predicted.predictions[3:4], abs=1e-6)
    names = ("pairs_spearman", "alignment", "uniformity")
    assert [predicted.metrics[f"test_{name}"] for name in names] == [evaluated[f"eval_{name}"] for name in names]


def test_the_card_is_the_releases_without_a_pinned_revision(tmp_path, pairs, caplog):
    """With the scores before and after on the trainer's pairs, and what transformers' scripts add."""
    arguments = {**SMALL, "eval_steps": 2, "hub_model_id": "me/mine"}
    arguments = SarcseTrainingArguments(str(tmp_path), **arguments)
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, eval_dataset=pairs)
    trainer.train()
    trainer.create_model_card(language="en", license="mit", tasks="sentence-similarity", finetuned_from="x")
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.language, card.data.license, card.data.library_name) == (["en"], "mit", "sentence-transformers")
    text = " ".join(card.text.split())  # on one line
    assert "Started from `encoder`." in text and 'from_pretrained("me/mine", trust_remote_code=True)' in card.text
    assert f"32 unlabelled sentences. SHA-256 of the sentences, each followed by a newline: `{sha256(TEXTS)}`" in text
    assert "revision" not in card.text and "golden" not in card.text
    scores = json.loads((tmp_path / "sts_results.json").read_text())["models"]
    evaluated = trainer.evaluate()["eval_pairs_spearman"]
    assert scores[f"after: {tmp_path}"]["average"] == pytest.approx(evaluated)
    assert re.search(rf"\| this model, words +\| +(\*\*)?{evaluated:.2f}", card.text)
    assert list(scores) == [f"before: {ENCODER}, mean", f"before: {ENCODER}, cls", f"after: {tmp_path}"]
    assert "tasks, finetuned_from: ignored, since the card is made from the training's own record." in caplog.text


def test_callbacks_stop_early_by_the_pairs(tmp_path, pairs):
    arguments = {**SMALL, "save_strategy": "steps", "max_steps": 4, "autoencoder_learning_rate": 0.0}
    arguments = SarcseTrainingArguments(str(tmp_path), eval_steps=1, save_steps=1, learning_rate=0.0, **arguments)
    trainer = SarcseTrainer(
        fresh_model(), arguments, train_dataset=TEXTS, eval_dataset=pairs, callbacks=[EarlyStoppingCallback(1)]
    )
    assert trainer.train().global_step == 1  # nothing gets better without a learning rate


# How the checkpoint is picked in a training that makes everything worse.
RUINED = [
    {"save_total_limit": 1},
    {"save_strategy": "best"},
    {"save_strategy": "epoch", "eval_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1},
    {"health_sentences": 0},
]


@pytest.mark.parametrize("given", RUINED)
def test_the_model_before_the_training_is_kept_if_no_checkpoint_is_better(tmp_path, caplog, given):
    """It is evaluated as every checkpoint is, and saved as the first of them. One line says what was kept."""
    pairs = load_pairs(str(DEMO / "sts.tsv"))
    model = load_model(str(ENCODER), channels=4)[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (torch.from_numpy(model.encode(pairs[name][:])) for name in ("sentence1", "sentence2"))
    spearman = 100 * stats.spearmanr(torch.cosine_similarity(first, second), pairs["score"][:]).statistic
    arguments = {**SMALL, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01, "max_steps": 4, **given}
    arguments = SarcseTrainingArguments(str(tmp_path), learning_rate_budget=0, **arguments)
    trainer = SarcseTrainer(model, arguments, train_dataset=TEXTS, eval_dataset=pairs)
    trainer.train()
    start, *later = [line for line in trainer.state.log_history if "eval_pairs_spearman" in line]
    assert start["step"] == 0 and start["eval_pairs_spearman"] == pytest.approx(spearman, abs=0.01)
    assert start.keys() == later[0].keys() and len(later) == 2
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-0")
    for name, tensor in trainer.unwrapped.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    if given == {"save_total_limit": 1}:
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-0"]
    (said,) = [record.message for record in caplog.records if record.message.startswith("Kept")]
    metric = given.get("metric_for_best_model", "pairs_spearman")
    assert said == f"Kept as it was before the training: no checkpoint was better (by its {metric})."


# The metric at the start and at each step, and the step whose model is kept. Steps 2 and 4 are saved.
FOUND = [
    ([40, 45, 43, 41, 42], 2),  # the best was not saved
    ([40, 45, 39, 38, 37], 0),
    ([math.nan, 1, 2, 3, 1], 2),
    ([math.nan, math.nan, math.nan, math.nan, 1], 4),
]


@pytest.mark.parametrize(("found", "kept"), FOUND)
def test_of_the_models_that_are_saved_the_best_is_kept(tmp_path, pairs, monkeypatch, found, kept):
    """A model whose metric is not a number is none of them."""
    told = iter(found)
    arguments = {**SMALL, "save_strategy": "steps", "eval_steps": 1, "save_steps": 2, "max_steps": 4}
    trainer = SarcseTrainer(
        fresh_model(), SarcseTrainingArguments(str(tmp_path), **arguments), train_dataset=TEXTS, eval_dataset=pairs
    )
    monkeypatch.setattr(trainer, "measured", lambda *_: {"eval_pairs_spearman": next(told)})
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{kept}")
    saved = SarcseModel.from_pretrained(tmp_path / f"checkpoint-{kept}").state_dict()
    for name, tensor in trainer.unwrapped.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


def test_a_run_that_was_killed_before_its_first_step_is_resumed_from_its_start(tmp_path, pairs):
    """To the same weights; the model before the training is evaluated and logged once."""
    arguments = {**SMALL, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 4, "learning_rate": 0.1}
    arguments = SarcseTrainingArguments(str(tmp_path), learning_rate_budget=0, **arguments)
    whole, again = (SarcseTrainer(fresh_model(), arguments, None, TEXTS, pairs) for _ in range(2))
    whole.train()
    assert whole.state.best_global_step > 0
    again.train(str(tmp_path / "checkpoint-0"))
    assert [line["step"] for line in again.state.log_history if "eval_pairs_spearman" in line] == [0, 1, 2]
    for name, tensor in whole.unwrapped.state_dict().items():
        assert torch.equal(again.unwrapped.state_dict()[name], tensor), name


def test_a_training_ends_with_a_word_on_whether_it_helped(tmp_path, pairs, caplog):
    """Without graded pairs, that nothing was measured. With them, the difference from before of what was measured."""
    arguments = SarcseTrainingArguments(str(tmp_path), health_sentences=0, **SMALL)
    SarcseTrainer(fresh_model(), arguments, None, TEXTS).train()
    assert caplog.records[-1].message.startswith("No labels: nothing measured says whether it is better. --eval_pairs")
    arguments = SarcseTrainingArguments(str(tmp_path), eval_strategy="no", **SMALL)
    trainer = SarcseTrainer(
        fresh_model(), arguments, None, TEXTS, tasks={"mine": pairs, "other": pairs.select(range(30))}
    )
    trainer.train()
    said, average = caplog.records[-1], trainer.results.differences[f"after: {tmp_path}"].average
    assert said.levelname == "WARNING" and f"{ENCODER} with mean pooling" in said.message
    assert f"{abs(average):.2f} [" in said.message and said.message.endswith("] on the average of 2 tasks.")


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_model_that_the_trainer_makes_is_prepared_as_one_that_it_is_given(tmp_path, tokenizer, weight):
    """With DistributedDataParallel every trainable parameter must get a gradient."""
    arguments = SarcseTrainingArguments(str(tmp_path), reconstruction_weight=weight, learning_rate=1e-3, **SMALL)
    trainer = SarcseTrainer(
        args=arguments, train_dataset=TEXTS, processing_class=tokenizer, model_init=lambda: fresh_model()
    )
    before = fresh_model().state_dict()
    trainer.train()
    decoder = [parameter.requires_grad for parameter in trainer.model.sentence_decoder.parameters()]
    assert decoder == [weight > 0] * len(decoder)
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("sentence_decoder.") for name in moved) == (weight > 0)


def test_a_search_may_bring_the_reconstruction_in(tmp_path, tokenizer):
    """Tokens are counted whatever the initial weight is."""
    arguments = SarcseTrainingArguments(str(tmp_path), reconstruction_weight=0.0, learning_rate=1e-3, **SMALL)
    trainer = SarcseTrainer(
        args=arguments, train_dataset=TEXTS, processing_class=tokenizer, model_init=lambda: fresh_model()
    )
    trainer.args.reconstruction_weight = 1.0
    before = fresh_model().sentence_decoder.state_dict()
    trainer.train()
    decoder = trainer.model.sentence_decoder.state_dict()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in decoder.items() if name.endswith("weight"))


def test_a_trainer_without_a_model_ends_in_a_message(tmp_path):
    with pytest.raises(ValueError, match="needs a `model` or a `model_init`"):
        SarcseTrainer(args=SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)


def test_what_is_given_by_mistake_ends_in_a_message(tmp_path):
    arguments = SarcseTrainingArguments(str(tmp_path), **SMALL)
    with pytest.raises(ValueError, match="trains a SarcseModel, not RobertaModel.*load_model"):
        SarcseTrainer(AutoModel.from_pretrained(ENCODER), arguments, train_dataset=TEXTS)
    for text, problem in ((7, "is 7, not text"), ("lone \ud800", "is not valid Unicode")):
        with pytest.raises(ValueError, match=f"train_dataset, row {len(TEXTS)}: 'text' {problem}"):
            SarcseTrainer(fresh_model(), arguments, train_dataset=[*TEXTS, text])
        stream = datasets.IterableDataset.from_generator(lambda text=text: iter([{"text": text}]))
        with pytest.raises(ValueError, match=f"'text' {problem}"):
            SarcseTrainer(fresh_model(), arguments, train_dataset=stream)
    with pytest.raises(ValueError, match=r"must have the shape \(8192,\), one for each token id; got \(3,\)"):
        SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, token_weights=torch.ones(3))


def no_rows(**columns: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [] for name in columns}, datasets.Features(columns) or None)


@pytest.mark.parametrize(
    "given",
    [
        [],
        (),
        no_rows(),
        no_rows(text=datasets.Value("string")),
        no_rows(text=datasets.Value("null")),
        no_rows(input_ids=datasets.List(datasets.Value("int64"))),
        datasets.IterableDataset.from_generator(lambda: iter(())),
    ],
    ids=str,
)
def test_an_empty_data_set_is_called_empty(tmp_path, given):
    with pytest.raises(ValueError, match="^train_dataset is empty.$"):
        SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=given)


def test_what_would_have_no_effect_or_no_scores_ends_in_a_message(tmp_path, pairs):
    arguments = SarcseTrainingArguments(str(tmp_path), **SMALL)
    with pytest.raises(ValueError, match="compute_metrics has no effect"):
        SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, compute_metrics=len)
    named = "must be a data set with the columns sentence1, sentence2 and score"
    with pytest.raises(ValueError, match=rf"eval_dataset {named} .*, not dict"):
        SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, eval_dataset={"dev": pairs})
    with pytest.raises(ValueError, match=rf"SICK {named} .*, not \['sentence1', 'sentence2'\]"):
        SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, tasks={"SICK": pairs.remove_columns("score")})
    with pytest.raises(ValueError, match="has no reconstruction: add --reconstruction_weight 0"):
        SarcseTrainer(load_model(str(ENCODER), pooler="cls")[0], arguments, None, TEXTS)
    with pytest.raises(ValueError, match=f"eval_dataset {named} .*, not NoneType"):
        arguments = SarcseTrainingArguments(str(tmp_path), health_sentences=0, **SMALL)
        SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS).evaluate()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("sentence1", ["a", None], "eval_dataset, row 1: sentence1 must be text, not None"),
        ("score", [1.0, None], "eval_dataset, row 1: the score must be a number, not None"),
        ("score", [1.0, float("nan")], "eval_dataset, row 1: the score must be a number, not nan"),
        ("score", [2.0, 2.0], "eval_dataset: a correlation needs two pairs with different scores; all 2 have"),
        ("score", [], "eval_dataset: a correlation needs two pairs with different scores; there is none"),
    ],
)
def test_pairs_that_cannot_be_scored_end_in_a_message(tmp_path, column, values, message):
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [1.0, 5.0], column: values}
    columns = {name: cells[: len(values)] for name, cells in columns.items()}
    arguments = SarcseTrainingArguments(str(tmp_path), report_to="none")
    with pytest.raises(ValueError, match=message):
        SarcseTrainer(fresh_model(), arguments, None, TEXTS, datasets.Dataset.from_dict(columns))


def test_pairs_without_a_tokenizer_end_in_a_message(tmp_path, pairs):
    model = fresh_model()
    model.config._name_or_path = model.name_or_path = ""
    with pytest.raises(
        ValueError, match="Pairs and labelled texts are text: pass the tokenizer as `processing_class`"
    ):
        SarcseTrainer(model, SarcseTrainingArguments(str(tmp_path), **SMALL), None, None, pairs)


def test_a_training_that_failed_or_was_interrupted_leaves_signals_and_the_trainer_as_they_were(tmp_path):
    """In a notebook the same trainer trains again, and Ctrl-C still works."""

    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise error

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)
    trainer.add_callback(fails := Fails())
    for error in (RuntimeError("out of memory"), KeyboardInterrupt(signal.SIGINT)):
        trainer.save_on_signal.received = signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
        with pytest.raises(type(error)):
            trainer.train()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    trainer.remove_callback(fails)
    trainer.save_on_signal.received = signal.SIGINT  # of the training before
    assert trainer.train().global_step == 2


def test_the_same_trainer_resumes_each_time_from_the_newest_checkpoint(tmp_path):
    """With the same argument: what was found the time before is older."""
    begins = []

    class Interrupts(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            begins.append(state.global_step)

        def on_save(self, args, state, control, **kwargs):
            raise RuntimeError("the machine goes down")

    fields = {**SMALL, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **fields), train_dataset=TEXTS)
    trainer.add_callback(Interrupts())
    for resume in (None, "last", "last"):
        with pytest.raises(RuntimeError, match="goes down"):
            trainer.train(resume_from_checkpoint=resume)
    assert begins == [0, 1, 2]


def test_a_training_runs_outside_the_main_thread(tmp_path):
    """As in a web server or a parallel search: Python allows no signal handlers there."""
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(trainer.train).result().global_step == 2


def test_two_trainings_at_once_need_two_folders(tmp_path):
    """In one Python process, too. One after the other they may have the same."""
    ended = []

    def train(folder: str, callbacks=None) -> int:
        arguments = SarcseTrainingArguments(str(tmp_path / folder), **SMALL)
        trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, callbacks=callbacks)
        return trainer.train().global_step

    class TrainsBeside(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            with ThreadPoolExecutor(1) as pool:
                ended.append(pool.submit(train, "other").result())
                with pytest.raises(ValueError, match=f"process {os.getpid()} on .* is training there"):
                    pool.submit(train, "same").result()

    assert train("same", [TrainsBeside()]) == train("same") == 2 and ended == [2, 2]
    assert not list(tmp_path.rglob(".running"))


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, caplog):
    """As some network file systems of clusters are."""

    def without_locks(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)
    assert trainer.train().global_step == 2
    assert "cannot be locked ([Errno 38] Function not implemented): start no other run" in caplog.text
    assert not (tmp_path / ".running").exists()


def test_no_scores_of_an_earlier_training_stay_beside_a_new_model(tmp_path, pairs):
    """The card would state them as its own."""
    arguments = SarcseTrainingArguments(str(tmp_path), **SMALL, eval_strategy="no")
    for given in (pairs, None):
        trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, eval_dataset=given)
        trainer.train()
        trainer.save_results()
        scored = {"sts_results.json", "sts_results.md", "similarity_densities.png", "alignment_uniformity.svg"}
        assert scored & {file.name for file in tmp_path.iterdir()} == (scored if given else set())


def test_what_would_fail_later_fails_before_the_training(tmp_path):
    """As in train.py: a missing optimizer package, a folder that cannot be written."""
    arguments = SarcseTrainingArguments(str(tmp_path / "a"), optim="adamw_bnb_8bit", **SMALL)
    with pytest.raises(ValueError, match="--optim adamw_bnb_8bit"):
        SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS).train()
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path / "b"), **SMALL), train_dataset=TEXTS)
    (tmp_path / "b").rmdir()
    (tmp_path / "b").touch()
    with pytest.raises(ValueError, match="--output_dir .*b: nothing can be saved there"):
        trainer.train()


def test_weights_in_half_precision_are_not_trained(tmp_path):
    """A training at 1e-5 would change one weight in twenty. transformers 5 loads weights as they were saved."""
    fresh_model().to(torch.bfloat16).save_pretrained(tmp_path / "half")
    model = SarcseModel.from_pretrained(tmp_path / "half")
    arguments = SarcseTrainingArguments(str(tmp_path / "out"), **SMALL)
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16.*Load it with dtype=torch.float32"):
        SarcseTrainer(model, arguments, train_dataset=TEXTS, processing_class=fresh_model().own_tokenizer())


def test_adapters_that_could_not_be_merged_are_refused(tmp_path):
    model = inject_adapter_in_model(LoraConfig(target_modules=["query"]), fresh_model())
    model.peft_config = {"default": LoraConfig(target_modules=["query"])}  # as `model.add_adapter` leaves it
    with pytest.raises(ValueError, match="add them with `peft.get_peft_model`"):
        SarcseTrainer(model, SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)


def test_a_checkpoint_with_a_flaw_is_not_resumed(tmp_path):
    """Given by its path or as the last one. Without the optimizer's state a run would go on to other weights."""
    arguments = {**SMALL, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    arguments["load_best_model_at_end"] = False

    def trainer() -> SarcseTrainer:
        return SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **arguments), train_dataset=TEXTS)

    trainer().train()
    assert trainer().train("last").global_step == 2
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="checkpoint-2: optimizer.pt is missing"):
        trainer().train(str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="nowhere: trainer_state.json is missing"):
        trainer().train("nowhere")
    (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint is complete \(checkpoint-2: optimizer.pt is missing\)"):
        trainer().train(resume_from_checkpoint=True)


def test_an_optimizer_and_a_schedule_of_ones_own_are_used(tmp_path):
    model = fresh_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    arguments = SarcseTrainingArguments(str(tmp_path), **SMALL)
    trainer = SarcseTrainer(model, arguments, train_dataset=TEXTS, optimizers=(optimizer, schedule))
    trainer.train()
    assert [group["lr"] for group in optimizer.param_groups] == [0.125]  # after two steps


def test_a_second_training_is_compared_with_the_first_start(tmp_path, pairs):
    arguments = SarcseTrainingArguments(str(tmp_path), **{**SMALL, "eval_steps": 2, "learning_rate": 1e-3})
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, eval_dataset=pairs)
    trainer.train()
    first = {name: value.similarities["pairs"] for name, value in trainer.measurements.items()}
    trainer.train()
    second = {name: value.similarities["pairs"] for name, value in trainer.measurements.items()}
    same = [name for name in first if np.array_equal(first[name], second[name])]
    assert same == [f"before: {ENCODER}, mean", f"before: {ENCODER}, cls"]


def test_a_trainer_without_training_data_evaluates(tmp_path, pairs):
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), eval_dataset=pairs)
    assert np.isfinite(trainer.evaluate()["eval_pairs_spearman"])


def test_sentences_without_a_tokenizer_end_in_a_message(tmp_path):
    """A model built from a configuration has none beside it. Token ids of equal length need none."""
    model = fresh_model()
    model.name_or_path = ""
    arguments = SarcseTrainingArguments(str(tmp_path), **SMALL, token_frequencies="corpus")
    with pytest.raises(ValueError, match="train_dataset has sentences: pass the tokenizer as `processing_class`"):
        SarcseTrainer(model, arguments, train_dataset=TEXTS)
    ids = datasets.Dataset.from_dict({"input_ids": [[0, 5, 2]] * 8})
    trainer = SarcseTrainer(model, arguments, train_dataset=ids)
    assert trainer.train().global_step == 2
    ragged = datasets.Dataset.from_dict({"input_ids": [[0, 5, 2], [0, 5, 5, 2]] * 4})
    with pytest.raises(ValueError, match="token ids of different lengths need padding"):
        SarcseTrainer(model, arguments, train_dataset=ragged).train()
    with pytest.raises(ValueError, match="needs the tokenizer: pass it as `processing_class`"):
        trainer.create_model_card()


def test_what_the_trainer_saves_is_the_model_in_sentence_transformers_too(tmp_path, tokenizer):
    from sentence_transformers import SentenceTransformer

    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "modules.json").read_text())
    given = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(given, trainer.model.encode(TEXTS, tokenizer), atol=1e-5)


# --- What transformers' Trainer can do -------------------------------------------------------------------------------


def test_a_search_optimises_what_picks_the_best_model(tmp_path, pairs, tokenizer):
    """The higher the better, with every value that a trial sets. Then the best values train the model."""
    tried, used, found = [], [], []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer, **kwargs):
            used.append(({group["lr"] for group in optimizer.param_groups}, trainer.token_weights))

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            found.append(metrics["eval_health"])

    def space(trial):
        tried.append({name: trial.suggest_float(name, 1e-6, 1) for name in ("learning_rate", "frequency_smoothing")})
        return tried[-1]

    arguments = {**SMALL, "lr_scheduler_type": "constant", "metric_for_best_model": "health", "eval_steps": 2}
    arguments["token_frequencies"] = "corpus"
    trainer = SarcseTrainer(
        args=SarcseTrainingArguments(str(tmp_path), **arguments),
        train_dataset=TEXTS,
        eval_dataset=pairs,
        processing_class=tokenizer,
        model_init=lambda: fresh_model(),
        callbacks=[Watch],
    )
    sampler = optuna.samplers.GridSampler({"learning_rate": [1e-3, 1e-4], "frequency_smoothing": [1e-2]}, seed=0)
    best = trainer.hyperparameter_search(space, n_trials=2, backend="optuna", sampler=sampler)
    for values, (rates, weights) in zip(tried, used, strict=True):
        assert {*rates} == {values["learning_rate"], 1e-3}
        wanted = token_weights(trainer.corpus.counts, "smooth_inverse", values["frequency_smoothing"])
        torch.testing.assert_close(weights, wanted)
    assert best.objective == max(found) and best.hyperparameters == tried[found.index(max(found))]
    for name, value in best.hyperparameters.items():
        setattr(trainer.args, name, value)
    trainer.train()
    assert found[-1] == best.objective


def test_a_search_without_pairs_ends_in_a_message(tmp_path, tokenizer):
    """The health tells better from worse than before the training, and does not rank models."""
    arguments = SarcseTrainingArguments(str(tmp_path), **SMALL)
    trainer = SarcseTrainer(
        args=arguments, train_dataset=TEXTS, processing_class=tokenizer, model_init=lambda: fresh_model()
    )
    with pytest.raises(ValueError, match="hyperparameter_search needs an eval_dataset"):
        trainer.hyperparameter_search(backend="optuna")


def weights_after(folder, **arguments) -> dict[str, torch.Tensor]:
    given = {**SMALL, "learning_rate": 1e-3, **arguments}
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(folder), **given), train_dataset=TEXTS)
    trainer.train()
    return {name: tensor.clone() for name, tensor in trainer.unwrapped.state_dict().items()}


@pytest.mark.parametrize(
    "arguments",
    [{"gradient_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "eager"}],
    ids=["gradient checkpointing", "torch.compile"],
)
def test_what_saves_memory_or_time_trains_the_same_model(tmp_path, arguments):
    """With dropout too: the masks are the same with and without these options."""
    without, with_it = weights_after(tmp_path / "without"), weights_after(tmp_path / "with", **arguments)
    assert any((without[name] - start).abs().max() > 1e-4 for name, start in fresh_model().state_dict().items())
    for name, tensor in without.items():
        torch.testing.assert_close(with_it[name], tensor, atol=1e-5, rtol=0)


def test_tensorboard_shows_both_losses(tmp_path):
    arguments = SarcseTrainingArguments(str(tmp_path), **{**SMALL, "report_to": "tensorboard", "logging_steps": 1})
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS)
    trainer.train()
    (file,) = tmp_path.rglob("events.out.tfevents*")
    shown = EventAccumulator(str(file)).Reload()
    for name in ("contrastive_loss", "reconstruction_loss"):
        logged = [line[name] for line in trainer.state.log_history if name in line]
        assert [event.value for event in shown.Scalars(f"train/{name}")] == pytest.approx(logged) and len(logged) == 2


def test_adapters_are_trained_and_merged(tmp_path, pairs, tokenizer):
    """PEFT's LoRA: the best checkpoint is taken, and the saved result is one model with the same embeddings."""
    lora = LoraConfig(target_modules=["query", "value"], modules_to_save=["sentence_encoder", "sentence_decoder"])
    model = get_peft_model(fresh_model(), lora)
    arguments = {**SMALL, "save_strategy": "steps", "learning_rate": 1e-2, "eval_steps": 1, "save_steps": 1}
    arguments = SarcseTrainingArguments(str(tmp_path / "run"), **arguments, autoencoder_learning_rate=3e-2)
    trainer = SarcseTrainer(model, arguments, train_dataset=TEXTS, eval_dataset=pairs)
    trainer.train()
    key = "eval_pairs_spearman"
    found = {line["step"]: line[key] for line in trainer.state.log_history if key in line}
    assert [*found] == [0, 1, 2] and max(found, key=found.get) == 1
    assert trainer.evaluate()[key] == pytest.approx(found[1], abs=1e-4)
    trained = trainer.model.encode(TEXTS, tokenizer)
    assert np.abs(trained - fresh_model().encode(TEXTS, tokenizer)).max() > 1e-3
    trainer.save_results()
    trainer.save_model()  # transformers' own
    saved = AutoModel.from_pretrained(tmp_path / "run", trust_remote_code=True)
    np.testing.assert_allclose(saved.encode(TEXTS), trained, atol=1e-5)
    with_adapters = PeftModel.from_pretrained(fresh_model(), tmp_path / "run" / "adapters")
    np.testing.assert_allclose(with_adapters.encode(TEXTS, tokenizer), trained, atol=1e-5)
    trainer.create_model_card()
    parameters = fresh_model().num_parameters()
    assert f"- {parameters:,} parameters" in (tmp_path / "run" / "README.md").read_text()
    for command in (
        [PROJECT / "eval_sts.py", tmp_path / "run", "--pairs", DEMO / "sts.tsv"],
        ["-m", "model_card", tmp_path / "run", "--release_dir", tmp_path / "release"],
    ):
        process = run_command(*command, cwd=PROJECT)
        assert process.returncode == 0, process.stderr
    merged = trainer.model.merge_and_unload()
    for name, tensor in merged.state_dict().items():
        assert torch.equal(saved.state_dict()[name], tensor), name
    continued = get_peft_model(fresh_model(), lora)
    continued = SarcseTrainer(continued, arguments, train_dataset=TEXTS, eval_dataset=pairs)
    assert continued.train(str(tmp_path / "run" / "checkpoint-1")).global_step == 2
    np.testing.assert_allclose(continued.model.encode(TEXTS, tokenizer), trained, atol=1e-6)


# --- What a caller keeps ---------------------------------------------------------------------------------------------


def test_a_moved_run_keeps_its_best_model_when_it_is_resumed(tmp_path, pairs, tokenizer, monkeypatch):
    """Also if its folder was a relative path. transformers would drop the best checkpoint and keep the last one."""
    monkeypatch.chdir(tmp_path)
    fields = {**SMALL, "save_strategy": "steps", "max_steps": 3, "learning_rate": 0.1, "learning_rate_budget": 0}
    fields |= {"eval_steps": 1, "save_steps": 1, "save_total_limit": 3, "metric_for_best_model": "health"}

    def trainer(folder: str) -> SarcseTrainer:
        arguments = SarcseTrainingArguments(folder, **fields)
        return SarcseTrainer(fresh_model(), arguments, None, TEXTS, pairs, tokenizer)

    first = trainer("run")
    first.train()
    assert first.state.best_model_checkpoint == "run/checkpoint-0", "at this rate the health falls"
    (tmp_path / "run").rename(tmp_path / "moved")
    again = trainer(str(tmp_path / "moved"))
    again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-0")
    for name, tensor in first.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor)


def test_a_decoder_that_one_training_does_without_is_trained_by_the_next(tmp_path):
    """A decoder that the caller froze stays frozen."""
    model = fresh_model()
    part = next(model.sentence_decoder.parameters()).requires_grad_(False)
    for weight in (0.0, 1.0):
        start = {name: p.detach().clone() for name, p in model.sentence_decoder.named_parameters()}
        arguments = SarcseTrainingArguments(str(tmp_path / str(weight)), reconstruction_weight=weight, **SMALL)
        SarcseTrainer(model, arguments, train_dataset=TEXTS).train()
        moved = {name for name, p in model.sentence_decoder.named_parameters() if not torch.equal(p, start[name])}
        assert bool(moved) == (weight > 0)
        assert not part.requires_grad and all(
            p.requires_grad == (weight > 0) for p in model.sentence_decoder.parameters() if p is not part
        )


def test_the_arguments_of_one_trainer_are_not_changed_for_the_next(tmp_path, pairs):
    arguments = SarcseTrainingArguments(str(tmp_path), eval_steps=1, **{**SMALL, "save_strategy": "steps"})
    SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS)  # health picks
    ids = datasets.Dataset.from_dict({"input_ids": [[0, 5, 2]] * 16})
    SarcseTrainer(fresh_model(), arguments, train_dataset=ids)  # too short: no evaluations
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, eval_dataset=pairs)
    assert (trainer.args.metric_for_best_model, trainer.args.eval_strategy) == ("pairs_spearman", "steps")
    assert trainer.args.load_best_model_at_end


def test_data_in_a_format_for_another_library_are_read_as_they_are(tmp_path, pairs, tokenizer):
    """And sentences in what is nearly a list: a column, a tuple."""
    plain = datasets.Dataset.from_dict({"text": TEXTS})
    arguments = SarcseTrainingArguments(str(tmp_path), eval_steps=2, **SMALL)
    expected = SarcseTrainer(fresh_model(), arguments, None, plain, pairs, tokenizer)
    metrics = expected.evaluate()
    given = {
        name: (plain.with_format(name), pairs.with_format(name)) for name in ("numpy", "pandas", "torch", "arrow")
    }
    given |= {"column": (plain["text"], pairs), "tuple": (tuple(TEXTS), pairs)}
    for name, (sentences, graded) in given.items():
        trainer = SarcseTrainer(fresh_model(), arguments, None, sentences, graded, tokenizer)
        assert trainer.train_dataset["input_ids"][:] == expected.train_dataset["input_ids"][:], name
        assert trainer.evaluate() == metrics, name


def test_a_search_over_what_is_read_once_is_refused(tmp_path, pairs):
    arguments = SarcseTrainingArguments(str(tmp_path), eval_steps=2, **SMALL)
    trainer = SarcseTrainer(None, arguments, None, TEXTS, pairs, model_init=lambda _: fresh_model())
    with pytest.raises(ValueError, match="max_seq_length: has no effect on a trainer that has read its sentences"):
        trainer.hyperparameter_search(lambda trial: {"max_seq_length": trial.suggest_int("n", 6, 8)}, n_trials=1)


def test_the_tokenizer_that_a_model_was_loaded_with_stays_its_own(tmp_path):
    """`encode` and a trainer without `processing_class` use it, with its added tokens."""
    model, own = load_model(str(ENCODER), channels=4)
    own.add_tokens(["football"])
    model.resize_token_embeddings(len(own))
    np.testing.assert_array_equal(model.encode(TEXTS), model.encode(TEXTS, own))
    arguments = SarcseTrainingArguments(str(tmp_path), eval_strategy="no", **SMALL)
    trainer = SarcseTrainer(model, arguments, train_dataset=TEXTS)
    trainer.save_model()
    assert "football" in AutoTokenizer.from_pretrained(str(tmp_path), trust_remote_code=True).get_added_vocab()
