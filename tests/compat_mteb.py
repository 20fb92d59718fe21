"""
Checks that mteb's score of a release equals that of `eval_sts.py` on the same pairs, to 1e-4 of 100 points. It runs in
a separate environment and is not part of the tests: run `make compat`.

    python -m tests.compat_mteb RELEASE_DIR [--sts_dir FOLDER] [--environments FOLDER]

The pairs are the STS-B test set of a folder in SentEval's layout, or else those of the demo.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


PROJECT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4


def by_mteb(release_dir: str, pairs_file: str) -> None:
    """Prints the score. This part runs in mteb's environment, without this project."""
    import mteb
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    task = mteb.get_task("STSBenchmark")
    task.dataset = {"default": {"test": Dataset.from_json(pairs_file)}}
    task.data_loaded = True
    model = SentenceTransformer(release_dir, trust_remote_code=True, device="cpu")
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    print(json.dumps({"score": 100 * result.task_results[0].scores["test"][0]["cosine_spearman"]}))


def main() -> None:
    from sarcse.data.sts import load_tasks

    from .compat import TORCH, make_environment, run

    parser = argparse.ArgumentParser(description="Score one release with mteb and with eval_sts.py.")
    parser.add_argument("release_dir", type=Path)
    parser.add_argument("--sts_dir", help="Default: the demo's pairs.")
    parser.add_argument("--environments", type=Path, default=Path(".venv/compat"), help="Where to make one.")
    args = parser.parse_args()
    demo = None if args.sts_dir else str(PROJECT / "demo" / "sts.tsv")
    source = ["--pairs", demo] if demo else ["--sts_dir", str(Path(args.sts_dir).resolve()), "--tasks", "STSB"]
    requirements = ["mteb>=2.26,<3", "sentence-transformers>=6,<7", TORCH]
    python = make_environment(args.environments.resolve() / "mteb", requirements)
    release = args.release_dir.resolve()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            PROJECT / "eval_sts.py",
            release,
            *source,
            "--output_dir",
            folder,
            "--device",
            "cpu",
        ]
        subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
        results = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))
        (pairs,) = load_tasks(["STSB"], args.sts_dir, demo).values()
        pairs.to_json(Path(folder, "pairs.jsonl"))
        theirs = run(python, Path(__file__).resolve(), release, Path(folder, "pairs.jsonl"))["score"]
    ours = results["models"][str(release)]["average"]
    print(f"eval_sts.py {ours:.6f}, mteb {theirs:.6f}, {len(pairs)} pairs")
    if abs(ours - theirs) > TOLERANCE:
        sys.exit(f"They differ by more than {TOLERANCE}.")


if __name__ == "__main__":
    if __package__:
        main()
    else:  # as `main` starts it
        by_mteb(*sys.argv[1:])
