#!/usr/bin/env bash
# The ingest path beside Postgres's own COPY, in one run: events a second, processor per event, memory.
# KANCHI_BENCH_TASKS sets the size (100000 tasks of about four events by default).
set -euo pipefail
cd "$(dirname "$0")/.."
for server in redis-server rabbitmq-server /usr/lib/postgresql/15/bin/postgres; do
  command -v "$server" >/dev/null || { echo "missing: $server (Debian: apt-get install redis-server rabbitmq-server postgresql)" >&2; exit 1; }
done
exec cargo bench --quiet -p kanchi-monitor --bench ingest "$@"
