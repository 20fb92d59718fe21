"""
Releases: a trained model as one clean, verified folder with an honest card, and its way to the Hub.

`release.py` builds the folder. What is in it says `folder.py`, with `plain.py` for models that need no code of ours
and `onnx_files.py`; `check.py` is what its verification runs in a process of its own. `facts.py` reads what was
recorded and measured, and `card.py` and `card.md` write its README.md from that. `hub.py` pushes it. `space.py`
makes the Space of a release, whose page is `app.py`. `python -m model_card` is the command.
"""

import sarcse.trainer  # noqa: F401  # before the modules here, which it imports: so their order is always one
