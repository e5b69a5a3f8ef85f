# make run    starts Pixel on this machine; nothing but a Rust toolchain is needed
# make test   proves it, a real RabbitMQ included
# make check  formatting, lints, documentation and tests: the whole gate
# make up     starts the whole system in containers; down, logs, ps
# make bench  measures it beside what people would use instead
# make chaos  runs it under random faults for MINUTES
# make test-compose  proves the containers; installs a Docker engine where it may

.DEFAULT_GOAL := help
SHELL := /bin/bash

help: ## Show this list
	@sed -n 's/^# make/make/p' Makefile

run: ## Build Pixel and start it
	@cargo build --release --locked --bin pixel
	@echo
	@echo '  try    curl -i http://127.0.0.1:8080/track'
	@echo '  watch  tail -F /tmp/visits.log'
	@echo '  paste  <img src="http://127.0.0.1:8080/track" alt="" width="1" height="1">'
	@echo
	@exec target/release/pixel

test: ## Run every test
	@tests/require-packages
	cargo test --locked

check: lint test ## Run the whole gate

lint: ## Formatting, lints, documentation
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items

include deploy/compose.mk
include bench/bench.mk
include tests/chaos.mk

.PHONY: help run test check lint
