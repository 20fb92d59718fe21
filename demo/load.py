"""Load a trained model as anyone would, without this project's code, and compare a few sentences."""

import sys

import torch
from transformers import AutoModel, AutoTokenizer


SENTENCES = [
    "A boy is kicking a ball in the park.",
    "A child plays football on the grass.",
    "The bank raised its interest rates again.",
]


def main(model_dir: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=True)
    model = AutoModel.from_pretrained(model_dir, trust_remote_code=True)
    with torch.no_grad():
        embeddings = model(**tokenizer(SENTENCES, padding=True, return_tensors="pt")).pooler_output
    similarities = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None], dim=-1)
    print(f"Loaded {type(model).__name__} from {model_dir} in a new process. Cosine similarities:")
    for sentence, row in zip(SENTENCES, similarities.tolist()):
        print("  ".join(f"{value:5.2f}" for value in row), "", sentence)


if __name__ == "__main__":
    main(sys.argv[1])
