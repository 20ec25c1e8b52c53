# make quickstart   set everything up and see the main job work, offline, in minutes
# make test         set everything up and run the fast tests
# make lint         what the linters say;  make slow: the slow tests;  make docs: the pages made from the code
# make site         the documentation as a site, in build/site

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# A machine whose own torch sees an accelerator keeps that torch; elsewhere constraints.txt names the build.
OWN_TORCH := $(shell $(PYTHON) -c "import torch; print(int(torch.cuda.is_available()))" 2>/dev/null)
ifeq ($(OWN_TORCH),1)
VENV_FLAGS := --system-site-packages
UNPINNED := ^torch==
else
UNPINNED := ^$$
endif

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test slow lint docs site clean

quickstart: $(STAMP)
	$(BIN)/turncoder quickstart --output runs/quickstart

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not slow and not gpu" -n 2 --dist loadfile

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "slow and not gpu" -n 2 --dist load

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

docs: $(STAMP)
	$(BIN)/python -c "from pathlib import Path; from turncoder.model.architectures import write_docs; \
	write_docs(Path('docs/architectures.md'))"

site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	grep -v '$(UNPINNED)' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install -q -c $(VENV)/constraints.txt torch
	$(BIN)/pip install -q -c $(VENV)/constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
