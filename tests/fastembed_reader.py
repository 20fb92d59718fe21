"""
Loads a release as fastembed's custom model. Reads sentences from stdin and prints their embeddings, both as JSON.

    python fastembed_reader.py RELEASE_DIR

It runs in fastembed's separate environment, since fastembed needs huggingface_hub before 2.
"""

import json
import sys
from pathlib import Path

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType


def embed(folder: str, sentences: list[str]) -> list[list[float]]:
    """As the card of the release says, but not normalised, to compare with the golden embeddings."""
    TextEmbedding.add_custom_model(
        model="you/name",
        sources=ModelSource(hf="you/name"),
        model_file="onnx/model.onnx",
        dim=json.loads(Path(folder, "config.json").read_text())["hidden_size"],
        pooling=pooling(folder),
        normalization=False,
    )
    embeddings = TextEmbedding("you/name", specific_model_path=folder).embed(sentences)
    return [embedding.tolist() for embedding in embeddings]


def pooling(folder: str) -> PoolingType:
    """The embeddings of a model with code are already pooled."""
    if Path(folder, "modeling_sarcse.py").is_file():
        return PoolingType.DISABLED
    modes = json.loads(Path(folder, "1_Pooling", "config.json").read_text())
    return PoolingType.CLS if modes["pooling_mode_cls_token"] else PoolingType.MEAN


if __name__ == "__main__":
    print(json.dumps(embed(sys.argv[1], json.load(sys.stdin))))
