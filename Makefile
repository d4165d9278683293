# Kanchi: one target per job. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export KANCHI_CACHE ?= $(HOME)/.cache/kanchi
export CARGO_TARGET_DIR ?= $(KANCHI_CACHE)/target
export CLUSTER

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

demo: ## the main job: a cluster, Kanchi, two brokers, live figures (CLUSTER=<context>: on a cluster of yours)
	@e2e/demo.sh

test: ## formatting, lints, generated files, unit and integration tests; installs what it needs
	@e2e/test.sh

e2e: ## the end-to-end tests in the lab (TEST=<name> for some, KANCHI_LAB=<number> for another lab)
	@e2e/lab/lab session e2e/run.sh

bench: ## the ingest path: events a second, processor and memory, beside Postgres's own COPY
	@e2e/bench.sh

bench-queries: ## the queries of the UI: p50, p95, p99, cold and warm (FULL=1: 10 million tasks, 40 million events)
	@e2e/bench-queries.sh

bench-churn: ## a simulated day of tasks that come and go: sizes of the store's tables, and whether any grows
	@e2e/bench-churn.sh

bench-operator: ## the operator with 1,000 CeleryBrokers: API calls, writes, memory, time after a restart
	@e2e/bench-operator.sh

faults: ## kills, partitions and full disks on each broker for KANCHI_FAULTS_SECONDS (3600), then a count of every event
	@e2e/faults.sh

profile: ## a flame graph of the ingest path (KANCHI_BENCH=<stream>)
	@e2e/profile.sh

lab-up: ## a real Kubernetes on this machine
	@e2e/lab/lab up

lab-build: ## all that the lab and its tests are made of, into the cache
	@e2e/lab/lab build kanchi services celery celery-old

lab-load: ## build this checkout's images and give them to the lab (PARTS="kanchi services celery celery-old")
	@e2e/lab/lab load $(PARTS)

lab-shell: ## a shell with kubectl and helm for the lab
	@e2e/lab/lab shell

lab-down: ## leave nothing of the lab behind
	@e2e/lab/lab down

fmt: ## format the sources
	@cargo fmt --all

lint: ## clippy with every warning an error, and shellcheck
	@e2e/test.sh lint

gen: ## write the generated files: CRDs, their reference, manifests/
	@e2e/test.sh gen

check: ## what `make test` does before it runs a test
	@e2e/test.sh fmt lint generated

.PHONY: help demo test e2e bench bench-queries bench-churn bench-operator faults profile lab-up lab-build lab-load lab-shell lab-down fmt lint gen check
