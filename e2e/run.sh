#!/usr/bin/env bash
# The end-to-end tests on the lab; TEST=<part of a name> for some of them. `make e2e` calls this inside a session.
set -euo pipefail
shopt -s inherit_errexit
ROOT=$(cd "$(dirname "$0")/.." && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${KANCHI_CACHE:-$HOME/.cache/kanchi}/target}
# Tests that stop Postgres or kill leaders run alone by themselves; three of the others side by side wait for pods together.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-3}
lab() { "$ROOT/e2e/lab/lab" "$@"; }

if [ -z "${CLUSTER:-}" ]; then
  lab up
  lab load kanchi services celery celery-old
fi
lines=$(lab env)
eval "$lines"
cd "$ROOT"
# The whole workspace is named so that its dependencies are those of `make test`, with the same features.
cargo test --locked --workspace --features kanchi-e2e/cluster --test suite -- --nocapture ${TEST:+"$TEST"}
