# shellcheck shell=bash
# What the machine must offer, installed where it can be.

OTHER_CLUSTER="Any other cluster will do, too: make demo CLUSTER=<context of your kubeconfig>"

need_root() {
  [ "$(uname -s)" = Linux ] || die "the lab needs Linux. $OTHER_CLUSTER"
  [ "$(id -u)" -ne 0 ] || return 0
  command -v sudo >/dev/null || die "the lab needs root or sudo (network namespace, mounts, control groups). $OTHER_CLUSTER"
  say "root is needed, asking sudo"
  exec sudo --preserve-env=KANCHI_LAB,KUBERNETES_VERSION,CELERY_VERSION,CARGO_TARGET_DIR,SSL_CERT_FILE,PIP_CERT \
    env "PATH=$PATH" "HOME=$HOME" "KANCHI_CACHE=$KANCHI_CACHE" "LAB_BINARIES=${LAB_BINARIES:-}" "$LAB/lab" "$@"
}

install_packages() {
  local missing=() pair
  # Only what is missing, so that a machine with Docker's own containerd keeps it.
  for pair in containerd:containerd runc:runc buildah:buildah mmdebstrap:mmdebstrap ip:iproute2 iptables:iptables \
    conntrack:conntrack socat:socat nsenter:util-linux openssl:openssl gcc:gcc git:git curl:curl; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ -x /usr/lib/cni/ptp ] || missing+=(containernetworking-plugins)
  [ -f /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
  [ -f /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
  if ! command -v go >/dev/null; then missing+=(golang-go); fi
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null ||
    die "missing: ${missing[*]}; there is no apt-get here to install them (the lab wants a Debian-like Linux). $OTHER_CLUSTER"
  step "Debian packages: ${missing[*]}" apt_install "${missing[@]}"
}

# Only the programs are wanted: no service is started that comes with them.
apt_install() {
  local policy=/usr/sbin/policy-rc.d ours=""
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    ours=yes
  fi
  local failed=0
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; } || failed=1
  [ -z "$ours" ] || rm -f $policy
  return $failed
}

# The Go modules name the Go they need; from 1.21 on the go command fetches that by itself.
need_go() {
  local version
  version=$(go env GOVERSION 2>/dev/null) || die "Go is missing: install Go 1.21 or newer and put it into PATH"
  [[ $version =~ ^go1\.(2[1-9]|[3-9][0-9]) ]] ||
    die "$version is too old: install Go 1.21 or newer (Debian: golang-1.21-go or newer from backports, or go.dev/dl) and put it into PATH"
}
