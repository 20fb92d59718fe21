"""
Take the sample of English Wikipedia that tokens are counted in: 10,000 sentences, evenly spaced. Prints how far the
weights of tokens are from those that all sentences would give: the root mean square over an encoder's vocabulary.

    python -m study.english
"""

import lzma

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.common import SHARED
from sarcse.data.general import ENGLISH_FILE
from sarcse.data.tokens import token_counts, token_weights, tokenize
from sarcse.training.arguments import SarcseTrainingArguments


SENTENCES = 10_000


def weights(sentences: list[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The weight of each token, with the program's defaults, `(vocabulary_size,)`."""
    tokens = tokenize(Dataset.from_dict({"text": sentences}), tokenizer, tokenizer.model_max_length)
    counts = token_counts(tokens, len(tokenizer), tokenizer.all_special_ids)
    return token_weights(counts, "smooth_inverse", SarcseTrainingArguments.frequency_smoothing).numpy()


def main() -> None:
    with lzma.open(SHARED / "data" / "wiki500k.txt.xz", "rt", encoding="utf-8") as file:
        sentences = file.read().splitlines()
    sample = sentences[:: len(sentences) // SENTENCES][:SENTENCES]
    text = "".join(f"{sentence}\n" for sentence in sample)
    ENGLISH_FILE.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    for encoder in ("roberta-mini-wiki", "roberta-tiny-wiki"):
        tokenizer = AutoTokenizer.from_pretrained(SHARED / "encoders" / encoder)
        difference = weights(sample, tokenizer) - weights(sentences, tokenizer)
        print(f"{encoder}: {np.sqrt(np.square(difference).mean()):.3f}")


if __name__ == "__main__":
    main()
