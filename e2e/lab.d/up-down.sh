# The lab as a whole.
# shellcheck shell=bash

# A machine that was rebooted has none of our processes, and etcd runs without fsync: what it left is not trusted.
forget_former_boot() {
  local boot
  boot=$(cat /proc/sys/kernel/random/boot_id)
  if [ -e "$LAB/boot" ] && [ "$(cat "$LAB/boot")" != "$boot" ]; then
    say "the machine was rebooted since the last run; beginning with a new cluster"
    rm -rf "$RUN" # its pids are others' now
    down
  fi
  mkdir -p "$RUN" "$LOG" "$NODES" "$BIN" "$SHARED"
  [ -e "$LAB/boot" ] || find "$LOG" -name '*.log' ! -name 'build-*' -delete
  echo "$boot" >"$LAB/boot"
  echo "$LAB" >"$OWNER"
}

link_programs() {
  local name
  for name in kube etcd registry coredns helm containerd containerd-shim-runc-v2 ctr; do
    [ "$(cached "$name")" -ef "$BIN/$name" ] && continue
    ln -f "$(cached "$name")" "$BIN/$name"
    ! pid_of etcd >/dev/null || say "$name is another build now; what runs uses the former one until e2e/lab down"
  done
  mkdir -p "$BIN/n2"
  for name in containerd containerd-shim-runc-v2 ctr; do
    if [ -n "$CONTAINERD_N2" ]; then ln -f "$(of_n2 cached "$name")" "$BIN/n2/$name"; else rm -f "$BIN/n2/$name"; fi
  done
}

up() { # [--with kafka]
  local begin=$SECONDS node kafka=
  case "$*" in
  '') ;;
  '--with kafka') kafka=1 ;;
  *) die "usage: e2e/lab up [--with kafka]" ;;
  esac
  mkdir -p "$LOG"
  check_host
  install_run_packages
  forget_former_boot
  build_all
  link_programs
  pki_up
  net_up
  control_plane_up
  for node in "${NODE_NAMES[@]}"; do
    node_start "$node"
    net_heal "$node"
    (node_exec "$node" sh -c 'rm -f /run/lab/*.stopped')
  done
  images_up
  control_plane_finish
  control_plane_wait
  for node in "${NODE_NAMES[@]}"; do node_wait "$node"; done
  # What was asked for once stays until down
  [ -z "$kafka" ] && [ ! -d "$KAFKA_DATA" ] || kafka_up
  say "up in $((SECONDS - begin)) s. export KUBECONFIG=$PKI/admin.kubeconfig"
}

# Ends everything and forgets the cluster. Certificates, logs and what was built stay.
down() {
  local node part
  mkdir -p "$RUN"
  for node in "${NODE_NAMES[@]}"; do node_clear "$node"; done
  kafka_down
  for part in coredns scheduler kcm apiserver etcd registry; do end_process "$part" KILL; done
  [ ! -e "/run/netns/$CP" ] || kill_all_in "$CP"
  net_down
  rm -rf --one-file-system "$NODES" "$RUN" "$LAB/etcd" "$LAB/registry"
  rm -f "$LAB/scheduler.yaml" "$LAB/boot" "$OWNER"
}

# Also what a test started beside the control plane.
kill_all_in() { # NAMESPACE
  local pid
  for pid in $(ip netns pids "$1" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
}

# One line a part. Fails unless all is well.
status() {
  local part node daemon state bad=0 parts=("${CONTROL_PLANE[@]}")
  line() { # NAME PID STATE
    printf '%-16s %-8s %s\n' "$1" "$2" "$3"
    case $3 in ready) ;; *) bad=1 ;; esac
  }
  [ ! -d "$KAFKA_DATA" ] || parts+=(kafka)
  for part in "${parts[@]}"; do
    if part_ready "$part"; then state=ready; elif pid_of "$part" >/dev/null; then state='not ready'; else state=dead; fi
    line "$part" "$(pid_of "$part" || echo -)" "$state"
  done
  for node in "${NODE_NAMES[@]}"; do
    if ! pid_of "$node" >/dev/null; then
      line "$node" - 'powered off'
      continue
    fi
    if net_is_cut "$node"; then state='network cut'; elif node_is_ready "$node"; then state=ready; else state='not Ready'; fi
    line "$node" "$(pid_of "$node")" "$state"
    for daemon in "${NODE_DAEMONS[@]}"; do
      if daemon_ready "$node" "$daemon"; then state=ready; elif daemon_alive "$node" "$daemon"; then state='not ready'; else state=dead; fi
      line "$node-$daemon" "$( (node_exec "$node" cat "/run/lab/$daemon.pid") 2>/dev/null || echo -)" "$state"
    done
  done
  [ "$bad" = 0 ] || say "not all is well; e2e/lab up starts what is missing, e2e/lab logs PART shows why"
  return "$bad"
}
