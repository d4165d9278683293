#!/usr/bin/env bash
# The operator with 1,000 CeleryBrokers: API calls, writes when nothing changes, memory, time after a restart.
# docs/performance.md names what can be set and shows the figures.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=e2e/needs.sh
source e2e/needs.sh
need openssl curl postgresql
# etcd, kube-apiserver and kube-controller-manager, built once into the cache.
KANCHI_LAB_BIN=${KANCHI_LAB_BIN:-$(e2e/lab/lab tool kubernetes)}
export KANCHI_LAB_BIN
exec cargo bench --quiet --locked --workspace --features kanchi-e2e/cluster --bench scale "$@"
