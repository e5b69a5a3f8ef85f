# What clients of ill will do to Pixel. Not part of the gate: each takes long, and its figures are for
# docs/OPERATIONS.md.
slow-clients attacks: WAYS ?= direct,haproxy,caddy,newer-caddy

slow-clients: CONNECTIONS ?= 1000
slow-clients: SECONDS ?= 60
slow-clients: hostile-tools ## Attack pixel and each edge with slow clients, half an hour: CONNECTIONS=1000 SECONDS=60 WAYS=direct,haproxy ATTACKS=-X
	@tests/slow_clients.py --connections $(CONNECTIONS) --seconds $(SECONDS) --ways $(WAYS) '--attacks=$(ATTACKS)'

attacks: hostile-tools ## Attack pixel and each edge with hostile clients, a quarter of an hour: WAYS=direct,haproxy ATTACKS=head
	@tests/attacks.py --ways $(WAYS) '--attacks=$(ATTACKS)'

hostile-tools:
	@tests/require-packages build test slow
	@tests/require-tools test || echo 'without PyPI, the edge is tried with the Caddy of this machine alone' >&2
	@cargo build --quiet --release --locked --bin pixel

.PHONY: slow-clients attacks hostile-tools
