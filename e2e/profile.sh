#!/usr/bin/env bash
# A flame graph of the ingest path: the whole machine while the benchmark publishes, a tower for each program.
# KANCHI_BENCH names the stream (redis-realistic), KANCHI_BENCH_SECONDS its length (20).
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${KANCHI_CACHE:-$HOME/.cache/kanchi}
# shellcheck source=e2e/needs.sh
source e2e/needs.sh
need linux-perf
if ! [ -x "$cache/tools/bin/inferno-flamegraph" ]; then
  echo "profile: installing inferno into $cache/tools"
  cargo install --quiet --locked --root "$cache/tools" --target-dir "$cache/target-tools" inferno
fi
export KANCHI_BENCH=${KANCHI_BENCH:-redis-realistic} KANCHI_BENCH_SECONDS=${KANCHI_BENCH_SECONDS:-20}
export KANCHI_BENCH_OLDER_TASKS=${KANCHI_BENCH_OLDER_TASKS:-20000} KANCHI_BENCH_OPEN_AGE=${KANCHI_BENCH_OPEN_AGE:-2}
out=$cache/profile
mkdir -p "$out"
e2e/bench.sh --no-run
e2e/bench.sh >"$out/bench.log" 2>&1 &
bench=$!
trap 'kill "$bench" 2>/dev/null || true' EXIT
echo "profile: $KANCHI_BENCH, waiting for its stream"
until grep -q 'older tasks stored' "$out/bench.log"; do
  kill -0 "$bench" || { cat "$out/bench.log" >&2; exit 1; }
  sleep 0.2
done
# The open tasks get old first, then a fresh monitor starts.
sleep $((KANCHI_BENCH_OPEN_AGE + 3))
perf record --quiet --all-cpus --freq 199 --call-graph dwarf,8192 --output "$out/perf.data" \
  -- sleep $((KANCHI_BENCH_SECONDS * 2 / 3)) >/dev/null
echo "profile: folding the stacks"
perf script --no-inline --input "$out/perf.data" 2>/dev/null | "$cache/tools/bin/inferno-collapse-perf" >"$out/stacks.txt"
"$cache/tools/bin/inferno-flamegraph" --title "$KANCHI_BENCH" <"$out/stacks.txt" >"$out/flame.svg"
rm "$out/perf.data"
wait "$bench"
trap - EXIT
cat "$out/bench.log"
echo "profile: $out/flame.svg"
