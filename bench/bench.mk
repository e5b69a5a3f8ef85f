# The benchmark beside what people would use instead; docs/BENCHMARKS.md says how it measures.

.PHONY: bench bench-quick

bench: ## Measure everything, write docs/BENCHMARKS.md (about half an hour; FULL=1 for ten million visits)
	python3 bench/run.py

bench-quick: ## A small run of the same code, about 3 minutes, writes no document
	python3 bench/run.py --quick
