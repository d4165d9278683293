# shellcheck shell=bash
# Faults between two places of the lab, as rules of their own chain in its network namespace.
# A place is an address (or range), pod/<namespace>/<name>, svc/<namespace>/<name> (the pods behind it), node, or any.

CHAIN=LAB-FAULTS

fault() { # verb, arguments
  local verb=$1
  shift
  [ -f "$RUN/up" ] || die "lab $LAB_NUMBER is not up"
  fault_chain
  case $verb in
    cut) # <a> <b> [reset]: nothing passes; with reset, TCP is refused at once (but not the refusals themselves)
      if [ "${3:-}" = reset ]; then
        fault_rule "$1" "$2" -p tcp ! --tcp-flags RST RST -j REJECT --reject-with tcp-reset
      else
        fault_rule "$1" "$2" -j DROP
      fi
      ;;
    thin) # <a> <b> <part>: this part (0.0–1.0) of the packets is lost
      fault_rule "$1" "$2" -m statistic --mode random --probability "$3" -j DROP
      ;;
    heal) in_network iptables -w -F $CHAIN ;;
    faults) in_network iptables -w -n -v -L $CHAIN ;;
  esac
}

fault_chain() {
  in_network iptables -w -n -L $CHAIN >/dev/null 2>&1 && return 0
  in_network iptables -w -N $CHAIN
  local hook
  for hook in INPUT OUTPUT FORWARD; do in_network iptables -w -I $hook -j $CHAIN; done
}

fault_rule() { # a, b, the rule's rest: both directions
  local a b from to
  from=$(addresses_of "$1")
  to=$(addresses_of "$2")
  shift 2
  for a in $from; do
    for b in $to; do
      in_network iptables -w -A $CHAIN -s "$a" -d "$b" "$@"
      in_network iptables -w -A $CHAIN -s "$b" -d "$a" "$@"
    done
  done
}

addresses_of() {
  local kind namespace name found
  IFS=/ read -r kind namespace name <<<"$1"
  case $kind in
    any) found=0.0.0.0/0 ;;
    node) found=$NODE_IP ;;
    pod) found=$(kubectl -n "$namespace" get pod "$name" -o jsonpath='{.status.podIP}') ;;
    svc) found=$(kubectl -n "$namespace" get endpointslices -l "kubernetes.io/service-name=$name" -o jsonpath='{.items[*].endpoints[*].addresses[0]}') ;;
    *) found=$1 ;;
  esac
  [ -n "$found" ] || die "$1 has no address"
  echo "$found"
}
