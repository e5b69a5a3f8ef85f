# The system in containers: targets for the Makefile, which includes this file.

.PHONY: up down logs ps test-compose lint-deploy

up: ## build and start the whole system in containers, and wait until it is healthy
	@deploy/up.sh

down: ## stop it; spools, queue, visits and certificates stay
	@deploy/compose.sh down

logs: ## follow its log
	@deploy/compose.sh logs --follow --tail=100

ps: ## its containers
	@deploy/compose.sh ps

test-compose: ## run the whole system in containers for real: load, kills, restarts, scale, cluster
	@tests/compose/run.sh

lint-deploy: ## check Dockerfile, Compose files, Caddyfile, workflows and shell scripts
	@deploy/lint.sh
