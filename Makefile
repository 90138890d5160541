# make demo · make run · make test · make check · make bench · make setup
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv/.installed-bench

.PHONY: demo run setup test check bench bench-classify bench-scale bench-scrape bench-train chromium docker-check
.DEFAULT_GOAL := run

demo: setup            ## the whole job on real images, then the page until Ctrl-C
	@$(BIN)/darkroom demo

run: setup             ## the system at http://127.0.0.1:8000
	@$(BIN)/darkroom up

setup: $(STAMP)        ## .venv with pinned dependencies; quick when nothing changed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Darkroom needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,redis-server,dev]'
	@touch $@

test: setup chromium   ## the whole test suite
	$(BIN)/python -m pytest $(TESTS)

bench: $(BENCH_STAMP)  ## all benchmarks, one after the other: each wants the machine for itself
	$(MAKE) --no-print-directory bench-classify
	$(MAKE) --no-print-directory bench-scale
	$(MAKE) --no-print-directory bench-scrape
	$(MAKE) --no-print-directory bench-train

bench-classify: $(BENCH_STAMP)  ## labelling beside fastai and Ray Data; writes docs/benchmarks.md
	@$(BIN)/python -m benchmarks.classify $(BENCH)

bench-scale: $(BENCH_STAMP)     ## a batch of a million: memory, Redis, queue; writes docs/benchmarks.md
	@$(BIN)/python -m benchmarks.scale $(BENCH)

bench-scrape: setup    ## downloading beside fastai's download_images and img2dataset; writes docs/benchmarks.md
	@$(BIN)/python -m benchmarks.scrape $(BENCH)

bench-train: setup     ## training beside the recipe of the fastai course; writes docs/benchmarks.md
	@$(BIN)/python -m benchmarks.train $(BENCH)

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

check: setup           ## lint, types, import rules, docker files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(MAKE) --no-print-directory docker-check

docker-check: setup    ## Dockerfiles and compose files, without a Docker engine
	$(BIN)/hadolint docker/web.Dockerfile docker/worker.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml docker/gpu.yaml

chromium:              ## a browser for the browser tests; elsewhere than on Debian as root they use the one on PATH or skip
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || command -v google-chrome-stable >/dev/null || \
	if [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ]; then \
	  echo "installing chromium for the browser tests"; \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	else echo "no Chromium on PATH: the browser tests will skip"; fi
