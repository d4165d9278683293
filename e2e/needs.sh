# shellcheck shell=bash
# What the benchmarks and the fault suite share: where cargo builds, and a clear word when a program is missing.

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${KANCHI_CACHE:-$HOME/.cache/kanchi}/target}
PATH=$PATH:/usr/sbin # where Debian has rabbitmq-server

# need <program>…: each is named as its Debian package is; postgresql stands for its server.
need() {
  local name
  for name in "$@"; do
    case $name in
      postgresql) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ;;
      linux-perf) command -v perf >/dev/null ;;
      python3-venv) python3 -c 'import ensurepip' 2>/dev/null ;;
      *) command -v "$name" >/dev/null ;;
    esac || { echo "missing: $name (Debian: apt-get install $name)" >&2; exit 1; }
  done
}
