#!/usr/bin/env bash
# The named queries at scale: cold and warm times of each, beside what is required.
# FULL=1 for 10 million tasks and 40 million events: 20 GB of disk, half an hour to load on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=e2e/needs.sh
source e2e/needs.sh
need postgresql
exec cargo bench --quiet --locked --workspace --features kanchi-e2e/cluster --bench queries "$@"
