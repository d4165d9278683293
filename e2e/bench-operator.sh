#!/usr/bin/env bash
# The operator with 1,000 CeleryBrokers: API calls, writes when nothing changes, memory, time after a restart.
# docs/performance.md names what can be set and shows the figures.
set -euo pipefail
cd "$(dirname "$0")/.."
missing() { echo "missing: $1" >&2; exit 1; }
for tool in openssl curl; do command -v "$tool" >/dev/null || missing "$tool"; done
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing "postgresql (Debian: apt-get install postgresql)"
# etcd, kube-apiserver and kube-controller-manager, built once into the cache.
KANCHI_LAB_BIN=${KANCHI_LAB_BIN:-$(e2e/lab/lab tool kubernetes)}
export KANCHI_LAB_BIN
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${KANCHI_CACHE:-$HOME/.cache/kanchi}/target}
exec cargo bench --quiet --locked --workspace --features kanchi-e2e/cluster --bench scale "$@"
