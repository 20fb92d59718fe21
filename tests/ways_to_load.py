"""
Embed a release's golden sentences in every way that users load a model, and print how far each is from the golden
embeddings: the largest difference, relative to the largest golden value, or 1 minus the smallest cosine similarity
where the precision is lower on purpose. What is not installed is said to be so.

    python ways_to_load.py RELEASE_DIR [WAY ...]

It stands alone, so that it runs in other environments too (compat.py).
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, pipeline


RELEASE = sys.argv[1] if len(sys.argv) > 1 else ""
TRUST = {"trust_remote_code": True}


def batch(sentences):
    tokenizer = AutoTokenizer.from_pretrained(RELEASE, **TRUST)
    return tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")


def auto_model(sentences):
    return AutoModel.from_pretrained(RELEASE, **TRUST)(**batch(sentences)).pooler_output


def auto_model_one_by_one(sentences):
    return torch.cat([auto_model([sentence]) for sentence in sentences])


def sentence_transformer(sentences, **options):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(RELEASE, device="cpu", **TRUST).encode(sentences, convert_to_tensor=True, **options)


def sentence_transformer_multi_process(sentences):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(RELEASE, device="cpu", **TRUST)
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        return torch.as_tensor(model.encode(sentences, pool=pool, chunk_size=2))
    finally:
        model.stop_multi_process_pool(pool)


def sentence_transformer_normalized(sentences):
    """`similarity` is the cosine, whether `encode` normalises or not."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(RELEASE, device="cpu", **TRUST)
    plain = model.encode(sentences, convert_to_tensor=True)
    similarity = model.similarity(plain, plain)
    cosine = torch.nn.functional.cosine_similarity(plain[:, None], plain[None], dim=-1)
    torch.testing.assert_close(similarity, cosine, atol=1e-6, rtol=0)
    normalized = model.encode(sentences, convert_to_tensor=True, normalize_embeddings=True)
    return normalized * plain.norm(dim=1, keepdim=True)


def sentence_transformer_truncated(sentences):
    """`truncate_dim` keeps the first dimensions; the rest is filled in from the whole."""
    whole = sentence_transformer(sentences)
    half = sentence_transformer(sentences, truncate_dim=whole.shape[1] // 2)
    return torch.cat([half, whole[:, half.shape[1] :]], dim=1)


def sentence_transformer_tokens(sentences):
    """`output_value="token_embeddings"` gives the token vectors, as the model has them, and the embedding stays."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(RELEASE, device="cpu", **TRUST)
    alone = model.encode(sentences, output_value="token_embeddings")
    inputs = batch(sentences)
    expected = AutoModel.from_pretrained(RELEASE, **TRUST)(**inputs).last_hidden_state
    for vectors, padded, mask in zip(alone, expected, inputs["attention_mask"].bool(), strict=True):
        torch.testing.assert_close(vectors, padded[mask], atol=1e-5, rtol=0)
    return model.encode(sentences, convert_to_tensor=True)


def feature_extraction_pipeline(sentences):
    extractor = pipeline("feature-extraction", model=RELEASE, **TRUST)
    return torch.tensor(extractor(sentences))[:, 0]


def feature_extraction_pipeline_batched(sentences):
    extractor = pipeline(model=RELEASE, **TRUST)  # the task is told by the configuration
    return torch.cat(extractor(sentences, batch_size=3, return_tensors=True))


def langchain(sentences):
    from langchain_huggingface import HuggingFaceEmbeddings

    model = HuggingFaceEmbeddings(model_name=RELEASE, model_kwargs={"device": "cpu", **TRUST})
    return torch.tensor(model.embed_documents(sentences))


def compiled(sentences):
    return torch.compile(AutoModel.from_pretrained(RELEASE, **TRUST))(**batch(sentences)).pooler_output


def onnx(sentences):
    """The export of the README."""
    import onnxruntime
    import onnxscript  # noqa: F401  (torch.onnx.export needs it)

    model = AutoModel.from_pretrained(RELEASE, **TRUST)
    names = ("input_ids", "attention_mask")
    shown = batch(["Any sentence.", "It only shows the shapes."])
    inputs = {name: shown[name] for name in names}
    program = torch.onnx.export(
        model,
        kwargs=inputs,
        dynamic_shapes=dict.fromkeys(names, {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}),
        output_names=["pooler_output", "last_hidden_state"],
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    embedded = batch(sentences)
    return torch.from_numpy(session.run(["pooler_output"], {name: embedded[name].numpy() for name in names})[0])


def exact(sentences):
    """
    Without rounding errors, in float64. ONNX Runtime is another program, and one sentence a matrix of another shape:
    with sums in another order they are, as torch's batches in float32, each within 1e-6 of this (4e-7, 4e-7 and 8e-7
    on a tiny encoder and one processor), but on some processors not of each other.
    """
    return AutoModel.from_pretrained(RELEASE, dtype=torch.float64, **TRUST)(**batch(sentences)).pooler_output


def bfloat16(sentences):
    return AutoModel.from_pretrained(RELEASE, dtype=torch.bfloat16, **TRUST)(**batch(sentences)).pooler_output


def int8(sentences):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(
            AutoModel.from_pretrained(RELEASE, **TRUST), {torch.nn.Linear}, dtype=torch.qint8
        )
    return model(**batch(sentences)).pooler_output


EXACT = [
    auto_model,
    auto_model_one_by_one,
    sentence_transformer,
    sentence_transformer_multi_process,
    sentence_transformer_normalized,
    sentence_transformer_truncated,
    sentence_transformer_tokens,
    feature_extraction_pipeline,
    feature_extraction_pipeline_batched,
    langchain,
    compiled,
    onnx,
]
OTHER_SUMS = [auto_model_one_by_one, feature_extraction_pipeline, onnx]
LOWER_PRECISION = [bfloat16, int8]


@torch.no_grad()
def main() -> None:
    golden = json.loads(Path(RELEASE, "golden_embeddings.json").read_text(encoding="utf-8"))
    expected = torch.tensor(golden["embeddings"])
    differences = {}
    for way in EXACT + LOWER_PRECISION:
        if len(sys.argv) > 2 and way.__name__ not in sys.argv[2:]:
            continue
        try:
            embeddings = way(golden["sentences"]).float().cpu()
        except ImportError as error:
            differences[way.__name__] = f"not installed: {error.name}"
            continue
        except Exception as error:  # whatever it is, the other ways are still of interest
            differences[way.__name__] = f"{type(error).__name__}: {error}"[:300]
            continue
        if way in EXACT:
            reference = exact(golden["sentences"]) if way in OTHER_SUMS else expected
            difference = (embeddings - reference).abs().max() / reference.abs().max()
        else:
            difference = 1 - torch.nn.functional.cosine_similarity(embeddings, expected).min()
        differences[way.__name__] = difference.item()
    print(json.dumps(differences))


if __name__ == "__main__":  # start_multi_process_pool runs this file again
    main()
