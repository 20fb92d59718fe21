"""
What people who train and serve sentence encoders have reported of other programs, each kind of fault once: input that
is not quite as it should be must end in the right result or in a message, never in a wrong result without a word.
"""

import dataclasses
import hashlib
import inspect
import itertools
import json
import re
import shutil
from pathlib import Path

import datasets
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
    PreTrainedModel,
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
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from configuration_sarcse import SarcseConfig
from modeling_sarcse import SarcseModel
from sarcse.arguments import WITHOUT_EFFECT, ModelArguments, SarcseTrainingArguments
from sarcse.checkpoints import check_saving, load_weights
from sarcse.embedding import encode, load_embedders
from sarcse.files import UnreadableDataError
from sarcse.loading import load_model
from sarcse.parsing import OTHER_NAMES, parse_arguments
from sarcse.sentences import DataArguments, SentenceStream, describe_sentences, load_sentences
from sarcse.sts import load_pairs
from sarcse.tokens import unknown_share
from sarcse.training import build_trainer

from .conftest import DEMO, ENCODER, PROJECT, flags, run_python


# --- Files -----------------------------------------------------------------------------------------------------------


def sentences_of(path: Path, streaming: bool = False, text_column: str = "text") -> list[str]:
    """The sentences of one pass, in memory or as a stream."""
    arguments = DataArguments(train_file=str(path), streaming=streaming, text_column=text_column)
    return [row[text_column] for row in load_sentences(arguments)]


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,source\nA cat sat.,web,\nA dog ran.,book,\n", "line 2: 3 cells, where the header has 2"),
        ("a.csv", "text\nA bird.\nhello, world\n", "line 3: 2 cells, where the header has 1"),
        ("a.csv", "text,source\nA cat sat.,web\nA dog ran.\n", "line 3: 1 cells, where the header has 2"),
        ("a.csv", 'text,source\n"Two\nlines.",web\nA cat, sat.,web\n', "line 4: 3 cells"),
        ("a.csv", 'text\n"An open quotation mark.\nA dog.\n', "line 3: not CSV"),
        ("a.csv", 'text\n"A "quoted" word."\n', "line 2: not CSV"),
        ("a.csv", "text,text\nA cat.,A dog.\n", "the column text is there 2 times"),
        ("a.tsv", "text\tsource\nA cat sat.\tweb\t\n", "line 2: 3 cells, where the header has 2"),
        ("a.jsonl", '{"text": "A cat."}\n["A dog."]\n', "line 2: not a JSON object"),
        ("a.jsonl", '{"text": "A cat."}\n{"text": 7}\n', "line 2: 'text' is 7, not text"),
        ("a.jsonl", '{"text": "A cat."}\n{"text": ["A"]}\n', r"line 2: 'text' is \['A'\], not text"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_never_trained_on(tmp_path, name, content, message, streaming):
    path = write(tmp_path / name, content)
    with pytest.raises(UnreadableDataError, match=f"{re.escape(str(path))}(, |: ){message}"):
        sentences_of(path, streaming)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence1,sentence2,score\nA dog, small,A cat,3\nc,d,1\n", "line 2: 4 cells, where the header has 3"),
        ("sentence1,sentence2,score\na,b,4.5,\nc,d,1,\n", "line 2: 4 cells, where the header has 3"),
    ],
)
def test_pairs_with_an_unquoted_comma_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"pairs.csv, {message}"):
        load_pairs(str(write(tmp_path / "pairs.csv", content)))


@pytest.mark.parametrize("streaming", [False, True])
def test_text_stays_text_whatever_the_first_rows_look_like(tmp_path, streaming):
    """Ten thousand rows are more than any reader looks at before it settles on a type."""
    numbers = [str(number) for number in range(10_001)]
    (text, ids) = [*numbers, "A sentence at last."], [*numbers, "A7"]
    write(tmp_path / "text.csv", "text\n" + "\n".join(text))
    assert sentences_of(tmp_path / "text.csv", streaming) == text
    write(tmp_path / "ids.csv", "id,text\n" + "\n".join(f"{a},Sentence {a}." for a in ids))
    assert sentences_of(tmp_path / "ids.csv", streaming) == [f"Sentence {a}." for a in ids]
    rows = [{"id": a, "text": f"Sentence {a}."} for a in range(10_001)]
    rows += [{"id": "A7", "text": "Sentence A7.", "note": {"late": True}}]
    write(tmp_path / "ids.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert sentences_of(tmp_path / "ids.jsonl", streaming) == [f"Sentence {a}." for a in ids]


@pytest.mark.parametrize("streaming", [False, True])
def test_null_is_a_blank_row_wherever_it_stands(tmp_path, streaming):
    write(tmp_path / "null.jsonl", '{"text": null}\n{"text": "A dog."}\n\n{"other": 1}\n{"text": "A cat."}\n')
    datasets.Dataset.from_dict({"text": [None, "A dog.", None, "A cat."]}).to_parquet(tmp_path / "null.parquet")
    for name in ("null.jsonl", "null.parquet"):
        assert sentences_of(tmp_path / name, streaming) == ["A dog.", "A cat."], name


def test_parquet_that_holds_no_text_is_named(tmp_path):
    datasets.Dataset.from_dict({"text": [1, 2]}).to_parquet(tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match="ids.parquet, row 1: 'text' is 1, not text"):
        sentences_of(tmp_path / "ids.parquet")


def test_scores_are_numbers_whatever_the_first_ones_look_like(tmp_path):
    scores = [str(number % 6) for number in range(10_001)] + ["4.5", "", "nan"]
    rows = "".join(f"a{row},b{row},{score}\n" for row, score in enumerate(scores))
    pairs = load_pairs(str(write(tmp_path / "pairs.csv", f"sentence1,sentence2,score\n{rows}")))
    assert pairs["score"][:] == [float(score) for score in scores[:-2]]
    mixed = [3, 4.5, "2", None, 1]
    lines = [json.dumps({"sentence1": "a", "sentence2": "b", "score": score}) + "\n" for score in mixed]
    pairs = load_pairs(str(write(tmp_path / "pairs.jsonl", "".join(lines))))
    assert pairs["score"][:] == [3.0, 4.5, 2.0, 1.0]
    write(tmp_path / "bad.jsonl", lines[0] + lines[0].replace("3", "true"))
    with pytest.raises(ValueError, match="bad.jsonl, line 2: the score True is not a number"):
        load_pairs(str(tmp_path / "bad.jsonl"))
    write(tmp_path / "text.jsonl", lines[0] + lines[0].replace('"a"', "7"))
    with pytest.raises(ValueError, match="text.jsonl, line 2: 'sentence1' is 7, not text"):
        load_pairs(str(tmp_path / "text.jsonl"))


def test_subsets_that_begin_late_are_kept(tmp_path):
    rows = [{"sentence1": "a", "sentence2": "b", "score": score} for score in (1, 2)]
    rows[1]["subset"] = 2012
    write(tmp_path / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert load_pairs(str(tmp_path / "pairs.jsonl"))["subset"][:] == ["", "2012"]


@pytest.mark.parametrize("name", ["data[1].txt", "data?.txt", "data*.txt", "[ab]/data[1].txt", "a::b.txt"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_exists_is_that_file_and_no_pattern(tmp_path, name, streaming):
    """... beside files that it would match, and the record has the hash of what was read."""
    for other in ("data1.txt", "datax.txt", "a/data1.txt"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        write(tmp_path / other, "Of the other file.\n")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    path = write(tmp_path / name, "Of this file.\n")
    assert sentences_of(path, streaming) == ["Of this file."]
    if not streaming:
        arguments = DataArguments(train_file=str(path))
        described = describe_sentences(arguments, load_sentences(arguments))
        assert described["name"] == path.name
        assert described["sha256"] == hashlib.sha256(b"Of this file.\n").hexdigest()
    pairs = write(path.with_suffix(".tsv"), "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n")
    write(tmp_path / "data1.tsv", "sentence1\tsentence2\tscore\nx\ty\t1\nz\tz\t2\n")
    assert load_pairs(str(pairs))["sentence1"][:] == ["a", "c"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_name_that_no_file_has_is_a_pattern(tmp_path, streaming):
    for number in (1, 2, 3):
        write(tmp_path / f"data{number}.txt", f"Of file {number}.\n")
    (tmp_path / "data4.txt").mkdir()
    assert sentences_of(tmp_path / "data[13].txt", streaming) == ["Of file 1.", "Of file 3."]
    assert sentences_of(tmp_path / "data?.txt", streaming) == ["Of file 1.", "Of file 2.", "Of file 3."]


def test_a_stream_names_the_row_that_is_not_text_in_the_middle_of_a_run(tmp_path):
    rows = [json.dumps({"text": f"Sentence {number}."}) for number in range(100)]
    rows[60] = '{"text": 7}'
    path = write(tmp_path / "late.jsonl", "\n".join(rows))
    stream = load_sentences(DataArguments(train_file=str(path), streaming=True))
    with pytest.raises(UnreadableDataError, match="late.jsonl, line 61: 'text' is 7, not text"):
        list(itertools.islice(SentenceStream(str(path), stream, 1, 0, 1), 100))


# --- Encoders --------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL |= {"max_position_embeddings": 66}


def random_encoder(folder: Path, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None) -> str:
    encoder.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


def small_config(model_type: str, vocabulary_size: int = 120):
    """A configuration of this kind with all that is known as a size small, or None where that cannot be."""
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
    """Fresh layers on a random encoder, or None for what is large even so, or reads no text."""
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
    """Its own mapping tells which; the Trainer's way of loading leaves the old weights where a name is another one."""
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
    """A part of the model that no file has: one that its constructor alone fills, and differently each time."""
    model = SarcseModel(trained_like_model.config)
    check_saving(model, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    model.encoder.register_buffer("mask", torch.ones(3), persistent=False)
    with pytest.raises(
        ValueError, match="'roberta' cannot be trained: saved and loaded again, encoder.mask is another"
    ):
        check_saving(model, tmp_path)


@pytest.fixture(scope="module")
def nomic_run(tmp_path_factory, tokenizer):
    """NomicBert, whose weights have other names in its files: the encoder, and three steps with a checkpoint each."""
    folder = tmp_path_factory.mktemp("nomic")
    torch.manual_seed(0)
    config = NomicBertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SMALL)
    random_encoder(folder / "encoder", NomicBertModel(config), tokenizer)
    options = {"model_name_or_path": folder / "encoder", "eval_steps": 1, "save_steps": 1, "save_total_limit": 4}
    options |= {"learning_rate": 5e-3, "max_train_samples": 24}
    process = run_python(PROJECT / "train.py", *flags(folder / "run", **options), cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder / "run", options


def assert_same_weights(folder: Path, other: Path) -> None:
    one, two = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_the_best_checkpoint_of_an_encoder_with_renamed_weights_is_the_model(nomic_run):
    run, _ = nomic_run
    state = json.loads((run / "trainer_state.json").read_text())
    assert_same_weights(run, run / f"checkpoint-{state['best_global_step']}")
    after = json.loads((run / "sts_results.json").read_text())["models"][f"after: {run}"]
    assert after["average"] == pytest.approx(state["best_metric"], abs=1e-6)


def test_a_resumed_run_of_an_encoder_with_renamed_weights_is_the_uninterrupted_one(nomic_run, tmp_path):
    run, options = nomic_run
    options = {**options, "resume_from_checkpoint": run / "checkpoint-1"}
    process = run_python(PROJECT / "train.py", *flags(tmp_path / "run", **options), cwd=tmp_path)
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
    """transformers makes a tokenizer out of nothing for it, to which every word is unknown."""
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 1, "d_model": 32, "num_layers": 1, **SMALL}
    known = {name: size for name, size in sizes.items() if name in inspect.signature(config_class).parameters}
    folder = random_encoder(tmp_path / "model", model_class(config_class(**known)), tokenizer=None)
    with pytest.raises(ValueError, match=f"{folder} has no tokenizer"):
        load_model(folder)
    assert f"{folder} has no tokenizer" in refusal(tmp_path, model_name_or_path=folder)
    with pytest.raises(ValueError, match=f"{folder} has no tokenizer"):
        next(load_embedders(folder, ["mean"], "main", torch.device("cpu"), 8))


def refusal(folder: Path, **fields) -> str:
    """The message that train.py would end with, for the tiny run with these fields; empty if it would train."""
    try:
        build_trainer(*parse_arguments(flags(folder / "out", **fields)))
    except ValueError as error:
        return str(error)
    return ""


def test_a_sentence_transformers_folder_without_its_tokenizer_is_refused(tmp_path):
    folder = small_bert(tmp_path / "model")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=f"{folder} has no tokenizer"):
        next(load_embedders(folder, ["mean"], "main", torch.device("cpu"), 8))


def test_the_tokenizer_of_another_model_is_refused(tmp_path, tokenizer):
    """RoBERTa counts positions from its padding token on, so that another one gives other positions."""
    config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=0, **SMALL)
    folder = random_encoder(tmp_path / "positions", RobertaModel(config), tokenizer)
    assert "pads with token 1 and the encoder with 0: it is the tokenizer of another" in refusal(
        tmp_path, model_name_or_path=folder
    )
    folder = small_bert(tmp_path / "sizes", tokenizer, vocabulary_size=30522)
    assert "has 8192 tokens and the encoder 30522" in refusal(tmp_path, model_name_or_path=folder)


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
    assert re.search(r"sentences.txt: the encoder's tokenizer cannot read it, 100% of the tokens are unknown", message)
    write(tmp_path / "greek.txt", "α β γ δ\n" * 32)
    assert refusal(tmp_path, **options, train_file=tmp_path / "greek.txt") == ""


def test_text_that_the_tokenizer_cannot_read_is_warned_about_when_it_is_scored(tmp_path, tokenizer):
    """Of both scripts: the share is of all tokens, whatever the special ones are."""
    greek = letters()
    folder = small_bert(tmp_path / "greek", greek, vocabulary_size=len(greek))
    assert unknown_share(greek(["α β no γ"])["input_ids"], greek) == 0.25
    assert unknown_share(tokenizer(["Why?", ""])["input_ids"], tokenizer) == 0
    process = run_python(PROJECT / "eval_sts.py", folder, "--pairs", DEMO / "sts.tsv", cwd=tmp_path)
    assert "Most tokens of these sentences are unknown to the model" in process.stderr


def test_encoders_without_a_limit_of_length_are_trained(tmp_path, tokenizer):
    """XLNet says -1, T5 says nothing; the tokenizer's own limit, here 128, remains."""
    encoders = {
        "xlnet": XLNetModel(XLNetConfig(vocab_size=8192, d_model=32, n_head=2, n_layer=1, d_inner=32)),
        "t5": T5EncoderModel(T5Config(vocab_size=8192, d_model=32, d_kv=16, num_heads=2, num_layers=1, d_ff=32)),
        "funnel": FunnelModel(
            FunnelConfig(vocab_size=8192, d_model=32, n_head=2, d_head=16, d_inner=32, block_sizes=[1, 1])
        ),
    }
    for name, encoder in encoders.items():
        folder = random_encoder(tmp_path / name, encoder, tokenizer)
        trainer, _, _ = build_trainer(*parse_arguments(flags(tmp_path / f"{name}-run", model_name_or_path=folder)))
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
    assert "model_type='fnet', gives a sentence other vectors beside a longer one" in caplog.text


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


# --- An encoder with code of its own ---------------------------------------------------------------------------------


def test_code_of_an_encoder_runs_only_if_it_is_trusted(custom_encoder, tmp_path):
    """... when it is trained, when what came out of it is scored, and no release is made of it."""
    home = {"HF_HOME": str(tmp_path / "home")}
    arguments = flags(tmp_path / "model", model_name_or_path=custom_encoder)
    refused = run_python(PROJECT / "train.py", *arguments, cwd=tmp_path, **home)
    assert refused.returncode == 2 and "code of the encoder runs" not in refused.stdout
    (line,) = [line for line in refused.stderr.splitlines() if "error" in line]
    assert f"{custom_encoder} brings Python code of its own (modeling_custom.CustomModel)" in line
    assert line.endswith("give --trust_remote_code.")
    trained = run_python(PROJECT / "train.py", *arguments, "--trust_remote_code", "true", cwd=tmp_path, **home)
    assert trained.returncode == 0 and "code of the encoder runs" in trained.stdout, trained.stderr
    assert f"python eval_sts.py {tmp_path}/model --trust_remote_code" in trained.stdout
    for folder in (custom_encoder, tmp_path / "model"):
        with pytest.raises(ValueError, match="brings Python code of its own"):
            next(load_embedders(str(folder), ["mean"], "main", torch.device("cpu"), 8))
    score = [PROJECT / "eval_sts.py", tmp_path / "model", "--pairs", DEMO / "sts.tsv", "--trust_remote_code"]
    scored = run_python(*score, cwd=tmp_path, **home)
    assert scored.returncode == 0 and "code of the encoder runs" in scored.stdout, scored.stderr
    after = json.loads((tmp_path / "model" / "sts_results.json").read_text())["models"][f"after: {tmp_path}/model"]
    assert f"{after['average']:.2f}" in scored.stdout
    release = ["-m", "model_card", tmp_path / "model", "--release_dir", tmp_path / "release"]
    refused = run_python(*release, cwd=PROJECT, **home)
    assert refused.returncode == 2 and "Its encoder runs code of its own" in refused.stderr


# --- InfoNCE with nothing to learn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_batch_of_one_sentence_is_refused(tmp_path, accumulation):
    message = refusal(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=accumulation)
    assert "InfoNCE has no other sentence" in message and "--gradient_cache_mini_batch_size" in message


@pytest.mark.parametrize("cached", [None, 4])
def test_a_run_whose_contrastive_loss_is_always_zero_says_so(finished_run, tmp_path, cached):
    write(tmp_path / "same.txt", "A dog runs across the wet grass.\n" * 16)
    options = {"eval_strategy": "no", "eval_pairs": None, "save_strategy": "no", "pooler": "mean", "channels": None}
    options |= {"reconstruction_weight": 0, "gradient_cache_mini_batch_size": cached, "train_file": "same.txt"}
    options |= {"logging_steps": 2}
    process = run_python(PROJECT / "train.py", *flags(tmp_path / "run", **options), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for folder, stderr, is_zero in (
        (tmp_path / "run", process.stderr, True),
        (finished_run[0], finished_run[1].stderr, False),
    ):
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert all((line["contrastive_loss"] == 0) == is_zero for line in history if "loss" in line)
        assert ("the contrastive loss has been exactly 0 since the run began" in stderr) == is_zero


# --- Resuming --------------------------------------------------------------------------------------------------------


def resuming(finished_run, folder: Path, **fields) -> str:
    """What stands against resuming the tiny run from its first checkpoint with these other fields."""
    checkpoint = finished_run[0] / "checkpoint-2"
    return refusal(folder, **{"resume_from_checkpoint": checkpoint, **fields})


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"learning_rate": 0.002}, "learning_rate 0.001 (now 0.002)"),
        ({"autoencoder_learning_rate": 0.002}, "autoencoder_learning_rate 0.003 (now 0.002)"),
        ({"pooler": "mean", "channels": None}, "pooler 'autoencoder' (now 'mean')"),
        ({"channels": 8}, "channels 4 (now 8)"),
        ({"reconstruction_weight": 0}, "reconstruction_weight 1.0 (now 0.0)"),
        ({"optim": "sgd"}, "optim 'adamw_torch_fused' (now 'sgd')"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type 'linear' (now 'cosine')"),
        ({"num_train_epochs": 2}, "num_train_epochs 1.0 (now 2.0)"),
        ({"max_seq_length": 16}, "max_seq_length 32 (now 16)"),
        ({"seed": 1}, "seed 42 (now 1)"),
        ({"per_device_train_batch_size": 16}, "batch_size_of_all_processes 8 (now 16)"),
        ({"max_train_samples": 24}, "train_data 'sentences.txt, 32 sentences with SHA-256 "),
        ({"train_file": "other.txt"}, "(now 'other.txt, 32 sentences with SHA-256 "),
        ({"eval_pairs": "few.tsv"}, "eval_data '420 pairs with SHA-256 "),
        ({"metric_for_best_model": "uniformity"}, "metric_for_best_model 'pairs_spearman' (now 'uniformity')"),
        ({"frequency_weighting": "uniform"}, "frequency_weighting 'smooth_inverse' (now 'uniform')"),
        ({"bf16": "true"}, "bf16 False (now True)"),
    ],
)
def test_a_run_is_not_resumed_with_settings_that_change_its_result(
    finished_run, tmp_path, monkeypatch, fields, difference
):
    monkeypatch.chdir(tmp_path)
    write(Path("other.txt"), "".join(f"Sentence {number}.\n" for number in range(32)))
    write(Path("few.tsv"), "".join((DEMO / "sts.tsv").read_text().splitlines(keepends=True)[:20]))
    message = resuming(finished_run, tmp_path, **fields)
    assert f"{finished_run[0]}/checkpoint-2 is of a run with " in message and difference in message, message


def test_a_run_is_not_resumed_on_another_encoder(finished_run, tmp_path, tokenizer):
    config = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **SMALL)
    folder = random_encoder(tmp_path / "other", RobertaModel(config), tokenizer)
    assert "model_name_or_path 'encoder' (now 'other')" in resuming(finished_run, tmp_path, model_name_or_path=folder)


def test_what_does_not_change_the_result_may_change_when_a_run_is_resumed(finished_run, tmp_path):
    """Logging, saving, the output folder, the number of workers, and where the same sentences and encoder are."""
    fields = {"logging_steps": 3, "save_total_limit": 7, "dataloader_num_workers": 1, "report_to": "none"}
    fields |= {"train_file": shutil.copy(DEMO / "sentences.txt", tmp_path), "preprocessing_num_workers": 2}
    fields |= {"model_name_or_path": shutil.copytree(ENCODER, tmp_path / "encoder")}
    fields |= {"per_device_train_batch_size": 8, "run_name": "again"}
    assert resuming(finished_run, tmp_path, **fields) == ""


def test_settings_of_a_run_are_in_its_checkpoints_and_a_checkpoint_without_them_is_not_whole(finished_run, tmp_path):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    settings = json.loads((run / "checkpoint-4" / "run_settings.json").read_text())
    assert settings["learning_rate"] == 0.001 and settings["pooler"] == "autoencoder"
    (run / "checkpoint-4" / "run_settings.json").unlink()
    assert "run_settings.json is missing" in resuming(
        (run, None), tmp_path, resume_from_checkpoint=run / "checkpoint-4"
    )


# --- Metrics and pairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spearman", "stsb_spearman_", "sts12_spearman", "loss", "eval_loss"])
def test_a_metric_that_no_evaluation_has_is_refused_before_anything_is_loaded(tmp_path, name):
    message = refusal(tmp_path, metric_for_best_model=name, train_file="absent.txt", model_name_or_path="absent")
    assert message == (
        f"--metric_for_best_model {name}: the evaluations measure pairs_spearman, alignment, uniformity."
    )
    with pytest.raises(ValueError, match="the evaluations measure stsb_spearman"):
        build_trainer(*parse_arguments(["--metric_for_best_model", "pairs_spearman", "--sts_dir", str(tmp_path)]))


@pytest.mark.parametrize("name", ["uniformity", "eval_alignment"])
def test_the_best_checkpoint_is_the_best_by_what_the_metric_means(tmp_path, name):
    """Lower alignment and uniformity are better. (Of the correlation see test_training.py.)"""
    options = {"metric_for_best_model": name, "eval_steps": 1, "save_steps": 1, "learning_rate": 0.01}
    process = run_python(PROJECT / "train.py", *flags(tmp_path / "run", **options), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    key = f"eval_{name.removeprefix('eval_')}"
    values = {line["step"]: line[key] for line in state["log_history"] if key in line}
    best = min(values, key=values.get)
    assert len(set(values.values())) == 4 and state["best_global_step"] == best
    assert_same_weights(tmp_path / "run", tmp_path / "run" / f"checkpoint-{best}")


def test_a_direction_against_the_metric_is_refused():
    for name, direction in (("uniformity", "true"), ("pairs_spearman", "false")):
        with pytest.raises(ValueError, match=f"of {name} .* values are better"):
            parse_arguments(["--metric_for_best_model", name, "--greater_is_better", direction])


def test_the_learning_rate_falls_when_the_metric_stops_getting_better():
    for name, mode in (("uniformity", "min"), ("stsb_spearman", "max")):
        arguments = ["--metric_for_best_model", name, "--lr_scheduler_type", "reduce_lr_on_plateau"]
        assert parse_arguments(arguments)[2].lr_scheduler_kwargs == {"mode": mode}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a\tb\t1\n", "there is one pair"),
        ("a\tb\t2\nc\td\t2\ne\tf\t2\n", "all 3 have the score 2"),
        ("a\tb\t2\nc\td\t\n", "there is one pair"),
    ],
)
def test_pairs_without_two_scores_are_refused_before_the_training(tmp_path, rows, message):
    path = write(tmp_path / "pairs.tsv", f"sentence1\tsentence2\tscore\n{rows}")
    expected = f"{path}: a correlation needs two pairs with different scores; {message}"
    assert expected in refusal(tmp_path, eval_pairs=path, model_name_or_path="absent")
    process = run_python(PROJECT / "eval_sts.py", ENCODER, "--pairs", path, cwd=tmp_path)
    assert process.returncode == 2 and expected in process.stderr and "Traceback" not in process.stderr


def test_two_pairs_are_enough(tmp_path):
    path = write(tmp_path / "pairs.tsv", "sentence1\tsentence2\tscore\nA dog.\tA cat.\t1\nRain.\tIt rains.\t5\n")
    process = run_python(PROJECT / "eval_sts.py", ENCODER, "--pairs", path, cwd=tmp_path)
    assert process.returncode == 0 and "100.00" in process.stdout, process.stderr


def test_alignment_without_a_positive_pair_picks_no_checkpoint(tmp_path):
    path = write(tmp_path / "pairs.tsv", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t3.9\n")
    message = refusal(tmp_path, eval_pairs=path, metric_for_best_model="alignment", model_name_or_path="absent")
    assert message.startswith("--metric_for_best_model alignment: no pair has a score of at least 4")


# --- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"report_to": "wandb"}, r"--report_to wandb: .*pip install wandb"),
        ({"report_to": "wandbb"}, "wandbb is not supported, only .*wandb"),
        ({"optim": "adamw_8bit"}, r"--optim adamw_8bit, .*bitsandbytes"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "--lr_scheduler_type cosine_with_min_lr: .*lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": '{"x": 1}'}, "--lr_scheduler_type linear: .*'x'"),
        ({"learning_rate": -1}, "--optim .*Invalid learning rate: -1"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size must be at least 1, got 0"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps must be at least 1, got 0"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers must be at least 0, got -1"),
        ({"num_train_epochs": 0}, "--num_train_epochs must be above 0, got 0"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor has no effect: InfoNCE has no labels"),
        ({"bf16_full_eval": "true"}, "--bf16_full_eval has no effect: evaluations are as precise as the training"),
        (
            {"per_device_eval_batch_size": 16},
            "--per_device_eval_batch_size has no effect: graded pairs are scored",
        ),
        ({"auto_find_batch_size": "true"}, "--auto_find_batch_size has no effect: a smaller batch is another task"),
        ({"token_count_samples": 10}, "--token_count_samples has no effect without --streaming"),
        ({"dataset_config_name": "en"}, "--dataset_config_name has no effect without --dataset_name"),
        ({"accelerator_config": '{"split_batches": true}'}, "--accelerator_config split_batches: each process reads"),
        ({"group_by_length": "true"}, "--group_by_length. Did you mean --train_sampling_strategy group_by_length?"),
        ({"evaluation_strategy": "no"}, "--evaluation_strategy. Did you mean --eval_strategy?"),
        ({"temp": 0.05}, "--temp. Did you mean --contrastive_temperature?"),
        ({"pooler_type": "cls"}, "--pooler_type. Did you mean --pooler?"),
        ({"learning_rates": 1}, "--learning_rates. Did you mean --learning_rate?"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_before_the_training(tmp_path, fields, message):
    text = refusal(tmp_path, **fields)
    assert re.search(message, text), text


def test_every_argument_without_effect_is_one_that_transformers_has_or_had():
    """A typo in the table would let the flag pass; names that a version lacks are those of another one."""
    names = {argument.name for argument in dataclasses.fields(SarcseTrainingArguments)}
    assert len(set(WITHOUT_EFFECT) - names) <= 2, set(WITHOUT_EFFECT) - names


def test_other_names_lead_to_fields_that_exist():
    names = {argument.name for argument in dataclasses.fields(SarcseTrainingArguments)}
    names |= {argument.name for group in (ModelArguments, DataArguments) for argument in dataclasses.fields(group)}
    for other, meant in OTHER_NAMES.items():
        assert re.match(r"\w+", meant)[0] in names, other
