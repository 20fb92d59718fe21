# On a fresh machine, `make demo` and `make test` set up everything they need.
PYTHON ?= python3
BIN := .venv/bin

# The demo and the tests run offline; only the installation needs the package index.
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-fast compat benchmarks lint docs clean

# Trains SARCSE and SimCSE on demo/queries.tsv with the same steps and batch size, scores both and the encoder that they
# start from, by categories and on graded pairs, draws a map, and loads the result in a new process. SimCSE has the
# settings that the study chose for it on an encoder of this size.
SIMCSE := --pooler cls --reconstruction_weight 0 --learning_rate 1e-3 --contrastive_temperature 0.02
SCORED := --labelled demo/queries.tsv --pairs demo/sts.tsv --output_dir output/demo-scores
demo: .venv/installed
	$(BIN)/python train.py
	$(BIN)/python train.py recipes/demo.yaml $(SIMCSE) --output_dir output/demo-simcse
	$(BIN)/python eval_sts.py demo/encoder output/demo-simcse output/demo $(SCORED)
	$(BIN)/python demo/load.py output/demo

test: .venv/installed-dev .venv/fastembed/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # so that the fixtures of a file are built once

# An answer within a minute: what needs neither a training from the shell nor another program.
FAST := arguments comparison configuration figures losses modeling structure
test-fast: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(FAST:%=tests/test_%.py) -m "not realdata"

# The compatibility tables of docs/usage.md: a release of the demo's model and a plain one, with older and newer versions of
# their libraries and in programs that read ONNX files, each in a separate environment. Also scores the first with mteb.
# Downloads gigabytes and needs node for Transformers.js, so it is not part of the tests.
PLAIN := recipes/demo.yaml --pooler mean --frequency_smoothing 1e-5 --view_dropout 0 --output_dir output/demo-mean
compat: .venv/installed-dev
	test -f output/demo/config.json || $(BIN)/python train.py
	test -f output/demo-mean/config.json || $(BIN)/python train.py $(PLAIN)
	$(BIN)/python -m model_card output/demo --release_dir output/demo-release --onnx_int8 --pairs demo/sts.tsv
	$(BIN)/python -m model_card output/demo-mean --release_dir output/demo-plain --onnx_int8 --pairs demo/sts.tsv
	$(BIN)/python tests/compat.py output/demo-release output/demo-plain
	$(BIN)/python -m tests.compat_mteb output/demo-release $(if $(SARCSE_DATA),--sts_dir $(SARCSE_DATA)/data/senteval)

# All CPU figures in benchmarks/results. Takes some hours on an otherwise idle machine, and needs the real data (found
# through SARCSE_DATA).
RESULTS := benchmarks/results
THREE := sarcse simcse sentence_transformers
benchmarks: .venv/installed-dev
	$(BIN)/python -m benchmarks.train_speed --encoders mini --batch_sizes 64 --output $(RESULTS)/train_speed.json
	$(BIN)/python -m benchmarks.train_speed --encoders mini --batch_sizes 512 --sentences 2048 --repeats 2 \
		--programs $(THREE) --output $(RESULTS)/train_speed_512.json  # with one batch per turn, turns would differ by half
	$(BIN)/python -m benchmarks.train_speed --encoders base --batch_sizes 64 --sentences 128 --repeats 2 \
		--programs $(THREE) --output $(RESULTS)/train_speed_base.json  # all five do not fit into memory
	$(BIN)/python -m benchmarks.step_profile --bf16 --output $(RESULTS)/step_profile.json
	$(BIN)/python -m benchmarks.encode_speed --output $(RESULTS)/encode_speed.json
	$(BIN)/python -m benchmarks.growth --bf16 --output $(RESULTS)/growth.json
	mv $(RESULTS)/growth.png docs/ && rm $(RESULTS)/growth.svg

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in output/site. Broken links are errors; the variable silences a notice of the theme.
docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv output

# A separate environment: fastembed needs huggingface_hub before 2, the other packages use the newest.
.venv/fastembed/installed:
	$(PYTHON) -m venv .venv/fastembed
	.venv/fastembed/bin/python -m pip install --quiet --disable-pip-version-check "fastembed>=0.9,<1"
	touch $@

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
