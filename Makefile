# The few things one does here. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Builds and tools are kept outside the clone, so that a fresh clone does not start from nothing.
# Set CARGO_TARGET_DIR to build elsewhere, CHANDLER_CACHE to keep everything elsewhere.
export CHANDLER_CACHE ?= $(HOME)/.cache/chandler
ifndef CARGO_TARGET_DIR
ifneq ($(shell mkdir -p "$(CHANDLER_CACHE)/target" 2>/dev/null && test -w "$(CHANDLER_CACHE)/target" && echo yes),)
export CARGO_TARGET_DIR := $(CHANDLER_CACHE)/target
endif
endif

.PHONY: help demo demo-kubernetes demo-platform run test test-real check bench bench-kube bench-bindings image testbed gen deps

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: deps ## Build, start a broker and take a real PostgreSQL through its whole life
	@scripts/demo.sh

demo-kubernetes: deps ## The same story with pods, on a Kubernetes node of its own (root)
	@scripts/demo-kubernetes.sh

demo-platform: deps ## A secret of its own for every application: with Keycloak and Vault beside the node (root)
	@scripts/demo-platform.sh

run: deps ## Serve on http://127.0.0.1:8080 until stopped (ARGS="--port 9090")
	cargo run --release -- dev $(ARGS)

test: deps ## Run all tests (ARGS="--lib config" for some)
	$(if $(ARGS),cargo test --locked $(ARGS),scripts/test.sh)

test-real: deps ## Test with real pods on a Kubernetes node, and on MinIO, Cassandra, CouchDB (root)
	@scripts/test-real.sh $(ARGS)

check: ## Format, lints, documentation, dependencies, catalog, generated files, chart
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --test kubernetes --test platform -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	scripts/deny.sh
	cargo run --quiet --locked -- catalog check
	scripts/gen.sh --check
	scripts/chart-check.sh

bench: deps ## Measure speed and memory; the method is in bench/README.md
	@bench/run.sh

bench-kube: deps ## Measure the Kubernetes provisioner on a node of its own (root)
	@bench/kube.sh $(ARGS)

bench-bindings: deps ## Measure binds, unbinds and the sweep with a real Keycloak and Vault (root)
	@bench/bindings.sh $(ARGS)

image: ## Make a container image of the release binary
	@scripts/image.sh $(ARGS)

testbed: ## Start a Kubernetes node for tests, as root (ARGS="kubernetes vault"); tests/testbed/README.md
	@tests/testbed/up $(ARGS)

gen: ## Make the generated files anew
	scripts/gen.sh

deps: ## Install the Debian packages that are missing
	@scripts/deps.sh
