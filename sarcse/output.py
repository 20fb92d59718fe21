"""The JSON files that an output folder has beside its model, and how they are read and written."""

import json
from pathlib import Path
from typing import Any


RECORD_NAME = "training_record.json"  # of the training (sarcse/training/record.py)
RESULTS_NAME = "sts_results.json"  # the scores before and after the training


def write_json(path: Path, content: Any) -> None:
    """Write `content` to a file as indented JSON. What is not valid Unicode, as in a file's name, is escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} could not be read: {error}") from error
