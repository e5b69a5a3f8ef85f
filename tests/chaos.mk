chaos: ## Run under random faults: MINUTES=5, MODE=all|embedded|brokered|cluster|sharded|moved, SEED=n to repeat a run
	@tests/require-packages build test
	MINUTES=$${MINUTES:-5} MODE=$${MODE:-all} cargo test --locked --test chaos

.PHONY: chaos
