#!/usr/bin/env bash
# The ingest path beside Postgres's own COPY, in one run: events a second, processor per event, memory.
# FULL=1 for the sizes of the promise, which takes hours; docs/performance.md names each size.
set -euo pipefail
cd "$(dirname "$0")/.."
missing() { echo "missing: $1 (Debian: apt-get install redis-server rabbitmq-server postgresql)" >&2; exit 1; }
PATH=$PATH:/usr/sbin
for server in redis-server rabbitmq-server; do command -v "$server" >/dev/null || missing "$server"; done
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing postgresql
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${KANCHI_CACHE:-$HOME/.cache/kanchi}/target}
exec cargo bench --quiet --locked --workspace --features kanchi-e2e/cluster --bench ingest "$@"
