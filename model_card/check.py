"""
Load a release as any user would, and compare its embeddings with the reference embeddings stored in it.

    python check.py RELEASE_DIR

It needs torch and transformers. The release is loaded with AutoModel, which runs the folder's code if there is any.
Without code it is also loaded with sentence-transformers, if that is installed. For each, the largest difference is
printed, relative to the largest reference value. The exit code is 1 if one exceeds the release's tolerance.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer


def by_transformers(folder: Path, sentences: list[str]) -> torch.Tensor:
    trust = {"trust_remote_code": has_code(folder)}
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, **trust)
    batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    output = model(**batch)
    return output.pooler_output if has_code(folder) else pooled(folder, output.last_hidden_state, batch)


def pooled(folder: Path, vectors: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, L, d) -> (B, d), with the folder's pooling."""
    if json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"]:
        return vectors[:, 0]
    mask = batch["attention_mask"].unsqueeze(-1)  # (B, L, 1)
    return (vectors * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def by_sentence_transformers(folder: Path, sentences: list[str]) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").float().encode(sentences, convert_to_tensor=True)


def has_code(folder: Path) -> bool:
    return any(folder.glob("*.py"))


@torch.no_grad()
def main(folder: Path) -> None:
    golden = json.loads((folder / "golden_embeddings.json").read_text(encoding="utf-8"))
    expected = torch.tensor(golden["embeddings"])
    readers = {"transformers": by_transformers}
    if not has_code(folder) and importlib.util.find_spec("sentence_transformers"):
        readers["sentence-transformers"] = by_sentence_transformers
    good = True
    for name, read in readers.items():
        difference = ((read(folder, golden["sentences"]) - expected).abs().max() / expected.abs().max()).item()
        print(f"{name}: {difference:.1e}")
        good = good and difference <= golden["relative_tolerance"]
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
