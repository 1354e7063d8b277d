# Faults on purpose: daemons, parts, nodes and links that stop, and their return.
# shellcheck shell=bash

want_daemon() {
  local daemon
  for daemon in "${NODE_DAEMONS[@]}"; do [ "$daemon" = "${1:-}" ] && return 0; done
  die "'${1:-}' is not a daemon of a node. Daemons: ${NODE_DAEMONS[*]}"
}
daemon_pid() { (node_exec "$1" cat "/run/lab/$2.pid"); } # NODE DAEMON, as the node counts
daemon_is_new() { [ "$(daemon_pid "$1" "$2")" != "$3" ] && daemon_ready "$1" "$2"; }

# SIGTERM, or SIGKILL; the node starts it again by itself. A restart is over when it serves again.
daemon_restart() { # NODE DAEMON
  local old
  want_node "${1:-}"
  want_daemon "${2:-}"
  old=$(daemon_pid "$1" "$2")
  daemon_signal "$1" "$2" TERM
  wait_until 60 daemon_is_new "$1" "$2" "$old" || die "$2 on $1 does not come back; see: e2e/lab logs $1-$2"
}
daemon_kill() { # NODE DAEMON
  want_node "${1:-}"
  want_daemon "${2:-}"
  daemon_signal "$1" "$2" KILL
}

# PART is one of the control plane, or NODE-DAEMON.
stop_named_part() { # PART
  local node=${1%%-*} daemon=${1#*-}
  if is_part "${1:-}"; then
    end_process "$1"
  elif is_node "$node" && [ "$daemon" != "$1" ]; then
    want_daemon "$daemon"
    (node_exec "$node" touch "/run/lab/$daemon.stopped")
    daemon_signal "$node" "$daemon" TERM || true # not running: as asked
    wait_until 30 daemon_is_dead "$node" "$daemon" || die "$daemon on $node does not stop"
  else
    no_such_part "${1:-}"
  fi
}
start_named_part() { # PART
  local node=${1%%-*} daemon=${1#*-}
  if is_part "${1:-}"; then
    start_part "$1"
    wait_part "$1"
  elif is_node "$node" && [ "$daemon" != "$1" ]; then
    want_daemon "$daemon"
    (node_exec "$node" rm -f "/run/lab/$daemon.stopped")
    wait_until 60 daemon_ready "$node" "$daemon" || die "$daemon on $node does not come up; see: e2e/lab logs $1"
  else
    no_such_part "${1:-}"
  fi
}
daemon_is_dead() { ! daemon_alive "$1" "$2"; }
no_such_part() { die "'$1' is not a part. Parts: ${CONTROL_PLANE[*]} kafka and NODE-DAEMON, as n1-kubelet"; }

power_off() { # NODE
  want_node "${1:-}"
  node_clear "$1"
}
power_on() { # NODE
  want_node "${1:-}"
  node_start "$1"
  node_wait "$1"
}

show_log() { # PART [TAIL OPTIONS]
  local part=${1:-PART}
  [ -e "$LOG/$part.log" ] ||
    die "there is no log '$part'. Logs: $(cd "$LOG" 2>/dev/null && printf '%s ' ./*.log | sed 's|\./||g; s|\.log||g')"
  shift
  if [ $# = 0 ]; then cat "$LOG/$part.log"; else tail "$@" "$LOG/$part.log"; fi
}
