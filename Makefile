# The front door: a bare `make` lists what there is. Every target sets up what it needs; CI calls the same ones.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build dist test demo bench fuzz vm cluster check fix clean

# dev, release or dist.
PROFILE ?= dev
# Kernels for `make vm`; empty: the default set, `all`: every one that is known.
KERNELS ?=
# Programs are attached by root alone.
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the one binary, target/<host>/debug/dinle (PROFILE=dist for the one to ship)
	@e2e/setup build
	cargo build --workspace --profile $(PROFILE)

dist: ## build what is shipped, for both architectures, on amd64: target/dist has the image's content, and archives of the kubectl plugin
	@e2e/dist amd64
	@e2e/dist arm64

test: ## run every test that this machine can run, cheapest first; the last line sums them up
	@e2e/run-tests

demo: build ## show exec and exit events of three small pods, on this machine, for DEMO_SECONDS=10
	@$(SUDO) e2e/demo

bench: ## run the benchmarks
	@e2e/setup build
	cargo bench

fuzz: ## fuzz what reads bytes from elsewhere, each target for DINLE_FUZZ_SECONDS=20
	@e2e/run-tests fuzz

vm: ## run the kernel tests in virtual machines (KERNELS="5.10 6.12", or all)
	@e2e/setup build
	@e2e/setup vm
	cargo build --workspace
	$$(ls -t target/*/debug/vm | head -n 1) $(KERNELS)

cluster: ## run the cluster tests: in the cluster of KUBECONFIG, or in one that DINLE_CLUSTER makes
	@e2e/run-tests cluster

check: ## look for what is wrong without running it: rustfmt, clippy, buf, shellcheck, cargo-deny
	@e2e/setup check
	cargo fmt --all --check
	cargo fmt --manifest-path agent/fuzz/Cargo.toml --check
	DINLE_EBPF_DENY_WARNINGS=1 cargo clippy --workspace --all-targets --locked -- -D warnings
	target/venv/bin/buf lint proto
	target/venv/bin/buf format --diff --exit-code proto
	shellcheck e2e/setup e2e/cross e2e/debian e2e/dist e2e/stranger .ci/run
	@if cargo deny --version >/dev/null 2>&1; then \
		echo cargo deny check bans licenses sources; cargo deny check bans licenses sources; \
	else \
		echo "skipped: cargo-deny is not installed (cargo install --locked cargo-deny)"; \
	fi

fix: ## repair what rustfmt, clippy and buf can repair themselves
	@e2e/setup check
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all
	cargo fmt --manifest-path agent/fuzz/Cargo.toml
	target/venv/bin/buf format --write proto

clean: ## remove what was built
	rm -rf target
