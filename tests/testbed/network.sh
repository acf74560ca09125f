# The network namespace in which the node and the servers live, joined to this machine by one virtual cable.
#
# What must stay true: the namespace has no default route, so nothing inside can reach further than this machine; and the
# machine's own routes to the ranges behind the cable have a black hole beneath them that stays even after `down`, so that
# a connection meant for a service address can never leave by the machine's default route while the node is away.
# shellcheck shell=bash

HOST_END=testbed-host
NODE_END=testbed-node
CABLE_HOST=10.245.1.1
CABLE_NODE=10.245.1.2

# Ranges that something else on this machine routes already, maybe another testbed, are not taken away from it.
refuse_taken_ranges() {
  local range taken
  for range in "$NODE_ADDRESS/32" "$POD_RANGE" "$SERVICE_RANGE"; do
    taken=$(ip -o route show exact "$range" | grep -v '^blackhole ' || true)
    [ -z "$taken" ] || die "something else routes $range on this machine ($taken); the testbed needs that range for itself"
  done
}

network_up() {
  local range
  if [ ! -e "$NETNS" ]; then
    refuse_taken_ranges
    ip netns add "$IDENTITY"
  fi
  inside ip link set lo up
  if ! ip link show "$HOST_END" >/dev/null 2>&1; then
    ip link add "$HOST_END" type veth peer name "$NODE_END" netns "$IDENTITY"
    ip addr add "$CABLE_HOST/30" dev "$HOST_END"
    ip link set "$HOST_END" up
    inside ip addr add "$CABLE_NODE/30" dev "$NODE_END"
    inside ip link set "$NODE_END" up
  fi
  for range in "$NODE_ADDRESS/32" "$POD_RANGE" "$SERVICE_RANGE"; do
    ip route replace blackhole "$range" metric 4000
    ip route replace "$range" via "$CABLE_NODE" dev "$HOST_END" src "$CABLE_HOST"
  done
  inside ip addr replace "$NODE_ADDRESS/32" dev lo
  # Programs that are run by `enter` find the services by name.
  put "$RUN/resolv.conf" <<END
nameserver $DNS_ADDRESS
search default.svc.cluster.local svc.cluster.local cluster.local
options ndots:5 timeout:1 attempts:2
END
}

# The black holes stay: see above.
network_down() {
  [ ! -e "$NETNS" ] || ip netns del "$IDENTITY"
  ! ip link show "$HOST_END" >/dev/null 2>&1 || ip link del "$HOST_END"
}
