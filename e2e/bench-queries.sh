#!/usr/bin/env bash
# The named queries at scale: cold and warm times of each, beside what is required.
# FULL=1 for 10 million tasks and 40 million events: 20 GB of disk, half an hour to load on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ||
  { echo "missing: postgresql (Debian: apt-get install postgresql)" >&2; exit 1; }
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${KANCHI_CACHE:-$HOME/.cache/kanchi}/target}
exec cargo bench --quiet --locked --workspace --features kanchi-e2e/cluster --bench queries "$@"
