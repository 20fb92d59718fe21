"""
Build, verify and push a release, and its Space.

    python -m model_card MODEL --release_dir OUT [--push you/sarcse-x] [--tag v1]
    python -m model_card MODEL --space DIR [--push_space you/sarcse-x]
"""

import argparse
import shlex
import sys
from dataclasses import fields

from sarcse.options import RELEASE_COMMAND, ReleaseArguments, ReleaseOptions, SpaceOptions, in_utf8, one_line_errors


# Options that apply to a Space without a new release, besides the Space's own.
OF_SPACE = ("model_dir", "private", "revision")


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=" ".join(RELEASE_COMMAND),
        description="Build a release of a trained model, verify it, and push it in one commit. Make a Space (a demo "
        "page) for this release or for an existing one.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model_dir",
        metavar="MODEL",
        help="The output folder of train.py; for a Space alone, the folder of a release or its name on the Hub.",
    )
    parser.add_argument("--release_dir", metavar="OUT", help="Where to build the release; replaced each time.")
    parser.add_argument("--push", metavar="REPO", help="Push it to this repository, you/name. Default: build only.")
    parser.add_argument("--private", action="store_true", help="Make new repositories private.")
    parser.add_argument(
        "--revision",
        default="main",
        metavar="BRANCH",
        help="Branch to push to. For a Space alone: branch, tag or commit of the release on the Hub. Default: main.",
    )
    parser.add_argument("--tag", help="Name of this release, for example v1. Default: release- and a content hash.")
    parser.add_argument("--commit_message", help='Commit message. Default: "Release" and the tag.')
    parser.add_argument("--license", help="Licence of the model, for example apache-2.0. Default: none in the card.")
    parser.add_argument(
        "--language", nargs="+", default=[], help="Language or languages of the training text, for example en."
    )
    parser.add_argument("--results", metavar="FILE", help="results.json of eval_sts.py. Default: train.py's scores.")
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=[],
        metavar="DIR",
        help="Output folders of the same training with other seeds; adds mean and deviation to the card.",
    )
    parser.add_argument(
        "--prompt",
        nargs="+",
        default=[],
        metavar="NAME=TEXT",
        help='What sentence-transformers puts before a text, by name: query="query: ". No training uses it.',
    )
    for argument in fields(ReleaseArguments):
        parser.add_argument(f"--{argument.name}", action="store_true", help=argument.metadata["help"])
    parser.add_argument("--sts_dir", metavar="DIR", help="For --onnx_int8: where STS-B is, as in eval_sts.py.")
    parser.add_argument("--pairs", metavar="FILE", help="For --onnx_int8: your own graded pairs instead of STS-B.")
    parser.add_argument(
        "--space", metavar="DIR", help="Write a Space of the release to this folder. Run it with `python DIR/app.py`."
    )
    parser.add_argument(
        "--push_space",
        metavar="REPO",
        help="Also push the Space to this repository, you/name. It is private if its model is.",
    )
    parser.add_argument(
        "--public_space", action="store_true", help="Make the Space public even if its model is private."
    )
    parser.add_argument(
        "--beside",
        metavar="MODEL",
        help="Second model in the Space: a release, a model of sentence-transformers, or an encoder (with mean "
        "pooling). Default: the encoder that the training started from, if it is on the Hub.",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="Let the Space run a model's code that is not this installation's. Read the code first.",
    )
    return parser


def run(arguments: list[str] | None = None) -> None:
    """
    Raises:
        ValueError: an option is not UTF-8, they do not go together, or whatever `release` and `make_space` raise.
    """
    parser = argument_parser()
    given = vars(parser.parse_args(in_utf8(sys.argv[1:] if arguments is None else arguments)))
    changed = [name for name, value in given.items() if value != parser.get_default(name)]
    of_space = {f.name: given.pop(f.name) for f in fields(SpaceOptions)}
    if of_space["space"] is None and (needing := set(changed) & of_space.keys()):
        raise ValueError(f"--{min(needing)} needs --space DIR, the folder that the Space is written to.")
    space = SpaceOptions(**of_space) if of_space["space"] is not None else None
    if space is None and given["release_dir"] is None:
        release_dir = shlex.quote(f"{given['model_dir'].rstrip('/')}/release")
        raise ValueError(
            f"give --release_dir {release_dir} to build a release, --space DIR to write a Space, or both."
        )
    of_release = [name for name in changed if name not in (*OF_SPACE, *of_space)]
    if given["release_dir"] is None and of_release:
        raise ValueError(f"--{of_release[0]} applies to a new release: add --release_dir OUT, or leave it out.")
    # torch and the rest, which take seconds, are for options that are right.
    from sarcse.release.build import release
    from sarcse.release.space import check_space, make_space

    if space is not None:
        check_space(space, given["model_dir"], given["release_dir"], given["push"])
    if given["release_dir"] is not None:
        release(ReleaseOptions(**given, space=space))
    elif space is not None:
        make_space(given["model_dir"], given["revision"], space, given["private"])


def main() -> None:
    with one_line_errors("model_card"):
        run()


if __name__ == "__main__":
    main()
