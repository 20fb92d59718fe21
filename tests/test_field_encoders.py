"""
Problems with encoders and tokenizers that users of other programs have reported. Each must give the right result or an
error message, never a wrong result without a warning.
"""

import copy
import inspect
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DPRConfig,
    DPRQuestionEncoder,
    FNetConfig,
    FNetModel,
    FunnelBaseModel,
    FunnelConfig,
    FunnelModel,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    NomicBertConfig,
    NomicBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLNetConfig,
    XLNetModel,
    pipeline,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel, SarcsePipeline
from sarcse.data.tokens import unknown_share
from sarcse.evaluation.embedding import encode, load_embedders
from sarcse.loading import load_model
from sarcse.reconstruction import token_importance
from sarcse.training.build import build_trainer
from sarcse.training.checkpoints import check_saving, load_weights
from sarcse.training.parsing import parse_arguments

from .conftest import (
    DEMO,
    PROJECT,
    SMALL,
    assert_same_weights,
    flags,
    random_encoder,
    refusal,
    run_command,
    run_python,
    write,
)


SMALL |= {"max_position_embeddings": 66}


def small_config(model_type: str, vocabulary_size: int = 120):
    """A configuration of this type with all known sizes reduced, or None if that is impossible."""
    sizes = {
        **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd"), 32),
        **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers"), 2),
        **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads"), 4),
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
        **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "hidden_dim", "d_ff", "ffn_dim"), 16),
        **{"num_key_value_heads": 2, "head_dim": 8, "vocab_size": vocabulary_size, "max_position_embeddings": 64},
        **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    }
    config_class = CONFIG_MAPPING[model_type]
    try:
        default = config_class()
        return config_class(**{name: size for name, size in sizes.items() if hasattr(default, name)})
    except Exception:  # sizes that do not fit together, a package that is not installed
        return None


def wrapped(config) -> SarcseModel | None:
    """Fresh layers on a random encoder; None for one that is large even so, or reads no text."""
    ids = torch.arange(3, 15).view(2, 6)
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
        if size > 1_000_000:
            return None
        model = SarcseModel(SarcseConfig(encoder_config=config, channels=4, special_token_ids=[0, 1, 2])).eval()
        return model if model(ids).last_hidden_state.shape == (2, 6, model.config.hidden_size) else None
    except Exception:  # images, sound, or sizes that do not fit together
        return None


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_every_encoder_whose_weights_transformers_renames_loads_as_it_was_saved(tmp_path):
    """transformers' own mapping lists them. The Trainer's way of loading keeps old weights where a name differs."""
    types = [c.model_type for c in MODEL_MAPPING if get_checkpoint_conversion_mapping(c.model_type)]
    renamed = []
    for model_type in sorted(set(types)):
        config = small_config(model_type)
        model = wrapped(config) if config is not None else None
        if model is None:
            continue
        torch.manual_seed(1)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        folder = tmp_path / model_type
        model.save_pretrained(folder)
        other = SarcseModel(model.config)
        plain = SarcseModel(model.config)
        load_weights(other, folder)
        expected = model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items()), model_type
        if plain.load_state_dict(load_file(folder / "model.safetensors"), strict=False).missing_keys:
            renamed.append(model_type)
        shutil.rmtree(folder)
    assert {"nomic_bert", "mixtral"} <= set(renamed) and len(renamed) > 5, renamed


def test_an_encoder_that_does_not_load_as_it_was_saved_is_refused_before_the_training(tmp_path, trained_like_model):
    """A part of the model is in no file: only its constructor fills it, differently each time."""
    model = SarcseModel(trained_like_model.config)
    check_saving(model, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    model.encoder.register_buffer("mask", torch.ones(3), persistent=False)
    with pytest.raises(ValueError, match="'roberta' cannot be trained: saving and loading it changes encoder.mask"):
        check_saving(model, tmp_path)


@pytest.fixture(scope="module")
def nomic_run(tmp_path_factory, tokenizer):
    """NomicBert, whose weights have other names in files: the encoder, and three steps with a checkpoint each."""
    folder = tmp_path_factory.mktemp("nomic")
    torch.manual_seed(0)
    config = NomicBertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SMALL)
    random_encoder(folder / "encoder", NomicBertModel(config), tokenizer)
    options = {"model_name_or_path": folder / "encoder", "eval_steps": 1, "save_steps": 1, "save_total_limit": 4}
    options |= {"learning_rate": 5e-3, "max_train_samples": 24}
    process = run_command(PROJECT / "train.py", *flags(folder / "run", **options), cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder / "run", options


def test_the_best_checkpoint_of_an_encoder_with_renamed_weights_is_the_model(nomic_run):
    run, _ = nomic_run
    state = json.loads((run / "trainer_state.json").read_text())
    assert_same_weights(run, run / f"checkpoint-{state['best_global_step']}")
    after = json.loads((run / "sts_results.json").read_text())["models"][f"after: {run}"]
    assert after["average"] == pytest.approx(state["best_metric"], abs=1e-6)


def test_a_resumed_run_of_an_encoder_with_renamed_weights_is_the_uninterrupted_one(nomic_run, tmp_path):
    run, options = nomic_run
    options = {**options, "resume_from_checkpoint": run / "checkpoint-1"}
    process = run_command(PROJECT / "train.py", *flags(tmp_path / "run", **options), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert_same_weights(tmp_path / "run" / "checkpoint-3", run / "checkpoint-3")
    assert "missing keys" not in process.stderr


def small_bert(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, vocabulary_size: int = 8192) -> str:
    return random_encoder(folder, BertModel(BertConfig(vocab_size=vocabulary_size, **SMALL)), tokenizer)


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [
        (BertConfig, BertModel),
        (RobertaConfig, RobertaModel),
        (XLMRobertaConfig, XLMRobertaModel),
        (MPNetConfig, MPNetModel),
        (GPT2Config, GPT2Model),
        (T5Config, T5EncoderModel),
        (XLNetConfig, XLNetModel),
    ],
)
def test_a_folder_without_its_tokenizer_is_refused(tmp_path, config_class, model_class):
    """transformers would create an empty tokenizer, to which every word is unknown."""
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 1, "d_model": 32, "num_layers": 1, **SMALL}
    known = {name: size for name, size in sizes.items() if name in inspect.signature(config_class).parameters}
    folder = random_encoder(tmp_path / "model", model_class(config_class(**known)), tokenizer=None)
    with pytest.raises(ValueError, match=f"{folder} has no tokenizer"):
        load_model(folder)
    assert f"{folder} has no tokenizer" in refusal(tmp_path, model_name_or_path=folder)
    with pytest.raises(ValueError, match=f"{folder} has no tokenizer"):
        next(load_embedders(folder, ["mean"], "main", torch.device("cpu"), 8))


def test_a_sentence_transformers_folder_without_its_tokenizer_is_refused(tmp_path):
    folder = small_bert(tmp_path / "model")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=f"{folder} has no tokenizer"):
        next(load_embedders(folder, ["mean"], "main", torch.device("cpu"), 8))


def test_the_tokenizer_of_another_model_is_refused(tmp_path, tokenizer):
    """RoBERTa counts positions from its padding token, so that another one gives other positions."""
    config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=0, **SMALL)
    folder = random_encoder(tmp_path / "positions", RobertaModel(config), tokenizer)
    assert "pads with token 1, but the encoder with 0: the tokenizer belongs to another" in refusal(
        tmp_path, model_name_or_path=folder
    )
    folder = small_bert(tmp_path / "sizes", tokenizer, vocabulary_size=30522)
    assert "has 8192 tokens, but the encoder has 30522" in refusal(tmp_path, model_name_or_path=folder)


def letters(unknown: str = "[UNK]") -> PreTrainedTokenizerFast:
    """A tokenizer of twelve Greek letters."""
    names = [unknown, "[PAD]", *"αβγδεζηθικλμ"]
    model = tokenizers.models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=unknown)
    split = tokenizers.Tokenizer(model)
    split.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=split, unk_token=unknown, pad_token="[PAD]")


@pytest.mark.parametrize("streaming", [None, "true"])
def test_text_that_the_tokenizer_cannot_read_is_refused(tmp_path, streaming):
    tokenizer = letters()
    folder = small_bert(tmp_path / "greek", tokenizer, vocabulary_size=len(tokenizer))
    options = {"model_name_or_path": folder, "streaming": streaming, "max_steps": 2}
    options |= {"max_train_samples": None} if streaming else {}
    message = refusal(tmp_path, **options)
    assert re.search(r"sentences.txt: 100% of the tokens are unknown to the encoder's tokenizer", message)
    write(tmp_path / "greek.txt", "α β γ δ\n" * 32)
    assert refusal(tmp_path, **options, train_file=tmp_path / "greek.txt") == ""


def test_text_that_the_tokenizer_cannot_read_is_warned_about_when_it_is_scored(tmp_path, tokenizer):
    """For both scripts. The share is of all tokens, whatever the special ones are."""
    greek = letters()
    folder = small_bert(tmp_path / "greek", greek, vocabulary_size=len(greek))
    assert unknown_share(greek(["α β no γ"])["input_ids"], greek) == 0.25
    assert unknown_share(tokenizer(["Why?", ""])["input_ids"], tokenizer) == 0
    process = run_command(PROJECT / "eval_sts.py", folder, "--pairs", DEMO / "sts.tsv", cwd=tmp_path)
    assert "Most tokens of these sentences are unknown to the model" in process.stderr


def test_encoders_without_a_limit_of_length_are_trained(tmp_path, tokenizer):
    """XLNet states -1 and T5 nothing; the tokenizer's own limit, here 128, applies."""
    encoders = {
        "xlnet": XLNetModel(XLNetConfig(vocab_size=8192, d_model=32, n_head=2, n_layer=1, d_inner=32)),
        "t5": T5EncoderModel(T5Config(vocab_size=8192, d_model=32, d_kv=16, num_heads=2, num_layers=1, d_ff=32)),
        "funnel": FunnelModel(
            FunnelConfig(vocab_size=8192, d_model=32, n_head=2, d_head=16, d_inner=32, block_sizes=[1, 1])
        ),
    }
    for name, encoder in encoders.items():
        folder = random_encoder(tmp_path / name, encoder, tokenizer)
        trainer = build_trainer(*parse_arguments(flags(tmp_path / f"{name}-run", model_name_or_path=folder)))
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch).backward()
        assert any(
            parameter.grad.any() for parameter in trainer.model.encoder.parameters() if parameter.grad is not None
        )
        assert trainer.processing_class.model_max_length == 128, name
        reference = type(encoder).from_pretrained(folder)
        inputs = tokenizer(["A dog runs."], return_tensors="pt")
        ids = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        expected = reference.eval()(**ids).last_hidden_state
        torch.testing.assert_close(trainer.model.eval()(**ids).last_hidden_state, expected)


def test_neither_the_encoder_nor_the_tokenizer_may_have_a_limit_of_length(tmp_path, tokenizer):
    """A tokenizer that was saved without one has 10^30, more than its library can count to."""
    encoders = {
        "xlnet": XLNetModel(XLNetConfig(vocab_size=8192, d_model=32, n_head=2, n_layer=1, d_inner=32)),
        "t5": T5EncoderModel(T5Config(vocab_size=8192, d_model=32, d_kv=16, num_heads=2, num_layers=1, d_ff=32)),
    }
    unlimited = copy.deepcopy(tokenizer)
    unlimited.model_max_length = 10**30
    for name, encoder in encoders.items():
        folder = random_encoder(tmp_path / name, encoder, unlimited)
        arguments = flags(tmp_path / f"{name}-run", model_name_or_path=folder)
        trained = run_command(PROJECT / "train.py", *arguments, cwd=tmp_path)
        assert trained.returncode == 0, trained.stderr
        scored = run_command(PROJECT / "eval_sts.py", f"{name}-run", "--pairs", DEMO / "sts.tsv", cwd=tmp_path)
        assert scored.returncode == 0, scored.stderr
        model, loaded = load_model(str(tmp_path / f"{name}-run"))
        long = "long " * 300  # longer than the limit of other tests' tokenizer
        embedding = model.encode([long], loaded)
        np.testing.assert_allclose(
            embedding, model(**loaded([long], return_tensors="pt")).pooler_output.detach(), atol=1e-5
        )
        assert len(token_importance(model, [long], loaded)[0]) == model.config.decoder_length
        extract = pipeline("feature-extraction", model=model, tokenizer=loaded, pipeline_class=SarcsePipeline)
        np.testing.assert_allclose(extract(long), embedding, atol=1e-5)


def test_a_text_without_a_token_has_the_embedding_zero_in_every_batch(tmp_path, tokenizer):
    """As with GPT-2's tokenizer, which adds no special tokens to an empty text."""
    greek = letters()
    folder = small_bert(tmp_path / "greek", greek, vocabulary_size=len(greek))
    model, loaded = load_model(folder, pooler="mean")
    assert loaded([""])["input_ids"] == [[]]
    with_others = model.encode(["α β", "", "γ"], loaded)
    assert not with_others[1].any() and with_others[0].any() and with_others[2].any()
    np.testing.assert_array_equal(model.encode([""], loaded), with_others[1:2])
    last_alone = model.encode([*["α β"] * 64, ""], loaded, batch_size=64)
    np.testing.assert_array_equal(last_alone[64:], with_others[1:2])
    assert token_importance(model, ["", "γ"], loaded)[0] == token_importance(model, [""], loaded)[0] == []


def clip() -> CLIPModel:
    sizes = {key: SMALL[key] for key in SMALL if key != "max_position_embeddings"}
    return CLIPModel(CLIPConfig(text_config={**sizes, "vocab_size": 8192}, vision_config=sizes))


def bart() -> BartModel:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartModel(BartConfig(vocab_size=8192, d_model=32, **layers))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (clip, "model_type='clip' is not a text encoder that SARCSE can wrap"),
        (bart, "model_type='bart' is not a text encoder that SARCSE can wrap"),
        (lambda: ViTModel(ViTConfig(**SMALL)), "model_type='vit', is not a text encoder"),
        (lambda: DPRQuestionEncoder(DPRConfig(vocab_size=8192, **SMALL)), "'dpr', is not a text encoder.*hidden_sta"),
        (
            lambda: FunnelBaseModel(
                FunnelConfig(vocab_size=8192, d_model=32, n_head=2, d_head=16, d_inner=32, block_sizes=[1, 1])
            ),
            "model_type='funnel', is not a text encoder",
        ),
    ],
)
def test_what_cannot_be_wrapped_ends_in_one_line_that_says_why(tmp_path, tokenizer, make, message):
    folder = random_encoder(tmp_path / "model", make(), tokenizer)
    text = refusal(tmp_path, model_name_or_path=folder)
    assert re.search(message, text) and "\n" not in text, text
    with pytest.raises(ValueError, match=message):
        next(load_embedders(folder, ["mean"], "main", torch.device("cpu"), 8))


def test_an_encoder_that_looks_at_the_padding_is_warned_about(tmp_path, tokenizer, caplog):
    sizes = {key: SMALL[key] for key in SMALL if key != "num_attention_heads"}
    folder = random_encoder(tmp_path / "fnet", FNetModel(FNetConfig(vocab_size=8192, **sizes)), tokenizer)
    model, _ = load_model(folder, pooler="mean")
    one, other = (encode(model, tokenizer, ["A.", *more])[0] for more in ([], ["A longer sentence."]))
    assert not torch.allclose(one, other, atol=1e-2), "the reason for the warning"
    assert "model_type='fnet', gives a sentence other vectors in a batch with a longer one" in caplog.text


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "everything"])
def test_a_folder_that_is_not_a_whole_model_ends_in_a_message(tmp_path, tokenizer, missing):
    folder = small_bert(tmp_path / "model", tokenizer)
    for path in Path(folder).iterdir():
        if missing in (path.name, "everything"):
            path.unlink()
    message = {"model.safetensors": r"cannot be loaded \(OSError: .*no file named model.safetensors"}
    expected = message.get(missing, "neither a model folder nor a model on a reachable Hub")
    assert re.search(f"{folder}: .*{expected}", refusal(tmp_path, model_name_or_path=folder))
    with pytest.raises(ValueError, match=expected):
        next(load_embedders(folder, ["mean"], "main", torch.device("cpu"), 8))


def test_a_folder_that_hides_a_model_on_the_hub_is_named(tmp_path, monkeypatch):
    (tmp_path / "org" / "encoder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    message = refusal(tmp_path, model_name_or_path="org/encoder")
    assert message.startswith("org/encoder: a folder without a model, which hides any of that name on the Hub")
    assert "\n" not in message + refusal(tmp_path, model_name_or_path="org/other")


# --- An encoder with code of its own ---------------------------------------------------------------------------------


def test_code_of_an_encoder_runs_only_if_it_is_trusted(custom_encoder, tmp_path):
    """To score it. It is not trained, as it could not be released."""
    refused = run_command(
        PROJECT / "train.py", *flags(tmp_path / "model", model_name_or_path=custom_encoder), cwd=tmp_path
    )
    assert refused.returncode == 2 and "code of the encoder runs" not in refused.stdout
    (line,) = [line for line in refused.stderr.splitlines() if "error" in line]
    assert (
        f"{custom_encoder} needs its own Python code (configuration_custom.CustomConfig, modeling_custom.CustomModel)"
        in line
    )
    assert line.endswith("It cannot be trained, since no release has such code.")
    with pytest.raises(ValueError, match="needs its own Python code"):
        next(load_embedders(str(custom_encoder), ["mean"], "main", torch.device("cpu"), 8))
    score = [PROJECT / "eval_sts.py", custom_encoder, "--pairs", DEMO / "sts.tsv", "--trust_remote_code"]
    scored = run_python(*score, cwd=tmp_path, HF_HOME=str(tmp_path / "home"))
    assert scored.returncode == 0 and "code of the encoder runs" in scored.stdout, scored.stderr


REGISTERED = """
import sys
from transformers import AutoConfig, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from sarcse import SarcseModel, SarcseTrainer, SarcseTrainingArguments, load_model
encoder, out = sys.argv[1:]
config, model = (
    get_class_from_dynamic_module(name, encoder)
    for name in ("configuration_custom.CustomConfig", "modeling_custom.CustomModel")
)
AutoConfig.register("custom_bert", config)
AutoModel.register(config, model)
arguments = SarcseTrainingArguments(out, max_steps=1, per_device_train_batch_size=8, report_to="none")
trainer = SarcseTrainer(
    load_model(encoder)[0], arguments, train_dataset=[f"Sentence {n}." for n in range(8)]
)
trainer.train()
trainer.save_results()
print(type(SarcseModel.from_pretrained(out).encoder).__name__)
"""


def test_whoever_registers_the_classes_of_an_encoder_can_train_it_but_not_release_it(custom_encoder, tmp_path):
    model, home = tmp_path / "model", {"HF_HOME": str(tmp_path / "home")}
    trained = run_python("-c", REGISTERED, custom_encoder, model, cwd=PROJECT, **home)
    assert trained.returncode == 0 and trained.stdout.endswith("CustomModel\n"), trained.stderr
    scored = run_command(PROJECT / "eval_sts.py", model, "--pairs", DEMO / "sts.tsv", cwd=tmp_path)
    assert scored.returncode == 2 and "register it with AutoConfig and AutoModel first" in scored.stderr
    release = run_command("-m", "model_card", model, "--release_dir", tmp_path / "release", cwd=PROJECT)
    assert release.returncode == 2 and "Its encoder needs its own code" in release.stderr
