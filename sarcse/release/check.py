"""
Load a release as any user would, and compare its embeddings with the reference embeddings stored in it.

    python check.py RELEASE_DIR

It needs torch and transformers. The release is loaded with AutoModel, which runs the folder's code if there is any.
Without code it is also loaded with sentence-transformers, if that is installed. The package tokenizers reads
tokenizer.json alone, as servers do, and must give the same tokens. What is wrong is printed for each reader: an error,
or a difference beyond the release's tolerance, relative to the largest reference value. The exit code is then 1.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer


def by_transformers(folder: Path, sentences: list[str]) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=has_code(folder))
    batch = tokenizer_of(folder)(sentences, padding=True, truncation=True, return_tensors="pt")
    output = model(**batch)
    return output.pooler_output if has_code(folder) else pooled(folder, output.last_hidden_state, batch)


def tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=has_code(folder))


def pooled(folder: Path, vectors: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, L, d) -> (B, d), with the folder's pooling and, if it has one, its Normalize."""
    pooling, modules = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("1_Pooling/config.json", "modules.json")
    )
    mask = batch["attention_mask"].unsqueeze(-1)  # (B, L, 1)
    mean = (vectors * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    embeddings = vectors[:, 0] if pooling["pooling_mode_cls_token"] else mean
    return torch.nn.functional.normalize(embeddings, dim=1) if len(modules) == 3 else embeddings


def by_sentence_transformers(folder: Path, sentences: list[str]) -> torch.Tensor:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").float().encode(sentences, convert_to_tensor=True)


def by_tokenizers(folder: Path, sentences: list[str]) -> None:
    """
    Raises:
        ValueError: a tokenizer.json gives other tokens than transformers, which cuts at the model's limit.
    """
    tokenizer = tokenizer_of(folder)
    for path in folder.rglob("tokenizer.json"):
        bare = Tokenizer.from_file(str(path))
        for sentence in sentences:
            ids, expected = bare.encode(sentence).ids, tokenizer(sentence, truncation=True)["input_ids"]
            if ids != expected:
                name = path.relative_to(folder)
                raise ValueError(f"{name}: {len(ids)} tokens, not the same {len(expected)}, for {sentence[:40]!r}")


def has_code(folder: Path) -> bool:
    return any(folder.glob("*.py"))


def outcome(
    read: Callable[[Path, list[str]], torch.Tensor | None], folder: Path, golden: dict[str, Any]
) -> str | None:
    """What is wrong with what one reader reads, or None."""
    expected = torch.tensor(golden["embeddings"])
    try:
        found = read(folder, golden["sentences"])
    except Exception as error:  # a release that nobody can load: whatever the error
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    if found is None:
        return None
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    return None if difference <= golden["relative_tolerance"] else f"largest difference {difference:.1e}"


@torch.no_grad()
def main(folder: Path) -> None:
    golden = json.loads((folder / "golden_embeddings.json").read_text(encoding="utf-8"))
    readers: dict[str, Callable[[Path, list[str]], torch.Tensor | None]] = {
        "transformers": by_transformers,
        "tokenizers": by_tokenizers,
    }
    if not has_code(folder) and importlib.util.find_spec("sentence_transformers"):
        readers["sentence-transformers"] = by_sentence_transformers
    outcomes = {name: outcome(read, folder, golden) for name, read in readers.items()}
    for name, wrong in outcomes.items():
        print(f"{name}: {wrong or 'the same'}")
    sys.exit(1 if any(outcomes.values()) else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
