# The benchmark beside what people would use instead; docs/BENCHMARKS.md says how it measures.

.PHONY: bench bench-quick bench-scale bench-plan bench-convert

bench: ## Measure Pixel beside its alternatives for docs/BENCHMARKS.md: a quarter of an hour; FULL=1 for 10 million visits
	python3 bench/run.py

bench-quick: ## Measure a little with the same code, in 3 minutes, and write no document
	python3 bench/run.py --quick

bench-scale: ## Measure what a visit costs with 1, 2 and 4 collectors and shards, for docs/SCALE.md: 4 minutes, and a build
	python3 bench/shards.py
	python3 bench/scale.py

bench-plan: ## Derive docs/SCALE.md from the figures of docs/BENCHMARKS.md and of bench-scale
	python3 bench/scale.py

bench-convert: ## Convert a million visits to Parquet and back, with time and memory
	@cargo build --release --locked --bin pixel
	@python3 bench/convert.py
