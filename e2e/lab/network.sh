# shellcheck shell=bash
# A network namespace of the lab's own, tied to the machine by one veth pair. No rule, address or port of the machine is
# touched; pods and ClusterIPs answer the machine by two routes; removing the namespace removes it all.

# nsenter and not `ip netns exec`, which hides the control groups' mounts.
in_network() { nsenter --net="/run/netns/$LAB_NAME" "$@"; }

network_up() {
  local taken range
  taken=$(for range in "$POD_RANGE" "$SERVICE_RANGE" "$NODE_IP/30"; do ip -4 route show root "$range"; done)
  [ -z "$taken" ] || die "this machine uses the lab's addresses already ($taken); take another number: KANCHI_LAB=1"
  ip netns add "$LAB_NAME"
  ip link add "$LINK_HOST" type veth peer name "$LINK_NODE" netns "$LAB_NAME"
  ip addr add "$HOST_IP/30" dev "$LINK_HOST"
  ip link set "$LINK_HOST" up
  ip -n "$LAB_NAME" addr add "$NODE_IP/30" dev "$LINK_NODE"
  ip -n "$LAB_NAME" link set "$LINK_NODE" up
  ip -n "$LAB_NAME" link set lo up
  ip -n "$LAB_NAME" route add default via "$HOST_IP"
  ip route add "$POD_RANGE" via "$NODE_IP"
  ip route add "$SERVICE_RANGE" via "$NODE_IP"
  in_network sysctl -qw net.ipv4.ip_forward=1
}

network_down() {
  ip netns del "$LAB_NAME" 2>/dev/null || true
  ip link del "$LINK_HOST" 2>/dev/null || true
}
