"""SarcseTrainer as people use a Trainer: with their own data, arguments and model, and without train.py."""

import json
import re

import datasets
import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, TrainingArguments

from modeling_sarcse import SarcseModel
from sarcse import SarcseTrainer, SarcseTrainingArguments
from sarcse.sts import load_pairs
from sarcse.tokens import FREQUENCY_WEIGHTINGS

from .conftest import DEMO, ENCODER, PROJECT, run_python


TEXTS = (DEMO / "sentences.txt").read_text().splitlines()[:32]
QUIET = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
SMALL = {**QUIET, "per_device_train_batch_size": 8, "max_steps": 2}


def fresh_model(**fields) -> SarcseModel:
    torch.manual_seed(0)
    return SarcseModel.from_encoder_pretrained(str(ENCODER), **{"channels": 4, **fields})


def text_file(folder) -> str:
    (folder / "sentences.txt").write_text("\n".join(TEXTS) + "\n")
    return str(folder / "sentences.txt")


@pytest.fixture(scope="module")
def pairs():
    return load_pairs(str(DEMO / "sts.tsv")).select(range(40))


DATA = {
    "a text file": lambda folder, ids: datasets.load_dataset("text", data_files=text_file(folder), split="train"),
    "a stream": lambda folder, ids: datasets.load_dataset(
        "text", data_files=text_file(folder), split="train", streaming=True
    ),
    "a list": lambda folder, ids: TEXTS,
    "text beside other columns": lambda folder, ids: datasets.Dataset.from_dict(
        {"title": ["x"] * len(TEXTS), "text": TEXTS}
    ),
    "one column of another name": lambda folder, ids: datasets.Dataset.from_dict({"sentence": TEXTS}),
    "token ids": lambda folder, ids: datasets.Dataset.from_dict({"input_ids": ids, "text": TEXTS}),
}


@pytest.mark.parametrize("kind", DATA)
def test_sentences_are_taken_as_people_have_them(tmp_path, tokenizer, kind):
    """... with the weights that their own tokens give, counted here one by one."""
    ids = tokenizer(TEXTS, truncation=True, max_length=32)["input_ids"]
    arguments = SarcseTrainingArguments(str(tmp_path / "out"), **SMALL)
    trainer = SarcseTrainer(
        model=fresh_model(), args=arguments, train_dataset=DATA[kind](tmp_path, ids), processing_class=tokenizer
    )
    special = set(trainer.model.config.special_token_ids)
    content = [token for row in ids for token in row if token not in special]
    share = torch.tensor([content.count(token) / len(content) for token in content[:20]], dtype=torch.float64)
    wanted = FREQUENCY_WEIGHTINGS["smooth_inverse"](share, 1e-4, 1 / len(content)).float()
    torch.testing.assert_close(trainer.token_weights[content[:20]], wanted)
    assert trainer.train().global_step == 2


def test_columns_that_do_not_say_where_the_sentences_are_end_in_a_message(tmp_path, tokenizer):
    rows = datasets.Dataset.from_dict({"a": TEXTS, "b": TEXTS})
    with pytest.raises(ValueError, match="train_dataset has the columns a, b: the sentences must be in `text`"):
        SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=rows)


def test_arguments_of_transformers_mean_the_defaults_of_sarcse(tmp_path, caplog):
    """What is at transformers' default is at SARCSE's, which is said, and the rest is as it was given."""
    given = TrainingArguments(
        str(tmp_path), weight_decay=0.25, seed=5, **{**SMALL, "per_device_train_batch_size": 16, "max_steps": 1}
    )
    trainer = SarcseTrainer(fresh_model(), given, train_dataset=TEXTS)
    args = trainer.args
    assert (args.output_dir, args.weight_decay, args.seed, args.max_steps) == (str(tmp_path), 0.25, 5, 1)
    assert args.per_device_train_batch_size == 16 and args.save_strategy == "no"
    assert (args.learning_rate, args.contrastive_temperature, args.dataloader_drop_last) == (1e-5, 0.05, True)
    assert "at SARCSE's: " in caplog.text and "learning_rate 1e-05" in caplog.text
    assert trainer.train().global_step == 1


def test_without_evaluation_data_the_end_of_the_training_is_kept(tmp_path):
    arguments = SarcseTrainingArguments(str(tmp_path), per_device_train_batch_size=8, report_to="none")
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS)
    assert trainer.args.eval_strategy == "no" and not trainer.args.load_best_model_at_end


def test_the_learning_rate_of_the_new_layers_follows_one_that_a_search_sets(tmp_path):
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)
    trainer.args.learning_rate = 2e-4
    rates = {group["lr"] for group in trainer.create_optimizer().param_groups}
    assert rates == {2e-4, 6e-4}
    assert trainer.args.to_dict()["autoencoder_learning_rate"] == 6e-4


def test_predict_gives_the_similarities_that_evaluate_scores(tmp_path, pairs, tokenizer):
    arguments = SarcseTrainingArguments(str(tmp_path), eval_steps=1, **SMALL)
    trainer = SarcseTrainer(fresh_model(), arguments, train_dataset=TEXTS, eval_dataset=pairs)
    predicted, evaluated = trainer.predict(pairs), trainer.evaluate()
    first, second = (trainer.model.encode(pairs[name][:], tokenizer) for name in ("sentence1", "sentence2"))
    wanted = torch.cosine_similarity(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(predicted.predictions, wanted, atol=1e-6)
    assert predicted.label_ids.tolist() == pairs["score"][:]
    names = ("stsb_spearman", "alignment", "uniformity")
    assert [predicted.metrics[f"test_{name}"] for name in names] == [evaluated[f"eval_{name}"] for name in names]


def test_callbacks_stop_early_by_the_pairs(tmp_path, pairs):
    arguments = {**SMALL, "save_strategy": "steps", "max_steps": 4}
    arguments = SarcseTrainingArguments(str(tmp_path), eval_steps=1, save_steps=1, learning_rate=0.0, **arguments)
    trainer = SarcseTrainer(
        fresh_model(), arguments, train_dataset=TEXTS, eval_dataset=pairs, callbacks=[EarlyStoppingCallback(1)]
    )
    assert trainer.train().global_step == 2  # nothing gets better without a learning rate


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_model_that_the_trainer_makes_is_prepared_as_one_that_it_is_given(tmp_path, tokenizer, weight):
    """For DistributedDataParallel nothing may be trained that gets no gradient."""
    arguments = SarcseTrainingArguments(
        str(tmp_path), reconstruction_weight=weight, reconstruction_anchor=0.5, learning_rate=1e-3, **SMALL
    )
    trainer = SarcseTrainer(
        args=arguments, train_dataset=TEXTS, processing_class=tokenizer, model_init=lambda: fresh_model()
    )
    before = fresh_model().state_dict()
    trainer.train()
    decoder = [parameter.requires_grad for parameter in trainer.model.sentence_decoder.parameters()]
    assert decoder == [weight > 0] * len(decoder)
    assert (trainer.anchor is not None) == (weight > 0)
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("sentence_decoder.") for name in moved) == (weight > 0)


def test_a_search_may_bring_the_reconstruction_in(tmp_path, tokenizer):
    """Tokens are counted whatever the weight is at first."""
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
    with pytest.raises(ValueError, match="needs a `model`, or a `model_init` and a tokenizer"):
        SarcseTrainer(args=SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)


def test_a_trainer_without_training_data_evaluates(tmp_path, pairs):
    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), eval_dataset=pairs)
    assert np.isfinite(trainer.evaluate()["eval_stsb_spearman"])


def test_sentences_without_a_tokenizer_end_in_a_message(tmp_path):
    """A model that was made from nothing has none beside it; token ids with weights of their own need none."""
    model = fresh_model()
    model.name_or_path = ""
    arguments = SarcseTrainingArguments(str(tmp_path), **SMALL)
    with pytest.raises(ValueError, match="train_dataset has sentences: give the tokenizer as `processing_class`"):
        SarcseTrainer(model, arguments, train_dataset=TEXTS)
    ids = datasets.Dataset.from_dict({"input_ids": [[0, 5, 2]] * 8})
    with pytest.raises(ValueError, match="`token_weights` are needed"):
        SarcseTrainer(model, arguments, train_dataset=ids)


def test_what_the_trainer_saves_is_the_model_in_sentence_transformers_too(tmp_path, tokenizer):
    from sentence_transformers import SentenceTransformer

    trainer = SarcseTrainer(fresh_model(), SarcseTrainingArguments(str(tmp_path), **SMALL), train_dataset=TEXTS)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "modules.json").read_text())
    given = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(given, trainer.model.encode(TEXTS, tokenizer), atol=1e-5)


def test_the_lines_of_the_readme_train_a_model(tmp_path):
    """As they stand, but for the encoder and the size of the batch."""
    section = (PROJECT / "README.md").read_text().split("## Train\n")[1]
    (code,) = re.findall(r"^```python\n(.*?)^```", section.split("\n## ")[0], re.DOTALL | re.MULTILINE)
    text_file(tmp_path)
    code = code.replace("FacebookAI/roberta-base", str(ENCODER))
    code = code.replace("num_train_epochs=1", "max_steps=1, per_device_train_batch_size=8, report_to='none'")
    process = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(PROJECT))
    assert process.returncode == 0, process.stderr
    assert SarcseModel.from_pretrained(tmp_path / "output" / "mine").config.pooler == "autoencoder"
