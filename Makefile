# The `##` texts are the only list of targets there is; `make help` prints them.

.DEFAULT_GOAL := help
SHELL := /bin/bash
# One part after another, also with -j: the cheap ones fail first, and cargo and apt-get take locks.
.NOTPARALLEL:
# The linters that tests/require-tools brings go before those of the machine.
TOOLS := PATH="$(CURDIR)/target/lint/bin:$$PATH"
# Built into the folder of everything else, the fuzz targets share most crates with the tests.
FUZZ := --manifest-path fuzz/Cargo.toml --target-dir "$${CARGO_TARGET_DIR:-target}"

help: ## Show this list
	@awk -F ':.*## ' ' \
	  FNR == 1 && NR > 1 { lines++ } \
	  /^[a-z-]+:.*## / { target[++lines] = $$1; text[lines] = $$2; \
	    if (length($$1) > width) width = length($$1) } \
	  END { for (i = 1; i <= lines; i++) \
	    if (target[i]) printf "make %-" width "s  %s\n", target[i], text[i]; else print "" }' \
	  $(MAKEFILE_LIST)

# Two minutes and 360 MB instead of three and 540: a tenth slower than what `make install` builds, and without Parquet and
# OpenTelemetry, which nobody wants in the first minutes.
QUICK_BUILD := cargo build --release --locked --no-default-features --bin pixel --config .cargo/quick.toml

run: ## Build Pixel and start it on this machine
	@$(QUICK_BUILD)
	@echo
	@echo '  try    curl -sS -o /dev/null -D - http://127.0.0.1:8080/track'
	@echo '  watch  tail -F pixel-data/visits.log'
	@echo '  prove  target/release/pixel audit'
	@echo '  paste  <img src="http://127.0.0.1:8080/track" alt="" width="1" height="1" referrerpolicy="no-referrer-when-downgrade">'
	@echo
	@exec target/release/pixel

report: ## Make report.html of pixel-data/visits.log, and what of it was rotated, with GoAccess; FILES='…' of others
	@$(QUICK_BUILD)
	@target/release/pixel report $(FILES)

check: static test test-compose ## Run the whole gate: static, test and test-compose, about half an hour
	@echo 'make check: everything passed'

static: format-check scripts lint-deploy lint docs fuzz-build ## Run every check that starts nothing

format-check: ## Check that rustfmt has nothing to change
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml

scripts: ## Check every shell script and Python file
	@tests/require-packages lint
	@tests/require-tools
	@$(TOOLS) tests/check-scripts
	@python3 bench/scale.py --check

lint: ## Check the Rust code with clippy, warnings denied
	@tests/require-packages build
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --lib --bin pixel --no-default-features -- -D warnings
	cargo clippy --locked $(FUZZ) -- -D warnings

docs: ## Build the documentation of the code, warnings denied
	@tests/require-packages build
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items

fuzz-build: ## Build the fuzz targets
	@tests/require-packages build
	cargo build --locked $(FUZZ)

test: ## Run every test, with a real RabbitMQ and two minutes of random faults; BROKER=4 with RabbitMQ 4, as root
	@tests/require-packages build test
	@tests/require-tools test || echo 'without PyPI, the edge is tried with the Caddy of this machine alone, and nothing with DuckDB and ClickHouse' >&2
	cargo test --locked

images: ## Take the pictures of the status page in docs/images anew; look at them before they are committed
	@tests/require-packages build test images
	@tests/require-tools test
	UPDATE=1 cargo test --locked --test it status_page::

rotation-table: ## Rotate in every way under load and kills, and print what was lost and doubled
	@tests/require-packages build test
	@cargo test --locked --test it rotation_table:: -- --nocapture 2>/dev/null | grep '^|'

# Not part of the gate: rustup has to fetch that toolchain.
minimum-rust: ## Compile everything with the oldest Rust that Cargo.toml allows
	@tests/require-packages build
	version=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) \
	  && rustup toolchain install "$$version" --profile minimal \
	  && cargo "+$$version" check --locked --all-targets

packages: ## Install Debian's packages that the checks need; as root they do it themselves
	@tests/require-packages

include deploy/compose.mk
include deploy/install.mk
include bench/bench.mk
include tests/chaos.mk
include tests/hostile.mk

.PHONY: help run report check static format-check scripts lint docs fuzz-build test images rotation-table minimum-rust packages
