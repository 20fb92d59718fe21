"""
The same release in other people's installations: each environment below is made anew, embeds the release's golden
sentences in every way that users load a model (ways_to_load.py), and is a row of the table that is printed.

    python tests/compat.py RELEASE_DIR [--environments FOLDER]

It downloads several gigabytes (torch 2.6 comes with its CUDA packages) and is no part of the tests: `make compat`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any


# The newest torch that requirements.txt allows, and what goes with each transformers.
TORCH = "torch>=2.6,<2.14"
ENVIRONMENTS = {
    # Loading only: train.py needs transformers 5.5. Older sentence-transformers do not know `modality_config`.
    "transformers-4.57": ["transformers==4.57.6", "sentence-transformers==5.4.1", TORCH],
    # The oldest that train.py supports, of both.
    "transformers-5.5-torch-2.6": ["transformers==5.5.0", "sentence-transformers>=6,<7", "torch==2.6.0"],
    # langchain-huggingface 1.2 needs huggingface_hub 1.
    "transformers-5.11": ["transformers==5.11.0", "sentence-transformers>=6,<7", "langchain-huggingface", TORCH],
    "transformers-5.17": ["transformers==5.17.0", "sentence-transformers>=6,<7", "onnxruntime", "onnxscript", TORCH],
    "transformers-5.23": ["transformers==5.23.0", "sentence-transformers>=6,<7", "onnxruntime", "onnxscript", TORCH],
}
PACKAGES = ("transformers", "torch", "sentence-transformers", "huggingface_hub")
COLUMNS = {
    "AutoModel": ("auto_model", "auto_model_one_by_one"),
    "SentenceTransformer": (
        "sentence_transformer",
        "sentence_transformer_multi_process",
        "sentence_transformer_normalized",
        "sentence_transformer_truncated",
        "sentence_transformer_tokens",
    ),
    "pipeline": ("feature_extraction_pipeline", "feature_extraction_pipeline_batched"),
    "langchain": ("langchain",),
    "torch.compile": ("compiled",),
    "ONNX": ("onnx",),
    "bf16": ("bfloat16",),
    "int8": ("int8",),
}


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """The interpreter of a virtual environment with `requirements`; one that is complete already is used as it is."""
    python, done = folder / "bin" / "python", folder / "installed.json"
    if not done.is_file() or json.loads(done.read_text()) != requirements:
        venv.create(folder, with_pip=True, clear=True)
        print(f"Installing {', '.join(requirements)}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        done.write_text(json.dumps(requirements))
    return python


def run(python: Path, *arguments: Any) -> dict[str, Any]:
    """The JSON that a process prints last, started where nothing of this project is."""
    with tempfile.TemporaryDirectory() as elsewhere:
        process = subprocess.run(
            [python, *map(str, arguments)],
            cwd=elsewhere,
            env={"HF_HUB_OFFLINE": "1", "HF_HOME": elsewhere, "HOME": elsewhere, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
    if process.returncode != 0:
        raise RuntimeError(process.stderr)
    return json.loads(process.stdout.splitlines()[-1])


def cell(differences: dict[str, float | str], ways: tuple[str, ...]) -> str:
    """The largest difference of these ways; what failed is told in full on stderr."""
    found = [differences[way] for way in ways]
    failures = [value for value in found if isinstance(value, str)]
    if not failures:
        return f"{max(found):.0e}"
    if all(failure.startswith("not installed") for failure in failures):
        return ""
    print(f"{ways}: {failures}", file=sys.stderr)
    return "fails"


def main() -> None:
    parser = argparse.ArgumentParser(description="Load one release in several environments; print a table.")
    parser.add_argument("release_dir", type=Path)
    parser.add_argument("--environments", type=Path, default=Path(".venv/compat"), help="Where to make them.")
    args = parser.parse_args()
    versions = f"import json; from importlib.metadata import version; print(json.dumps([*map(version, {PACKAGES})]))"
    header = [*PACKAGES, *COLUMNS]
    print(f"| {' | '.join(header)} |\n| {' | '.join(['---'] * len(header))} |")
    for name, requirements in ENVIRONMENTS.items():
        python = make_environment(args.environments.resolve() / name, requirements)
        script = Path(__file__).with_name("ways_to_load.py").resolve()
        differences = run(python, script, args.release_dir.resolve())
        cells = [*run(python, "-c", versions), *(cell(differences, ways) for ways in COLUMNS.values())]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
