"""How often tokens occur in general text: in English, or in a file of another language."""

from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from configuration_sarcse import SarcseConfig
from sarcse.data.files import matching_files, read_rows, text_of
from sarcse.data.tokens import LONGEST
from sarcse.options import CORPUS, ENGLISH


logger = logging.get_logger(__name__)

# 10,000 sentences of English Wikipedia (CC BY-SA) from `python -m study.english`. They give an encoder's tokens the
# weights that 500,000 sentences would give, to 0.05 (root mean square). A list of words of the same size would not,
# because tokens depend on the text around a word.
ENGLISH_FILE = Path(__file__).with_name("english.txt.xz")


def general_counts(
    frequencies: str, tokenizer: PreTrainedTokenizerBase | None, config: SarcseConfig, size: int
) -> np.ndarray:
    """
    How often each token occurs in general text, `(size,)`.

    Args:
        frequencies (`str`): `ENGLISH`, or a file of text.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The encoder's own.
        config (`SarcseConfig`): The model's, for its special tokens.
        size (`int`): The encoder's vocabulary size.

    Raises:
        ValueError: if the file cannot be read or is empty, or there is no tokenizer to read it with.
    """
    if tokenizer is None:
        raise ValueError(
            f"--token_frequencies {frequencies} needs the tokenizer: pass it as `processing_class`, or count in the "
            f"{CORPUS}."
        )
    rows = read_rows(matching_files(general_file(frequencies)), ("text",))
    texts = (text for place, row in rows if (text := text_of(place, "text", row["text"])))
    counts = np.zeros(size, dtype=np.int64)
    for batch in iter(lambda: list(islice(texts, 1000)), []):
        ids = tokenizer(batch, truncation=True, max_length=min(tokenizer.model_max_length, LONGEST))["input_ids"]
        counts += np.bincount([token for row in ids for token in row], minlength=size)
    counts[config.special_token_ids] = 0
    return counts


def tell_foreign(frequencies: str, general: np.ndarray, counts: np.ndarray) -> None:
    """Warn if general text, by its token counts, seems to be of another language than the training text."""
    known = counts[general > 0].sum() / max(counts.sum(), 1)
    if known < 0.5:
        logger.warning(
            f"--token_frequencies {frequencies}: only {known:.0%} of the training text's tokens occur there, so that "
            "hardly any is called frequent. Name a file of general text in the training text's language, some 10,000 "
            "sentences."
        )


def general_file(frequencies: str) -> str:
    """
    The file that `--token_frequencies` stands for.

    Raises:
        ValueError: if there is no such file.
    """
    if frequencies == ENGLISH:
        return str(ENGLISH_FILE)
    try:
        matching_files(frequencies)
    except ValueError as error:
        message = f"--token_frequencies {frequencies}: {error} It takes {ENGLISH}, {CORPUS} or a file of text."
        raise ValueError(message) from error
    return frequencies
