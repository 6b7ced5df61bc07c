# Two commands matter: `make quickstart` runs the whole main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Every installation is held to the pins.
INSTALL := $(PIP) install --quiet -c constraints.txt
PLUGINS := huggingface-integration,cloud-storage,ollama-export,model-distillation,model-pruning
# Arguments for `apt_model quickstart`, as in: make quickstart ARGS="--model DIR"
ARGS ?=

.PHONY: quickstart test lint types sync docs messages benchmark clean

quickstart: $(VENV)/.installed-plugins
	$(BIN)/apt_model quickstart $(ARGS)

test: $(VENV)/.installed-dev lint types
	@# A temporary directory of this run's own: what another run left behind cannot fail this one.
	tmp=$$(mktemp -d) && chmod 755 "$$tmp" && { OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false TMPDIR="$$tmp" $(BIN)/python -m pytest -n 2 -q; \
	status=$$?; rm -rf "$$tmp"; exit $$status; }

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

sync: $(VENV)/.installed-dev
	$(BIN)/python tools/sync_requirements.py

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/generate_docs.py

messages: $(VENV)/.installed-dev
	$(BIN)/python tools/messages.py --check

benchmark: $(VENV)/.installed-plugins
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/info_70b.py
	$(BIN)/python benchmarks/fuzz_headers.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-plugins: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e ".[$(PLUGINS)]"
	@# llama.cpp checks the exported model; where it has no wheel, the report says that the check was left out.
	$(INSTALL) --only-binary=:all: xllamacpp || echo "no wheel of xllamacpp here: the llama.cpp check is left out"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	@touch $@
