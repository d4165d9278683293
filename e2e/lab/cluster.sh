# shellcheck shell=bash
# The cluster: one node, its control plane, DNS and volumes; up in about 20 seconds, down without a trace.

kubectl() { "$(kubernetes_dir)/kubectl" --kubeconfig "$KUBECONFIG_FILE" "$@"; }

VOLUMES=24

# === configuration ===

configure() {
  mkdir -p "$RUN/cni" "$RUN/manifests"
  : >"$RUN/resolv.conf"
  sed "s#COREDNS_IMAGE#$COREDNS_IMAGE#; s#DNS_IP#$DNS_IP#" "$LAB/manifests/dns.yaml" >"$RUN/manifests/dns.yaml"
  cp "$LAB/manifests/storage.yaml" "$RUN/manifests/"
  cp "$LAB/manifests/audit-policy.yaml" "$RUN/"

  # Without CAP_SYS_RESOURCE runc dies at an oom_score_adj below its parent's ("can't get final child's PID from pipe").
  # The pods' network namespaces live in the run's folder, so that unmounting the folder finds them.
  cat >"$RUN/containerd.toml" <<TOML
version = 2
root = "$RUN/containerd/root"
state = "$RUN/containerd/state"
[grpc]
  address = "$RUN/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$RUN/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$RUN/cni"
TOML

  # ptp and not bridge: every packet between two pods is then routed by the node, where the fault rules see it, also on a
  # machine without the br_netfilter module.
  cat >"$RUN/cni/10-lab.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "lab", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "dataDir": "$RUN/cni/addresses", "ranges": [[{"subnet": "$POD_RANGE"}]],
   "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON

  # A control group of the lab's own: two kubelets that share one kill each other's pods.
  cat >"$RUN/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {x509: {clientCAFile: $RUN/pki/ca.crt}, anonymous: {enabled: false}, webhook: {enabled: true}}
authorization: {mode: Webhook}
address: $NODE_IP
healthzBindAddress: 127.0.0.1
cgroupDriver: cgroupfs
cgroupRoot: /$LAB_NAME
failSwapOn: false
failCgroupV1: false
containerRuntimeEndpoint: unix://$RUN/containerd.sock
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
enforceNodeAllocatable: []
resolvConf: $RUN/resolv.conf
podLogsDir: $RUN/podlogs
maxPods: 250
kubeAPIQPS: 100
kubeAPIBurst: 200
eventRecordQPS: 0
shutdownGracePeriod: 0s
YAML

  # conntrack's sysctls belong to the machine.
  cat >"$RUN/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $RUN/proxy.kubeconfig}
mode: iptables
clusterCIDR: $POD_RANGE
hostnameOverride: lab
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
}

# === processes ===

# A session of its own, so that an interrupt of the terminal does not reach it. It outlives what holds the locks: of a test session (7), of
# a build (8), of the lab (9).
start() { # name, command
  local name=$1
  shift
  setsid nsenter --net="/run/netns/$LAB_NAME" "$@" >"$RUN/$name.log" 2>&1 </dev/null 7>&- 8>&- 9>&- &
  echo $! >"$RUN/$name.pid"
}

start_control_plane() {
  local bin
  bin=$(kubernetes_dir)
  start etcd "$bin/etcd" --data-dir "$RUN/etcd" --unsafe-no-fsync --log-level warn
  start apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --service-cluster-ip-range "$SERVICE_RANGE" \
    --advertise-address "$NODE_IP" --bind-address "$NODE_IP" \
    --tls-cert-file "$RUN/pki/api.crt" --tls-private-key-file "$RUN/pki/api.key" --client-ca-file "$RUN/pki/ca.crt" \
    --kubelet-client-certificate "$RUN/pki/admin.crt" --kubelet-client-key "$RUN/pki/admin.key" \
    --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc --service-account-signing-key-file "$RUN/pki/sa.key" \
    --service-account-key-file "$RUN/pki/sa.pub" \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
    --max-requests-inflight 800 --max-mutating-requests-inflight 400 \
    --audit-policy-file "$RUN/audit-policy.yaml" --audit-log-path "$RUN/audit.log" --audit-log-maxsize 2000
  wait_for 60 "the API server" kubectl get --raw /readyz
  start controllers "$bin/kube-controller-manager" --kubeconfig "$RUN/controllers.kubeconfig" \
    --authentication-kubeconfig "$RUN/controllers.kubeconfig" --authorization-kubeconfig "$RUN/controllers.kubeconfig" \
    --service-account-private-key-file "$RUN/pki/sa.key" --root-ca-file "$RUN/pki/ca.crt" \
    --use-service-account-credentials --leader-elect=false --kube-api-qps 200 --kube-api-burst 400
  start scheduler "$bin/kube-scheduler" --kubeconfig "$RUN/scheduler.kubeconfig" --leader-elect=false \
    --authentication-kubeconfig "$RUN/scheduler.kubeconfig" --authorization-kubeconfig "$RUN/scheduler.kubeconfig"
}

start_node() {
  local bin
  bin=$(kubernetes_dir)
  start kubelet "$bin/kubelet" --config "$RUN/kubelet.yaml" --kubeconfig "$RUN/node.kubeconfig" --node-ip "$NODE_IP" \
    --hostname-override lab --root-dir "$RUN/kubelet" --cert-dir "$RUN/kubelet/pki"
  start proxy "$bin/kube-proxy" --config "$RUN/proxy.yaml"
  wait_for 60 "the node" node_ready
}

node_ready() { kubectl get node lab -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}' | grep -q True; }

start_addons() {
  kubectl apply -f "$RUN/manifests"
  volumes
  kubectl -n kube-system rollout status deployment/coredns --timeout 60s
}

# === volumes ===

# Makes the pool of volumes whole: new ones, and those whose claim is gone, emptied.
volumes() {
  local number name path phase
  for number in $(seq -w 1 "$VOLUMES"); do
    name=lab-$number path=$RUN/volumes/$number
    phase=$(kubectl get pv "$name" --ignore-not-found -o jsonpath='{.status.phase}')
    case $phase in
      Bound | Available | Pending) continue ;;
      Released | Failed) kubectl delete pv "$name" --wait=true >&2 && rm -rf "$path" ;;
    esac
    install -d -m 0777 "$path"
    cat <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: $name}
spec:
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: lab
  local: {path: $path}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [lab]}]}]}}
---
YAML
  done >"$RUN/volumes.yaml"
  [ ! -s "$RUN/volumes.yaml" ] || kubectl apply -f "$RUN/volumes.yaml"
}

# === control groups: one folder per version-1 hierarchy, or one in the unified tree ===

group_folders() {
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    echo "/sys/fs/cgroup/$LAB_NAME"
  else
    awk -v name="$LAB_NAME" '$3 == "cgroup" || $3 == "cgroup2" {print $2 "/" name}' /proc/mounts
  fi
}

groups_up() {
  local folder file
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    sed 's/\(^\| \)/ +/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
  fi
  for folder in $(group_folders); do
    mkdir -p "$folder"
    # A new cpuset is empty, and an empty one takes no process.
    for file in cpuset.cpus cpuset.mems; do
      if [ -f "$folder/$file" ] && [ ! -f "$folder/cgroup.controllers" ]; then cat "$folder/../$file" >"$folder/$file"; fi
    done
    if [ -f "$folder/cgroup.controllers" ] && [ -f /sys/fs/cgroup/cgroup.controllers ]; then
      sed 's/\(^\| \)/ +/g' "$folder/cgroup.controllers" >"$folder/cgroup.subtree_control"
    fi
  done
}

groups_down() {
  local folder
  for folder in $(group_folders); do
    [ ! -d "$folder" ] || find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
}

# === up and down ===

up() {
  if is_up; then
    local owner
    owner=$(cat "$RUN/checkout")
    [ "$owner" = "$CHECKOUT" ] || die "lab $LAB_NUMBER is up and belongs to $owner; take another: KANCHI_LAB=1 make lab-up"
    say "lab $LAB_NUMBER is up"
    return 0
  fi
  if leftovers; then
    say "an earlier run of lab $LAB_NUMBER was interrupted"
    step "clean up after it" clean
  fi
  mkdir -p "$RUN"
  echo "$CHECKOUT" >"$RUN/checkout"
  link_components
  step "network, certificates, configuration" prepare
  start containerd containerd -c "$RUN/containerd.toml"
  start toxiproxy "$RUN/bin/toxiproxy-server" -host "$NODE_IP" -port "$TOXIPROXY_PORT"
  step "Kubernetes $KUBERNETES_VERSION" start_control_plane
  step "images into the node" load_images "$PAUSE_ARCHIVE" "$COREDNS_ARCHIVE"
  step "node" start_node
  step "DNS and volumes" start_addons
  touch "$RUN/up"
}

prepare() {
  network_up
  groups_up
  pki
  configure
}

is_up() { [ -f "$RUN/up" ] && kubectl --request-timeout 5s get --raw /readyz >/dev/null 2>&1 && kill -0 "$(cat "$RUN/kubelet.pid")" 2>/dev/null; }

leftovers() { [ -d "$RUN" ] || [ -e "/run/netns/$LAB_NAME" ] || ip link show "$LINK_HOST" >/dev/null 2>&1; }

clean() {
  stop_processes
  # What is mounted inside the run's folder: pods' volumes, root file systems, network namespaces.
  for _ in 1 2 3; do
    awk -v run="$RUN/" 'index($2, run) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
  done
  groups_down
  network_down
  # Unmounting is lazy: a folder may be busy for a moment.
  wait_for 20 "removal of $RUN" rm -rf --one-file-system "$RUN"
}

# The kubelet first, or it starts again what is killed; then whatever is in the lab's control groups (the pods) and in its
# network namespace (its own processes and the containers' shims).
stop_processes() {
  local kubelet pids
  kubelet=$(cat "$RUN/kubelet.pid" 2>/dev/null || true)
  if [ -n "$kubelet" ] && ip netns pids "$LAB_NAME" 2>/dev/null | grep -qx "$kubelet"; then kill -KILL "$kubelet"; fi
  for _ in $(seq 50); do
    pids=$(lab_pids)
    [ -n "$pids" ] || return 0
    # shellcheck disable=SC2086  # a list of numbers
    kill -KILL $pids 2>/dev/null || true
    sleep 0.1
  done
  die "these processes of the lab do not end: $(lab_pids)"
}

lab_pids() {
  {
    if [ -e "/run/netns/$LAB_NAME" ]; then ip netns pids "$LAB_NAME"; fi
    local folder
    for folder in $(group_folders); do
      [ ! -d "$folder" ] || find "$folder" -name cgroup.procs -exec cat {} + 2>/dev/null || true
    done
  } | sort -un | tr '\n' ' ' | sed 's/ $//'
}
