#!/usr/bin/env bash
# `make test`: all of it, or the parts named: install fmt lint build generated tests, and gen, which writes instead of checking.
set -euo pipefail
shopt -s inherit_errexit
ROOT=$(cd "$(dirname "$0")/.." && pwd)
export LAB=$ROOT/e2e/lab
for part in lab/settings lab/say lab/machine stages; do
  # shellcheck source=/dev/null
  source "$ROOT/e2e/$part.sh"
done
export CARGO_TARGET_DIR CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
cd "$ROOT"

install() { # the real servers the tests start, and what the build wants
  need_rust
  local missing=() pair
  for pair in redis-server:redis-server rabbitmq-server:rabbitmq-server python3:python3 gcc:gcc shellcheck:shellcheck openssl:openssl; do
    command -v "${pair%%:*}" >/dev/null || [ -x "/usr/sbin/${pair%%:*}" ] || missing+=("${pair##*:}")
  done
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
  command -v go >/dev/null || missing+=(golang-go)
  if [ ${#missing[@]} -gt 0 ]; then install_missing "${missing[@]}"; else echo "no package is missing"; fi
  # A real control plane for the operator's tests and both Helms for the chart's, built once into the cache.
  local tool
  for tool in kubernetes helm3 helm4; do "$LAB/lab" tool $tool; done
}

install_missing() {
  local missing=("$@")
  command -v apt-get >/dev/null || die "install these: ${missing[*]} (there is no apt-get here to do it)"
  echo "installing ${missing[*]}"
  if [ "$(id -u)" -eq 0 ]; then
    apt_install "${missing[@]}"
  else
    sudo bash -c "$(declare -f apt_install); apt_install ${missing[*]}"
  fi
}

need_rust() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  command -v cargo >/dev/null || die "cargo is missing: install Rust $wanted or newer (rustup.rs)"
  found=$(rustc --version | awk '{print $2}')
  [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -1)" = "$wanted" ] || die "Rust $found is too old: $wanted or newer is wanted"
}

fmt() { cargo fmt --all --check; }

lint() {
  cargo clippy --workspace --all-targets --features kanchi-e2e/cluster --locked -- -D warnings
  git ls-files -z '*.sh' .ci/run e2e/lab/lab | xargs -0 shellcheck -x
}

# Generated files are committed: CRDs and their reference by crdgen, manifests/ by the chart. crdgen is the one that the
# tests have built; building it alone would build Kubernetes' crates once more, with fewer features.
generated() {
  build
  "$CARGO_TARGET_DIR/debug/crdgen" --check
  HELM=$("$LAB/lab" tool helm4) manifests/render.sh --check
}

gen() {
  build
  "$CARGO_TARGET_DIR/debug/crdgen"
  HELM=$("$LAB/lab" tool helm4) manifests/render.sh
}

build() { cargo test --workspace --locked --no-run; }

tests() {
  KANCHI_LAB_BIN=$("$LAB/lab" tool kubernetes)
  export KANCHI_LAB_BIN
  # Most tests wait for a server most of the time.
  local threads
  threads=$(nproc)
  export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((threads < 3 ? 3 : threads))}
  cargo test --workspace --locked
}

trap stage_table EXIT
[ $# -gt 0 ] || set -- install fmt lint build generated tests
for part in "$@"; do
  case $part in
    install | fmt | lint | build | generated | tests | gen) stage "$part" "$part" ;;
    *) die "no part $part: install fmt lint build generated tests gen" ;;
  esac
done
