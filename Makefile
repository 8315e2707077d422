# StreamServe. `make` or `make help` lists what there is; every target builds what it needs first.

PYTHON ?=
BIN := .venv/bin
ARGS ?=
BENCH ?= run router_cpu first_token
ENGINE_ENVIRONMENT := HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1

.DEFAULT_GOAL := help
.PHONY: help env demo up test test-unit test-e2e test-controlplane test-faults cluster-up cluster-down test-cluster \
	test-vllm-0.26 check check-chart generate bench bench-simulator bench-operator env-vllm-0.26 images requirements clean
.SILENT:

help: ## This list
	printf 'usage: make TARGET [ARGS="…"]\n\n'
	awk -F ':.*## ' '/^[a-zA-Z0-9_.-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' Makefile

env: ## Build .venv: Python, vLLM for CPU, this project (about 6 GB; nothing to do the second time)
	PYTHON="$(PYTHON)" hack/env.sh

demo: env ## Real engines on this machine: 2 lanes, 24 prompts, speculation depth changed while tokens stream
	$(BIN)/python hack/demo.py $(ARGS)

up: env ## Start everything locally and stay up until Ctrl-C (ARGS="--engine Simulator" needs no vLLM)
	$(BIN)/streamserve up -f examples/local/streampair.yaml $(ARGS)

test: env ## Every test: unit, contract, on a real API server (built the first time; cached), with real engines
	$(ENGINE_ENVIRONMENT) $(BIN)/python hack/test.py $(ARGS)

test-unit: env ## The fast tests only: under a minute, no engine
	$(BIN)/python -m pytest tests/unit --timeout=60 $(ARGS)

test-e2e: env ## The end-to-end tests only: real engines, minutes
	$(ENGINE_ENVIRONMENT) $(BIN)/python -m pytest tests/e2e $(ARGS)

test-controlplane: env ## The tests on a real API server only: the CRDs and the operator, ten minutes or more
	$(BIN)/python hack/cluster/build.py
	$(BIN)/python -m pytest tests/controlplane $(ARGS)

test-faults: env ## Every crash point and fault of the operator, in slices of 25 minutes: run it again until it says passed
	$(BIN)/python hack/cluster/build.py
	$(BIN)/python -m pytest -p tests.support.slices --everything --slice-minutes 25 \
		--done .cache/faults-$$(git rev-parse --short HEAD) tests/controlplane/faults $(ARGS)

cluster-up: env ## A real Kubernetes of two nodes on this machine, as root (builds it the first time; minutes)
	$(BIN)/python hack/cluster/cluster.py up

cluster-down: ## End it and remove everything of it
	$(BIN)/python hack/cluster/cluster.py down

test-cluster: env ## The chart and the operator on that cluster, from install to uninstall (starts it if it is not up)
	$(BIN)/python hack/helm/build.py
	$(BIN)/python -m pytest tests/cluster --timeout=3600 $(ARGS)

test-vllm-0.26: env-vllm-0.26 ## The worker's tests on vLLM 0.26.0, the version for torch 2.11 and CUDA 13
	$(ENGINE_ENVIRONMENT) .venv-vllm-0.26/bin/python -m pytest tests/e2e/worker $(ARGS)

env-vllm-0.26: ## Build .venv-vllm-0.26, only for the target above
	PYTHON="$(PYTHON)" hack/env.sh --venv .venv-vllm-0.26 --requirements requirements/worker-cpu-0.26.txt

check: env ## Format, lint, types, layers, protos, generated files, house rules, Helm chart (builds Helm the first time)
	$(BIN)/python hack/check.py $(ARGS)

check-chart: env ## All of the Helm chart: rendered, then installed on a real API server with Redis and Prometheus
	$(BIN)/python hack/helm/build.py
	$(BIN)/python hack/cluster/build.py
	$(BIN)/python hack/cert_manager/build.py
	$(BIN)/python hack/helm/validator.py
	hack/redis.sh > /dev/null
	hack/promtool.sh > /dev/null
	$(BIN)/python -m pytest tests/chart $(ARGS)

images: env ## Build the operator's, router's and worker's images (ARGS="--wheels" only fetches what goes in)
	$(BIN)/python hack/images/build.py $(ARGS)

generate: env ## Write what is derived: Python from the protos, docs/settings.md and crds/ from the models, the chart
	$(BIN)/python hack/generate.py

bench: env ## The three benchmarks of bench/README.md: path, router's CPU, first token (BENCH=run: the path alone; long)
	export $(ENGINE_ENVIRONMENT) $(foreach part,$(if $(filter --list --report,$(ARGS)),$(firstword $(BENCH)),$(BENCH)), \
		&& $(BIN)/python bench/$(part).py $(if $(filter $(part),$(firstword $(BENCH))),$(ARGS),$(filter --quick,$(ARGS))))

bench-simulator: env ## The simulator against the engine it was recorded from
	$(ENGINE_ENVIRONMENT) $(BIN)/python bench/simulator.py $(ARGS)

bench-operator: env ## The operator with a thousand StreamPairs on a real API server (half an hour)
	$(BIN)/python hack/cluster/build.py
	$(BIN)/python bench/operator_scale.py $(ARGS)

requirements: env ## Compile requirements/*.txt anew from pyproject.toml and requirements/*.in
	hack/compile_requirements.sh $(ARGS)

clean: ## Remove caches and built files; the environments stay (remove .venv by hand)
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find proto operator router worker cli hack bench tests -name __pycache__ -type d -prune -exec rm -rf {} +
