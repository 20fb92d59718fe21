"""Plain releases: models without this project's code, for every program that reads an encoder with its pooling."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from transformers import MODEL_MAPPING, AutoModel, AutoTokenizer

from configuration_sarcse import SarcseConfig
from modeling_sarcse import POOLERS, SarcseModel
from sarcse.evaluation.embedding import load_embedders, measure_before
from sarcse.loading import kind_of_model, load_model
from sarcse.options import ReleaseOptions
from sarcse.release.build import build
from sarcse.release.card import write_card
from sarcse.release.facts import read_facts
from sarcse.release.folder import verify, write_model
from sarcse.release.hub import files_of
from sarcse.release.plain import why_not_plain, write_plain_model
from sarcse.training.build import build_trainer
from sarcse.training.parsing import parse_arguments

from .conftest import DEMO, ENCODER, PROJECT, SENTENCES, flags, refusal, run_command, run_python
from .test_field_encoders import small_config


PLAIN = [name for name, pooler in POOLERS.items() if pooler.pooling_mode is not None]


@pytest.fixture(scope="module", params=PLAIN)
def plain(request, tmp_path_factory, tokenizer) -> tuple[Path, SarcseModel]:
    """A plain release, made by the command's function, and its model."""
    folder = tmp_path_factory.mktemp(request.param)
    model = load_model(str(ENCODER), pooler=request.param)[0]
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    build(ReleaseOptions(str(folder / "model"), str(folder / "sarcse-plain")))
    return folder / "sarcse-plain", model


def test_a_plain_release_holds_no_code_and_says_so_nowhere(plain):
    folder, _ = plain
    assert set(files_of(folder)) == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "special_tokens_map.json"),
        "config_sentence_transformers.json",
        *("golden_embeddings.json", "onnx/model.onnx"),
    }
    card = ModelCard.load(folder / "README.md").text
    assert "trust_remote_code" not in card and "no code from this repository runs" in card
    assert "auto_map" not in json.loads((folder / "config.json").read_text())


STRANGER = """
import json, sys
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, logging
folder = sys.argv[1]
model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
golden = json.load(open(f"{folder}/golden_embeddings.json"))
embeddings = SentenceTransformer(folder, device="cpu").encode(golden["sentences"], convert_to_tensor=True)
difference = (embeddings - torch.tensor(golden["embeddings"])).abs().max().item()
print(json.dumps([type(model).__name__, {name: list(keys) for name, keys in report.items()}, difference]))
"""


def test_strangers_load_it_without_a_question_or_a_report(plain, tmp_path):
    """No `trust_remote_code`, nothing missing, nothing left over, and the same vectors in sentence-transformers."""
    process = run_python("-c", STRANGER, plain[0], cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    name, report, difference = json.loads(process.stdout.splitlines()[-1])
    assert name == "RobertaModel" and not any(report.values()) and difference <= 1e-6
    assert not re.search(r"MISSING|UNEXPECTED|newly initialized", process.stdout + process.stderr)


def test_the_lines_of_its_card_run(plain, tmp_path):
    """On the folder, as the card says where the model has not been pushed."""
    card = (plain[0] / "README.md").read_text()
    assert "`you/sarcse-plain` is a placeholder: this model has not been pushed to the Hub" in card
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[:2]
    code = "\n".join(blocks).replace("you/sarcse-plain", str(plain[0]))
    code += "\nimport numpy; numpy.testing.assert_allclose(embeddings, vectors, atol=1e-5)"
    process = run_python("-c", code, cwd=tmp_path)
    assert process.returncode == 0, process.stderr


def test_both_forms_have_the_same_scores_to_the_last_digit(plain, tmp_path):
    folder, _ = plain
    model_dir = folder.with_name("model")
    with_code, _ = build(ReleaseOptions(str(model_dir), str(tmp_path / "with_code"), with_code=True))
    command = [PROJECT / "eval_sts.py", model_dir, folder, with_code, "--pairs", DEMO / "sts.tsv"]
    process = run_command(*command, "--output_dir", tmp_path / "scores", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "scores" / "results.json").read_text())["models"].values()
    assert len(rows) == 3 and all(row == next(iter(rows)) for row in rows)
    assert (with_code / "modeling_sarcse.py").is_file()


def test_this_project_loads_it_as_what_it_was(plain, tokenizer):
    """With its pooler, for scoring and further training. Nothing of the release is left in what is saved next."""
    folder, model = plain
    loaded, _ = load_model(str(folder))
    assert kind_of_model(str(folder)) == "sarcse" and loaded.config.pooler == model.config.pooler
    assert (loaded.encode(SENTENCES, tokenizer) == model.encode(SENTENCES, tokenizer)).all()
    assert "sarcse_pooler" not in json.dumps(loaded.config.to_dict())
    (row,) = load_embedders(str(folder), ["mean", "cls"], "main", torch.device("cpu"), 8)
    assert row[:2] == (str(folder), model.config.pooler)
    other = {"mean": "cls", "cls": "mean"}[model.config.pooler]
    with pytest.raises(ValueError, match=f"was released with pooler={model.config.pooler}: leave --pooler out"):
        load_model(str(folder), pooler=other)


def test_weights_in_half_precision_are_released_as_they_are(tokenizer, tmp_path):
    """They are verified in single precision, which a reader may use."""
    model = load_model(str(ENCODER), pooler="mean")[0].to(torch.bfloat16)
    write_model(model, tokenizer, tmp_path, plain=True, with_decoder=False)
    write_card(tmp_path / "README.md", read_facts(tmp_path, model, tokenizer), "you/model", None, None, [])
    verify(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_its_own_pooler_is_seen_to_be_no_embedding(plain):
    """The class's own pooler output is zero, not random values that differ each time."""
    ids = torch.arange(3, 9).view(1, 6)
    assert AutoModel.from_pretrained(plain[0])(ids).pooler_output.abs().max() == 0


@pytest.mark.parametrize(
    "model_type",
    [
        "albert",
        "bert",
        "big_bird",
        "deberta-v2",
        "distilbert",
        "electra",
        "esm",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "xlm-roberta",
    ],
)
def test_other_encoders_load_as_they_were_with_nothing_missing(tokenizer, tmp_path, model_type):
    model = small_model(model_type, "mean")
    assert why_not_plain(model, tokenizer) is None
    write_plain_model(model, tokenizer, tmp_path, "5GB")
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).last_hidden_state, model(ids).last_hidden_state)


def small_model(model_type: str, pooler: str) -> SarcseModel:
    return SarcseModel(SarcseConfig(encoder_config=small_config(model_type), pooler=pooler)).eval()


def test_what_has_no_plain_form_says_why(tokenizer):
    left = AutoTokenizer.from_pretrained(ENCODER, padding_side="left")
    assert any(config.model_type == "t5" for config in MODEL_MAPPING)
    assert "AutoModel expects more than the encoder for 't5'" in str(
        why_not_plain(small_model("t5", "mean"), tokenizer)
    )
    assert "pads on the left" in str(why_not_plain(small_model("bert", "cls"), left))
    assert why_not_plain(small_model("bert", "mean"), left) is None
    for pooler in POOLERS.keys() - PLAIN:
        assert f"(pooler {pooler}; cls and mean need none)" in str(
            why_not_plain(small_model("bert", pooler), tokenizer)
        )


def test_a_training_knows_before_it_begins_that_there_is_no_plain_release(tmp_path):
    assert "--plain: its embedding is the mean of the token vectors plus the mean of the word" in refusal(
        tmp_path, plain="true"
    )


def test_a_plain_release_that_pools_otherwise_is_stopped(plain, tmp_path):
    folder = shutil.copytree(plain[0], tmp_path / "release")
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    for name in ("pooling_mode_cls_token", "pooling_mode_mean_tokens"):
        pooling[name] = not pooling[name]
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(
        ValueError,
        match="transformers: largest diff.*; tokenizers: the same; sentence-transformers: largest",
    ):
        verify(folder)


def test_what_sentence_transformers_changes_is_scored_as_it_is_there_and_not_released(plain, saved_model, tmp_path):
    """A further module, other pooling or a prompt, saved by sentence-transformers itself: never as without it."""

    def with_layer(model):
        torch.manual_seed(0)
        model.append(Dense(model.get_embedding_dimension(), 4))

    def with_prompt(model):
        model.prompts["topic"], model.default_prompt_name = "Something about football and banks: ", "topic"

    def with_other_pooling(model):
        model[1] = Pooling(model.get_embedding_dimension(), {"mean": "cls", "cls": "mean"}[plain[1].config.pooler])

    changes = {"layer": with_layer, "prompt": with_prompt, "pooling": with_other_pooling}
    for source, change in [
        *((plain[0], change) for change in changes),
        (saved_model, "layer"),
        (saved_model, "prompt"),
    ]:
        folder = tmp_path / f"{source.name}-{change}"
        model = SentenceTransformer(str(source), device="cpu", trust_remote_code=True)
        model.save_pretrained(str(folder))
        assert kind_of_model(str(folder)) == "sarcse", "saved again, it is what it was"
        changes[change](model)
        model.save_pretrained(str(folder))
        ((_, kind, embed),) = load_embedders(str(folder), ["mean"], "main", torch.device("cpu"), 8, True)
        assert kind == "sentence-transformers"
        np.testing.assert_allclose(embed(SENTENCES), model.encode(SENTENCES), atol=1e-6)
        with pytest.raises(ValueError, match="sentence-transformers' files beside it change its embeddings"):
            build(ReleaseOptions(str(folder), str(tmp_path / "release")))


WRITTEN = [
    ("sentence_bert_config.json", "max_seq_length", 8, "max_seq_length 8"),
    ("sentence_bert_config.json", "max_seq_length", 128, None),  # the model's own
    ("sentence_bert_config.json", "max_seq_length", 512, None),
    ("sentence_bert_config.json", "do_lower_case", True, "do_lower_case"),
    ("config_sentence_transformers.json", "truncate_dim", 16, "truncate_dim 16"),
    ("config_sentence_transformers.json", "similarity_fn_name", "dot", None),
]


@pytest.mark.parametrize(("name", "field", "value", "found"), WRITTEN)
def test_what_is_written_for_sentence_transformers_is_scored_as_it_is_there(
    plain, saved_model, tmp_path, caplog, name, field, value, found
):
    """A lower limit, lower case or fewer dimensions: a release or a further training without them says so."""
    for source in (plain[0], saved_model):
        folder = shutil.copytree(source, tmp_path / source.name)
        fields = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps({**fields, field: value}))
        caplog.clear()
        load_model(str(folder))
        warned = f"{folder}: {name} has {found}, which has no effect without sentence-transformers."
        assert (warned in caplog.text) == (found is not None), caplog.text
        if found is None:
            assert kind_of_model(str(folder)) == "sarcse"
            continue
        ((_, kind, embed),) = load_embedders(str(folder), ["mean"], "main", torch.device("cpu"), 8, True)
        assert kind == "sentence-transformers"
        there = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True).encode(SENTENCES)
        here = SentenceTransformer(str(source), device="cpu", trust_remote_code=True).encode(SENTENCES)
        np.testing.assert_allclose(embed(SENTENCES), there, atol=1e-6)
        assert there.shape != here.shape or np.abs(there - here).max() > 1e-3
        with pytest.raises(
            ValueError, match=f"change its embeddings, which a release would not keep: {name} has {found}"
        ):
            build(ReleaseOptions(str(folder), str(tmp_path / "release")))


def test_training_goes_on_from_what_sentence_transformers_truncates_with_one_line(saved_model, tmp_path, caplog):
    """The model that it begins with is measured as it is trained: whole, and with its own pooler."""
    folder = shutil.copytree(saved_model, tmp_path / "truncated")
    (folder / "config_sentence_transformers.json").write_text('{"truncate_dim": 16}')
    trainer = build_trainer(*parse_arguments(flags(tmp_path / "next", model_name_or_path=folder, channels=None)))
    assert caplog.text.count("config_sentence_transformers.json has truncate_dim 16, which has no effect") == 1
    measured = measure_before(trainer.model, trainer.processing_class, trainer.tasks, "main")
    assert [(row, found.pooler) for row, found in measured.items()] == [(f"before: {folder}", "words")]


def test_training_goes_on_from_a_plain_release_with_its_pooler(plain, tmp_path):
    options = {"model_name_or_path": plain[0], "channels": None, "reconstruction_weight": 0, "eval_pairs": None}
    process = run_command(PROJECT / "train.py", *flags(tmp_path / "next", **options, eval_strategy="no"), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "next" / "config.json").read_text())["pooler"] == plain[1].config.pooler


# --- text-embeddings-inference ---------------------------------------------------------------------------------------


def test_text_embeddings_inference_finds_every_field_that_it_reads(plain, release_folder):
    """
    Version 1.9.3 cannot be run here; these are the files and fields that its source reads, and their types. It refuses
    to start if a field has another type, or if a required field is missing.
    """
    for folder in (plain[0], release_folder):
        read = {
            name: json.loads(path.read_text()) for name, path in files_of(folder).items() if path.suffix == ".json"
        }
        config = read["config.json"]
        # router/src/lib.rs, ModelConfig; backends/ort/src/lib.rs, Config.
        assert isinstance(config["model_type"], str) and not config["architectures"][0].endswith("Classification")
        for name in ("max_position_embeddings", "pad_token_id", "hidden_size", "num_hidden_layers"):
            assert type(config[name]) is int, name
        assert all(isinstance(value, str) for value in config.get("auto_map", {}).values())
        # router/src/lib.rs, STConfig: one `max_seq_length`, which is required where the file is there.
        length = read["sentence_bert_config.json"]["max_seq_length"]
        assert type(length) is int and length <= config["max_position_embeddings"] - 2  # for RoBERTa-like encoders
        # router/src/lib.rs, PoolConfig: the long form, with two required fields. Without the file it would
        # need `--pooling`.
        pooling = read["1_Pooling/config.json"]
        chosen = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
        assert chosen in (["pooling_mode_cls_token"], ["pooling_mode_mean_tokens"])
        assert {type(pooling[f"pooling_mode_{name}"]) for name in ("cls_token", "mean_tokens")} == {bool}
        # router/src/lib.rs: tokenizer.json; backends/ort/src/lib.rs: the padding side.
        assert read["tokenizer.json"]["post_processor"] is not None
        assert read["tokenizer_config.json"].get("padding_side", "right") in ("left", "right")
    config = json.loads((plain[0] / "config.json").read_text())
    # backends/candle/src/models/bert.rs, BertConfig; other fields have defaults.
    for name in ("vocab_size", "num_attention_heads", "intermediate_size", "type_vocab_size"):
        assert type(config[name]) is int, name
    for name in ("hidden_dropout_prob", "initializer_range", "layer_norm_eps"):
        assert type(config[name]) is float, name
    assert config["hidden_act"] in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swiglu", "tanh")
    assert config.get("position_embedding_type", "absolute") == "absolute"
    # backends/src/lib.rs, modules of candle: other types are not loaded.
    modules = json.loads((plain[0] / "modules.json").read_text())
    assert [module["type"] for module in modules] == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
    ]
