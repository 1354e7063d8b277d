# What every part of the lab shares: where things are, how to speak, how to run one thing at a time, and processes that are
# known by their pid and start time. Sourced by e2e/lab; not run by itself.
# shellcheck shell=bash disable=SC2034 # the variables are for the other parts

E2E=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PARTS=$E2E/lab.d
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/drover
BUILT=$CACHE/built
LAB=$CACHE/lab # one lab a machine, whichever clone started it
RUN=$LAB/run LOG=$LAB/log PKI=$LAB/pki NODES=$LAB/nodes BIN=$LAB/bin SHARED=$LAB/shared
NODE_NAMES=(n1 n2)
CP_ADDRESS=10.88.0.1
REGISTRY_ADDRESS=$CP_ADDRESS:5000
# shellcheck source-path=SCRIPTDIR source=versions.env
. "$PARTS/versions.env"

say() { printf 'lab: %s\n' "$*" >&2; }
die() {
  printf 'lab: error: %s\n' "$*" >&2
  exit 1
}

# Waits until the command succeeds; 0.1 s between tries.
wait_until() { # SECONDS COMMAND…
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

# One changing command at a time on the machine, whatever its clone and cache; the namespaces and addresses are the same for
# all. Descriptor 9 must be closed in everything that outlives this command.
OWNER=/run/drover-lab
lock() {
  local owner
  exec 9>/run/drover-lab.lock
  if ! flock -n 9; then
    say "another lab command runs; waiting for it (at most 20 min)"
    flock -w 1200 9 || die "the other lab command still runs; it is in: lslocks | grep drover-lab"
  fi
  owner=$(cat "$OWNER" 2>/dev/null) || return 0
  [ "$owner" = "$LAB" ] || [ ! -d "$owner/run" ] || [ "$(cat "$owner/boot" 2>/dev/null)" != "$(cat /proc/sys/kernel/random/boot_id)" ] ||
    die "a lab with another cache runs on this machine; end it with: XDG_CACHE_HOME=${owner%/drover/lab} e2e/lab down"
}

is_node() {
  local n
  for n in "${NODE_NAMES[@]}"; do [ "$n" = "$1" ] && return 0; done
  return 1
}
want_node() { is_node "${1:-}" || die "'${1:-}' is not a node. Nodes: ${NODE_NAMES[*]}"; }
node_address() { echo "10.88.0.1${1#n}"; }

# A process is known by its pid and its start time, since a pid alone can belong to someone else by now.
start_time() { # PID: clock ticks since boot; nothing if it is gone or a zombie
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  [ "${stat:0:1}" != Z ] || return 1
  cut -d' ' -f20 <<<"$stat"
}
remember() { # NAME PID
  local started
  started=$(start_time "$2") || return 1
  echo "$2 $started" >"$RUN/$1.pid"
}
# What the caller has open is not for those that outlive it: with a lock of the caller's they would hold it for as long as they live.
close_inherited() {
  local descriptor
  for descriptor in /proc/"$BASHPID"/fd/*; do
    descriptor=${descriptor##*/}
    [ "$descriptor" -le 2 ] || eval "exec $descriptor>&-"
  done
}
in_background() { # NAME COMMAND…: remembered from its first moment, with its output in the log; the command must exec
  local name=$1
  shift
  (
    close_inherited
    remember "$name" "$BASHPID"
    "$@"
  ) >>"$LOG/$name.log" 2>&1 </dev/null 9>&- &
}
pid_of() { # NAME: its pid, if that very process still runs
  local pid started
  read -r pid started 2>/dev/null <"$RUN/$1.pid" || return 1
  [ "$(start_time "$pid")" = "$started" ] || return 1
  echo "$pid"
}
end_process() { # NAME [SIGNAL]: ends it and waits until it is gone
  local pid signal=${2:-TERM}
  pid=$(pid_of "$1") || {
    rm -f "$RUN/$1.pid"
    return 0
  }
  kill "-$signal" "$pid" 2>/dev/null || true
  wait_until 3 is_gone "$1" || kill -KILL "$pid" 2>/dev/null || true
  wait_until 5 is_gone "$1" || die "process $pid ($1) does not end, even by SIGKILL; look at /proc/$pid/stack"
  rm -f "$RUN/$1.pid"
}
is_gone() { ! pid_of "$1"; }
