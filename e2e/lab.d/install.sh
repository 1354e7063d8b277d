#!/bin/bash
# Installs Drover on the lab (`e2e/lab install`) and removes it (`e2e/lab uninstall`). Running it again changes only what has changed: the
# images' tags are made of their content, containerd is restarted only for a configuration that it has not read.
#
# LANE=runtime has pods move in the runtime lane where nothing else is asked for (image, as in values-lab.yaml).
# PREBUILT=DIR takes drover, drover-gate and drover-runc from there instead of building them. PROFILE=release builds them as `make docker-build` does.
set -euo pipefail
shopt -s inherit_errexit # else a failure inside $(…) goes unnoticed
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LAB=$ROOT/e2e/lab
NODES=(n1 n2)
NAMESPACE="drover-system"
RELEASE=drover
# Seconds for pods, and then for node profiles; a cold pull of both images takes about 10
PATIENCE=120
# Whether the nodes keep their gate
GATED=true

say() { printf 'install: %s\n' "$*" >&2; }
die() {
  printf 'install: error: %s\n' "$*" >&2
  exit 1
}

# Sets DROVER, GATE and RUNTIME.
programs() {
  local path paths
  if [ -n "${PREBUILT:-}" ]; then
    DROVER=$PREBUILT/drover GATE=$PREBUILT/drover-gate RUNTIME=$PREBUILT/drover-runc
  else
    say "building drover, drover-gate and drover-runc"
    paths=$(PROFILE=${PROFILE:-dev} "$ROOT/.build/binaries")
    DROVER=$(sed -n 1p <<<"$paths") GATE=$(sed -n 2p <<<"$paths") RUNTIME=$(sed -n 3p <<<"$paths")
  fi
  for path in "$DROVER" "$GATE" "$RUNTIME"; do [ -x "$path" ] || die "there is no program $path"; done
}

# Pushes an image under a tag made of its content, and prints repository and tag.
image() { # KIND NAME FILE…
  local kind=$1 name=$2 tar digest tag
  shift 2
  tar=$WORK/$name.tar
  digest=$("$ROOT/.build/image" "$kind" "$tar" "$@" | tail -n 1)
  tag=${digest#sha256:}
  tag=${tag:0:12}
  "$LAB" push "$name:$tag" "$tar" | tail -n 1
}

copy_to() { # NODE FILE PATH: only where it differs; by rename, for the old one may be running
  local sum
  sum=$(sha256sum <"$2")
  # shellcheck disable=SC2016 # the node's shell expands it
  "$LAB" exec "$1" sh -c '[ -e "$0" ] && [ "$(sha256sum <"$0")" = "$1" ]' "$3" "$sum" </dev/null ||
    "$LAB" exec "$1" sh -c 'cat >"$0.new" && chmod 755 "$0.new" && mv "$0.new" "$0"' "$3" <"$2"
}

# The node's part: the gate, the runtime, containerd's and CRIU's settings.
node() { # NODE
  local loaded=/run/lab/drover-containerd.loaded
  copy_to "$1" "$GATE" /usr/local/bin/drover-gate
  copy_to "$1" "$RUNTIME" /usr/local/bin/drover-runc
  copy_to "$1" "$DROVER" /usr/local/bin/drover
  "$LAB" exec "$1" /usr/local/bin/drover node setup --apply </dev/null >"$WORK/$1.setup" 2>&1 || {
    cat "$WORK/$1.setup" >&2
    die "drover node setup failed on $1"
  }
  [ "$GATED" = true ] || "$LAB" exec "$1" /usr/local/bin/drover node remove --apply </dev/null >>"$WORK/$1.setup" 2>&1 || {
    cat "$WORK/$1.setup" >&2
    die "drover node remove failed on $1"
  }
  if [ "$("$LAB" exec "$1" cat "$loaded" </dev/null 2>/dev/null)" != "$(settings "$1")" ]; then
    say "$1: restarting containerd, which has new settings"
    "$LAB" restart "$1" containerd </dev/null
    # shellcheck disable=SC2016
    "$LAB" exec "$1" sh -c 'echo "$1" >"$0"' "$loaded" "$(settings "$1")" </dev/null
  fi
}

# The settings, and the containerd that has read them: whoever restarted it in between may have had others. The mark lies in memory: after a
# reboot containerd has read its configuration anyway, and once too often does no harm.
settings() { # NODE
  "$LAB" exec "$1" sh -c 'find /etc/containerd -type f | sort | xargs sha256sum | sha256sum; cat /run/lab/containerd.pid' </dev/null
}

profiles_ready() {
  local node
  for node in "${NODES[@]}"; do
    [ "$("$LAB" kubectl get nodeprofile "$node" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.gate.installed}' 2>/dev/null)" = "True $GATED" ] || return 1
  done
}

# The chart's sample, with what it leaves open; where the extender is switched off, there is none.
scheduler() {
  local sample ca address
  sample=$("$LAB" kubectl -n "$NAMESPACE" get configmap drover-kube-scheduler --ignore-not-found -o 'jsonpath={.data.config\.yaml}')
  if [ -z "$sample" ]; then
    "$LAB" scheduler-config default
    return
  fi
  ca=$("$LAB" kubectl -n "$NAMESPACE" get secret drover-ca -o 'jsonpath={.data.tls\.crt}')
  address=$("$LAB" kubectl get node "${NODES[0]}" -o 'jsonpath={.status.addresses[?(@.type=="InternalIP")].address}')
  sed "/^#/d; s|NODE_ADDRESS|$address|; s|CA_DATA|$ca|" <<<"$sample" >"$WORK/scheduler.yaml"
  "$LAB" scheduler-config "$WORK/scheduler.yaml"
}

explain() {
  {
    "$LAB" kubectl get pods,nodeprofiles -A -o wide
    "$LAB" kubectl -n "$NAMESPACE" get events --sort-by=.lastTimestamp | tail -n 20
    "$LAB" kubectl -n "$NAMESPACE" logs -l app.kubernetes.io/name=drover --all-containers --prefix --tail=30
  } >&2 || true
}

install() { # [--with kafka] [--without-gate] [HELM ARGUMENTS]
  local drover registry end values=()
  if [ "${1:-}" = --with ]; then
    [ "${2:-}" = kafka ] || die "usage: e2e/lab install --with kafka [HELM ARGUMENTS]"
    shift 2
    values=(--values "$ROOT/e2e/values-kafka.yaml")
  fi
  if [ "${1:-}" = --without-gate ]; then
    GATED=false
    shift
  fi
  "$LAB" status >/dev/null 2>&1 || die "the lab does not run; start it: e2e/lab up"
  [ ${#values[@]} = 0 ] || "$LAB" kafka-secrets "$NAMESPACE"
  programs
  drover=$(image drover drover "$DROVER" "$GATE" "$RUNTIME")
  registry=$(image registry distribution "$("$LAB" cached registry)")
  for node in "${NODES[@]}"; do node "$node"; done
  say "installing the chart with $drover"
  "$LAB" helm upgrade --install "$RELEASE" "$ROOT/charts/drover" --namespace "$NAMESPACE" --create-namespace --take-ownership \
    --values "$ROOT/e2e/values-lab.yaml" "${values[@]}" --set "image.repository=${drover%:*},registry.image=$registry" --set-string "image.tag=${drover##*:}" \
    ${LANE:+--set "lane=$LANE"} "$@" >"$WORK/helm.log" 2>&1 || {
    cat "$WORK/helm.log" >&2
    die "helm could not install the chart"
  }
  for workload in deployment/drover-manager daemonset/drover-agent; do
    "$LAB" kubectl -n "$NAMESPACE" rollout status "$workload" --timeout="${PATIENCE}s" >&2 || {
      explain
      die "$workload does not get ready within $PATIENCE s; what it said is above"
    }
  done
  end=$((SECONDS + PATIENCE))
  until profiles_ready; do
    [ "$SECONDS" -lt "$end" ] || {
      explain
      die "the node profiles do not get Ready within $PATIENCE s; see: e2e/lab kubectl describe nodeprofiles"
    }
    sleep 0.3
  done
  scheduler
  say "Drover is ready"
}

# The nodes' settings stay, as they would on a real node: pods that have moved need them.
uninstall() {
  "$LAB" scheduler-config default
  "$LAB" helm uninstall "$RELEASE" --namespace "$NAMESPACE" --ignore-not-found --wait --timeout "${PATIENCE}s"
  "$LAB" kubectl delete namespace "$NAMESPACE" --ignore-not-found --timeout="${PATIENCE}s"
  "$LAB" kubectl delete nodeprofiles --all --ignore-not-found 2>/dev/null || true # no CRD, no profiles
}

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
verb=${1:-}
[ $# = 0 ] || shift
case $verb in
install | uninstall) "$verb" "$@" ;;
*) die "usage: e2e/lab install [--with kafka] [HELM ARGUMENTS] | uninstall" ;;
esac
