# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

# The demo and the tests are offline; only the package index is needed, once.
export HF_HUB_OFFLINE := 1

.PHONY: demo test compat lint clean

# Trains SARCSE, and SimCSE with the same data, steps and batch, on demo/; scores both beside the encoder that they
# start from; loads the result in a new process.
demo: .venv/installed
	$(BIN)/python train.py
	$(BIN)/python train.py recipes/demo.yaml --pooler cls --reconstruction_weight 0 --output_dir output/demo-simcse
	$(BIN)/python eval_sts.py demo/encoder output/demo-simcse output/demo --pairs demo/sts.tsv --output_dir output/demo-sts
	$(BIN)/python demo/load.py output/demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # fixtures of a file are made once

# The demo's release under older and newer versions of its libraries, each in an environment of its own: the table of
# the README; and its score by mteb. Gigabytes of downloads; no part of the tests.
compat: .venv/installed-dev
	test -f output/demo/config.json || $(BIN)/python train.py
	$(BIN)/python -m model_card output/demo --release_dir output/demo-release
	$(BIN)/python tests/compat.py output/demo-release
	$(BIN)/python -m tests.compat_mteb output/demo-release $(if $(SARCSE_DATA),--sts_dir $(SARCSE_DATA)/data/senteval)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv output

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
