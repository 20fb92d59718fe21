"""
A model or its folder in other libraries: datasets, FAISS, transformers' pipelines over data sets, and all of
sentence-transformers. Each gives the same vectors as the model's own forward pass, computed here separately.
"""

import copy
import pickle
from itertools import islice

import faiss
import numpy as np
import pytest
import torch
import transformers.modeling_flash_attention_utils
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from sarcse.data.sts import load_sts

from .conftest import DEMO, ENCODER, SENTENCES, whole_model


def forward(model, tokenizer, sentences) -> np.ndarray:
    """The expected vectors: one padded batch through the model."""
    with torch.no_grad():
        return model.eval()(**tokenizer(sentences, padding=True, return_tensors="pt")).pooler_output.float().numpy()


def assert_same(given, expected) -> None:
    """To 1e-6 of the largest value, since other batches sum in another order."""
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.fixture(scope="module", params=["words", "mean"])  # with and without layers of our own
def saved(request, tmp_path_factory, tokenizer) -> str:
    """The folder of a model of each kind of pooler."""
    return save(request.param, tmp_path_factory.mktemp("saved"), tokenizer)


def save(pooler, folder, tokenizer) -> str:
    torch.manual_seed(0)
    whole_model(str(ENCODER), pooler=pooler).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def embedder(folder, **options) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", **options)


def automodel(folder):
    return AutoModel.from_pretrained(str(folder), trust_remote_code=True)


# --- datasets --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with (DEMO / "sentences.txt").open(encoding="utf-8") as lines:
        return list(dict.fromkeys(line.strip() for line in islice(lines, 120)))


def by_encode(model, tokenizer):
    return lambda batch: {"vector": model.encode(batch["text"], tokenizer, batch_size=4)}


def by_forward(model, tokenizer):
    return lambda batch: {"vector": forward(model, tokenizer, batch["text"])}


MAPPED = {"encode": by_encode, "forward": by_forward}


@pytest.mark.parametrize("function", MAPPED)
def test_map_in_two_processes_gives_the_models_vectors(saved, tokenizer, texts, function):
    """The class comes from the folder, and each process has to find it."""
    model = automodel(saved)
    mapped = Dataset.from_dict({"text": texts}).map(
        MAPPED[function](model, tokenizer), batched=True, batch_size=16, num_proc=2
    )
    assert_same(np.asarray(mapped["vector"][:], dtype=np.float32), forward(model, tokenizer, texts))


def test_a_faiss_index_finds_the_neighbours_of_a_brute_force_search(saved, tokenizer, texts):
    vectors = automodel(saved).encode(texts, tokenizer, normalize=True)
    data = Dataset.from_dict({"text": texts, "vector": vectors})
    data.add_faiss_index("vector", metric_type=faiss.METRIC_INNER_PRODUCT)
    for query in range(0, len(texts), 10):
        scores, found = data.get_nearest_examples("vector", vectors[query], k=5)
        similarities = vectors @ vectors[query]
        expected = np.argsort(-similarities, kind="stable")[:5]
        assert found["text"][0] == texts[query], "the nearest of a sentence is itself"
        assert found["text"] == [texts[row] for row in expected]
        np.testing.assert_allclose(scores, similarities[expected], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_pipeline_over_a_column_gives_the_models_vectors(saved, tokenizer, texts, batch_size):
    extractor = pipeline("feature-extraction", model=saved, trust_remote_code=True)
    column = KeyDataset(Dataset.from_dict({"id": range(30), "text": texts[:30]}), "text")
    given = [np.asarray(vector) for vector in extractor(column, batch_size=batch_size)]
    assert {vector.shape for vector in given} == {(1, extractor.model.config.hidden_size)}
    assert_same(np.concatenate(given), forward(extractor.model, tokenizer, texts[:30]))


@pytest.mark.realdata
def test_real_sentences_are_their_own_nearest_in_a_faiss_index(real_data, saved, tokenizer):
    texts = list(dict.fromkeys(load_sts("STSB", str(real_data / "data" / "senteval"))["sentence1"][:600]))
    vectors = automodel(saved).encode(texts, tokenizer, normalize=True)
    data = Dataset.from_dict({"text": texts, "vector": vectors})
    data.add_faiss_index("vector", metric_type=faiss.METRIC_INNER_PRODUCT)
    similarities = vectors @ vectors.T
    scores, found = data.get_nearest_examples_batch("vector", vectors, k=3)
    np.testing.assert_allclose(np.asarray(scores), -np.sort(-similarities, axis=1)[:, :3], atol=1e-6)
    # Sentences that the tokenizer maps to the same ids have the same vector.
    distinct = (similarities > 1 - 1e-6).sum(axis=1) == 1
    assert distinct.mean() > 0.95
    assert [found[row]["text"][0] for row in np.flatnonzero(distinct)] == [
        texts[row] for row in np.flatnonzero(distinct)
    ]


# --- sentence-transformers -------------------------------------------------------------------------------------------


PAIRS = Dataset.from_dict({"anchor": SENTENCES, "positive": [sentence.lower() for sentence in SENTENCES]})


def by_save_pretrained(trainer, folder):
    trainer.model.save_pretrained(str(folder))
    return folder


def by_save_model(trainer, folder):
    trainer.save_model(str(folder))
    return folder


def by_checkpoint(trainer, folder):
    return f"{trainer.args.output_dir}/checkpoint-2"


SAVED = {"save_pretrained": by_save_pretrained, "save_model": by_save_model, "checkpoint": by_checkpoint}


@pytest.fixture(scope="module", params=["words", "mean"])
def fine_tuned(request, tmp_path_factory, tokenizer):
    """The embeddings before the training, and sentence-transformers' trainer after two steps on a few pairs."""
    model = embedder(save(request.param, tmp_path_factory.mktemp("before"), tokenizer))
    before = model.encode(SENTENCES)
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path_factory.mktemp("run")),
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        use_cpu=True,
        report_to="none",
    )
    trainer = SentenceTransformerTrainer(model, arguments, PAIRS, loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    return before, trainer


@pytest.mark.parametrize("way", SAVED)
def test_what_sentence_transformers_fine_tuned_is_loaded_as_it_was_saved(fine_tuned, tokenizer, tmp_path, way):
    before, trainer = fine_tuned
    after = trainer.model.encode(SENTENCES)
    assert np.abs(after - before).max() > 1e-2 * np.abs(before).max(), "it has learned"
    folder = SAVED[way](trainer, tmp_path)
    loaded, by_transformers = embedder(folder), automodel(folder)
    assert_same(loaded.encode(SENTENCES), after)
    assert_same(forward(by_transformers, tokenizer, SENTENCES), after)
    assert by_transformers.config.pooler == trainer.model[0].model.config.pooler


def test_what_sentence_transformers_saves_again_is_the_same_model(saved, tokenizer, tmp_path):
    embedder(saved).save_pretrained(str(tmp_path))
    assert_same(embedder(tmp_path).encode(SENTENCES), forward(automodel(saved), tokenizer, SENTENCES))


def test_encode_gives_the_embedding_with_its_inputs(saved, tokenizer):
    rows = embedder(saved).encode(SENTENCES, output_value=None)
    assert all(row["input_ids"].shape == row["attention_mask"].shape for row in rows)
    assert_same(
        np.stack([row["sentence_embedding"].numpy() for row in rows]),
        forward(automodel(saved), tokenizer, SENTENCES),
    )


def test_encode_has_no_token_vectors(saved):
    """They are the `last_hidden_state` of AutoModel. Anything else in their place would be a wrong result."""
    with pytest.raises(KeyError, match="token_embeddings"):
        embedder(saved).encode(SENTENCES, output_value="token_embeddings")


# Ways to get the same embedder again, and how far its embeddings may be off, relative to the largest value.
COPIES = {
    "pickle": (lambda folder: pickle.loads(pickle.dumps(embedder(folder))), 1e-6),
    "deepcopy": (lambda folder: copy.deepcopy(embedder(folder)), 1e-6),
    "half": (lambda folder: embedder(folder).half(), 0.02),
    "bfloat16": (lambda folder: embedder(folder, model_kwargs={"dtype": torch.bfloat16}), 0.1),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_an_embedder_is_the_embedder(saved, tokenizer, way):
    make, tolerance = COPIES[way]
    expected = forward(automodel(saved), tokenizer, SENTENCES)
    given = make(saved).encode(SENTENCES).astype(np.float32)
    assert np.abs(given - expected).max() <= tolerance * np.abs(expected).max()


def test_flash_attention_does_not_make_one_sentence_of_a_batch(saved, tokenizer, monkeypatch):
    """With it sentence-transformers concatenates a batch's sentences if the model supports that; SARCSE does not."""
    monkeypatch.setattr(Transformer, "_is_flash_attention_requested", lambda module: True)
    monkeypatch.setattr(
        transformers.modeling_flash_attention_utils,
        "lazy_import_flash_attention",
        lambda *args, **kwargs: ((None, print, None, None), None),
    )
    assert Transformer(str(ENCODER)).can_flatten_inputs, "this is how it would be"
    assert_same(embedder(saved).encode(SENTENCES), forward(automodel(saved), tokenizer, SENTENCES))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("pooler", ["words", "mean"])
def test_gradient_checkpointing_of_a_loaded_folder_changes_no_gradient(tmp_path, tokenizer, pooler, reentrant):
    """In training mode without dropout, for the embeddings alone, which is what other libraries' losses use."""
    folder = save(pooler, tmp_path, tokenizer)
    gradients = []
    for checkpointing in (False, True):
        model = automodel(folder)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        model(**tokenizer(SENTENCES, padding=True, return_tensors="pt")).pooler_output.pow(2).mean().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() and any(name.startswith("encoder.") for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)
