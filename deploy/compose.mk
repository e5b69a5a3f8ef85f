# The system in containers: targets for the Makefile, which includes this file.

.PHONY: up down logs ps edge test-compose lint-deploy

up: ## Build and start the system in containers, and wait until it is healthy; EDGE=haproxy or caddy, OBSERVE=1 with Grafana, REPORT=1 with a live report
	@deploy/up.sh

down: ## Stop the containers; spools, queue, visits and certificates stay
	@deploy/compose.sh down

logs: ## Follow the containers' log
	@deploy/compose.sh logs --follow --tail=100

edge: ## Start the edge in front of a Pixel on this machine; EDGE=haproxy or caddy
	@deploy/edge.sh

ps: ## List the containers
	@deploy/compose.sh ps

test-compose: ## Run the system in containers under load, with kills, restarts, scaling and a cluster
	@tests/compose/run.sh

lint-deploy: ## Check Dockerfile, Compose files, Caddyfile and workflows
	@tests/require-packages lint
	@tests/require-tools
	@$(TOOLS) deploy/lint.sh
