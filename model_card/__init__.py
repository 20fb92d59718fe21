"""
Releases: a trained model as one verified folder with its card, and the upload to the Hub.

`python -m model_card` is the command, `options.py` has its options, and `release.py` builds the folder. Its content is
written by `folder.py`, `plain.py` (models that need no code) and `onnx_files.py`. `check.py` verifies it in a separate
process. `facts.py` reads what was recorded and measured; `card.py` and `card.md` make the README.md from it. `hub.py`
pushes the release. `space.py` makes its Space, whose page is `app.py`.
"""
