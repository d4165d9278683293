# shellcheck shell=bash
# Stages of a run: each with a title and its time, and a table of all of them at the end, also when one fails.

STAGE_NAMES=() STAGE_RESULTS=() STAGE_SECONDS=()

# stage <name> <command…>: ends the run when the command fails.
stage() {
  local name=$1 begin=$SECONDS
  shift
  printf '\n=== %s\n' "$name"
  STAGE_NAMES+=("$name") STAGE_RESULTS+=(failed) STAGE_SECONDS+=("")
  STAGE_BEGIN=$begin
  "$@"
  STAGE_RESULTS[-1]=ok
  STAGE_SECONDS[-1]=$((SECONDS - begin))
}

# The last lines: the table, and one line to grep for.
stage_table() {
  local index passed=0 failed=0
  [ ${#STAGE_NAMES[@]} -gt 0 ] || return 0
  printf '\n%-44s %8s  %s\n' stage seconds result
  for index in "${!STAGE_NAMES[@]}"; do
    printf '%-44s %8s  %s\n' "${STAGE_NAMES[index]}" "${STAGE_SECONDS[index]:-$((SECONDS - STAGE_BEGIN))}" "${STAGE_RESULTS[index]}"
    if [ "${STAGE_RESULTS[index]}" = ok ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
  done
  printf '%-44s %8s\n%s passed, %s failed\n' total "$SECONDS" "$passed" "$failed"
}
