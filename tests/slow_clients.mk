# Not part of the gate: it takes half an hour, and its figures are for docs/OPERATIONS.md.
slow-clients: CONNECTIONS ?= 1000
slow-clients: SECONDS ?= 60
slow-clients: WAYS ?= direct,caddy,newer-caddy,haproxy
slow-clients: ## Attack pixel and each edge with slow clients: CONNECTIONS=1000 SECONDS=60 WAYS=direct,haproxy ATTACKS=-X
	@tests/require-packages build test slow
	@tests/require-tools test || echo 'without PyPI, the edge is tried with the Caddy of this machine alone, and nothing with DuckDB' >&2
	@cargo build --quiet --release --locked --bin pixel
	@tests/slow_clients.py --connections $(CONNECTIONS) --seconds $(SECONDS) --ways $(WAYS) '--attacks=$(ATTACKS)'

.PHONY: slow-clients
