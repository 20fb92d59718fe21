"""
Training that starts from a sentence encoder, small ones that sentence-transformers itself has saved here: pooling,
length and norm are kept in every form of a release, and what cannot be kept is named.
"""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from transformers import AutoModel, AutoTokenizer, pipeline

from sarcse.loading import kind_of_model, load_model
from sarcse.options import ReleaseOptions
from sarcse.reconstruction import token_importance
from sarcse.release.build import build
from sarcse.release.folder import verify
from sarcse.training.arguments import LEARNING_RATE_BUDGET, SENTENCE_ENCODER_BUDGET, SarcseTrainingArguments
from sarcse.training.build import build_trainer
from sarcse.training.parsing import parse_arguments
from sarcse.training.trainer import SarcseTrainer

from .conftest import ENCODER, PROJECT, SENTENCES, flags, refusal, run_python, whole_model
from .test_trainer import SMALL, TEXTS, fresh_model


LENGTH = 48
LONG = [*SENTENCES, "A long sentence goes on " + "and on " * 60]
KEPT = "its mean pooling, its length of 48 tokens and its vectors of length 1 are kept"


def save(folder: Path, mode: str = "mean", further: list | None = None, change=None) -> Path:
    """A sentence encoder: the demo's, this pooling, and Normalize or other modules."""
    modules = [Transformer(str(ENCODER), max_seq_length=LENGTH), Pooling(128, pooling_mode=mode)]
    model = SentenceTransformer(modules=modules + ([Normalize()] if further is None else further), device="cpu")
    if change is not None:
        change(model)
    model.save_pretrained(str(folder))
    return folder


def as_version_2_saves(folder: Path) -> Path:
    """The same with the files of sentence-transformers 2, as all-MiniLM-L6-v2 has them on the Hub."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    mode = json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode"]
    modes = {"pooling_mode_cls_token": mode == "cls", "pooling_mode_mean_tokens": mode == "mean"}
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    length = {"max_seq_length": tokenizer["model_max_length"], "do_lower_case": False}
    written = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 128, **modes, "pooling_mode_max_tokens": False},
        "sentence_bert_config.json": length,
        "tokenizer_config.json": {**tokenizer, "model_max_length": 128},
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content))
    shutil.rmtree(folder / "2_Normalize")  # an empty folder there, which git does not have
    return folder


def trainer_on(encoder: Path, output_dir: Path, **fields) -> SarcseTrainer:
    return build_trainer(*parse_arguments(flags(output_dir, model_name_or_path=encoder, channels=None, **fields)))


@pytest.fixture(scope="module", params=["6", "2"])
def trained(request, tmp_path_factory):
    """The folders of a sentence encoder and of a model that was trained from it, the trainer and the log."""
    folder = tmp_path_factory.mktemp("sentence-encoder")
    encoder = save(folder / "encoder")
    if request.param == "2":
        as_version_2_saves(encoder)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    logging.getLogger("sarcse").addHandler(handler)
    try:
        trainer = trainer_on(encoder, folder / "model")
        trainer.train()
    finally:
        logging.getLogger("transformers").removeHandler(handler)
        logging.getLogger("sarcse").removeHandler(handler)
    trainer.save_results()
    return encoder, folder / "model", trainer, lines


@pytest.fixture(scope="module")
def releases(trained) -> tuple[Path, Path]:
    """Both forms of its release: plain, and with code and decoder."""
    model_dir = trained[1]
    forms = {"plain": "plain", "with_code": "with_decoder"}
    folders = [model_dir.with_name(name) for name in forms]
    for folder, form in zip(folders, forms.values()):
        build(ReleaseOptions(str(model_dir), str(folder), **{form: True}))
    return folders[0], folders[1]


def by_sentence_transformers(folder) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True).encode(LONG)


def test_one_line_says_what_is_kept_and_the_budget_is_the_small_one(trained):
    encoder, _, trainer, lines = trained
    expected = f"{encoder} is a sentence encoder: {KEPT}; --learning_rate_budget is 0.0001."
    assert [line for line in lines if "sentence encoder" in line] == [expected]
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert len(rates) == 4 and sum(rates) == pytest.approx(SENTENCE_ENCODER_BUDGET)


def test_pooling_length_and_norm_are_kept_in_every_form(trained, releases, tmp_path):
    """The training's folder and both releases, in each library, where the encoder without training has them, too."""
    (encoder, model_dir, _, _), (plain, with_code) = trained, releases
    expected = by_sentence_transformers(model_dir)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    assert np.abs(expected - by_sentence_transformers(encoder)).max() < 0.1, "trained a little"
    # Pooled here, of the encoder's own vectors.
    tokenizer = AutoTokenizer.from_pretrained(plain)
    batch = tokenizer(LONG, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        vectors = AutoModel.from_pretrained(plain)(**batch).last_hidden_state.double()
    total = (vectors * batch["attention_mask"].unsqueeze(-1)).sum(dim=1).numpy()
    np.testing.assert_allclose(total / np.linalg.norm(total, axis=1, keepdims=True), expected, atol=1e-6)
    for folder in (model_dir, plain, with_code):
        np.testing.assert_allclose(by_sentence_transformers(folder), expected, atol=1e-6)
        assert kind_of_model(str(folder)) == "sarcse"
        model, tokenizer = load_model(str(folder))
        assert (model.config.pooler, model.config.normalize, tokenizer.model_max_length) == ("mean", True, LENGTH)
        np.testing.assert_allclose(model.encode(LONG, tokenizer), expected, atol=1e-6)
    for folder in (model_dir, with_code):
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            given = model(**tokenizer(LONG, padding=True, truncation=True, return_tensors="pt")).pooler_output
        np.testing.assert_allclose(given, expected, atol=1e-6)
        extractor = pipeline("feature-extraction", model=str(folder), trust_remote_code=True)
        np.testing.assert_allclose(np.array(extractor(LONG))[:, 0], expected, atol=1e-6)
    # In a release with code the folder of the ONNX file is a model of its own, and its file has length 1 in it.
    ways = ["auto_model", "sentence_transformer", "onnx", "fastembed", "sentence_transformer_truncated"]
    for folder in (plain, with_code):
        process = run_python(PROJECT / "tests" / "ways_to_load.py", folder, *ways, cwd=tmp_path)
        differences = json.loads(process.stdout.splitlines()[-1])
        assert differences.keys() == {*ways}, process.stderr
        assert all(found <= 1e-6 for found in differences.values() if "not installed" not in str(found)), differences


def test_the_plain_release_is_what_sentence_transformers_saves(releases, tmp_path):
    """
    Its three modules by the names that text-embeddings-inference 1.9 knows (backends/src/lib.rs, ModuleType), and a
    check that fails if one is lost.
    """
    folder = shutil.copytree(releases[0], tmp_path / "plain")
    modules = json.loads((folder / "modules.json").read_text())
    names = [module["type"].removeprefix("sentence_transformers.models.") for module in modules]
    assert names == ["Transformer", "Pooling", "Normalize"]
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == LENGTH
    SentenceTransformer(str(folder), device="cpu").save_pretrained(str(tmp_path / "saved"))
    written, saved = (path / "2_Normalize" / "config.json" for path in (folder, tmp_path / "saved"))
    assert json.loads(written.read_text()) == json.loads(saved.read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    with pytest.raises(ValueError, match="transformers: largest diff.*; sentence-transformers: largest diff"):
        verify(folder)


def test_the_record_and_the_card_state_it_and_the_cards_lines_run(trained, releases, tmp_path):
    _, model_dir, _, _ = trained
    record = json.loads((model_dir / "training_record.json").read_text())
    assert record["sentence_encoder"] == KEPT
    assert (record["architecture"]["pooler"], record["architecture"]["normalize"]) == ("mean", True)
    assert record["hyperparameters"]["learning_rate_budget"] == SENTENCE_ENCODER_BUDGET
    folder = releases[0]
    card = " ".join(ModelCard.load(folder / "README.md").text.split())
    assert "128 dimensions, normalised to length 1: compare embeddings by cosine similarity." in card
    assert "Up to 48 tokens" in card and f"Started from `encoder`, a sentence encoder: {KEPT}." in card
    blocks = (folder / "README.md").read_text().split("```python\n")[1:3]
    code = "\n".join(block.split("```")[0] for block in blocks).replace("you/plain", str(folder))
    code += "\nimport numpy; numpy.testing.assert_allclose(embeddings, vectors, atol=1e-6)"
    process = run_python("-c", code, cwd=tmp_path)
    assert process.returncode == 0, process.stderr


def test_a_further_training_keeps_it_and_has_the_small_budget_again(trained, releases, tmp_path, caplog):
    """From the training's folder, and from each release, which has no record of the training."""
    for source in (trained[1], *releases):
        trainer = trainer_on(source, tmp_path / f"next-{source.name}")
        assert trainer.model.config.normalize and trainer.processing_class.model_max_length == LENGTH
        assert trainer.args.rate_budget == SENTENCE_ENCODER_BUDGET
        assert f"{source} was trained from a sentence encoder; --learning_rate_budget is 0.0001." in caplog.text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pooler": "mean"}, f"{KEPT}; --learning_rate_budget is 0.0001."),
        (
            {"pooler": "autoencoder", "learning_rate_budget": 0.001},
            "its length of 48 tokens and its vectors of length 1 are kept; not kept: its mean pooling; "
            "--learning_rate_budget is 0.001.",
        ),
        ({"reconstruction_weight": 0}, f"{KEPT}; --learning_rate_budget is 0."),
    ],
)
def test_flags_win_and_the_line_says_so(tmp_path, caplog, fields, said):
    encoder = save(tmp_path / "encoder")
    trainer = trainer_on(encoder, tmp_path / "model", **fields)
    assert f"{encoder} is a sentence encoder: {said}" in caplog.text
    assert trainer.model.config.pooler == fields.get("pooler", "mean") and trainer.model.config.normalize


def test_first_token_pooling_is_kept_where_it_can_be_trained(tmp_path, caplog):
    """It has no reconstruction: one line says what to choose, and nothing is silently trained with another pooling."""
    encoder = save(tmp_path / "encoder", mode="cls")
    assert "--pooler cls has no reconstruction: add --reconstruction_weight 0 (SimCSE), or train with" in refusal(
        tmp_path, model_name_or_path=encoder, channels=None
    )
    assert f"{encoder} is a sentence encoder: its cls pooling, its length of 48" in caplog.text
    trainer = trainer_on(encoder, tmp_path / "model", reconstruction_weight=0)
    given = trainer.model.encode(LONG, trainer.processing_class)
    np.testing.assert_allclose(given, by_sentence_transformers(encoder), atol=1e-6)


def with_prompt(model):
    model.prompts["topic"], model.default_prompt_name = "Something about football: ", "topic"


def with_fewer_dimensions(model):
    model.truncate_dim = 16


NOT_KEPT = {
    "dense": (
        {"further": [Dense(128, 8), Normalize()]},
        "are kept; not kept: modules.json lists Transformer, Pooling, Dense, Normalize;",
        True,
    ),
    "max": ({"mode": "max", "further": []}, "is kept; not kept: 1_Pooling/config.json pools by max;", False),
    "prompt": (
        {"change": with_prompt},
        f"{KEPT}; not kept: config_sentence_transformers.json has default_prompt_name 'topic';",
        True,
    ),
    "truncated": (
        {"change": with_fewer_dimensions},
        f"{KEPT}; not kept: config_sentence_transformers.json has truncate_dim 16;",
        True,
    ),
}


@pytest.mark.parametrize("name", NOT_KEPT)
def test_what_cannot_be_kept_is_named_and_the_training_goes_on(tmp_path, caplog, name):
    options, said, normalize = NOT_KEPT[name]
    encoder = save(tmp_path / "encoder", **options)
    trainer = trainer_on(encoder, tmp_path / "model")
    assert said in caplog.text and trainer.args.rate_budget == SENTENCE_ENCODER_BUDGET
    assert trainer.model.config.normalize == normalize and trainer.processing_class.model_max_length == LENGTH
    assert trainer.model.config.pooler == ("mean" if KEPT in said else "words")


def test_lower_case_and_classes_of_its_own_are_named(tmp_path, caplog):
    encoder = as_version_2_saves(save(tmp_path / "encoder"))
    path = encoder / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": True}))
    assert trainer_on(encoder, tmp_path / "model").model.config.pooler == "mean"
    assert f"{KEPT}; not kept: sentence_bert_config.json has do_lower_case;" in caplog.text
    text = (encoder / "modules.json").read_text()
    (encoder / "modules.json").write_text(text.replace("sentence_transformers.models.Transformer", "own.Transformer"))
    assert trainer_on(encoder, tmp_path / "model").model.config.pooler == "words"
    assert (
        "do_lower_case and modules.json lists own.Transformer, sentence_transformers.models.Pooling, " in caplog.text
    )


def test_an_encoder_in_a_subfolder_is_refused_with_what_to_do(tmp_path):
    encoder = as_version_2_saves(save(tmp_path / "encoder"))
    inner = encoder / "0_Transformer"
    inner.mkdir()
    for path in [path for path in encoder.iterdir() if path.is_file() and path.name != "modules.json"]:
        shutil.move(path, inner)
    modules = json.loads((encoder / "modules.json").read_text())
    modules[0]["path"] = inner.name
    (encoder / "modules.json").write_text(json.dumps(modules))
    expected = by_sentence_transformers(encoder)
    with pytest.raises(ValueError, match="has the encoder in the folder 0_Transformer.*save it again") as refused:
        load_model(str(encoder))
    assert "\n" not in str(refused.value)
    SentenceTransformer(str(encoder), device="cpu").save_pretrained(str(tmp_path / "again"))
    model, tokenizer = load_model(str(tmp_path / "again"))
    np.testing.assert_allclose(model.encode(LONG, tokenizer), expected, atol=1e-6)


def test_in_python_the_budget_is_small_and_what_is_not_kept_is_named(tmp_path, caplog):
    encoder, args = save(tmp_path / "encoder"), SarcseTrainingArguments(str(tmp_path / "out"), **SMALL)
    model, _ = load_model(str(encoder), pooler="autoencoder", normalize=False)
    trainer = SarcseTrainer(model, args, train_dataset=TEXTS)
    assert trainer.args.rate_budget == SENTENCE_ENCODER_BUDGET and args.rate_budget == LEARNING_RATE_BUDGET
    # Its tokenizer has the length, as sentence-transformers 6 saves it.
    assert (
        f"{encoder} is a sentence encoder: its length of 48 tokens is kept; not kept: its mean pooling and its "
        "vectors of length 1; --learning_rate_budget is 0.0001."
    ) in caplog.text
    model, tokenizer = load_model(str(encoder))
    trainer = SarcseTrainer(model, trainer.args, train_dataset=TEXTS, processing_class=tokenizer)
    assert f"{encoder} is a sentence encoder: {KEPT}; --learning_rate_budget is 0.0001." in caplog.text
    other = SarcseTrainer(fresh_model(), trainer.args, train_dataset=TEXTS)
    assert other.args.rate_budget == LEARNING_RATE_BUDGET, "the arguments of another training are no reason"


@pytest.mark.parametrize("cached", [None, 4])
@pytest.mark.parametrize("pooler", ["words", "autoencoder", "textcnn", "mean"])
def test_a_training_step_has_the_same_gradients_with_and_without_length_1(tmp_path, pooler, cached):
    """InfoNCE takes cosines, and the reconstruction starts from the embedding before it is scaled."""
    gradients = []
    for normalize in (False, True):
        fields = {**SMALL, "eval_strategy": "no", "gradient_cache_mini_batch_size": cached}
        model = fresh_model(pooler=pooler, normalize=normalize)
        args = SarcseTrainingArguments(str(tmp_path), **fields)
        trainer = SarcseTrainer(model, args, train_dataset=TEXTS)
        trainer.current_gradient_accumulation_steps = 1  # `train` sets it
        batch = next(iter(trainer.get_train_dataloader()))
        torch.manual_seed(1)
        loss = trainer.training_step(trainer.model, batch)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        gradients[-1]["loss"] = loss
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5 * largest.item(), rtol=1e-4, msg=name)


def test_token_importance_is_that_of_the_embedding_before_it_is_scaled(tokenizer):
    torch.manual_seed(0)
    model = whole_model(str(ENCODER), channels=4)
    expected, embeddings = token_importance(model, SENTENCES, tokenizer), model.encode(SENTENCES, tokenizer)
    model.config.normalize = True
    assert token_importance(model, SENTENCES, tokenizer) == expected
    scaled = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for normalize in (False, True):
        np.testing.assert_allclose(model.encode(SENTENCES, tokenizer, normalize=normalize), scaled, atol=1e-6)
