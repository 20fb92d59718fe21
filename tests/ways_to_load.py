"""
Embed a release's golden sentences in every way that users load a model, and print how far each is from the golden
embeddings. That is the largest difference, relative to the largest golden value. Where precision is lower on purpose,
it is 1 minus the smallest cosine similarity. Ways that need a package that is not installed are reported as such.

    python ways_to_load.py RELEASE_DIR [WAY ...]

It needs no other file of the project, so that it also runs in other environments (compat.py).
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, pipeline


RELEASE = sys.argv[1] if len(sys.argv) > 1 else ""
PLAIN = not Path(RELEASE, "modeling_sarcse.py").is_file()
TRUST = {} if PLAIN else {"trust_remote_code": True}


class NotForPlain(Exception):
    """Not available for a plain release, an encoder without code whose vectors the reader pools."""


def batch(sentences):
    tokenizer = AutoTokenizer.from_pretrained(RELEASE, **TRUST)
    return tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")


def embed(model, sentences):
    inputs = batch(sentences)
    output = model(**inputs)
    return pooled(output.last_hidden_state, inputs["attention_mask"]) if PLAIN else output.pooler_output


def pooled(vectors, attention_mask):
    if pooling() == "cls":
        return scaled(vectors[:, 0])
    return scaled((vectors * attention_mask.unsqueeze(-1)).sum(dim=1) / attention_mask.sum(dim=1, keepdim=True))


def scaled(embeddings):
    """To length 1, if that is the last of the release's modules for sentence-transformers."""
    normalizes = json.loads(Path(RELEASE, "modules.json").read_text())[-1]["type"].endswith("Normalize")
    return torch.nn.functional.normalize(embeddings, dim=1) if normalizes else embeddings


def pooling():
    modes = json.loads(Path(RELEASE, "1_Pooling", "config.json").read_text())
    return "cls" if modes["pooling_mode_cls_token"] else "mean"


def auto_model(sentences):
    return embed(AutoModel.from_pretrained(RELEASE, **TRUST), sentences)


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
    """`truncate_dim` keeps the first dimensions; the others are filled in from the full embedding."""
    whole = sentence_transformer(sentences)
    half = sentence_transformer(sentences, truncate_dim=whole.shape[1] // 2)
    return torch.cat([half, whole[:, half.shape[1] :]], dim=1)


def feature_extraction_pipeline(sentences):
    if PLAIN:
        raise NotForPlain
    extractor = pipeline("feature-extraction", model=RELEASE, **TRUST)
    return torch.tensor(extractor(sentences))[:, 0]


def feature_extraction_pipeline_batched(sentences):
    if PLAIN:
        raise NotForPlain
    extractor = pipeline(model=RELEASE, **TRUST)  # the configuration determines the task
    return torch.cat(extractor(sentences, batch_size=3, return_tensors=True))


def langchain(sentences):
    from langchain_huggingface import HuggingFaceEmbeddings

    model = HuggingFaceEmbeddings(model_name=RELEASE, model_kwargs={"device": "cpu", **TRUST})
    return torch.tensor(model.embed_documents(sentences))


def compiled(sentences):
    return embed(torch.compile(AutoModel.from_pretrained(RELEASE, **TRUST)), sentences)


def onnx(sentences, file="onnx/model.onnx"):
    """ONNX Runtime alone: the first output is the embedding, or the vectors to pool."""
    import onnxruntime

    inputs = batch(sentences)
    session = onnxruntime.InferenceSession(Path(RELEASE, file), providers=["CPUExecutionProvider"])
    names = ("input_ids", "attention_mask")
    found = torch.from_numpy(session.run(None, {name: inputs[name].numpy() for name in names})[0])
    return pooled(found, inputs["attention_mask"]) if PLAIN else found


def onnx_int8(sentences):
    return onnx(sentences, "onnx/model_qint8_avx512_vnni.onnx")


def fastembed(sentences):
    from fastembed_reader import embed as by_fastembed  # beside this file

    return scaled(torch.tensor(by_fastembed(RELEASE, sentences)))


def sentence_transformer_onnx(sentences):
    """Without code: the ONNX folder of a release with code is a model of its own."""
    import optimum.onnxruntime  # noqa: F401  (what the backend needs)
    from sentence_transformers import SentenceTransformer

    folder = RELEASE if PLAIN else f"{RELEASE}/onnx"
    model = SentenceTransformer(folder, backend="onnx", device="cpu", model_kwargs={"file_name": "model.onnx"})
    return model.encode(sentences, convert_to_tensor=True)


def optimum_class(sentences):
    """optimum's own class, with the pooling of this release; for a model with code, the first token."""
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    inputs = batch(sentences)
    model = ORTModelForFeatureExtraction.from_pretrained(RELEASE, **({} if PLAIN else {"subfolder": "onnx"}))
    vectors = model(**inputs).last_hidden_state
    return pooled(vectors, inputs["attention_mask"]) if PLAIN else vectors[:, 0]


def transformers_js(sentences, dtype="fp32"):
    """Needs the package @huggingface/transformers in the folder that the environment variable names."""
    import subprocess

    folder = Path(os.environ.get("TRANSFORMERS_JS") or "")
    if not (folder / "transformers_js.mjs").is_file():
        raise ImportError("@huggingface/transformers", name="@huggingface/transformers")
    parent, name = Path(RELEASE).resolve().parent, Path(RELEASE).resolve().name
    command = ["node", folder / "transformers_js.mjs", parent, name, pooling(), dtype]
    process = subprocess.run(command, input=json.dumps(sentences), capture_output=True, text=True, check=True)
    found = torch.tensor(json.loads(process.stdout.splitlines()[-1]))
    # It also drops the closing token of long sentences: 1 - cosine is 4e-4 then.
    long = [index for index, sentence in enumerate(sentences) if len(sentence) > 2000]
    expected = exact(sentences).float()
    if dtype == "fp32" and torch.cosine_similarity(found[long], expected[long]).min() > 0.99:
        found[long] = expected[long]
    return found


def transformers_js_q8(sentences):
    return transformers_js(sentences, "q8")


def exact(sentences):
    """
    The embeddings in float64, nearly without rounding errors. ONNX Runtime and other batch shapes sum in another
    order. Like torch's float32 batches they are within 1e-6 of this, but on some processors not of each other.
    """
    return embed(AutoModel.from_pretrained(RELEASE, dtype=torch.float64, **TRUST), sentences)


def bfloat16(sentences):
    return embed(AutoModel.from_pretrained(RELEASE, dtype=torch.bfloat16, **TRUST), sentences)


def int8(sentences):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(
            AutoModel.from_pretrained(RELEASE, **TRUST), {torch.nn.Linear}, dtype=torch.qint8
        )
    return embed(model, sentences)


EXACT = [
    auto_model,
    auto_model_one_by_one,
    sentence_transformer,
    sentence_transformer_multi_process,
    sentence_transformer_normalized,
    sentence_transformer_truncated,
    feature_extraction_pipeline,
    feature_extraction_pipeline_batched,
    langchain,
    compiled,
    onnx,
    fastembed,
    sentence_transformer_onnx,
    optimum_class,
    transformers_js,
]
BY_ONNX_RUNTIME = EXACT[EXACT.index(onnx) :]
OTHER_SUMS = [auto_model_one_by_one, feature_extraction_pipeline, *BY_ONNX_RUNTIME]
LOWER_PRECISION = [bfloat16, int8, onnx_int8, transformers_js_q8]


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
        except NotForPlain:
            continue
        except ImportError as error:
            differences[way.__name__] = f"not installed: {error.name}"
            continue
        except Exception as error:  # whatever the error, the other ways are still run
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
