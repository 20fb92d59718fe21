"""
Build, verify and push a release.

    python -m model_card MODEL_DIR --release_dir OUT [--push you/sarcse-x] [--tag v1]
"""

import argparse
from dataclasses import fields

from model_card.release import ReleaseOptions, release
from sarcse.arguments import ReleaseArguments
from sarcse.parsing import one_line_errors


def parse_arguments(arguments: list[str] | None = None) -> ReleaseOptions:
    parser = argparse.ArgumentParser(
        prog="python -m model_card",
        description="Build a release of a trained model, verify it, and push it in one commit.",
        allow_abbrev=False,
    )
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="The output folder of train.py.")
    parser.add_argument("--release_dir", required=True, metavar="OUT", help="Where to build it; made anew each time.")
    parser.add_argument("--push", metavar="REPO", help="Push to this repository, you/name. Default: build only.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="Branch to push to (main).")
    parser.add_argument("--tag", help="Name of this release, v1 for example. Default: release- and a content hash.")
    parser.add_argument("--commit_message", help='Of the one commit. Default: "Release" and the tag.')
    parser.add_argument("--license", help="Licence of the model, for example apache-2.0; else the card has none.")
    parser.add_argument("--language", nargs="+", default=[], help="Of the training text, for example en.")
    parser.add_argument("--results", metavar="FILE", help="results.json of eval_sts.py. Default: train.py's scores.")
    parser.add_argument(
        "--seeds", nargs="+", default=[], metavar="DIR", help="The same training with other seeds: mean and deviation."
    )
    for argument in fields(ReleaseArguments):
        parser.add_argument(f"--{argument.name}", action="store_true", help=argument.metadata["help"])
    parser.add_argument("--sts_dir", metavar="DIR", help="--onnx_int8: where STS-B is, as in eval_sts.py.")
    parser.add_argument("--pairs", metavar="FILE", help="--onnx_int8: graded pairs of your own, instead of STS-B.")
    return ReleaseOptions(**vars(parser.parse_args(arguments)))


def main() -> None:
    with one_line_errors("model_card"):
        release(parse_arguments())


if __name__ == "__main__":
    main()
