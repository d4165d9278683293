#!/usr/bin/env bash
# The fault suite at length, one broker after the other; `make test` lets each fault happen once.
# KANCHI_FAULTS_SEED repeats a run, TEST=<name> chooses some: quorum, classic, redis, whatever_happens.
set -euo pipefail
cd "$(dirname "$0")/.."
export KANCHI_FAULTS_SECONDS=${KANCHI_FAULTS_SECONDS:-3600}
# shellcheck source=e2e/needs.sh
source e2e/needs.sh
need redis-server rabbitmq-server postgresql
exec cargo test --quiet --locked --workspace --features kanchi-e2e/cluster --test faults -- \
  --nocapture --test-threads=1 "${TEST:-}"
