# PACS Bridge. `make demo` needs Rust alone; `make test` fetches the other tools it needs and says so.
.DEFAULT_GOAL := help
SHELL := /bin/bash

export VENV := $(CURDIR)/.venv
export TOOLS := $(CURDIR)/.tools

.PHONY: help demo test bench paper build lint unit contracts deny tools fuzz clean

help:
	@echo "make demo    a site on this machine: studies in, onto the ledger, evicted, and out again; then two sites and a patient"
	@echo "make test    everything, with other people's software as judge"
	@echo "make bench   figures beside Orthanc and DCMTK in the same run"
	@echo "make paper   tables and figures of two papers beside ours in the same run"
	@echo "make build   the release binary, target/release/pacs-bridge"

build:
	cargo build --release --locked -p bridge

# ARGS=--exit ends the demonstration instead of waiting for Ctrl-C.
demo: build
	target/release/pacs-bridge demo $(ARGS)

tools:
	@scripts/setup.sh

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

# This builds the program too: package bridge has integration tests of its own. ARGS are those of `cargo test`, all packages without.
unit:
	python3 scripts/run_tests.py $(ARGS)
	cargo test --doc --workspace --locked

contracts:
	contracts/test.sh

deny:
	@scripts/deny.sh

test: tools lint unit contracts deny

bench: tools build
	scripts/bench-setup.sh
	cargo run --release --locked -p tests --bin bench -- $(ARGS)

# About four hours, mostly of waiting for blocks: ARGS="--images 9" is a hundredth of the paper's images, --full all of them.
paper: tools build
	cargo run --release --locked -p tests --bin bench -- paper $(ARGS)

clean:
	cargo clean
