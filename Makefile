# Two commands are enough on a fresh machine with Python >= 3.11, make and a package index:
#   make demo   sets up .venv and plays real multi-turn tool conversations on the embedded engine
#   make test   sets up .venv and runs every check: lint, types, and the tests against the built wheel
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
DEMO_OUT ?= demo-run
# Processes that share the hermetic tests; each loads tokenizers of its own (1 GB).
WORKERS ?= 2
SOURCES := $(shell find src -type f -not -name '*.pyc') pyproject.toml README.md LICENSE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs clean

help:
	@echo "make demo         play real conversations on the embedded engine and print the proof"
	@echo "make test         lint, types, and all tests against the built wheel"
	@echo "make test-dynamo  the same rollouts through a real Dynamo (own venv under .engines)"
	@echo "make test-vllm    the same rollouts through a real vLLM on CPU (own venv under .engines, 2.5 GB)"
	@echo "make test-dynamo-vllm  a real vLLM behind a real Dynamo (own venv under .engines, 2.8 GB)"
	@echo "make test-engines all three suites on real engines, one after another"
	@echo "make test-templates  every real template at hand, long (needs ../shared/tokenizers)"
	@echo "make templates-from-index  the table of every template that llama.cpp and TRL carry (package index, 80 MB)"
	@echo "make test-mutations  seeded faults, each of which a test must catch"
	@echo "make docs         build the documentation into build/docs"
	@echo "make clean        remove everything that make created"

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tokentrue needs Python >= 3.11; this is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11"; exit 2; }
	@echo "setting up $(VENV) (once, about half a minute)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The wheel is what users get, so the wheel is what is installed and tested; nothing is editable.
$(VENV)/wheel: $(VENV)/created $(SOURCES)
	@rm -rf build/wheel && $(PIP) wheel -q --no-deps -w build/wheel .
	@$(PIP) install -q $$(ls build/wheel/*.whl)
	@$(PIP) install -q --force-reinstall --no-deps $$(ls build/wheel/*.whl)
	@touch $@

$(VENV)/test-tools: $(VENV)/created pyproject.toml | $(VENV)/wheel
	@$(PIP) install -q "$$(ls build/wheel/*.whl)[test]"
	@touch $@

setup: $(VENV)/wheel $(VENV)/test-tools

demo: $(VENV)/wheel
	@$(VENV)/bin/tokentrue demo --out $(DEMO_OUT)

check: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check -q .
	@$(PY) -m mypy

test: check
	@$(PY) -m pytest -q -n $(WORKERS) --dist worksteal -m "not dynamo and not vllm and not dynamo_vllm"

# The site: the pages of docs/, and the reference of every public name. The tests build it too.
docs: $(VENV)/wheel $(VENV)/test-tools
	@$(PY) scripts/docs.py build build/docs
	@echo "built build/docs/index.html"

include servers/engines.mk
include make/templates.mk
include make/renderers.mk

clean:
	rm -rf $(VENV) .engines build dist demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
