# The network: a namespace for the control plane with a bridge, one for each node on that bridge, and a veth to the machine.
# Every step may be done twice. Pod networks are 10.244.N.0/24, Services 10.96.0.0/24.
# shellcheck shell=bash

CP=drover-cp
HOST_LINK=drover-host
node_ns() { echo "drover-$1"; }

# After a reboot of the machine the name can be there with no namespace behind it.
ensure_ns() { # NAMESPACE
  if [ -e "/run/netns/$1" ]; then
    [ "$(stat -f -c %T "/run/netns/$1")" = nsfs ] && return 0
    rm -f "/run/netns/$1"
  fi
  ip netns add "$1"
  ip -n "$1" link set lo up
  ip netns exec "$1" sysctl -qw net.ipv4.ip_forward=1
}
delete_ns() { # NAMESPACE
  [ -e "/run/netns/$1" ] || return 0
  ip netns del "$1" 2>/dev/null || rm -f "/run/netns/$1"
}
has_link() { ip ${2:+-n "$2"} link show "$1" >/dev/null 2>&1; } # LINK [NAMESPACE]

net_up() {
  # ip makes /run/netns a mount of its own when it first needs it
  mountpoint -q /run/netns || touch "$RUN/netns-mount"
  ensure_ns "$CP"
  has_link br0 "$CP" || ip -n "$CP" link add br0 type bridge
  ip -n "$CP" addr replace "$CP_ADDRESS/24" dev br0
  ip -n "$CP" link set br0 up
  has_link "$HOST_LINK" || ip link add "$HOST_LINK" type veth peer name host netns "$CP"
  ip addr replace 10.88.0.254/24 dev "$HOST_LINK"
  ip link set "$HOST_LINK" up
  ip -n "$CP" link set host master br0 up
  ip route replace 10.244.0.0/16 via "$CP_ADDRESS"
  ip route replace 10.96.0.0/24 via "$(node_address n1)"
  # CRIU's page pipes are bigger than the default allows, and it does not notice the refusal
  if [ ! -e "$RUN/pipe-max-size" ]; then
    cat /proc/sys/fs/pipe-max-size >"$RUN/pipe-max-size"
    sysctl -qw fs.pipe-max-size=67108864
  fi
}

net_node_up() { # NODE
  local ns other
  ns=$(node_ns "$1")
  ensure_ns "$ns"
  has_link eth0 "$ns" || ip link add eth0 netns "$ns" type veth peer name "$1" netns "$CP"
  ip -n "$ns" addr replace "$(node_address "$1")/24" dev eth0
  ip -n "$ns" link set eth0 up
  ip -n "$CP" link set "$1" master br0 up
  ip -n "$ns" route replace default via "$CP_ADDRESS"
  ip -n "$CP" route replace "10.244.${1#n}.0/24" via "$(node_address "$1")"
  for other in "${NODE_NAMES[@]}"; do
    [ "$other" = "$1" ] || ip -n "$ns" route replace "10.244.${other#n}.0/24" via "$(node_address "$other")"
  done
}

# The namespace goes at once only without its link: the kernel takes links down some time after the last process.
net_node_down() { # NODE
  ! has_link "$1" "$CP" || ip -n "$CP" link del "$1"
  delete_ns "$(node_ns "$1")"
}

rmdir_netns() { [ -z "$(ls /run/netns)" ] && umount /run/netns && rmdir /run/netns; }

net_down() {
  local node
  for node in "${NODE_NAMES[@]}"; do net_node_down "$node"; done
  ! has_link "$HOST_LINK" || ip link del "$HOST_LINK"
  delete_ns "$CP"
  if [ -e "$RUN/netns-mount" ] && rmdir_netns; then rm -f "$RUN/netns-mount"; fi
  if [ -e "$RUN/pipe-max-size" ]; then
    sysctl -qw fs.pipe-max-size="$(cat "$RUN/pipe-max-size")"
    rm -f "$RUN/pipe-max-size"
  fi
}

# The bridge's end of the node's link is what goes down: the node keeps its addresses and routes, as when a switch fails.
net_cut() { ip -n "$CP" link set "$1" down; }
net_heal() { ip -n "$CP" link set "$1" up; }
net_is_cut() { ! ip -n "$CP" -o link show "$1" up 2>/dev/null | grep -q .; }
