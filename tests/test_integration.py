"""Common calls, made without reading the documentation: each gives the model's own embeddings or an error."""

import copy
import json
import pickle
import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline

from configuration_sarcse import SarcseConfig
from modeling_sarcse import POOLERS, SarcseModel
from sarcse import SarcseTrainer, SarcseTrainingArguments, load_model, token_importance
from sarcse.release.plain import write_plain_model

from .conftest import ENCODER, SENTENCES, whole_model


@pytest.fixture(scope="module", params=POOLERS)
def saved(request, tmp_path_factory, tokenizer):
    """A model with each pooler, the folder written by its `save_pretrained`, and its embeddings."""
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("saved"))
    model = whole_model(str(ENCODER), pooler=request.param)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        return model, folder, model(**tokenizer(SENTENCES, padding=True, return_tensors="pt")).pooler_output.numpy()


# Common calls on a model with its tokenizer, or on a saved folder.
CALLS = {
    "AutoModel": lambda model, tokenizer, folder: AutoModel.from_pretrained(folder, trust_remote_code=True)(
        **tokenizer(SENTENCES, padding=True, return_tensors="pt")
    ).pooler_output.detach(),
    "the first output": lambda model, tokenizer, folder: model(
        **tokenizer(SENTENCES, padding=True, return_tensors="pt")
    )[0].detach(),
    "SentenceTransformer": lambda model, tokenizer, folder: SentenceTransformer(
        folder, trust_remote_code=True, device="cpu"
    ).encode(SENTENCES),
    "pipeline of a folder": lambda model, tokenizer, folder: pipeline(
        "feature-extraction", model=folder, trust_remote_code=True
    )(SENTENCES),
    "pipeline of an object": lambda model, tokenizer, folder: pipeline(
        "feature-extraction", model=model, tokenizer=tokenizer
    )(SENTENCES),
    "pipeline of an object in batches": lambda model, tokenizer, folder: pipeline(
        "feature-extraction", model=model, tokenizer=tokenizer, batch_size=3
    )(SENTENCES),
    "encode": lambda model, tokenizer, folder: model.encode(SENTENCES, tokenizer, batch_size=3),
    "encode of a folder": lambda model, tokenizer, folder: AutoModel.from_pretrained(
        folder, trust_remote_code=True
    ).encode(SENTENCES),
}


@pytest.mark.parametrize("call", CALLS)
def test_whatever_was_saved_gives_its_own_embeddings(saved, tokenizer, call):
    model, folder, expected = saved
    given = np.asarray(CALLS[call](model, tokenizer, folder)).reshape(len(SENTENCES), -1)
    # One at a time and in a batch, float32 sums are in a different order.
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6 * max(1.0, np.abs(expected).max()))


def test_embeddings_of_the_inputs_stand_for_the_inputs(saved, tokenizer):
    """If special tokens matter, the ids are required as well, to find them."""
    model, _, expected = saved
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    vectors = model.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad():
        given = model(**batch, inputs_embeds=vectors).pooler_output
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)
        if model.sentence_encoder.of_content:
            with pytest.raises(
                ValueError, match="`input_ids` are needed beside `inputs_embeds`, to identify the special"
            ):
                model(inputs_embeds=vectors, attention_mask=batch["attention_mask"])
        else:
            alone = model(inputs_embeds=vectors, attention_mask=batch["attention_mask"]).pooler_output
            np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="`input_ids` are needed."):
        model()


def test_a_traced_model_takes_batches_of_other_sizes(saved, tokenizer):
    _, folder, _ = saved
    model = SarcseModel.from_pretrained(folder, return_dict=False, attn_implementation="eager")
    batches = [tokenizer(texts, padding=True, return_tensors="pt") for texts in (SENTENCES[:2], SENTENCES[::-1])]
    first, other = [(batch["input_ids"], batch["attention_mask"]) for batch in batches]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own code, and of torch, which would rather export
        try:
            torch.jit.trace(model.encoder, first, strict=False)
        except IndexError:
            pytest.skip("this version of transformers does not trace the encoder itself")
        traced = torch.jit.trace(model, first)
        torch.testing.assert_close(traced(*other)[0], model(*other)[0])


def test_encode_takes_what_people_give(tokenizer):
    model = whole_model(str(ENCODER)).train()
    assert model.encode([]).shape == (0, model.config.hidden_size)
    embeddings = model.encode(SENTENCES, normalize=True)  # with the encoder's own tokenizer
    assert embeddings.dtype == np.float32 and model.training
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(model.encode(SENTENCES[::-1], tokenizer, normalize=True)[::-1], embeddings, atol=1e-6)
    for others in (iter(SENTENCES), np.array(SENTENCES)):
        np.testing.assert_array_equal(model.encode(others, tokenizer, normalize=True), embeddings)
    whole = token_importance(model, SENTENCES, tokenizer)
    assert (
        token_importance(model, iter(SENTENCES), tokenizer) == whole and token_importance(model, [], tokenizer) == []
    )
    for call in (model.encode, partial(token_importance, model, tokenizer=tokenizer)):
        with pytest.raises(ValueError, match="must be a list of strings"):
            call("A sentence.")
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        model.encode(SENTENCES, tokenizer, batch_size=0)


def test_a_model_without_its_tokenizer_embeds_nothing(tmp_path):
    """transformers would make up a tokenizer to which every word is unknown: all sentences would be alike."""
    model = whole_model(str(ENCODER))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} has no tokenizer that can be loaded .*: pass the model's own"):
        AutoModel.from_pretrained(tmp_path, trust_remote_code=True).encode(SENTENCES)
    with pytest.raises(ValueError, match="was not loaded from anywhere, has no tokenizer"):
        SarcseModel(SarcseConfig(encoder_config=model.encoder.config.to_dict())).encode(SENTENCES)


def cached_repository(cache, folder: str, name: str) -> list[str]:
    """A repository in the Hub's cache with two commits, the second of which is main and has another vocabulary."""
    commits = ["1" * 40, "2" * 40]
    for commit in commits:
        shutil.copytree(folder, cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit)
    snapshots = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    (snapshots.parent / "refs").mkdir()
    (snapshots.parent / "refs" / "main").write_text(commits[1])
    content = json.loads((snapshots / commits[1] / "tokenizer.json").read_text())
    words = [word for word, number in content["model"]["vocab"].items() if number > 300]
    numbers = [content["model"]["vocab"][word] for word in words]
    content["model"]["vocab"] |= dict(zip(words, [*numbers[1:], numbers[0]]))
    (snapshots / commits[1] / "tokenizer.json").write_text(json.dumps(content))
    return commits


def test_a_pinned_model_takes_the_tokenizer_of_its_revision(saved, tmp_path, tokenizer):
    _, folder, embeddings = saved
    first, second = cached_repository(tmp_path, folder, "you/two")
    given = {
        commit: SarcseModel.from_pretrained("you/two", revision=commit, cache_dir=tmp_path)
        for commit in (first, second)
    }
    np.testing.assert_allclose(given[first].encode(SENTENCES), embeddings, atol=1e-6)
    assert np.abs(given[second].encode(SENTENCES) - embeddings).max() > 1e-2
    if given[first].config.pooler == "words":
        arguments = SarcseTrainingArguments(str(tmp_path / "out"), report_to="none", per_device_train_batch_size=2)
        trainer = SarcseTrainer(given[first], arguments, train_dataset=SENTENCES)
        assert trainer.processing_class(SENTENCES)["input_ids"] == tokenizer(SENTENCES)["input_ids"]


def test_an_encoder_is_not_taken_for_a_sarcse_model(tmp_path, tokenizer):
    """transformers would build RoBERTa-base with random weights, and report them as missing."""
    with pytest.raises(ValueError, match=r"an encoder \(model_type='roberta'\).*`sarcse.load_model` puts"):
        SarcseModel.from_pretrained(str(ENCODER))
    write_plain_model(whole_model(str(ENCODER), pooler="mean"), tokenizer, tmp_path, "5GB")
    with pytest.raises(ValueError, match="`sarcse.load_model` .* gives a release without code its own pooler"):
        SarcseModel.from_pretrained(tmp_path)


def test_outputs_that_were_asked_for_at_loading_are_returned(saved, tokenizer):
    _, folder, _ = saved
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    for name, value in (("output_hidden_states", "hidden_states"), ("output_attentions", "attentions")):
        model = AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager", **{name: True})
        plain = AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager")
        for one, other in zip(model(**batch)[value], plain(**batch, **{name: True})[value], strict=True):
            assert torch.equal(one, other)


def test_a_resized_vocabulary_is_saved_and_loaded(tmp_path, tokenizer):
    """transformers writes the new size to the text configuration, which is the encoder's."""
    model = whole_model(str(ENCODER))
    size = model.get_input_embeddings().num_embeddings + 5
    model.resize_token_embeddings(size)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.get_input_embeddings().num_embeddings == loaded.config.encoder_config.vocab_size == size
    np.testing.assert_array_equal(loaded.encode(SENTENCES, tokenizer), model.encode(SENTENCES, tokenizer))


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def test_the_encoders_sizes_are_where_programs_look_for_them(tmp_path):
    """Servers read some in config.json, and libraries all of them in the configuration."""
    model = whole_model(str(ENCODER))
    model.save_pretrained(tmp_path)
    saved, own = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, ENCODER))
    in_file = ("hidden_size", "num_hidden_layers", "max_position_embeddings")
    assert {name: saved[name] for name in SIZES if name in saved} == {name: own[name] for name in in_file}
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    for each in (config, copy.deepcopy(config), pickle.loads(pickle.dumps(model.config)), model.config):
        assert [vars(each.encoder_config)[name] for name in SIZES] == [own[name] for name in SIZES]
        assert [getattr(each, name) for name in SIZES] == [own[name] for name in SIZES]
    assert not hasattr(config, "num_experts")


def test_a_configuration_with_more_of_the_encoders_sizes_loads(tmp_path):
    """As earlier versions wrote it, whatever a resize of the vocabulary has changed since."""
    model = whole_model(str(ENCODER))
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "vocab_size": 7}))
    loaded = SarcseModel.from_pretrained(tmp_path)
    assert loaded.config.encoder_config.vocab_size == model.config.encoder_config.vocab_size
    loaded.resize_token_embeddings(9000, mean_resizing=False)
    assert loaded.config.encoder_config.vocab_size == 9000


def test_a_configuration_alone_brings_the_code_that_it_names(tmp_path):
    """Saved by the project's class, or by the class from a folder of which only the configuration was loaded."""
    load_model(str(ENCODER))[0].config.save_pretrained(tmp_path / "one")
    AutoConfig.from_pretrained(tmp_path / "one", trust_remote_code=True).save_pretrained(tmp_path / "two")
    config = AutoConfig.from_pretrained(tmp_path / "two", trust_remote_code=True)
    model = AutoModel.from_config(config, trust_remote_code=True)
    assert model.config.pooler == "words" and model.num_parameters() > 0


def test_the_base_model_is_known_to_who_writes_a_card():
    model = whole_model(str(ENCODER))
    assert model.config._name_or_path == model.name_or_path == str(ENCODER)
    assert AutoTokenizer.from_pretrained(model.name_or_path).vocab_size > 0


def in_shards(model, folder):
    model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return AutoModel.from_pretrained(folder, trust_remote_code=True)


def by_state_dict(model, folder):
    other = SarcseModel(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def loaded(model, folder, **options):
    model.save_pretrained(folder)
    return AutoModel.from_pretrained(folder, trust_remote_code=True, **options)


# Ways to get the same model again, and how far its embeddings may be off, relative to the largest value.
COPIES = {
    "pickle": (lambda model, folder: pickle.loads(pickle.dumps(model)), 0),
    "deepcopy": (lambda model, folder: copy.deepcopy(model), 0),
    "state_dict": (by_state_dict, 0),
    "shards": (in_shards, 0),
    "device_map": (partial(loaded, device_map="auto"), 0),
    "saved twice": (lambda model, folder: loaded(loaded(model, folder / "one"), folder / "two"), 0),
    "half": (lambda model, folder: copy.deepcopy(model).half(), 0.02),
    "bfloat16": (partial(loaded, dtype=torch.bfloat16), 0.1),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_model_is_the_model(tmp_path, tokenizer, way):
    model = whole_model(str(ENCODER))
    make, tolerance = COPIES[way]
    given, expected = (each.encode(SENTENCES, tokenizer) for each in (make(model, tmp_path), model))
    assert np.abs(given - expected).max() <= tolerance * np.abs(expected).max()


def test_a_configuration_around_a_loaded_encoder_leaves_it_alone(tokenizer):
    """transformers resets the attention of nested configurations; the encoder would then compute other vectors."""
    encoder = AutoModel.from_pretrained(ENCODER, add_pooling_layer=False).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        before = encoder(**batch).last_hidden_state
        model = SarcseModel(SarcseConfig(encoder_config=encoder.config, pooler="mean"), encoder=encoder).eval()
        assert torch.equal(encoder(**batch).last_hidden_state, before)
        assert torch.equal(model(**batch).last_hidden_state, before)
