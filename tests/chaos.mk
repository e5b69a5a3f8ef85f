# make chaos  MINUTES=5 MODE=all|embedded|brokered|cluster SEED=… (the seed of a run repeats its faults)
chaos: ## Run everything under random faults
	@tests/require-packages
	MINUTES=$${MINUTES:-5} MODE=$${MODE:-all} cargo test --locked --test chaos

.PHONY: chaos
