"""
Tests releases in other people's installations. Each environment below is created, embeds a release's golden sentences
in every way that users load a model (ways_to_load.py), and prints how far they are from the golden embeddings.

    python tests/compat.py RELEASE_DIR PLAIN_RELEASE_DIR [--environments FOLDER]

The first table has one row per version of transformers, for the release with code. The second has one row per release,
for the programs that read ONNX files. Both releases need int8 files. This downloads several gigabytes (torch 2.6 comes
with its CUDA packages) and needs node and npm for Transformers.js. It is not part of the tests: run `make compat`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent

# The newest torch that requirements.txt allows, and what goes with each transformers.
TORCH = "torch>=2.6,<2.14"
ENVIRONMENTS = {
    # Loading only: train.py needs transformers 5.5. Older sentence-transformers do not know `modality_config`.
    "transformers-4.57": ["transformers==4.57.6", "sentence-transformers==5.4.1", TORCH],
    # The oldest that train.py supports, of both.
    "transformers-5.5-torch-2.6": ["transformers==5.5.0", "sentence-transformers>=6,<7", "torch==2.6.0"],
    # langchain-huggingface 1.2 needs huggingface_hub 1.
    "transformers-5.11": ["transformers==5.11.0", "sentence-transformers>=6,<7", "langchain-huggingface", TORCH],
    "transformers-5.17": ["transformers==5.17.0", "sentence-transformers>=6,<7", "onnxruntime", TORCH],
    "transformers-5.24": ["transformers==5.24.0", "sentence-transformers>=6,<7", "onnxruntime", TORCH],
}
# optimum, the ONNX backend of sentence-transformers, supports transformers up to 4.57.
READERS = ["sentence-transformers[onnx]>=5.7,<6", "fastembed>=0.9,<1", TORCH]
TRANSFORMERS_JS = "@huggingface/transformers@4"
PACKAGES = ("transformers", "torch", "sentence-transformers", "huggingface_hub")
COLUMNS = {
    "AutoModel": ("auto_model", "auto_model_one_by_one"),
    "SentenceTransformer": (
        "sentence_transformer",
        "sentence_transformer_multi_process",
        "sentence_transformer_normalized",
        "sentence_transformer_truncated",
    ),
    "pipeline": ("feature_extraction_pipeline", "feature_extraction_pipeline_batched"),
    "langchain": ("langchain",),
    "torch.compile": ("compiled",),
    "ONNX Runtime": ("onnx",),
    "bf16": ("bfloat16",),
    "int8": ("int8",),
}

READER_PACKAGES = ("onnxruntime", "fastembed", "sentence-transformers", "optimum", "transformers")
READER_COLUMNS = {
    "ONNX Runtime": ("onnx",),
    "fastembed": ("fastembed",),
    'sentence-transformers, `backend="onnx"`': ("sentence_transformer_onnx",),
    "optimum": ("optimum_class",),
    "Transformers.js": ("transformers_js",),
    "ONNX Runtime, int8": ("onnx_int8",),
    "Transformers.js, q8": ("transformers_js_q8",),
}


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """The interpreter of a virtual environment with `requirements`; an existing complete one is reused."""
    python, done = folder / "bin" / "python", folder / "installed.json"
    if not done.is_file() or json.loads(done.read_text()) != requirements:
        venv.create(folder, with_pip=True, clear=True)
        print(f"Installing {', '.join(requirements)}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        done.write_text(json.dumps(requirements))
    return python


def make_transformers_js(folder: Path) -> Path:
    """A folder with the package and the script that runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules").is_dir():
        subprocess.run(["npm", "install", "--silent", "--ignore-scripts", TRANSFORMERS_JS], cwd=folder, check=True)
    shutil.copy(HERE / "transformers_js.mjs", folder)
    return folder


def run(python: Path, *arguments: Any, **environment: str) -> dict[str, Any]:
    """The JSON that a process prints last; it starts in a folder without this project."""
    with tempfile.TemporaryDirectory() as elsewhere:
        homes = {"HF_HUB_OFFLINE": "1", "HF_HOME": elsewhere, "HOME": elsewhere}
        process = subprocess.run(
            [python, *map(str, arguments)],
            cwd=elsewhere,
            env={**homes, "PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
        )
    if process.returncode != 0:
        raise RuntimeError(process.stderr)
    return json.loads(process.stdout.splitlines()[-1])


def cell(differences: dict[str, float | str], ways: tuple[str, ...]) -> str:
    """The largest difference of these ways; failures are printed in full on stderr."""
    found = [differences[way] for way in ways if way in differences]  # a plain release has fewer
    failures = [value for value in found if isinstance(value, str)]
    if not failures:
        return f"{max(found):.0e}"
    if all(failure.startswith("not installed") for failure in failures):
        return ""
    print(f"{ways}: {failures}", file=sys.stderr)
    return "fails"


def main() -> None:
    parser = argparse.ArgumentParser(description="Load two releases in several environments; print two tables.")
    parser.add_argument("release_dir", type=Path)
    parser.add_argument("plain_release_dir", type=Path)
    parser.add_argument("--environments", type=Path, default=Path(".venv/compat"), help="Where to make them.")
    args = parser.parse_args()
    environments, release = args.environments.resolve(), args.release_dir.resolve()
    print_row([*PACKAGES, *COLUMNS])
    print_row(["---"] * (len(PACKAGES) + len(COLUMNS)))
    for name, requirements in ENVIRONMENTS.items():
        python = make_environment(environments / name, requirements)
        ways = [way for ways in COLUMNS.values() for way in ways]
        differences = run(python, HERE / "ways_to_load.py", release, *ways)
        print_row([*versions(python, PACKAGES), *(cell(differences, ways) for ways in COLUMNS.values())])
    python = make_environment(environments / "onnx-readers", READERS)
    script_dir = make_transformers_js(environments / "transformers-js")
    package = json.loads((script_dir / "node_modules/@huggingface/transformers/package.json").read_text())
    found = zip(READER_PACKAGES, versions(python, READER_PACKAGES))
    print(f"\n{', '.join(' '.join(pair) for pair in found)}, Transformers.js {package['version']}\n")
    print_row(["release", *READER_COLUMNS])
    print_row(["---"] * (1 + len(READER_COLUMNS)))
    for kind, folder in {"with code": release, "plain": args.plain_release_dir.resolve()}.items():
        ways = [way for ways in READER_COLUMNS.values() for way in ways]
        differences = run(python, HERE / "ways_to_load.py", folder, *ways, TRANSFORMERS_JS=str(script_dir))
        print_row([kind, *(cell(differences, ways) for ways in READER_COLUMNS.values())])


def versions(python: Path, packages: tuple[str, ...]) -> list[str]:
    code = f"import json; from importlib.metadata import version; print(json.dumps([*map(version, {packages})]))"
    return run(python, "-c", code)  # type: ignore[return-value]


def print_row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
