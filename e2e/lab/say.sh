# shellcheck shell=bash
# What the lab says while it works: each step with its time, a sign of life in long ones, the log's end when one fails.

STEP_LOG="" STEP_NAME="" TICKER=""

say() { printf 'lab: %s\n' "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# step <what> <command…>: runs the command with its output in a log. Not in a condition, where bash ignores `set -e`.
step() {
  STEP_NAME=$1
  shift
  STEP_LOG=$LAB_HOME/logs/$(tr -c 'a-zA-Z0-9\n' '-' <<<"$STEP_NAME").log
  mkdir -p "$LAB_HOME/logs"
  local begin=$SECONDS
  say "$STEP_NAME …"
  ticker "$STEP_NAME" &
  TICKER=$!
  "$@" >"$STEP_LOG" 2>&1
  kill "$TICKER" 2>/dev/null || true
  say "$STEP_NAME: $((SECONDS - begin)) s"
  STEP_LOG="" TICKER=""
}

# A line every 20 s. Its sleeps hold neither a lock nor the terminal, so nobody waits for the last of them.
ticker() {
  local begin=$SECONDS
  exec 7>&- 8>&- 9>&-
  while sleep 20 >/dev/null 2>&1; do say "  still at it: $1 ($((SECONDS - begin)) s)"; done
}

at_exit() {
  local code=$?
  [ -z "$TICKER" ] || kill "$TICKER" 2>/dev/null || true
  if [ "$code" -ne 0 ] && [ -n "$STEP_LOG" ]; then
    say "$STEP_NAME failed; the end of $STEP_LOG:"
    tail -n 30 "$STEP_LOG" >&2
  fi
}
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# wait_for <seconds> <what> <command…>: until the command succeeds.
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || die "$what did not come up in time; its log is in $RUN"
    sleep 0.2
  done
}
