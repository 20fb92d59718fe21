"""
Build, verify and push a release, and its Space.

    python -m model_card MODEL --release_dir OUT [--push you/sarcse-x] [--tag v1]
    python -m model_card MODEL --space DIR [--push_space you/sarcse-x]
"""

import argparse
from dataclasses import fields

from model_card.release import ReleaseOptions, release
from model_card.space import SpaceOptions, check_space, make_space
from sarcse.arguments import ReleaseArguments
from sarcse.parsing import one_line_errors


# Besides the Space's own options, what a Space without a new release goes by.
OF_SPACE = ("model_dir", "private", "revision")


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model_card",
        description="Build a release of a trained model, verify it, and push it in one commit. Make a Space, a page "
        "that shows the model, of this release or of one that there is already.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model_dir",
        metavar="MODEL",
        help="The output folder of train.py; for a Space alone, the folder of a release or its name on the Hub.",
    )
    parser.add_argument("--release_dir", metavar="OUT", help="Where to build the release; made anew each time.")
    parser.add_argument("--push", metavar="REPO", help="Push it to this repository, you/name. Default: build only.")
    parser.add_argument("--private", action="store_true", help="Make new repositories private.")
    parser.add_argument(
        "--revision",
        default="main",
        metavar="BRANCH",
        help="Branch to push to (main); for a Space alone, also a tag or commit of the release on the Hub.",
    )
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
    parser.add_argument(
        "--space", metavar="DIR", help="Write a Space of the release here. `python DIR/app.py` shows it."
    )
    parser.add_argument("--push_space", metavar="REPO", help="Push the Space to this repository, you/name, too.")
    parser.add_argument(
        "--beside",
        metavar="MODEL",
        help="Second model of the Space: a release, or an encoder under mean pooling. Default: the encoder that the "
        "training started from, if it is on the Hub.",
    )
    return parser


def run(arguments: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: the options do not go together, or what `release` and `make_space` raise.
    """
    parser = argument_parser()
    given = vars(parser.parse_args(arguments))
    changed = [name for name, value in given.items() if value != parser.get_default(name)]
    of_space = {f.name: given.pop(f.name) for f in fields(SpaceOptions)}
    if of_space["space"] is None and (needing := set(changed) & of_space.keys()):
        raise ValueError(f"--{min(needing)} needs --space DIR, where the Space is written.")
    space = SpaceOptions(**of_space) if of_space["space"] is not None else None
    if space is not None:
        check_space(space, given["model_dir"], given["release_dir"], given["push"])
    if given["release_dir"] is not None:
        release(ReleaseOptions(**given, space=space))
    elif space is None:
        raise ValueError("give --release_dir OUT for a release, --space DIR for the Space of one, or both.")
    elif of_release := [name for name in changed if name not in (*OF_SPACE, *of_space)]:
        raise ValueError(f"--{of_release[0]} is of a new release: give --release_dir OUT as well, or leave it out.")
    else:
        make_space(given["model_dir"], given["revision"], space, given["private"])


def main() -> None:
    with one_line_errors("model_card"):
        run()


if __name__ == "__main__":
    main()
