"""
Releases: a trained model as one clean, verified folder with an honest card, and its way to the Hub.

`release.py` builds, verifies and pushes the folder; `card.py` and `card.md` write its README.md from what was scored
and from `record.py`'s account of the training; `check.py` is what the verification runs in a process of its own;
`python -m model_card` is the command.
"""
