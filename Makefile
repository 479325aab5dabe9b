# Thin on purpose: each target is one command. `make help` lists them.
PYTHON ?= python3
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llmengine
BIN := .venv/bin

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: lint
lint: .venv/ready ## Format check, lint, import contracts and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

.PHONY: generate
generate: .venv/ready ## Write what is generated from the models
	$(BIN)/python -m llmengine.api.crd crds

LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate

.PHONY: lock
lock: ## Resolve the dependencies anew
	$(BIN)/python -m uv --version >/dev/null 2>&1 || ($(PYTHON) -m venv .venv && $(BIN)/pip install --quiet uv)
	$(LOCK) --all-extras pyproject.toml -o requirements.lock
	$(LOCK) --extra operator -c requirements.lock pyproject.toml -o operator/requirements.lock
	$(LOCK) --extra builder --extra server -c requirements.lock pyproject.toml -o builder_image/requirements.lock
