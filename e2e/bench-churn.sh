#!/usr/bin/env bash
# A day of tasks that come and go, in minutes: sizes of the store's tables hour by hour, and whether any grows that should not.
# docs/performance.md names what can be set.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=e2e/needs.sh
source e2e/needs.sh
need postgresql
exec cargo bench --quiet --locked --workspace --features kanchi-e2e/cluster --bench churn "$@"
