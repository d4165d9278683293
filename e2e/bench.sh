#!/usr/bin/env bash
# The ingest path beside Postgres's own COPY and beside other programs, in one run: events a second, processor per event,
# memory; then two monitors in one Postgres, and many that have nothing to do.
# FULL=1 for the sizes of the promise, which takes hours; docs/performance.md names each size.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=e2e/needs.sh
source e2e/needs.sh
need redis-server rabbitmq-server postgresql python3-venv # Python: what is measured beside the monitor
exec cargo bench --quiet --locked --workspace --features kanchi-e2e/cluster --bench ingest "$@"
