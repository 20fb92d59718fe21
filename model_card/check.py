"""
Load a release as a stranger does, and compare its embeddings with the golden ones in it.

    python check.py RELEASE_DIR

It needs torch and transformers, and runs the code in the folder. It prints the largest difference, relative to the
largest golden value, and exits with 1 where that is above the release's tolerance.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer


def main(release_dir: str) -> None:
    golden = json.loads(Path(release_dir, "golden_embeddings.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(release_dir, trust_remote_code=True)
    model = AutoModel.from_pretrained(release_dir, trust_remote_code=True, dtype=torch.float32)
    batch = tokenizer(golden["sentences"], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        embeddings = model(**batch).pooler_output
    expected = torch.tensor(golden["embeddings"])
    difference = ((embeddings - expected).abs().max() / expected.abs().max()).item()
    print(f"{difference:.1e}")
    sys.exit(0 if difference <= golden["relative_tolerance"] else 1)


if __name__ == "__main__":
    main(sys.argv[1])
