# The commands to know: `make help` lists them. Each sets up what it needs first and is quick when nothing changed.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check bench soak lock clean setup FORCE

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

BLOCKS ?= 8
EXECUTORS ?= 4
JSON ?=
MALICIOUS ?=
ONLY ?=
MINUTES ?= 30
ARGS ?=

help: ## This list
	@echo "make demo                    five nodes race to write a story, a client reads it"
	@echo "  [BLOCKS=8] [EXECUTORS=4]   how long, and how many race"
	@echo "  [MALICIOUS=1] [JSON=1]     a stranger breaks every rule; for programs"
	@echo "make setup                   what the programs need, in .venv; others call it"
	@echo "make test [ARGS='-k name']   every test; npm fetches js-libp2p once"
	@echo "make check                   ruff, mypy and the import contracts"
	@echo "make bench [ONLY=name]       measure; prints ratios and raw figures"
	@echo "make soak [MINUTES=30]       five nodes under load, kills, cuts and lies"
	@echo "make lock                    resolve requirements.in into requirements.lock"
	@echo "make clean                   remove everything that make has made"

demo: $(READY)
	@$(BIN)/loremesh demo --blocks '$(BLOCKS)' --executors '$(EXECUTORS)' $(if $(filter-out 0,$(MALICIOUS)),--malicious) \
		$(if $(filter-out 0,$(JSON)),--json)

test: $(READY)
ifeq ($(ARGS),)
	@$(BIN)/python tests/run.py
else
	@$(BIN)/python -m pytest --ignore=tests/bench $(ARGS)
endif

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy packages bin tests $(if $(wildcard examples/*.py),examples)
	$(BIN)/lint-imports --no-logo

bench: $(READY)
	@$(BIN)/python tests/bench/run.py $(if $(ONLY),--only '$(ONLY)')

soak: $(READY)
	@$(BIN)/python tests/soak/soak.py --minutes '$(MINUTES)' $(if $(filter-out 0,$(JSON)),--json)

# uv, because it resolves for every platform at once, honours overrides and writes hashes. Nothing else needs it.
lock: $(READY)
	@$(BIN)/uv --version >/dev/null 2>&1 || $(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile requirements.in --overrides requirements.overrides --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet \
		--output-file requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis demo-run
	find packages bin tests examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

setup: $(READY)

# The stamp holds the folder it was made in: scripts and editable installs name their folder, so a moved checkout, or
# an interpreter that is gone, means making the environment anew.
ifneq ($(shell test -x $(BIN)/python && cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): FORCE
endif
$(READY): requirements.lock packages/loremesh/pyproject.toml $(wildcard bin/*/pyproject.toml) scripts/set-up.sh
	@sh scripts/set-up.sh $(VENV) '$(CURDIR)' >&2
