"""The options of `python -m model_card`. Like sarcse/options.py it imports nothing that is slow."""

import shlex
from dataclasses import dataclass, field, fields

from sarcse.options import ReleaseArguments


@dataclass
class SpaceOptions:
    """
    Options of the command for a Space.

    Args:
        space (`str`): Folder that the Space is written to.
        push_space (`str`, *optional*): Its repository on the Hub, `you/name`. Without it the Space stays here.
        public_space (`bool`): Make a new Space public even if its model is private.
        beside (`str`, *optional*):
            Folder or Hub id of the second model. Default: the encoder that the training started from.
        trust_remote_code (`bool`): The page may run a model's code that is not this installation's.
    """

    space: str
    push_space: str | None = None
    public_space: bool = False
    beside: str | None = None
    trust_remote_code: bool = False

    def flags(self) -> list[str]:
        """The flags that make this Space again."""
        given = {f"--{f.name}": getattr(self, f.name) for f in fields(self)}
        return [
            part for flag, value in given.items() if value for part in ([flag] if value is True else [flag, value])
        ]


@dataclass
class ReleaseOptions(ReleaseArguments):
    """
    Options of the command and the trainer, in addition to the content of a release (`ReleaseArguments`).

    Args:
        model_dir (`str`): Output folder of the training.
        release_dir (`str`): Where the release is built; replaced each time.
        push (`str`, *optional*): Repository on the Hub, `you/name`. Without it the release stays here.
        private (`bool`): Make a new repository private.
        revision (`str`): Branch to push to.
        tag (`str`, *optional*): Name of this release. Default: `release-` and a hash of its content.
        commit_message (`str`, *optional*): Default: `Release` and the tag.
        license (`str`, *optional*): Licence of the model, for the card.
        language (`list[str]`): Languages of the training text, for the card.
        results (`str`, *optional*): results.json of eval_sts.py. Default: the scores that train.py wrote.
        seeds (`list[str]`): Folders of the same training with other seeds, for mean and deviation.
        sts_dir (`str`, *optional*), pairs (`str`, *optional*):
            What to score int8 on: STS-B in a folder with SentEval's layout, or a file of graded pairs. Default: STS-B
            from the Hub.
        space (`SpaceOptions`, *optional*): The release's Space. Default: none.
    """

    model_dir: str
    release_dir: str
    push: str | None = None
    private: bool = False
    revision: str = "main"
    tag: str | None = None
    commit_message: str | None = None
    license: str | None = None
    language: list[str] = field(default_factory=list)
    results: str | None = None
    seeds: list[str] = field(default_factory=list)
    sts_dir: str | None = None
    pairs: str | None = None
    space: SpaceOptions | None = None

    def command(self) -> str:
        """The command line that does this again."""
        parts = ["python", "-m", "model_card", self.model_dir, "--release_dir", self.release_dir]
        for name in ("push", "tag", "commit_message", "license", "results", "sts_dir", "pairs"):
            if getattr(self, name) is not None:
                parts += [f"--{name}", getattr(self, name)]
        for name in ("private", *(f.name for f in fields(ReleaseArguments))):
            parts += [f"--{name}"] * getattr(self, name)
        parts += ["--revision", self.revision] if self.revision != "main" else []
        for name in ("language", "seeds"):
            parts += [f"--{name}", *getattr(self, name)] if getattr(self, name) else []
        parts += self.space.flags() if self.space is not None else []
        return shlex.join(parts)
