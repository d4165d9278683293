# shellcheck shell=bash
# The programs the lab is made of, built from Go modules once per version into the cache.

# component <name> <key> <function>: the function fills the folder it is given; nobody sees the folder before it is whole.
component() {
  local name=$1 key=$2 build=$3 whole
  whole=$COMPONENTS/$name-$key
  [ ! -d "$whole" ] || return 0
  need_go
  mkdir -p "$COMPONENTS"
  local part
  part=$(mktemp -d "$COMPONENTS/.part-XXXXXX")
  step "build $name $key" "$build" "$part"
  mv -T "$part" "$whole"
}

digest() { sha256sum | cut -c1-12; }

go_build() { nice -n 5 env CGO_ENABLED=0 GOFLAGS=-trimpath go "$@"; }

kubernetes_modules() { # the folder with go.mod and go.sum of the chosen version
  if [ -f "$LAB/kubernetes/$KUBERNETES_VERSION/go.sum" ]; then
    echo "$LAB/kubernetes/$KUBERNETES_VERSION"
  else
    echo "$COMPONENTS/modules-$KUBERNETES_VERSION"
  fi
}
kubernetes_key() { echo "$KUBERNETES_VERSION-$(cat "$(kubernetes_modules)"/go.{mod,sum} | digest)"; }
kubernetes_dir() { echo "$COMPONENTS/kubernetes-$(kubernetes_key)"; }

build_kubernetes_component() {
  [[ " ${KUBERNETES_VERSIONS[*]} " == *" $KUBERNETES_VERSION "* ]] ||
    die "Kubernetes $KUBERNETES_VERSION is not in versions.env (there: ${KUBERNETES_VERSIONS[*]})"
  if [ ! -f "$(kubernetes_modules)/go.sum" ]; then
    component modules "$KUBERNETES_VERSION" resolve_kubernetes_modules
    say "commit $(kubernetes_modules) as e2e/lab/kubernetes/$KUBERNETES_VERSION to pin every module of it"
  fi
  component kubernetes "$(kubernetes_key)" build_kubernetes
}

build_components() {
  build_kubernetes_component
  component coredns "$COREDNS_VERSION" build_coredns
  component helm4 "$HELM4_VERSION" build_helm4
  component toxiproxy "$TOXIPROXY_VERSION" build_toxiproxy
  component pause "$(digest <"$LAB/pause/main.go")" build_pause
}

# What can be had without the rest: a Helm (only the chart's tests want the old one), the control plane's programs.
build_tool() {
  case $1 in
    kubernetes) build_kubernetes_component ;;
    *) component "$1" "$(version_of "$1")" "build_$1" ;;
  esac
}
version_of() {
  case $1 in
    helm3) echo "$HELM3_VERSION" ;;
    helm4) echo "$HELM4_VERSION" ;;
    *) die "no tool $1" ;;
  esac
}

# k8s.io/kubernetes names its staging modules as folders of its own tree; each is published under its own version.
resolve_kubernetes_modules() {
  local folder=$1 version=$KUBERNETES_VERSION staging="v0.${KUBERNETES_VERSION#v1.}" upstream module
  upstream=$(cd "$folder" && go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
  (
    cd "$folder" || exit
    go mod init kanchi.io/e2e/lab/kubernetes
    # shellcheck disable=SC2013  # one word a line
    for module in $(sed -n 's#^\s*\(k8s.io/[a-z-]*\) => ./staging/.*#\1#p' "$upstream"); do
      go mod edit -replace "$module=$module@$staging"
    done
    go mod edit -go "$(sed -n 's/^go //p' "$upstream")" -require "k8s.io/kubernetes@$version"
    local tools=(go.etcd.io/etcd/server/v3)
    for module in kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet; do
      tools+=("k8s.io/kubernetes/cmd/$module")
    done
    for module in "${tools[@]}"; do go mod edit -tool "$module"; done
    go get "go.etcd.io/etcd/server/v3@$(sed -n 's#^\s*go.etcd.io/etcd/client/v3 \(v[^ ]*\).*#\1#p' "$upstream" | head -1)"
    go mod tidy
  )
}

build_kubernetes() {
  local minor flags v=k8s.io/component-base/version
  minor=$(cut -d. -f2 <<<"$KUBERNETES_VERSION")
  flags="-s -w -X $v.gitVersion=$KUBERNETES_VERSION -X $v.gitMajor=1 -X $v.gitMinor=$minor"
  (cd "$(kubernetes_modules)" && go_build build -ldflags "$flags" -o "$1/" tool)
  mv "$1/server" "$1/etcd"
}

go_install() { # folder, package, binary's wanted name
  GOBIN=$1 go_build install -ldflags "-s -w" "$2"
  local built
  built=$(find "$1" -type f)
  [ "$built" = "$1/$3" ] || mv "$built" "$1/$3"
}
build_coredns() { go_install "$1" "github.com/coredns/coredns@$COREDNS_VERSION" coredns; }
build_helm4() { go_install "$1" "helm.sh/helm/v4/cmd/helm@$HELM4_VERSION" helm4; }
build_helm3() { go_install "$1" "helm.sh/helm/v3/cmd/helm@$HELM3_VERSION" helm3; }
build_toxiproxy() { go_install "$1" "github.com/Shopify/toxiproxy/v2/cmd/server@$TOXIPROXY_VERSION" toxiproxy-server; }
build_pause() { (cd "$LAB/pause" && go_build build -ldflags "-s -w" -o "$1/pause" main.go); }

# What a person and the tests call, under the names they know.
link_components() {
  mkdir -p "$RUN/bin"
  ln -sf "$(kubernetes_dir)"/* "$COMPONENTS/helm4-$HELM4_VERSION/helm4" "$COMPONENTS/toxiproxy-$TOXIPROXY_VERSION/toxiproxy-server" "$RUN/bin/"
  ln -sf "$COMPONENTS/helm4-$HELM4_VERSION/helm4" "$RUN/bin/helm"
  [ ! -d "$COMPONENTS/helm3-$HELM3_VERSION" ] || ln -sf "$COMPONENTS/helm3-$HELM3_VERSION/helm3" "$RUN/bin/helm3"
}
