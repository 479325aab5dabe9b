# Thin on purpose: each target is one command. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llmengine
CLUSTER := local

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{split($$1, t, ":"); printf "  make %-13s %s\n", t[1], $$2}'

.PHONY: demo
demo: .venv/ready ## Serve a real language model on a real Kubernetes node, from nothing
	$(BIN)/python -m tests.demo up --cluster $(CLUSTER) $(DEMO)

.PHONY: demo-down
demo-down: .venv/ready ## End the demo's cluster
	$(BIN)/python -m tests.demo down

.PHONY: test
test: lint tools ## Lint, then every test: unit, contract, cluster, e2e, faults
	$(BIN)/pytest tests/unit
	$(BIN)/pytest tests/contract
	$(BIN)/pytest tests/cluster
	$(BIN)/pytest tests/e2e
	$(BIN)/pytest tests/faults

.PHONY: unit
unit: .venv/ready ## Tests that need nothing and take seconds
	$(BIN)/pytest tests/unit

.PHONY: ci
ci: test ## What continuous integration runs

.PHONY: bench
bench: .venv/ready tools ## Measure, side by side, and print the tables of docs/performance.md
	$(BIN)/python -m tests.bench

.PHONY: lint
lint: .venv/ready ## Format, lint, import contracts, types, and that generated files are current
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/hadolint operator/Dockerfile builder_image/Dockerfile

.PHONY: tools
tools: ## Debian packages and Go programs that tests and demo run
	tests/cluster/cluster install

.PHONY: generate
generate: .venv/ready ## Write what is generated from the models
	$(BIN)/python -m llmengine.api.crd crds
	$(BIN)/python charts/generate.py
	$(BIN)/python docs/generate.py

.PHONY: golden
golden: ## Record anew what transformers computes (installs torch, several GB, beside the project)
	$(PYTHON) -m venv $(CACHE)/golden
	$(CACHE)/golden/bin/pip install --quiet --require-hashes --requirement tests/models/golden-requirements.lock
	$(CACHE)/golden/bin/python -m tests.models.record_golden

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

UV_COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --no-annotate
UV_LOCK := $(UV_COMPILE) --universal

.PHONY: lock
lock: .venv/ready ## Resolve the dependencies anew
	$(UV_LOCK) --extra operator --extra builder --extra server --extra dev pyproject.toml -o requirements.lock
	$(UV_LOCK) --extra operator -c requirements.lock pyproject.toml -o operator/requirements.lock
	$(UV_LOCK) --extra builder --extra server -c requirements.lock pyproject.toml -o builder_image/requirements.lock
	$(UV_LOCK) --extra builder --extra server --extra tensorrt --no-emit-package onnxruntime -c requirements.lock pyproject.toml -o builder_image/tensorrt.lock
	echo 'hatchling>=1.33' | $(UV_COMPILE) -c requirements.lock - -o builder_image/hatchling.lock
	echo 'nvidia-pytriton==0.7.0' | $(UV_COMPILE) --no-deps - -o builder_image/tritonserver.lock
	$(UV_LOCK) -c requirements.lock --python-version 3.11 tests/models/golden-requirements.in -o tests/models/golden-requirements.lock
